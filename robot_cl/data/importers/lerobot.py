"""LeRobotDataset v3 folders: many episodes in few parquet files, read with pyarrow; frames of cameras are left out.

data/chunk-000/file-000.parquet holds one row per step: observation.*, action, episode_index, frame_index, and in some
sets next.reward, next.done, next.success. There is no observation after the last step. v2.1, one file per episode,
has the same columns and is read as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.importers.steps import Columns, Counts
from sim.spec import Channel, Interface

INFO = Path("meta") / "info.json"
NUMBERS = ("float32", "float64", "int8", "int16", "int32", "int64", "bool")
MAX_FRAMES = 50_000_000


def read_info(folder: Path) -> dict[str, Any]:
    """meta/info.json. Raises ValueError, naming the file, for another version or what is none."""
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features, fps = str(info["codebase_version"]), dict(info["features"]), float(info["fps"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} does not describe a LeRobot dataset ({problem!r}); fetch it again") from None
    if not version.startswith(("v3.", "v2.1")) or not fps > 0:
        raise ValueError(f"{path} is of version {version} at {fps:g} frames a second; v3.x is read")
    return info | {"features": features, "fps": fps}


def read_lerobot(folder: Path, counts: Counts) -> tuple[Columns, Interface | None, str]:
    """-> (columns with actions as the file has them, interface or None, robot type).

    The interface has the file's names and, as limits, the smallest and largest action of meta/stats.json. Raises
    ValueError, naming the folder, if it is damaged or holds no vectors of observations and actions.
    """
    info = read_info(folder)
    seen = _vectors(info, "observation.")
    if not seen or "action" not in _vectors(info, "action"):
        raise ValueError(f"{folder} has no vectors of observations and actions; pixels alone are not learned from")
    wanted = [*seen, "action", "episode_index", "frame_index"]
    extra = [key for key in ("next.reward", "next.success") if key in info["features"]]
    table = _read_table(folder, [*wanted, *extra])
    order = np.lexsort((table["frame_index"], table["episode_index"]))
    owner = table["episode_index"][order]
    lengths = np.diff(np.flatnonzero(np.diff(owner)) + 1, prepend=0, append=len(owner))
    reward = table["next.reward"][order] if "next.reward" in table else np.zeros(len(order))
    terminated = table["next.success"][order].astype(bool) if "next.success" in table else None
    if "next.reward" not in table:
        counts.notes.append("the set holds no rewards, zeros are stored: learn by imitation")
    obs = np.concatenate([_wide(table[key])[order] for key in seen], axis=1)
    action = _wide(table["action"])[order]
    columns = Columns(obs, action, reward.reshape(-1), _last_only(terminated, lengths), lengths=lengths)
    return columns, _interface(folder, info, seen, action, counts), str(info.get("robot_type") or "")


def _vectors(info: dict[str, Any], start: str) -> list[str]:
    """Features of numbers whose name begins so, in the order of their names."""
    features = info["features"].items()
    return sorted(key for key, about in features if key.startswith(start) and about.get("dtype") in NUMBERS)


def _read_table(folder: Path, wanted: list[str]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((folder / "data").glob("chunk-*/*.parquet"))
    if not files or any(path.is_symlink() for path in files):
        raise ValueError(f"{folder} has no plain data/chunk-*/*.parquet; fetch it again")
    try:
        if sum(pq.read_metadata(path).num_rows for path in files) > MAX_FRAMES:
            raise ValueError(f"{folder} holds more than {MAX_FRAMES} frames; import a part of it")
        tables = [pq.read_table(path, columns=wanted) for path in files]
        table = pa.concat_tables(tables)
        missing = [key for key in wanted if key not in table.column_names]
        if missing:
            raise ValueError(f"{folder} has no column {missing[0]}, although meta/info.json lists it")
        return {key: _array(table.column(key)) for key in wanted}
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(f"{folder} is damaged ({str(problem).splitlines()[0][:160]}); fetch it again") from None


def _array(column: Any) -> np.ndarray:
    """(N,) or (N, width) numbers of an arrow column. Raises ValueError for lists of different lengths or no numbers."""
    import pyarrow as pa

    joined = column.combine_chunks()
    if pa.types.is_list(joined.type) or pa.types.is_large_list(joined.type) or pa.types.is_fixed_size_list(joined.type):
        flat = joined.flatten()
        if joined.null_count or flat.null_count or len(flat) % max(len(joined), 1):
            raise ValueError("a vector of this set has gaps or different lengths; fetch it again")
        return flat.to_numpy(zero_copy_only=False).reshape(len(joined), -1)
    if joined.null_count:
        raise ValueError("a column of this set has gaps; fetch it again")
    return joined.to_numpy(zero_copy_only=False)


def _wide(value: np.ndarray) -> np.ndarray:
    return value.reshape(len(value), -1)


def _last_only(flag: np.ndarray | None, lengths: np.ndarray) -> np.ndarray | None:
    """Success ends an episode only in its last row: some sets keep recording after it."""
    if flag is None:
        return None
    found, last = np.zeros(int(lengths.sum()), dtype=bool), np.cumsum(lengths) - 1
    found[last] = flag.reshape(-1)[last]
    return found


def _interface(
    folder: Path, info: dict[str, Any], seen: list[str], action: np.ndarray, counts: Counts
) -> Interface | None:
    """Names as the file has them; limits are those of the data, because the format holds none."""
    if not np.isfinite(action).all():
        return None
    low, high = action.min(0).astype(np.float64), action.max(0).astype(np.float64)
    still = high - low < 1e-6
    low, high = np.where(still, low - 0.5, low), np.where(still, high + 0.5, high)
    counts.notes.append("limits of actions are the smallest and largest in the data: the format states none")
    features = info["features"]
    obs = [name for key in seen for name in _names(key.removeprefix("observation."), features[key])]
    acts = _names("action", features["action"])
    if len(set(obs)) != len(obs):
        obs = [f"obs_{i}" for i in range(len(obs))]
    if len(acts) != action.shape[1] or len(set(acts)) != len(acts):
        acts = [f"action_{i}" for i in range(action.shape[1])]
    limits = zip(acts, low, high, strict=True)
    command = tuple(Channel(name, "unknown", float(a), float(b)) for name, a, b in limits)
    return Interface(tuple(Channel(name, "unknown") for name in obs), command, 1.0 / info["fps"])


def _names(key: str, feature: dict[str, Any]) -> list[str]:
    """One name for each number of a feature; where it has none, or too few, they are numbered."""
    names, count = feature.get("names"), int(np.prod(feature["shape"]))
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return [f"{key}.{name}" if key == "environment_state" else name for name in names]
    return [f"{key}_{i}" for i in range(count)]
