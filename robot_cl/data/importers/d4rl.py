"""D4RL's HDF5: observations, actions, rewards, terminals, timeouts, and in some files next_observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.importers.steps import Columns

_REQUIRED = {"observations": "obs", "actions": "action", "rewards": "reward", "terminals": "terminated"}
_OPTIONAL = {"timeouts": "truncated", "next_observations": "next_obs"}


def read_d4rl(path: Path) -> Columns:
    """Raises ValueError, naming the file, if it is not whole or not of this form."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in _REQUIRED if key not in file]
            if missing:
                has = ", ".join(list(file)[:8]) or "nothing"
                raise ValueError(f"{path} lacks {', '.join(missing)}; a D4RL file has them, this one has {has}")
            names = _REQUIRED | {key: name for key, name in _OPTIONAL.items() if key in file}
            columns = {name: _read(file, key, path) for key, name in names.items()}
    except OSError as problem:
        raise ValueError(f"{path} is not a whole HDF5 file ({_short(problem)}); fetch it again") from None
    columns["reward"] = _flat(columns["reward"])
    for name in ("terminated", "truncated"):
        if name in columns:
            columns[name] = _flat(columns[name])
    return Columns(**columns)


def _read(file: Any, key: str, path: Path) -> np.ndarray:
    import h5py

    link, data = file.get(key, getlink=True), file[key]
    if not isinstance(link, h5py.HardLink) or not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise ValueError(f"{path} has no array of its own under {key!r}; only plain arrays are read")
    if data.size and not data.id.get_storage_size():
        raise ValueError(f"{path} announces {data.shape} numbers under {key!r} but stores none; fetch it again")
    if data.dtype.kind not in "fiub":
        raise ValueError(f"{path} has {data.dtype} under {key!r}, expected numbers")
    return np.asarray(data[()])


def _flat(value: np.ndarray) -> np.ndarray:
    """(N, 1), as some files keep scalars, -> (N,)."""
    return value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value


def _short(problem: Exception) -> str:
    return str(problem).split("\n")[0].strip()[:160]
