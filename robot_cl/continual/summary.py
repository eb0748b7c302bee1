"""continual.json: what was measured on a stream, method by method, with the intervals that belong to it.

docs/architecture.md describes the format; the report and the command's table read nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import stats
from robot_cl.continual import metrics
from robot_cl.continual.route import Route, played
from robot_cl.plain_files import write_whole
from sim.stream import Stage, Stream

FILE, FORMAT = "continual.json", 1
Rows = Sequence[Mapping[str, Any]]  # of one method: what loop.learn_stage measured after each task
NUMBERS = ("acc", "forgetting", "bwt", "forward_transfer", "jump_start")


def matrix(rows: Rows, untrained: np.ndarray) -> np.ndarray:
    """R (seeds, finished tasks + 1, tasks), row 0 being the base's scores `untrained` (seeds, tasks)."""
    after = [np.array(row["scores"]).mean(-1) for row in rows]
    return np.stack([untrained, *after], axis=1)


def curves(rows: Rows) -> np.ndarray:
    """(seeds, finished tasks, points)."""
    return np.stack([np.array(row["curve"]) for row in rows], axis=1)


def contributions(R: np.ndarray, ours: np.ndarray, alone: np.ndarray | None) -> dict[str, np.ndarray]:
    """Each number's terms (seeds, tasks), whose mean is the number; R (seeds, N + 1, N) of a finished stream.

    Forward transfer is left out without the reference's curves `alone` (seeds, N, points), and where one of them has an
    area of 1 or more: better than solved from the start, it leaves nothing to gain and no ratio.
    """
    square, untrained = R[:, 1:], R[:, 0]
    final, own = square[:, -1], metrics.diagonal(square)
    found = {"acc": final, "forgetting": own - final}
    if square.shape[-1] > 1:
        found["bwt"] = (final - own)[:, :-1]
        found["jump_start"] = np.diagonal(square, offset=1, axis1=-2, axis2=-1) - untrained[:, 1:]
    if alone is not None:
        area, reference = metrics.area(ours), metrics.area(alone)
        if (reference < 1.0).all():
            found["forward_transfer"] = (area - reference) / (1.0 - reference)
    return found


def interval(terms: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean over seeds and tasks with its 95 % interval, seeds redrawn with all their tasks, because one network goes
    through them all; None where one seed tells nothing about others."""
    per_seed = terms.mean(-1)
    if len(per_seed) < 2:
        return {"estimate": float(terms.mean()), "low": None, "high": None, "per_seed": per_seed.tolist()}
    found = stats.stratified_bootstrap(per_seed, np.random.default_rng(seed), stats.mean)
    return asdict(found) | {"per_seed": per_seed.tolist()}


def entry_intervals(rows: Rows) -> list[list[list[float] | None]]:
    """95 % interval of each entry of R after a task, over seeds and the episodes within them."""

    def one(scores: np.ndarray, j: int) -> list[float] | None:
        if scores.shape[-1] < 2:
            return None
        found = stats.nested_bootstrap(list(scores[:, j]), np.random.default_rng(j), resamples=500)
        return [found.low, found.high]

    return [[one(np.array(row["scores"]), j) for j in range(np.shape(row["scores"])[1])] for row in rows]


def method_entry(
    rows: Rows, untrained: np.ndarray, stages: Sequence[Stage], alone: np.ndarray | None, facts: Mapping[str, Any],
    knows_task: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one method. Numbers come once the stream is finished."""
    R, ours = matrix(rows, untrained), curves(rows)
    complete = len(rows) == len(stages)
    terms = contributions(R, ours, alone) if complete else {}
    return {
        "R": R.tolist(),
        "R_interval": entry_intervals(rows),
        "curves": ours.tolist(),
        "metrics": {name: interval(terms[name]) for name in NUMBERS if name in terms},
        "bytes_per_task": rows[-1]["bytes"] / len(rows),
        "steps": [row["steps"] for row in rows],
        "wall_s": round(sum(row["wall_s"] for row in rows), 2),
        "finished_tasks": len(rows),
        "knows_task": knows_task,
        "routes": facts.get("routes", []),
        "coefficients": coefficients(facts),
    }


def coefficients(facts: Mapping[str, Any]) -> list[list[dict[str, float]]]:
    """Per task and seed: {skill: coefficient} of what is played; {} is the bare base."""
    return [[played(Route(**route)) for route in routes] for routes in facts.get("routes", [])]


def curve_steps(stage: Stage, points: int) -> list[int]:
    """Steps at which a curve has its points."""
    return [round(stage.steps * i / points) for i in range(points + 1)]


def write(
    folder: Path, stream: Stream, seeds: Sequence[int], untrained: np.ndarray, methods: Mapping[str, Mapping[str, Any]],
    points: int, simulator: str,
) -> Path:  # fmt: skip
    """continual.json of a run folder, whole or not at all; `methods` are entries as `method_entry` gives them."""
    data = {
        "format": FORMAT,
        "stream": {"name": stream.name, "about": stream.about, "announced": stream.announced},
        "base": asdict(stream.base),
        "tasks": [asdict(stage) | {"curve_steps": curve_steps(stage, points)} for stage in stream.stages],
        "seeds": list(seeds),
        "references": {"base": untrained.tolist()},
        "methods": dict(methods),
        "simulator": simulator,
    }
    write_whole(folder / FILE, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return folder / FILE


def read(folder: Path) -> dict[str, Any]:
    """Inverse of `write`. Raises FileNotFoundError or ValueError in one sentence."""
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {FILE}; run robot-cl continual first")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"{path} has format {data['format']}, this version reads {FORMAT}")
        return data
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); run robot-cl continual again") from None
