"""Action flow matching on a vehicle and a quadrotor whose dynamics change in the middle of a mission.

    python benchmarks/action_flow.py --quick                        minutes: one step, and the vehicle on one map
    python benchmarks/action_flow.py --workers 16                   everything that is missing, as parallel processes
    python benchmarks/action_flow.py --only 'vehicle/0/yard/flow'   one cell; patterns as 'vehicle/*/yard/*'
    python benchmarks/action_flow.py --table                        print what has been measured so far

One step: how far an executed action lands from where the nominal model said the planned one would, on a kinematic
vehicle (0.2 s, 1 m/s, π/2 rad/s) under the paper's 11 gain pairs and under coupled changes. Evidence and query are
always drawn apart; a flow whose evidence holds its own query is trained beside, to show the leak, and evidence of
another regime is handed over, to show that it is used.

Missions: MuJoCo robots on maps of 18 and 33 waypoints, changed from 15 % to 80 % of the way. Training families are
random; no test regime was trained on, though the vehicle's and the quadrotor's lie within the ranges of the families.
Every cell, robot/seed/map/method, is kept as JSON under runs/benchmarks/action_flow, and so is what was learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Claim, arguments, report, table
from flow_learning import KEPT, TESTS, material, tests_of
from flow_missions import METHODS, build, mission
from flow_one_step import one_step

from robot_cl import stats
from sim.robots.regimes import UNCHANGED

COPIES = 2  # unchanged robots per cell
FIRST = ("none", "flow", "online", "squares", "oracle", "context")  # methods in the order of interest
COLUMNS = ("fraction", "success", "early", "miss", "steps")
Cells = dict[str, dict[str, Any]]

# -- cells ------------------------------------------------------------------------------------------------------------


def cells(robots: list[str], quick: bool) -> list[str]:
    """Names of all cells, those first that others wait for, then seed by seed."""
    seeds, maps = range(1 if quick else 3), ("yard",) if quick else ("yard", "field")
    learned = [f"{robot}/{seed}/learned" for seed in seeds for robot in reversed(robots)]
    order = [*FIRST, *(m for m in METHODS if m not in FIRST)]
    missions = [
        f"{robot}/{seed}/{map_name}/{method}"
        for seed in seeds for map_name in maps for robot in reversed(robots) for method in order
    ]  # fmt: skip
    return [*learned, "one_step", *missions]


def path_of(cell: str, quick: bool) -> Path:
    return KEPT / ("quick" if quick else "full") / f"{cell.replace('/', '-')}.json"


def measure(cell: str, quick: bool) -> dict[str, Any]:
    """Run one cell."""
    start = time.process_time()
    if cell == "one_step":
        claims, rows = one_step(quick)
        found: dict[str, Any] = {"claims": [asdict(c) for c in claims], "rows": rows}
    elif cell.endswith("/learned"):
        robot, seed, _ = cell.split("/")
        found = {"card": material(robot, int(seed), quick).learned.card}
    else:
        found = flown(*cell.split("/"), quick)
    return {"cell": cell, "seconds": round(time.process_time() - start, 1), **found}


def flown(robot: str, seed: str, map_name: str, method: str, quick: bool) -> dict[str, Any]:
    known, regimes = material(robot, int(seed), quick), [*[UNCHANGED] * COPIES, *tests_of(robot)]
    outcome = mission(known, method, map_name, regimes, int(seed))
    columns = {k: np.asarray(v, dtype=float).round(4).tolist() for k, v in asdict(outcome).items()}
    found = {"regimes": [r.name for r in regimes], **columns}
    return {**found, "ms": one_decision(known)} if method == "flow" and map_name == "yard" else found


def one_decision(known: Any) -> float:
    """Median over 100 decisions of planner and flow together for one robot, in processor time, flow always asked."""
    controller, planner, _ = build("flow", known, np.full(1, -1), 0)
    p, spent, rng = known.learned.robot, [], np.random.default_rng(0)
    planner.goal, pose = np.ones((1, p.goal_dim), dtype=np.float32), np.zeros((1, p.obs_dim), dtype=np.float32)
    for _ in range(110):
        start = time.thread_time()
        controller.act(pose)
        spent.append(time.thread_time() - start)
        pose = (pose + rng.normal(0, 0.3, pose.shape)).astype(np.float32)
    return 1e3 * float(np.median(spent[10:]))


def spread(missing: list[str], workers: int, minutes: float, quick: bool) -> None:
    """Cells as processes, `workers` at a time, a cell after what it needs is learned; after `minutes` none is begun."""
    began, running, waiting = time.monotonic(), dict[str, subprocess.Popen[bytes]](), list(missing)
    while waiting or running:
        for cell in [c for c, process in running.items() if process.poll() is not None]:
            code = running.pop(cell).returncode
            print(f"{time.monotonic() - began:5.0f} s  {cell}{f' failed ({code})' if code else ''}", flush=True)
        if time.monotonic() - began > 60 * minutes:
            waiting = []
        learning = {c.removesuffix("/learned") for c in [*waiting, *running] if c.endswith("/learned")}
        ready = [c for c in waiting if c.endswith("/learned") or "/".join(c.split("/")[:2]) not in learning]
        for cell in ready[: workers - len(running)]:
            waiting.remove(cell)
            log = path_of(cell, quick).with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--only", cell, *(["--quick"] if quick else [])]
            with log.open("ab") as out:
                running[cell] = subprocess.Popen(command, stdout=out, stderr=out)
        time.sleep(0.2)


# -- what they amount to ----------------------------------------------------------------------------------------------


def kept(names: list[str], quick: bool) -> Cells:
    return {c: json.loads(path_of(c, quick).read_text()) for c in names if path_of(c, quick).exists()}


def slices(robot: str) -> dict[str, np.ndarray]:
    """Rows of a cell that belong to each group of regimes."""
    gains, coupled = (len(group) for group in TESTS[robot].values())
    kind = np.repeat([0, 1, 2], [COPIES, gains, coupled])
    return {"gains": kind == 1, "coupled": kind == 2, "all changed": kind > 0, "unchanged": kind == 0}


def whole(found: Cells, robot: str) -> list[str]:
    """robot/seed/map of which every method was measured, on maps that all such seeds have: only those are compared."""
    missions = {name.rsplit("/", 1)[0] for name in found if name.startswith(f"{robot}/") and name.count("/") == 3}
    complete = [m.split("/") for m in sorted(missions) if all(f"{m}/{method}" in found for method in METHODS)]
    seeds = {seed for _, seed, _ in complete}
    return ["/".join(m) for m in complete if all([robot, seed, m[2]] in complete for seed in seeds)]


def pooled(found: Cells, robot: str, method: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Column -> values of these rows over all seeds and maps that are whole."""
    mine = [found[f"{mission}/{method}"] for mission in whole(found, robot)]
    return {k: np.concatenate([np.array(c[k])[rows] for c in mine]) for k in COLUMNS}


def by_seed(found: Cells, robot: str, method: str, rows: np.ndarray) -> list[np.ndarray]:
    """Success of these rows on all maps, one array per learning seed: its missions share what was learned."""
    seeds: dict[str, list[np.ndarray]] = {}
    for flown_on in whole(found, robot):
        seeds.setdefault(flown_on.split("/")[1], []).append(np.array(found[f"{flown_on}/{method}"]["success"])[rows])
    return [np.concatenate(parts) for parts in seeds.values()]


def print_tables(found: Cells, robot: str) -> None:
    for part, rows in slices(robot).items():
        lines = []
        for method, label in METHODS.items():
            c = pooled(found, robot, method, rows)
            rate = stats.success_rate(by_seed(found, robot, method, rows), np.random.default_rng(0))
            told = f"{rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
            lines.append((label, len(c["success"]), float(c["fraction"].mean()), told,
                          *(float(c[k].mean()) for k in ("early", "miss", "steps"))))  # fmt: skip
        print(f"\n{robot}, {part}; seed/map: {', '.join(m.split('/', 1)[1] for m in whole(found, robot))}")
        head = ("method", "missions", "waypoints", "success [95 %]", "early progress", "one-step miss", "steps")
        print(table(head, lines))


def claims_of(found: Cells, robot: str) -> list[Claim]:
    parts = slices(robot)

    def mean(method: str, part: str, column: str) -> float:
        return float(pooled(found, robot, method, parts[part])[column].mean())

    def over(a: float, b: float) -> float:
        return min(a / max(b, 1e-9), 1e3)

    def ratio(one: str, other: str, part: str, column: str) -> float:
        return over(mean(one, part, column), mean(other, part, column))

    times = [c["ms"] for name, c in found.items() if name.startswith(f"{robot}/") and "ms" in c]
    return [
        Claim(f"{robot}: success of the oracle, all changes", mean("oracle", "all changed", "success"), 0.85),
        Claim(f"{robot}: mission success, flow / none", ratio("flow", "none", "all changed", "success"), 1.342),
        Claim(f"{robot}: early progress, flow / online update", ratio("flow", "online", "all changed", "early"), 1.0),
        Claim(f"{robot}: success on coupled changes, flow − least squares",
              mean("flow", "coupled", "success") - mean("squares", "coupled", "success"), 0.0),
        Claim(f"{robot}: early progress on coupled changes, flow / least squares",
              ratio("flow", "squares", "coupled", "early"), 1.0),
        Claim(f"{robot}: steps of an unchanged robot, flow / none", ratio("flow", "none", "unchanged", "steps"), 1.02,
              at_least=False),
        Claim(f"{robot}: ms of processor time per decision of one robot", float(np.mean(times)), 20.0,
              at_least=False),
    ]  # fmt: skip


def main() -> None:
    extra = [
        ("--robots", {"nargs": "*", "default": None, "help": f"of {', '.join(TESTS)}"}),
        ("--only", {"default": "*", "help": "cells to measure, patterns separated by ';'"}),
        ("--workers", {"type": int, "default": 1, "help": "processes at a time"}),
        ("--minutes", {"type": float, "default": 1e9, "help": "begin no cell after these"}),
        ("--table", {"action": "store_true", "help": "measure nothing, print what there is"}),
    ]
    args = arguments(__doc__ or "", extra)
    torch.set_num_threads(1)
    robots = args.robots if args.robots is not None else (["vehicle"] if args.quick else list(TESTS))
    names = cells(robots, args.quick)
    chosen = [c for c in names if any(fnmatch(c, pattern) for pattern in args.only.split(";"))]
    missing = [] if args.table else [c for c in chosen if not path_of(c, args.quick).exists()]
    if args.workers > 1:
        spread(missing, args.workers, args.minutes, args.quick)
    else:
        for cell in missing:
            found = json.dumps(measure(cell, args.quick))
            path_of(cell, args.quick).parent.mkdir(parents=True, exist_ok=True)
            path_of(cell, args.quick).write_text(found)
            print(f"measured {cell}", flush=True)
    if args.only != "*" and not args.table:
        return
    found, claims = kept(names, args.quick), []
    if "one_step" in found:
        rows = [(name, *values) for name, values in found["one_step"]["rows"].items()]
        print(table(("one-step miss", "gains", "coupled"), rows))
        claims = [Claim(**c) for c in found["one_step"]["claims"]]
    for robot in robots:
        if whole(found, robot):
            print_tables(found, robot)
            claims += claims_of(found, robot)
    left = [c for c in names if c not in found]
    if left:
        print(f"\nnot measured: {', '.join(left)}")
    report("action_flow", claims, args.json, found)


if __name__ == "__main__":
    main()
