"""Cells of offline_cells as processes side by side; run as a script it measures one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict

import torch
from offline_cells import METHODS, Plan, dataset, measure, slug

Cell = tuple[str, str]  # dataset, method


def spread(cells: list[Cell], plan: Plan, workers: int, minutes: float) -> None:
    """Cells as processes, `workers` at a time, those first on which most time hangs, a cell after its start.

    A process writes its log beside its JSON. After `minutes` none is begun; those that run are let finish.
    """
    for name in dict.fromkeys(data_name for data_name, _ in cells):
        dataset(name, plan.steps)
    began, running = time.monotonic(), dict[Cell, subprocess.Popen[bytes]]()
    waiting, over = sorted(cells, key=lambda cell: -_hanging_on(cell[1])), set[Cell]()
    while waiting or running:
        for cell in [c for c, process in running.items() if process.poll() is not None]:
            code = running.pop(cell).returncode
            over.add(cell)
            failed = f" failed ({code}), see its log" if code else ""
            print(f"{time.monotonic() - began:6.0f} s  {'/'.join(cell)}{failed}", flush=True)
        late = time.monotonic() - began > 60 * minutes
        ready = [c for c in waiting if _start(c) is None or _start(c) in over or _start(c) not in cells]
        for cell in [] if late else ready[: workers - len(running)]:
            waiting.remove(cell)
            running[cell] = _process(cell, plan)
        if late and waiting:
            print(f"no time left for {', '.join('/'.join(cell) for cell in waiting)}", flush=True)
            waiting = []
        time.sleep(0.2)


def _hanging_on(method_name: str) -> float:
    """Minutes from the start of this cell to the end of the last one that waits for it."""
    after = [m.cost for m in METHODS.values() if m.start == method_name]
    return METHODS[method_name].cost + max(after, default=0.0)


def _start(cell: Cell) -> Cell | None:
    start = METHODS[cell[1]].start
    return None if start is None else (cell[0], start)


def _process(cell: Cell, plan: Plan) -> subprocess.Popen[bytes]:
    path = plan.kept / cell[0] / f"{slug(cell[1])}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        return subprocess.Popen([sys.executable, __file__, json.dumps(asdict(plan)), *cell], stdout=log, stderr=log)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(Plan(**json.loads(sys.argv[1])), *sys.argv[2:])
