"""The Minari form of a dataset: written here in both storages, in the layout Minari 0.5 reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.recording import Recording

STORAGES = ("hdf5", "arrow")
Progress = Callable[[int, int], None]
_REPORT_EVERY = 256


@dataclass
class MinariEpisode:
    """One episode as Minari keeps it: observations (T + 1, obs_dim), everything else (T, ...)."""

    attributes: dict[str, int]
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def write_minari(
    folder: Path, name: str, data: Recording, storage: str, details: dict[str, Any], progress: Progress | None = None
) -> None:
    """Writes `folder` (Minari's "data" folder) so that `minari.load_dataset(name)` reads it.

    `details` are further metadata keys (algorithm_name, description, ...). Raises ValueError for an unknown storage
    and where next_obs and the following obs differ inside an episode, which Minari's form cannot hold.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage {storage!r} is unknown; one of {', '.join(STORAGES)}")
    broken = broken_joints(data)
    if len(broken):
        raise ValueError(
            f"next_obs of step {broken[0]} is not the obs of step {broken[0] + 1} of the same episode "
            f"({len(broken)} such places); end an episode there first"
        )
    folder.mkdir(parents=True)
    writer = _write_hdf5 if storage == "hdf5" else _write_arrow
    writer(folder, data, progress)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    metadata = {
        "dataset_id": name,
        "minari_version": version("minari"),
        "total_episodes": data.episodes,
        "total_steps": len(data),
        "data_format": storage,
        "jpeg_encoding": False,
        "dataset_size": round(size / 1e6, 1),
        "observation_space": _box(data.obs_dim, None),
        "action_space": _box(data.act_dim, 1.0),
        "author": ["robot-cl"],
        **details,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def broken_joints(data: Recording) -> np.ndarray:
    """Steps t, inside an episode, whose next_obs is not obs[t + 1]."""
    inside = np.ones(len(data), dtype=bool)
    inside[data.stops - 1] = False
    steps = np.flatnonzero(inside)
    same = (data.next_obs[steps] == data.obs[steps + 1]).all(axis=1)
    return steps[~same]


def _box(width: int, bound: float | None) -> str:
    """Minari's JSON of a float32 Box space; bound None: no limits."""
    limit = float("inf") if bound is None else bound
    space = {"type": "Box", "dtype": "float32", "shape": [width], "low": [-limit] * width, "high": [limit] * width}
    return json.dumps(space)


def _episodes(data: Recording, progress: Progress | None) -> Iterator[tuple[int, MinariEpisode]]:
    for e, (start, stop) in enumerate(zip(data.starts, data.stops, strict=True)):
        attributes = {"id": e, "total_steps": int(stop - start)}
        if data.seeds[e] >= 0 and data.ordinals[e] == 0:
            # Minari's `seed` promises that reset(seed) starts this very episode.
            attributes["seed"] = int(data.seeds[e])
        elif data.seeds[e] >= 0:
            attributes |= {"world_seed": int(data.seeds[e]), "ordinal": int(data.ordinals[e])}
        if not data.complete[e]:
            attributes["complete"] = 0
        rows = slice(start, stop)
        observations = np.concatenate((data.obs[rows], data.next_obs[stop - 1 : stop]))
        flags = data.terminated[rows], data.truncated[rows]
        yield e, MinariEpisode(attributes, observations, data.action[rows], data.reward[rows], *flags)
        if progress is not None and (e % _REPORT_EVERY == 0 or e + 1 == data.episodes):
            progress(e + 1, data.episodes)


def _write_hdf5(folder: Path, data: Recording, progress: Progress | None) -> None:
    import h5py

    with h5py.File(folder / "main_data.hdf5", "w", track_order=True, libver="v110") as file:
        for e, episode in _episodes(data, progress):
            group = file.create_group(f"episode_{e}")
            for key, value in episode.attributes.items():
                group.attrs[key] = value
            for key in ("observations", "actions", "rewards", "terminations", "truncations"):
                group.create_dataset(key, data=getattr(episode, key))
            group.create_group("infos")  # Minari's readers expect one, even an empty one


def _write_arrow(folder: Path, data: Recording, progress: Progress | None) -> None:
    import pyarrow as pa

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(values).reshape(-1), values.shape[1])

    for e, episode in _episodes(data, progress):
        # Minari pads everything but the observations by one row, and drops that row again when it reads.
        columns = {
            "observations": lists(episode.observations),
            "actions": lists(np.pad(episode.actions, ((0, 1), (0, 0)))),
            "rewards": pa.array(np.pad(episode.rewards, (0, 1))),
            "terminations": pa.array(np.pad(episode.terminations, (0, 1))),
            "truncations": pa.array(np.pad(episode.truncations, (0, 1))),
        }
        batch = pa.RecordBatch.from_pydict(columns)
        part = folder / str(e)
        part.mkdir()
        with pa.OSFile(str(part / "part-0.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        (part / "metadata.json").write_text(json.dumps(episode.attributes), encoding="utf-8")
