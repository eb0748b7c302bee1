"""What a dataset says about itself: meta.json beside the arrays."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

FORMAT = 1


@dataclass(frozen=True)
class DatasetMeta:
    """The record of one dataset. Counts are of what is stored; returns are undiscounted, over complete episodes.

    `cuts` are episodes that end although the task did not end them (the recorder stopped, or the source's file ended).
    `source` says where the data comes from: {"kind": "collect" | "d4rl" | "npz" | "minari" | "arrays", ...} with file
    name and hash, or with every behaviour's name, digest, noise and share. `simulator` holds the versions that made
    it. `reference` names the scale of `score`, the normalised mean return (x 100), if there is one.
    `statistics` are the mean and variance of the observations of the training episodes, which leave out `held_out`.
    """

    id: str
    task: str | None
    steps: int
    episodes: int
    terminals: int
    timeouts: int
    cuts: int
    obs_dim: int
    act_dim: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    storage: str
    hash: str
    source: dict[str, Any]
    interface: dict[str, Any]
    simulator: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, list[float]] = field(default_factory=dict)
    held_out: list[int] = field(default_factory=list)
    d4rl_id: str | None = None
    reference: str | None = None
    score: float | None = None
    created: str = ""
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Any, where: str) -> DatasetMeta:
        """Raises ValueError naming `where`, if a field is missing or the format is a newer one."""
        if not isinstance(data, dict):
            raise ValueError(f"{where} does not hold a dataset's description; write the dataset again")
        if data.get("format") != FORMAT:
            raise ValueError(f"{where} has format {data.get('format')!r}, this version reads {FORMAT}; write it again")
        known = {f.name for f in fields(DatasetMeta)}
        try:
            return DatasetMeta(**{key: value for key, value in data.items() if key in known})
        except TypeError as problem:
            raise ValueError(f"{where} is incomplete ({problem}); write the dataset again") from None


def content_hash(rows: np.ndarray, lengths: np.ndarray) -> str:
    """sha256 hex of the packed transitions and the episode lengths: equal hashes mean equal training data."""
    digest = hashlib.sha256(str(rows.shape).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<f4").data)
    digest.update(np.ascontiguousarray(lengths, dtype="<i8").data)
    return digest.hexdigest()
