"""Several datasets as one, named with plus signs: real+sim, or 5*real+sim for five copies of the smaller one.

Batches are drawn uniformly from all transitions, so that copies are what weighs a small dataset up.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.store import StoredDataset, open_dataset

_PART = re.compile(r"(?:(?P<times>\d+)\*)?(?P<name>[^+*]+)")
MOST_COPIES = 1000


@dataclass(frozen=True)
class MixedDataset(StoredDataset):
    """Opened datasets of one interface, one after the other, each as often as it was asked for."""

    parts: tuple[tuple[int, StoredDataset], ...] = ()

    @cached_property
    def rows(self) -> np.ndarray:
        """(N, row_width) float32, a copy in memory."""
        return np.concatenate([part.rows for times, part in self.parts for _ in range(times)])

    @cached_property
    def episode_arrays(self) -> dict[str, np.ndarray]:
        tables = [part.episode_arrays for times, part in self.parts for _ in range(times)]
        return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}


def is_mixture(name: str | Path) -> bool:
    """Whether this names several datasets rather than a folder with a plus sign in its name."""
    return isinstance(name, str) and bool(re.search(r"[+*]", name)) and not (Path(name) / "meta.json").exists()


def open_mixture(name: str, root: Path | None = None) -> MixedDataset:
    """The datasets of "a+b" or "3*a+b". Raises LookupError for one that is not there, ValueError where their interfaces
    differ."""
    parts = []
    for word in name.split("+"):
        match = _PART.fullmatch(word.strip())
        times = int(match["times"] or 1) if match else 0
        if match is None or not 1 <= times <= MOST_COPIES:
            raise ValueError(f"{word!r} in {name!r} names no dataset; write NAME+NAME, or 5*NAME for five copies")
        parts.append((times, open_dataset(match["name"], root)))
    first = parts[0][1]
    for _, part in parts[1:]:
        clause = first.interface.difference(part.interface)
        if clause:
            raise ValueError(f"{first.name} and {part.name} cannot be mixed: {clause}")
    meta = replace(first.meta, id=name, **_totals(parts))
    return MixedDataset(first.path, meta, tuple(parts))


def _totals(parts: list[tuple[int, StoredDataset]]) -> dict[str, Any]:
    """Counts and statistics of the mixture; its hash is that of the parts' hashes and copies."""
    metas = [part.meta for times, part in parts for _ in range(times)]
    steps = np.array([m.steps for m in metas], dtype=np.float64)
    summed = ("steps", "episodes", "terminals", "timeouts", "cuts")
    counts = {key: sum(getattr(m, key) for m in metas) for key in summed}
    told = ",".join(f"{times}*{part.meta.hash}" for times, part in parts)
    share = np.array([m.episodes for m in metas]) / sum(m.episodes for m in metas)
    mean = float(share @ [m.return_mean for m in metas])
    spread = float(np.sqrt(share @ [m.return_std**2 + (m.return_mean - mean) ** 2 for m in metas]))
    tasks = {m.task for m in metas}
    return counts | {
        "hash": hashlib.sha256(told.encode()).hexdigest(),
        "task": tasks.pop() if len(tasks) == 1 else metas[0].task,
        "return_mean": mean,
        "return_std": spread,
        "return_min": min(m.return_min for m in metas),
        "return_max": max(m.return_max for m in metas),
        "length_mean": float(steps.sum() / sum(m.episodes for m in metas)),
        "source": {"kind": "mixture", "parts": {part.name: times for times, part in parts}},
        "statistics": _statistics(metas, steps / steps.sum()),
        "held_out": [],
        "reference": None,
        "score": None,
        "d4rl_id": None,
    }


def _statistics(metas: list[Any], share: np.ndarray) -> dict[str, list[float]]:
    """Mean and variance of the observations of all parts together."""
    means, variances = (np.array([m.statistics[key] for m in metas]) for key in ("obs_mean", "obs_var"))
    mean = share @ means
    return {"obs_mean": mean.tolist(), "obs_var": (share @ (variances + (means - mean) ** 2)).tolist()}
