"""Cells of offline_cells as processes side by side; run as a script it measures those of one process."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace

import torch
from offline_cells import Cell, Plan, measure_together
from offline_data import dataset, stored_at
from offline_methods import ALL, slug

Job = tuple[Cell, ...]  # the cells of one process
CHEAP = ("bc", "10 % bc", "near-best bc", "iql", "rebrac", "lcb")  # offline


def spread(cells: Sequence[Cell], plan: Plan, workers: int, minutes: float, together: bool = False) -> None:
    """Cells as processes, `workers` at a time, chains before lone cells, a cell after its start.

    `together`: one process for all cells of a cheap offline method that nothing waits for. A process writes its log
    beside its JSON. After `minutes` none is begun, and what runs is cut and recorded as it is. Cells that fail together
    are tried alone, and one that fails alone, once without graphs.
    """
    collect_all(dict.fromkeys(data_name for data_name, _ in cells), plan, workers)
    deadline = time.monotonic() + 60.0 * minutes
    began, running = time.monotonic(), dict[Job, subprocess.Popen[bytes]]()
    waiting, over = _order(_jobs(cells, together)), set[Cell]()
    plain = set[Job]()
    while waiting or running:
        for job in [j for j, process in running.items() if process.poll() is not None]:
            code = running.pop(job).returncode
            failed = f" failed ({code}), see its log" if code else ""
            print(f"{time.monotonic() - began:6.0f} s  {_label(job)}{failed}", flush=True)
            if code and (len(job) > 1 or job not in plain):
                waiting[:0] = [(cell,) for cell in job]
                plain.update([job] if len(job) == 1 else [])
            else:
                over.update(job)
        late = time.monotonic() > deadline
        ready = [j for j in waiting if all((s := _start(c)) is None or s in over or s not in cells for c in j)]
        for job in [] if late else ready[: workers - len(running)]:
            waiting.remove(job)
            running[job] = _process(job, replace(plan, captured=job not in plain), deadline)
        if late and waiting:
            print(f"no time left for {', '.join(map(_label, waiting))}", flush=True)
            waiting = []
        time.sleep(0.2)


def collect_all(names: Iterable[str], plan: Plan, workers: int) -> None:
    """The datasets that are not there yet, side by side."""
    absent = [(name, plan.steps) for name in names if not (stored_at(name, plan.steps) / "meta.json").exists()]
    if absent:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(absent))) as pool:
            pool.starmap(_collect, absent)


def _collect(data_name: str, steps: int | None) -> None:
    dataset(data_name, steps)


def _jobs(cells: Sequence[Cell], together: bool) -> list[Job]:
    jobs: dict[object, list[Cell]] = {}
    awaited = {ALL[method_name].start for _, method_name in cells}
    for cell in cells:
        jobs.setdefault(cell[1] if together and cell[1] in CHEAP and cell[1] not in awaited else cell, []).append(cell)
    return [tuple(job) for job in jobs.values()]


def _order(jobs: Iterable[Job]) -> list[Job]:
    """Chains first, what others wait for and what goes on from it, then lone cells; the longest first.

    So all of a chain has begun when time is up, and what is cut is long cells, which show something all the same.
    """
    cells = {cell for job in jobs for cell in job}
    awaited = {_start(cell) for cell in cells}
    longest = {job: max(_chain(cell, cells) for cell in job) for job in jobs}
    lone = {job: all(cell not in awaited and _start(cell) not in cells for cell in job) for job in jobs}
    return sorted(longest, key=lambda job: (lone[job], -longest[job]))


def _chain(cell: Cell, cells: Collection[Cell]) -> float:
    """Minutes from the start of this cell to the end of the last one that waits for it."""
    after = [_chain(other, cells) for other in cells if _start(other) == cell]
    return ALL[cell[1]].cost + max(after, default=0.0)


def _start(cell: Cell) -> Cell | None:
    start = ALL[cell[1]].start
    return None if start is None else (cell[0], start)


def _label(job: Job) -> str:
    return ", ".join(f"{data_name}/{method_name}" for data_name, method_name in job)


def _process(job: Job, plan: Plan, deadline: float) -> subprocess.Popen[bytes]:
    path = plan.kept / job[0][0] / f"{slug(job[0][1])}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    left = deadline - time.monotonic() if math.isfinite(deadline) else None
    with path.open("ab") as log:
        command = [sys.executable, __file__, json.dumps({"plan": asdict(plan), "cells": job, "left": left})]
        return subprocess.Popen(command, stdout=log, stderr=log)


def main() -> None:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    deadline = math.inf if order["left"] is None else time.monotonic() + order["left"]
    measure_together(Plan(**order["plan"]), [tuple(cell) for cell in order["cells"]], deadline)


if __name__ == "__main__":
    main()
