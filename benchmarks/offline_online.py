"""Offline, then online: learners on generated datasets, several seeds in one stacked pass, the last score of each.

    python benchmarks/offline_online.py --quick                    minutes: one small dataset, few updates
    python benchmarks/offline_online.py --only halfcheetah-ppo/bc  one cell of the table
    python benchmarks/offline_online.py --table                    print what has been measured so far
    python benchmarks/offline_online.py --sizes gpu --device cuda --workers 20 --minutes 8

Every (dataset, method) is kept as JSON under runs/benchmarks/offline_online/SIZES, so that the table can be measured in
pieces and taken up again after a kill. With workers each cell is a process of its own, the longest first (on a GPU
cheap offline methods are one for all datasets), and after `--minutes` none is begun. Behaviours come from
../shared/data/behaviours, or the embedded ones where that folder is absent. Scores are 100 (return − low)/(high − low)
of D4RL's reference returns: a scale, not D4RL's data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import Claim, arguments, report, table
from offline_cells import QUICK, SIZES, Plan, cell_path, measure, score
from offline_data import DATASETS, DEVELOPMENT, dataset
from offline_methods import ALL, METHODS
from offline_workers import spread

from robot_cl import stats

Records = dict[str, dict[str, dict[str, Any]]]  # dataset -> method -> record
BY_SEED = ("returns", "scores", "curves", "start", "area")  # lists with one entry per seed

# -- printing ---------------------------------------------------------------------------------------------------------


def kept(plan: Plan) -> Records:
    """Everything measured so far."""
    found: Records = {}
    for name, mixture in DATASETS.items():
        paths = {m: cell_path(plan, home(name, m), m) for m in ALL if mixture.online or not ALL[m].online}
        found[name] = {m: json.loads(p.read_text()) for m, p in paths.items() if p.exists()}
    return found


def pooled(parts: Sequence[Records]) -> Records:
    """The seeds of several passes together; cells that not all of them have, or not to the same step, are left out."""
    if len(parts) == 1:
        return parts[0]
    found: Records = {}
    for name, cells in parts[0].items():
        found[name] = {}
        for method in cells:
            same = [part[name][method] for part in parts if method in part[name]]
            if len(same) == len(parts) and len({str(r.get("steps")) for r in same}) == 1:
                lists = {key: [x for r in same for x in r[key]] for key in BY_SEED if key in same[0]}
                counts = {key: float(np.mean([r[key] for r in same])) for key in ("minutes", "episodes_for_selection")}
                found[name][method] = same[0] | lists | counts
    return found


def home(data_name: str, method_name: str) -> str:
    """The dataset under which a cell is measured: from scratch, the first one of its task."""
    if data_name not in DATASETS:
        return data_name
    task = DATASETS[data_name].task
    first = next(name for name, mixture in DATASETS.items() if mixture.task == task)
    return first if ALL[method_name].from_scratch else data_name


def print_tables(plan: Plan, records: Records) -> None:
    """Offline and online rows of every dataset: mean and bootstrap interval over seeds of the last policy's score."""
    for name, cells in records.items():
        if not cells:
            continue
        meta = dataset(name, plan.steps).meta
        print(f"\n{name}: {meta.steps} transitions, behaviour return {meta.return_mean:.0f} ± {meta.return_std:.0f}")
        offline = [["behaviour", score(str(meta.task), meta.return_mean), "", "", ""]]
        offline += [_row(m, r) for m, r in cells.items() if not ALL[m].online]
        print(table(("offline", "score", "95 % interval", "minutes", "episodes used to select"), offline))
        online = [[*_row(m, r), *_online_columns(r)] for m, r in cells.items() if ALL[m].online]
        if online:
            head = ("online", "last score", "95 % interval", "minutes", "episodes used to select")
            print(table((*head, "start", "deepest dip", "mean over the run"), online))


def _row(name: str, record: dict[str, Any]) -> list[Any]:
    scores = np.array(record["scores"])
    bounds = ""  # of one seed
    if len(scores) > 1:
        interval = stats.stratified_bootstrap(scores, np.random.default_rng(0), stats.mean)
        bounds = f"{interval.low:.1f} to {interval.high:.1f}"
    cut = f" (cut at {record['cut_at']})" if record["cut_at"] else ""
    if not cut and "steps" in record and record["steps"][-1] < Plan.online:
        cut = f" ({record['steps'][-1]} steps)"
    return [name + cut, float(scores.mean()), bounds, record["minutes"], record["episodes_for_selection"]]


def _online_columns(record: dict[str, Any]) -> list[float]:
    return [float(np.mean(record["start"])), float(np.median(dips(record))), float(np.mean(record["area"]))]


def dips(record: dict[str, Any]) -> np.ndarray:
    """How far each seed falls below its start, over the whole run, (P,)."""
    curves = np.array(record["curves"])
    return curves[:, 0] - curves.min(1)


def claims(records: Records) -> list[Claim]:
    """Those of the expectations whose cells have been measured, online for at least a third of their steps."""
    found = []
    for name, cells in records.items():
        mean = {m: float(np.mean(r["scores"])) for m, r in cells.items()}
        if {"bc", "uni_o4"} <= set(cells):
            least = 5.0 if name.startswith("halfcheetah") else -2.0
            found.append(Claim(f"{name}: Uni-O4 offline over BC, points", mean["uni_o4"] - mean["bc"], least))
        for warm in (m for m, r in cells.items() if ALL[m].start and _went_on(r)):
            start = np.array(cells[warm]["start"])
            depth = 100.0 * float(np.median(dips(cells[warm]) / start))
            whose = warm if cells[warm]["cut_at"] is None else f"{warm} ({cells[warm]['steps'][-1]} steps)"
            found.append(Claim(f"{name}: {whose}, deepest dip in % of its start (median)", depth, 15.0, False))
            gain = float(np.mean([curve[-1] - curve[0] for curve in cells[warm]["curves"]]))  # of the same episodes
            found.append(Claim(f"{name}: {whose}, last over start, points", gain, 10.0))
        if {"moorl", "sac + lookahead"} <= set(cells):
            gain, until = ahead(cells["moorl"], cells["sac + lookahead"])
            over = f"MOORL over SAC + Lookahead, mean over the first {until} steps"
            found.append(Claim(f"{name}: {over}, points", gain, 0.0))
    return found


def _went_on(record: dict[str, Any]) -> bool:
    return record["cut_at"] is None or record["steps"][-1] >= Plan.online / 3


def ahead(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, int]:
    """How many points a curve is above another in the mean over seeds and points that both have, and the last of these:
    cells are cut at different steps."""
    both = sorted(set(one["steps"]) & set(other["steps"]))
    means = [np.array(r["curves"])[:, np.isin(r["steps"], both)].mean() for r in (one, other)]
    return float(means[0] - means[1]), both[-1]


def _cell(text: str) -> tuple[str, str]:
    data_name, _, method_name = text.partition("/")
    if data_name not in DATASETS | DEVELOPMENT or method_name not in ALL:
        sys.exit(f"no cell {text}; datasets {', '.join(DATASETS | DEVELOPMENT)}; methods {', '.join(ALL)}")
    return data_name, method_name


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--only", {"help": "cells to measure, e.g. 'halfcheetah-ppo/bc;hopper-mixture/uni_o4'"}),
            ("--table", {"action": "store_true", "help": "measure nothing, print what is there"}),
            ("--sizes", {"default": "small", "choices": list(SIZES), "help": "of networks and updates"}),
            ("--online", {"type": int, "default": Plan.online, "help": "environment steps per seed"}),
            ("--seeds", {"type": int, "default": Plan.seeds, "help": "in one stacked pass"}),
            ("--first-seed", {"default": "0", "help": "of these; several, as 3,6: a pass each, and one table of all"}),
            ("--device", {"default": "cpu", "choices": ["cpu", "cuda"]}),
            ("--workers", {"type": int, "default": 1, "help": "processes at once, one cell each"}),
            ("--minutes", {"type": float, "default": 1e9, "help": "with workers: begin no cell after these"}),
        ],
    )
    torch.set_num_threads(1)
    plan = replace(QUICK if args.quick else Plan(args.sizes, args.seeds, online=args.online), device=args.device)
    if args.device == "cuda":
        plan.checkpoint = 10_000  # what is cut is saved as it is
    cells = [(d, m) for d in DATASETS for m in METHODS if home(d, m) == d]
    cells = [(d, m) for d, m in cells if DATASETS[d].online or not (METHODS[m].online or m == "cal_ql")]
    if args.quick:
        cells = [cell for cell in cells if cell[0] == "halfcheetah-ppo"]
    if args.only:
        cells = [_cell(text) for text in args.only.split(";")]
    if args.table:
        cells = []
    plans = [replace(plan, first_seed=int(first)) for first in args.first_seed.split(",")]
    for one in plans:
        if args.workers > 1:
            spread(cells, one, args.workers, args.minutes, together=args.device == "cuda")
            continue
        for data_name, method_name in cells:
            measure(one, data_name, method_name)
    records = pooled([kept(one) for one in plans])
    print_tables(plan, records)
    report("offline_online", claims(records), args.json, records)


if __name__ == "__main__":
    main()
