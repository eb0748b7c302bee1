"""The curves of one run while it grows, as small JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.curves import Metrics, curve, load_metrics

FIRST = ("eval_return", "return")  # what is drawn first where it exists
MAX_CURVES = 6


def stamp(run: Path) -> str:
    """Changes whenever metrics.csv does; "none" before there is one."""
    try:
        found = (run / "metrics.csv").stat(follow_symlinks=False)
    except OSError:
        return "none"
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def curves(run: Path) -> list[dict[str, Any]]:
    """Up to MAX_CURVES of a run: name, step (T,), mean, low and high (T,) over seeds; null where a value is missing."""
    metrics = load_metrics(run)
    names = [n for n in FIRST if n in metrics.names] + [n for n in metrics.names if n not in FIRST]
    return [_one(metrics, name) for name in names[:MAX_CURVES]]


def _one(metrics: Metrics, name: str) -> dict[str, Any]:
    step, values = metrics.series(name)
    drawn = curve(name, step, values)
    return {
        "name": name.replace("_", " "),
        "x_label": metrics.x_label(name),
        "step": _plain(drawn.x),
        "mean": _plain(drawn.y),
        "low": None if drawn.low is None else _plain(drawn.low),
        "high": None if drawn.high is None else _plain(drawn.high),
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
