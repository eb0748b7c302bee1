"""Which learner suits data that is part expert, part random, and does the dataset doctor name it?

    python benchmarks/expert_fraction.py --device cuda --workers 16
    python benchmarks/expert_fraction.py --tasks hopper --table    what has been measured so far

Per task five datasets of 100k transitions, 0, 10, 50, 90 and 100 % of them an expert's and the rest uniformly random
actions; BC, BC on the best tenth and on all episodes near the best, IQL and LCB with three stacked seeds each; mean
return of 20 episodes per seed of the last policy. What a learner reaches is counted from the return of random actions,
so that "within 10 %" means the same on every task, and is held against the best of the five.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from common import Claim, arguments, report, table
from offline_cells import QUICK, SEEDS, SIZES, Plan, cell_path, measure
from offline_data import EXPERTS, FRACTIONS, dataset
from offline_workers import spread

from robot_cl.data.doctor import recommend
from robot_cl.data.reference import find_reference

# Rows of the table -> names of learners as they are recommended.
LEARNERS = {"bc": "bc", "10 % bc": "percent_bc share=0.1", "near-best bc": "percent_bc", "iql": "iql", "lcb": "lcb"}


def reached(plan: Plan, name: str) -> dict[str, float]:
    """Learner -> mean return, of what has been measured."""
    paths = {learner: cell_path(plan, name, learner) for learner in LEARNERS}
    means = {m: float(np.mean(json.loads(path.read_text())["returns"])) for m, path in paths.items() if path.exists()}
    return {LEARNERS[m]: mean for m, mean in means.items()}


def share_of_best(returns: dict[str, float], chosen: str, low: float) -> float:
    """What the chosen learner gains over random actions, of what the best one does."""
    best = max(returns.values())
    return (returns[chosen] - low) / max(best - low, 1e-9)


def main() -> None:
    flags: list[tuple[str, dict[str, Any]]] = [
        ("--tasks", {"default": ",".join(EXPERTS)}),
        ("--percent", {"default": ",".join(map(str, FRACTIONS)), "help": "of the data that is the expert's"}),
        ("--table", {"action": "store_true", "help": "measure nothing, print what is there"}),
        ("--sizes", {"default": "sweep", "choices": list(SIZES)}),
        ("--seeds", {"type": int, "default": SEEDS, "help": "stacked, of every cell"}),
        ("--device", {"default": "cpu", "choices": ["cpu", "cuda"]}),
        ("--workers", {"type": int, "default": 1, "help": "processes at once, one cell each"}),
        ("--minutes", {"type": float, "default": 1e9, "help": "with workers: begin no cell after these"}),
    ]
    args = arguments(__doc__ or "", flags)
    torch.set_num_threads(1)
    plan = QUICK if args.quick else Plan(args.sizes, args.seeds, device=args.device)
    percents = [int(text) for text in args.percent.split(",")]
    names = [f"{task}-expert-{percent}" for task in args.tasks.split(",") for percent in percents]
    cells = [(name, learner) for name in names for learner in LEARNERS]
    if not args.table and args.workers > 1:
        spread(cells, plan, args.workers, args.minutes, together=args.device == "cuda")
    elif not args.table:
        for cell in cells:
            measure(plan, *cell)
    rows, claims = [], []
    for name in names:
        found = reached(plan, name)
        if len(found) < len(LEARNERS):
            continue
        task, advice = name.partition("-")[0], recommend(dataset(name, plan.steps))
        reference = find_reference(task)
        assert reference is not None
        share = share_of_best(found, advice.learner, reference.low)
        rows.append((name, *found.values(), advice.learner, share))
        claims.append(Claim(f"{name}: the recommended learner's share of the best one's gain", share, 0.9))
        print(f"{name}: {advice.learner}, because {'; '.join(advice.evidence)}")
    print(table(("dataset", *LEARNERS, "recommended", "its share of the best"), rows))
    report("expert_fraction", claims, args.json, rows)


if __name__ == "__main__":
    main()
