"""What a dataset says about itself: meta.json beside the arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from robot_cl.data.recording import Recording
from sim.spec import Interface

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


def describe(
    name: str,
    data: Recording,
    rows: np.ndarray,
    interface: Interface,
    task: str | None,
    source: dict[str, Any],
    storage: str,
    held_out: Sequence[int],
) -> DatasetMeta:
    """Counts, returns, hash and statistics of `data`, whose packed form is `rows`.

    Raises ValueError if `held_out` names an episode that is not there, or every one.
    """
    whole = data.complete if data.complete.any() else np.ones_like(data.complete)
    returns = data.returns[whole]
    last = data.stops - 1
    return DatasetMeta(
        id=name,
        task=task,
        steps=len(data),
        episodes=data.episodes,
        terminals=int(data.terminated.sum()),
        timeouts=int(data.truncated.sum() - data.truncated[last][~data.complete].sum()),
        cuts=int((~data.complete).sum()),
        obs_dim=data.obs_dim,
        act_dim=data.act_dim,
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        return_min=float(returns.min()),
        return_max=float(returns.max()),
        length_mean=float(data.lengths[whole].mean()),
        storage=storage,
        hash=content_hash(rows, data.lengths),
        source=source,
        interface=interface.to_dict(),
        statistics=_statistics(data, held_out),
        held_out=sorted(int(e) for e in held_out),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _statistics(data: Recording, held_out: Sequence[int]) -> dict[str, list[float]]:
    """Mean and variance of the observations of the training episodes."""
    outside = sorted({int(e) for e in held_out})
    if outside and not 0 <= outside[0] <= outside[-1] < data.episodes:
        raise ValueError(f"held_out names episode {outside[-1]}, there are {data.episodes}")
    if len(outside) == data.episodes:
        raise ValueError("held_out names every episode; at least one must be left to train on")
    keep = np.repeat(~np.isin(np.arange(data.episodes), outside), data.lengths)
    obs = data.obs if keep.all() else data.obs[keep]
    return {
        "obs_mean": obs.mean(axis=0, dtype=np.float64).tolist(),
        "obs_var": obs.var(axis=0, dtype=np.float64).tolist(),
    }
