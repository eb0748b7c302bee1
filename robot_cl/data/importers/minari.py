"""Minari datasets, both storages, read through Minari itself; Dict observations are flattened in key order."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.importers.steps import Columns
from robot_cl.data.minari_io import Progress
from robot_cl.data.recording import UNKNOWN_SEED, Recording
from robot_cl.data.store import anonymous_interface
from sim.spec import Channel, Interface

_NEEDED = ("dataset_id", "data_format", "observation_space", "action_space", "total_episodes", "total_steps")
_REPORT_EVERY = 64


def data_folder(path: Path) -> Path | None:
    """The folder with Minari's metadata.json: `path`, or the data folder in it. None: this is no Minari dataset."""
    for folder in (path, path / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    return None


def read_metadata(folder: Path) -> dict[str, Any]:
    """Raises ValueError, naming the file, if it is not Minari's or asks for an environment to be built."""
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is not readable JSON ({problem}); fetch the dataset again") from None
    missing = [key for key in _NEEDED if not isinstance(metadata, dict) or key not in metadata]
    if missing:
        # Without its spaces Minari would build the environment the file names, which runs code of its choice.
        raise ValueError(f"{path} lacks {', '.join(missing)}; only datasets that state their spaces are read")
    return metadata


def read_minari(folder: Path, progress: Progress | None = None) -> tuple[Columns, np.ndarray]:
    """-> (columns, seeds (E,)). Raises ValueError, naming the folder, if it is damaged or of an unfit kind."""
    from minari.dataset.minari_storage import MinariStorage

    total = int(read_metadata(folder)["total_episodes"])
    episodes, seeds = [], []
    try:
        storage = MinariStorage.read(folder)
        for e, episode in enumerate(storage.get_episodes(range(total))):
            episodes.append(_flat_episode(episode))
            if progress is not None and (e % _REPORT_EVERY == 0 or e + 1 == total):
                progress(e + 1, total)
        seeds = [meta.get("seed") for meta in storage.get_episode_metadata(range(total))]
    except (OSError, KeyError, AssertionError, AttributeError, TypeError, IndexError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{folder} is damaged or not of Minari's form ({_short(problem)}); fetch it again") from None
    except ValueError as problem:
        raise ValueError(f"{folder} cannot be read: {_short(problem)}") from None
    if not episodes:
        raise ValueError(f"{folder} holds no episodes")
    known = np.array([UNKNOWN_SEED if seed is None else int(seed) for seed in seeds])
    return _join(episodes, folder), known


def _flat_episode(episode: dict[str, Any]) -> dict[str, np.ndarray]:
    flat = {key: np.asarray(episode[key]) for key in ("rewards", "terminations", "truncations")}
    return flat | {key: _flatten(episode[key]) for key in ("observations", "actions")}


def _flatten(value: Any) -> np.ndarray:
    """(T, ...) arrays, or dicts and tuples of them, -> (T, width), sub-spaces in key order as Gymnasium flattens."""
    if isinstance(value, dict):
        return np.concatenate([_flatten(value[key]) for key in sorted(value)], axis=1)
    if isinstance(value, tuple):
        return np.concatenate([_flatten(part) for part in value], axis=1)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"it holds {array.dtype}, expected numbers")
    return array.reshape(len(array), -1)


def _join(episodes: list[dict[str, np.ndarray]], folder: Path) -> Columns:
    lengths = np.array([len(e["rewards"]) for e in episodes])
    for i, (episode, steps) in enumerate(zip(episodes, lengths, strict=True)):
        if len(episode["observations"]) != steps + 1 or len(episode["actions"]) != steps or not steps:
            raise ValueError(
                f"{folder}: episode {i} has {len(episode['observations'])} observations and "
                f"{len(episode['actions'])} actions for {steps} rewards; expected one observation more than steps"
            )

    def cat(key: str, part: slice = slice(None)) -> np.ndarray:
        return np.concatenate([e[key][part] for e in episodes])

    return Columns(
        obs=cat("observations", slice(None, -1)),
        action=cat("actions"),
        reward=cat("rewards"),
        terminated=cat("terminations"),
        truncated=cat("truncations"),
        next_obs=cat("observations", slice(1, None)),
        lengths=lengths,
    )


def environment_ids(metadata: dict[str, Any]) -> list[str]:
    """Gymnasium ids of the environment it was recorded in, as text; nothing is built from them."""
    try:
        return [str(json.loads(metadata["env_spec"])["id"])]
    except (KeyError, TypeError, ValueError):
        return []


def space_interface(metadata: dict[str, Any], columns: Columns) -> Interface | None:
    """Numbered channels with the limits of its Box of actions; None if it has no finite ones."""
    try:
        space = json.loads(metadata["action_space"])
        limits = [np.asarray(space[side], dtype=np.float64).reshape(-1) for side in ("low", "high")]
    except (KeyError, TypeError, ValueError):
        return None
    width = columns.action.shape[1]
    if any(len(limit) != width or not np.isfinite(limit).all() for limit in limits):
        return None
    if not (limits[0] < limits[1]).all():
        return None
    action = tuple(Channel(f"action_{i}", "1", float(limits[0][i]), float(limits[1][i])) for i in range(width))
    return Interface(anonymous_interface(columns.obs.shape[1], width).obs, action, 1.0)


def read_stored(folder: Path) -> Recording:
    """The Minari form of a dataset of the store, as a recording: steps and lengths as `write_minari` wrote them."""
    columns, _ = read_minari(folder)
    return Recording(**{key: value for key, value in vars(columns).items() if value is not None})


def _short(problem: Exception) -> str:
    text = str(problem).strip()
    return (text.split("\n")[0] if text else type(problem).__name__)[:160]
