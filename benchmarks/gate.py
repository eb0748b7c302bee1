"""How often the release gate is right: a policy made worse on one task by 10 % refused, an equal one passed.

    python benchmarks/gate.py [--quick] [--json] [--trials 200]

Real episodes of the best embedded behaviour under three shifts are the pool each trial draws from. An equal candidate
plays other episodes of the same policy (no pairing helps it); a worse one the same, with one task's returns lowered by
10 % of that task's mean. Each trial has as many episodes as the gate asks for when shown the first 40 of each side, and
asked again with those until it asks for no more: rare falls are not among the first 40. The rows with 20 episodes show
what it does with too few: it refuses an equal policy rather than pass a worse one.
"""

from __future__ import annotations

import common
import numpy as np

from robot_cl import stats
from robot_cl.at_once import AtOnce
from robot_cl.checkpoint import load_policy
from robot_cl.continual.promotion import paired_returns
from robot_cl.continual.release_gate import GateConfig, judge
from robot_cl.data.behaviours import list_behaviours

SHIFTS = ("", ":gravity0.8", ":friction0.7")
WORSE, FEW, FIRST = 0.10, 20, 40


def pool(task: str, episodes: int) -> dict[str, np.ndarray]:
    """Returns of the best embedded behaviour of a task under each shift, `episodes` each."""
    cards = {name: card for name, card in list_behaviours().items() if card.task == task}
    best = max(cards, key=lambda name: cards[name].mean_return or 0.0)
    return paired_returns(AtOnce(load_policy(best)), [task + shift for shift in SHIFTS], episodes, seed=50_000)


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


def asked_for(found: dict[str, np.ndarray], rng: np.random.Generator) -> int:
    """Episodes per side that the gate is content with, as far as the pool reaches."""
    most, shown = len(next(iter(found.values()))) // 2, FIRST
    while shown < most:
        asked = min(most, trial(found, shown, False, rng)[1])
        if asked <= shown:
            break
        shown = asked
    return shown


def main() -> None:
    args = common.arguments(__doc__ or "", [("--trials", {"type": int, "default": 200})])
    trials, size = (50, 160) if args.quick else (args.trials, 400)
    rows, found = [], {}
    for task in ("halfcheetah", "hopper"):
        returns, rng = pool(task, size), np.random.default_rng(0)
        spread = max(float(r.std() / abs(r.mean())) for r in returns.values())
        asked = asked_for(returns, rng)
        for episodes in (asked, FEW):
            for kind, worse in (("equal", False), ("10 % worse on one task", True)):
                right = sum(trial(returns, episodes, worse, rng)[0] != worse for _ in range(trials))
                rate = stats.wilson(right, trials)
                found[task, episodes == asked, worse] = rate.estimate
                ends = f"{rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
                rows.append((task, f"{spread:.2f}", episodes, kind, ends))
    print(common.table(("task", "largest spread", "episodes", "candidate", "right [95 %]"), rows))
    claims = []
    for task in ("halfcheetah", "hopper"):
        refused, passed = found[task, True, True], found[task, True, False]
        claims.append(common.Claim(f"{task}: worse by 10 % on one task is refused ({trials} trials)", refused, 0.95))
        claims.append(common.Claim(f"{task}: an equal policy passes ({trials} trials)", passed, 0.90))
    guarded = found["halfcheetah", False, True]
    claims.append(common.Claim(f"halfcheetah, {FEW} episodes: worse is refused", guarded, 0.95))
    common.report("gate", claims, args.json, {"rows": rows})


if __name__ == "__main__":
    main()
