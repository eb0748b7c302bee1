"""How often the release gate is right: a policy made worse on one task by 10 % refused, an equal one passed.

    python benchmarks/gate.py [--quick] [--json] [--trials 200] [--episodes 60]

Real episodes of embedded halfcheetah behaviours under three shifts are the pool each trial draws from. An equal
candidate plays other episodes of the same policy (nothing paired helps it); a worse one the same, with one task's
returns lowered by 10 % of that task's mean. A second pair of rows uses hopper, whose returns are bimodal (falls): there
the gate must say that more episodes are needed rather than guess.
"""

from __future__ import annotations

import common
import numpy as np

from robot_cl import stats
from robot_cl.checkpoint import load_policy
from robot_cl.continual.promotion import paired_returns
from robot_cl.continual.release_gate import GateConfig, judge
from robot_cl.data.behaviours import list_behaviours

SHIFTS = ("", ":gravity0.8", ":friction0.7")
WORSE = 0.10


def pool(task: str, episodes: int) -> dict[str, np.ndarray]:
    """Returns of the best embedded behaviour of a task under each shift, `episodes` each."""
    cards = {name: card for name, card in list_behaviours().items() if card.task == task}
    best = max(cards, key=lambda name: cards[name].mean_return or 0.0)
    return paired_returns(load_policy(best), [task + shift for shift in SHIFTS], episodes, seed=50_000)


def trial(found: dict[str, np.ndarray], episodes: int, worse: bool, rng: np.random.Generator) -> tuple[bool, int]:
    """Whether the gate promotes, and the most episodes it says any task would need."""
    old, new = {}, {}
    for task, returns in found.items():
        drawn = rng.permutation(returns)[: 2 * episodes]
        old[task], new[task] = drawn[:episodes], drawn[episodes:].copy()
    if worse:
        task = str(rng.choice(list(found)))
        new[task] -= WORSE * abs(found[task].mean())
    verdict = judge(new, old, GateConfig(), rng)
    return verdict.promoted, max(t.episodes_needed for t in verdict.tasks)


def main() -> None:
    flags = [("--trials", {"type": int, "default": 200}), ("--episodes", {"type": int, "default": 60})]
    args = common.arguments(__doc__ or "", flags)
    trials, size = (50, 200) if args.quick else (args.trials, 400)
    rows, found = [], {}
    for task in ("halfcheetah", "hopper"):
        returns, rng = pool(task, size), np.random.default_rng(0)
        spread = max(float(r.std() / abs(r.mean())) for r in returns.values())
        for kind, worse in (("equal", False), ("10 % worse on one task", True)):
            said = [trial(returns, args.episodes, worse, rng) for _ in range(trials)]
            right = sum(promoted != worse for promoted, _ in said)
            rate, needed = stats.wilson(right, trials), int(np.median([n for _, n in said]))
            found[task, worse] = rate.estimate
            rows.append((task, kind, f"{spread:.2f}", f"{rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}]", needed))
    header = ("task", "candidate", "largest spread", "right [95 %]", "episodes the gate asks for")
    print(common.table(header, rows))
    refused, passed = found["halfcheetah", True], found["halfcheetah", False]
    claims = [
        common.Claim(f"a policy {WORSE:.0%} worse on one task is refused ({trials} trials)", refused, 0.95),
        common.Claim(f"an equal policy passes ({trials} trials)", passed, 0.90),
        common.Claim("bimodal returns: a worse policy is refused", found["hopper", True], 0.95),
    ]
    common.report("gate", claims, args.json, {"rows": rows, "episodes": args.episodes})


if __name__ == "__main__":
    main()
