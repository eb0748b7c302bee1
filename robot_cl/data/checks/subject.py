"""What a check looks at and what it may say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robot_cl.batch import row_width
from robot_cl.data.meta import DatasetMeta, content_hash
from robot_cl.data.recording import split_rows
from robot_cl.data.reference import task_key
from robot_cl.data.store import StoredDataset, map_array
from sim.spec import Interface

# Regressions and neighbour searches look at this many steps; every other check looks at all of them.
MAX_ROWS = 20_000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing: `check` names it, `sentence` says what, where and what to do.

    `severity` is "fault" (numbers from this data mislead) or "note".
    """

    check: str
    sentence: str
    severity: str = "fault"


class Subject:
    """A dataset as it lies on disk, mapped but not validated, so that a faulty one can be looked at. Never written."""

    def __init__(self, dataset: StoredDataset):
        self.dataset = dataset
        self.meta: DatasetMeta = dataset.meta
        self.path: Path = dataset.path
        self.rows: np.ndarray = map_array(self.path / "flat" / "transitions.npy")
        if self.rows.ndim != 2 or self.rows.shape[1] != row_width(self.meta.obs_dim, self.meta.act_dim):
            raise ValueError(f"{self.path} holds rows of shape {self.rows.shape}, not those of its meta.json")
        self.fields = split_rows(self.rows, self.meta.obs_dim, self.meta.act_dim)
        self.lengths: np.ndarray = dataset.episode_arrays["lengths"]
        self.complete: np.ndarray = dataset.episode_arrays["complete"]
        self.stops: np.ndarray = np.cumsum(self.lengths)
        self.starts: np.ndarray = self.stops - self.lengths
        self.last: np.ndarray = self.stops - 1

    @property
    def task(self) -> str:
        """The family of the task, "" if unknown: "hopper", "antmaze", "door", ..."""
        return task_key(self.meta.task) if self.meta.task else ""

    @cached_property
    def terminated(self) -> np.ndarray:
        return np.asarray(self.fields["terminated"]) != 0

    @cached_property
    def truncated(self) -> np.ndarray:
        return np.asarray(self.fields["truncated"]) != 0

    @cached_property
    def reward(self) -> np.ndarray:
        return np.asarray(self.fields["reward"], dtype=np.float64)

    @cached_property
    def returns(self) -> np.ndarray:
        """(E,) undiscounted returns."""
        return np.add.reduceat(self.reward, self.starts)

    @cached_property
    def obs(self) -> np.ndarray:
        return np.ascontiguousarray(self.fields["obs"], dtype=np.float32)

    @cached_property
    def action(self) -> np.ndarray:
        return np.ascontiguousarray(self.fields["action"], dtype=np.float32)

    @cached_property
    def next_obs(self) -> np.ndarray:
        return np.ascontiguousarray(self.fields["next_obs"], dtype=np.float32)

    @cached_property
    def unchanged(self) -> bool:
        """Whether these are the transitions that meta.json was written for."""
        return content_hash(self.rows, self.lengths) == self.meta.hash

    @cached_property
    def some_rows(self) -> np.ndarray:
        """Up to MAX_ROWS step indices, evenly spread, without NaN or infinite ones: the same at every look."""
        rows = np.unique(np.linspace(0, len(self.rows) - 1, MAX_ROWS).astype(int))
        finite = rows[np.isfinite(self.rows[rows]).all(axis=1)]
        if len(finite) < 2:
            raise ValueError(f"{self.path} has hardly a step without NaN or infinite numbers; import its source again")
        return finite

    @cached_property
    def interface_here(self) -> Interface | None:
        """The interface this installation gives the task, None if it does not have it."""
        import sim

        try:
            known = sim.get_task(self.meta.task or "")
        except LookupError:
            return None
        return sim.make(known, num_worlds=1, threads=1).interface
