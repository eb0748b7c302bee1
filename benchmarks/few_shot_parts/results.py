"""What has been measured of few demonstrations of a task: scores by row and number, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from few_shot_parts.choice import ORDER
from few_shot_parts.rows import LEARNED, TASKS, Task

from robot_cl import stats

CHOICES = {"choice by loss": "by_loss", "choice by episodes": "by_return"}


class Results:
    """What was measured of one task. Rows are (members, episodes) arrays by number of demonstrations; 0: none."""

    def __init__(self, folder: Path, task: Task):
        self.task, self.name = task, next(name for name, known in TASKS.items() if known is task)
        read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        records = {record["row"]: record for record in read}
        self.decisions = records.pop("choice", {"cells": []})["cells"]
        self.experts = sorted({record["expert"] for record in records.values()})
        self.cells = {row: record["cells"] for row, record in records.items()}
        for row, rule in CHOICES.items():
            self._add_choice(row, rule)
        if "choice by episodes" not in self.cells:
            self._choose_by_trials()

    def _choose_by_trials(self) -> None:
        """Of the routes trained on all demonstrations of a member, the best in its trial episodes."""
        names = [*(f"{s} skill zero-shot" for s in self.task.parents), *ORDER[1:]]
        chosen: list[dict[str, Any]] = []
        for cell in self.cells.get(ORDER[-1], []):
            key = (cell["draw"], cell["count"])
            routes = [c for name in names for c in self.cells.get(name, [])
                      if "trials" in c and (c["draw"], c["count"]) in (key, (key[0], 0))]  # fmt: skip
            if len(routes) < len(names):
                return
            chosen.append({**max(routes, key=lambda c: float(np.mean(c["trials"]))), "count": cell["count"]})
        if chosen:
            self.cells["choice by episodes"] = chosen

    def _add_choice(self, row: str, rule: str) -> None:
        """A member's choice scores what the chosen row of the same member scores."""
        zero = f"{self.task.parent} skill zero-shot"
        found = {(name, c["draw"], c["count"]): c for name, cells in self.cells.items() for c in cells}
        chosen = []
        for d in self.decisions:
            key = (zero, d["draw"], 0) if d[rule] == "zero-shot" else (d[rule], d["draw"], d["count"])
            if key not in found:
                return
            chosen.append({**found[key], "count": d["count"]})
        if chosen:
            self.cells[row] = chosen

    def counts(self, row: str) -> list[int]:
        return sorted({c["count"] for c in self.cells.get(row, [])})

    def scores(self, row: str, count: int, what: str = "returns") -> np.ndarray | None:
        """(draws, episodes), or None where it was not measured."""
        cells = [c for c in self.cells.get(row, []) if c["count"] == count]
        return np.array([c[what] for c in sorted(cells, key=lambda c: c["draw"])], dtype=float) if cells else None

    def best_single(self) -> tuple[str, np.ndarray] | None:
        rows = [(f"{s} skill zero-shot", self.scores(f"{s} skill zero-shot", 0)) for s in self.task.parents]
        measured = [(row, x) for row, x in rows if x is not None]
        return max(measured, key=lambda pair: pair[1].mean()) if measured else None


def interval(scores: np.ndarray) -> stats.Interval:
    """Of the mean, draws redrawn first and their episodes after that."""
    return stats.nested_bootstrap(scores, np.random.default_rng(0))  # type: ignore[arg-type]


# What stands in the third column where it is not the share of episodes without a fall.
COLUMNS: dict[str, Callable[[np.ndarray], str]] = {"shift": lambda x: "", "speed-limit": lambda x: f"{x.mean():.2f}"}


def rows_of(results: Results) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    order = {row: k for k, row in enumerate([*LEARNED, *CHOICES])}  # what needs no demonstration comes first
    for row in sorted(results.cells, key=lambda row: order.get(row, -1)):
        for count in results.counts(row):
            x, fell = results.scores(row, count), results.scores(row, count, "fell")
            assert x is not None and fell is not None
            third = COLUMNS.get(results.name, lambda x: f"{1.0 - x.mean():.2f}")(fell)
            lines.append((row, count or "none", str(interval(x)), f"{stats.iqm(x.ravel()):.0f}", third,
                          " ".join(f"{m:.0f}" for m in x.mean(1))))  # fmt: skip
    return lines
