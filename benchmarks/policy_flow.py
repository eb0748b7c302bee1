"""What an action flow is worth around a trained policy, on changes of its robot that nobody trained on.

    python benchmarks/policy_flow.py [--quick] [--json]

As `robot-cl adapt` does it: model and flow from simulation, and the setting in which the flow acts chosen by playing
it. Measured in unchanged worlds and in changed ones drawn anew, with the same starts for the policy alone, with its
flow as it was chosen, and with one that acts at the first surprise and as far as it wants, as all did before.
"""

from __future__ import annotations

import numpy as np
import torch
from common import Claim, arguments, report, table

from dynamics.reshaped import ReshapeConfig
from policies.policy import Policy
from robot_cl import stats
from robot_cl.adapt.task import TaskConfig, TaskLearned, family, learn_for
from robot_cl.evaluate import evaluate, load
from sim.shift import Shift

SEEDS = (3, 4, 5)  # how sure a setting has to be was decided on 0 to 2
# policy, its task, changes
CASES = (
    ("halfcheetah-medium", "halfcheetah", ("gain",)),
    ("hopper-medium", "hopper", ("gain", "friction")),
)


def ways(policy: Policy, learned: TaskLearned) -> dict[str, Policy]:
    """The policy alone and with its flow, by name."""
    always = ReshapeConfig(trigger=learned.card["tried"][0]["trigger"])
    return {"alone": policy, "flow, chosen": learned.wrap(policy), "flow, always": learned.wrap(policy, always)}


def measure(name: str, task: str, config: TaskConfig, seed: int, worlds: int) -> tuple[dict, dict[str, np.ndarray]]:
    """The card of what was learned, and returns (2, worlds) of each way: unchanged, and changed."""
    policy = load(name)
    learned = learn_for(policy, task, config, seed)
    shifts = family(task, config.changes, worlds, np.random.default_rng([seed, 1]))
    both = [Shift()] * worlds + shifts
    found = {
        way: np.array(evaluate(one, task, 2 * worlds, shift=both, worlds=2 * worlds).returns).reshape(2, worlds)
        for way, one in ways(policy, learned).items()
    }
    return learned.card, found


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)
    seeds, worlds = (SEEDS[:1], 8) if args.quick else (SEEDS, 32)
    claims, rows = [], []
    for name, task, changes in CASES:
        config = TaskConfig(changes, **({"worlds": 64, "flow_updates": 1000, "trials": 8} if args.quick else {}))
        returns: dict[str, list[np.ndarray]] = {}
        for seed in seeds:
            card, found = measure(name, task, config, seed, worlds)
            for way, got in found.items():
                returns.setdefault(way, []).append(got)
            told = [f"{way} {got[0].mean():.0f} / {got[1].mean():.0f}" for way, got in found.items()]
            setting = "stays out of the way" if card["trigger"] is None else f"{card['trigger']:.1f}, {card['trust']:g}"
            print(f"{name}, seed {seed}: {'; '.join(told)}; trigger and trust: {setting}", flush=True)
        alone = np.stack(returns["alone"])  # (seeds, 2, worlds)
        for way, parts in returns.items():
            got = np.stack(parts)
            gain = (got - alone).mean(2)  # (seeds, 2)
            bounds = stats.stratified_bootstrap((got - alone)[:, 1].ravel(), np.random.default_rng(0), stats.mean)
            rows.append(
                [name, ", ".join(changes), way, float(got[:, 0].mean()), float(got[:, 1].mean()),
                 f"{gain[:, 1].mean():.0f} [{bounds.low:.0f}, {bounds.high:.0f}]"]
            )  # fmt: skip
        chosen = np.stack(returns["flow, chosen"])
        kept, changed = (float(chosen[:, k].mean() / alone[:, k].mean()) for k in (0, 1))
        claims += [
            Claim(f"{name}: return in unchanged worlds, with its flow / alone", kept, 0.98),
            Claim(f"{name}: return in changed worlds, with its flow / alone", changed, 1.0),
        ]
    head = ("policy", "changes", "way", "unchanged", "changed", "gain in changed worlds [95 %, over worlds]")
    print(table(head, rows))
    report("policy_flow", claims, args.json)


if __name__ == "__main__":
    main()
