"""Datasets on disk: one folder each, written whole, opened as memory-mapped transitions.

`<root>/<name>/` holds `meta.json`, `flat/transitions.npy` (N, row_width) float32 with the episode tables
`flat/{lengths,seeds,ordinals,complete}.npy` (E,), and `data/`, the same episodes as Minari keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_cl.batch import Transitions, row_width
from robot_cl.data.atomic import refuse_existing, remove_folder, whole_folder, write_json
from robot_cl.data.meta import DatasetMeta, describe
from robot_cl.data.minari_io import Progress, write_minari
from robot_cl.data.naming import check_free, check_name, not_found
from robot_cl.data.recording import Recording, split_rows
from robot_cl.data.reference import claims_d4rl, d4rl_id, find_reference
from robot_cl.paths import data_root
from sim.spec import Channel, Interface

if TYPE_CHECKING:
    from torch import Tensor

_EPISODE_ARRAYS = ("lengths", "seeds", "ordinals", "complete")


@dataclass(frozen=True)
class Episode:
    """Where one episode lies in the transitions, and how it ended."""

    start: int
    stop: int
    ret: float
    terminated: bool
    truncated: bool
    complete: bool
    seed: int
    ordinal: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class StoredDataset:
    """An open dataset. Arrays are mapped copy-on-write: nothing that is done to them reaches the file."""

    path: Path
    meta: DatasetMeta

    @property
    def name(self) -> str:
        return self.meta.id

    @cached_property
    def interface(self) -> Interface:
        return Interface.from_dict(self.meta.interface)

    @cached_property
    def rows(self) -> np.ndarray:
        """(N, row_width) float32, packed as `Transitions.pack`, mapped from the file.

        Raises ValueError or OSError if the file is not what meta.json says.
        """
        path = self.path / "flat" / "transitions.npy"
        rows = map_array(path)
        expected = (self.meta.steps, row_width(self.meta.obs_dim, self.meta.act_dim))
        if rows.shape != expected or rows.dtype != np.float32:
            raise ValueError(
                f"{path} holds {rows.dtype} {rows.shape}, meta.json says float32 {expected}; write the dataset again"
            )
        return rows

    @cached_property
    def episode_arrays(self) -> dict[str, np.ndarray]:
        """lengths, seeds, ordinals, complete, each (E,)."""
        arrays = {key: np.asarray(map_array(self.path / "flat" / f"{key}.npy")) for key in _EPISODE_ARRAYS}
        if arrays["lengths"].sum() != self.meta.steps or {len(a) for a in arrays.values()} != {self.meta.episodes}:
            raise ValueError(f"{self.path} has episode tables that disagree with meta.json; write the dataset again")
        return arrays

    def packed(self) -> Tensor:
        """(N, row_width) float32 tensor over the mapped file."""
        import torch

        return torch.from_numpy(self.rows)

    def transitions(self) -> Transitions:
        """All N transitions as views of the mapped file."""
        return Transitions.unpack(self.packed(), self.meta.obs_dim, self.meta.act_dim)

    def episodes(self) -> list[Episode]:
        """Every episode in stored order."""
        data = self.recording()
        last = data.stops - 1
        columns = (data.starts, data.stops, data.returns, data.terminated[last], data.truncated[last])
        parts = zip(*columns, data.complete, data.seeds, data.ordinals, strict=True)
        return [
            Episode(int(a), int(b), float(r), bool(t), bool(u), bool(c), int(s), int(o))
            for a, b, r, t, u, c, s, o in parts
        ]

    def recording(self) -> Recording:
        """The same data as arrays by field. Raises ValueError for values no dataset may hold (NaN, actions over 1)."""
        return Recording(**split_rows(self.rows, self.meta.obs_dim, self.meta.act_dim), **self.episode_arrays)


def write_dataset(
    name: str,
    data: Recording,
    interface: Interface | None = None,
    *,
    task: str | None = None,
    source: dict[str, Any] | None = None,
    simulator: dict[str, str] | None = None,
    storage: str = "hdf5",
    held_out: Sequence[int] = (),
    root: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> StoredDataset:
    """Writes a new dataset, whole or not at all, and opens it.

    `interface` None: channels are numbered and unit-less. `source` and `simulator` are recorded as given (see
    `DatasetMeta`); simulator None: unknown. `held_out` are indices of episodes left out of the statistics.
    Raises ValueError for a bad name, storage or interface; FileExistsError for an existing one.
    """
    root = root or data_root()
    source = source or {"kind": "arrays"}
    final = new_folder(name, str(source["kind"]), root, overwrite)
    interface = interface or anonymous_interface(data.obs_dim, data.act_dim)
    if (interface.obs_dim, interface.act_dim) != (data.obs_dim, data.act_dim):
        raise ValueError(
            f"the data is {data.obs_dim} observations and {data.act_dim} actions wide, "
            f"the interface{f' of {task}' if task else ''} {interface.obs_dim} and {interface.act_dim}"
        )
    rows = data.rows()
    meta = describe(name, data, rows, interface, task, source, storage, held_out)
    scale = find_reference(task, meta.source) if task else None
    meta = replace(
        meta,
        simulator=dict(simulator or {}),
        d4rl_id=d4rl_id(meta.source),
        reference=scale.name if scale else None,
        score=scale.score(meta.return_mean) if scale else None,
    )
    with whole_folder(root, final, overwrite) as folder:
        flat = folder / "flat"
        flat.mkdir()
        np.save(flat / "transitions.npy", rows)
        for key in _EPISODE_ARRAYS:
            np.save(flat / f"{key}.npy", getattr(data, key))
        details = {"algorithm_name": meta.source["kind"], "description": f"robot-cl dataset {name}, task {task}"}
        write_minari(folder / "data", name, data, storage, details, progress)
        write_json(folder / "meta.json", meta.to_dict())
    return StoredDataset(final, meta)


def open_dataset(name_or_path: str | Path, root: Path | None = None) -> StoredDataset:
    """Opens a dataset by name (under the data root), by D4RL id if that set was imported, or by folder; several as
    "real+sim" (see `mixture`).

    Raises LookupError with near matches if there is none, ValueError or OSError if the folder is damaged.
    """
    from robot_cl.data.mixture import is_mixture, open_mixture

    if is_mixture(name_or_path):
        return open_mixture(str(name_or_path), root)
    dataset = find_dataset(name_or_path, root)
    _ = dataset.rows, dataset.episode_arrays, dataset.interface
    return dataset


def find_dataset(name_or_path: str | Path, root: Path | None = None) -> StoredDataset:
    """As `open_dataset`, but only meta.json is read: the arrays may be damaged."""
    root = root or data_root()
    folder = Path(name_or_path).expanduser()
    if not (folder / "meta.json").exists():
        folder = root / _stored_name(str(name_or_path), root)
    return StoredDataset(folder, _read_meta(folder))


def list_datasets(root: Path | None = None) -> dict[str, DatasetMeta]:
    """Name -> description of every whole dataset under the data root, sorted; damaged ones are left out."""
    root = root or data_root()
    found = {}
    for folder in _dataset_folders(root):
        with suppress(ValueError):
            found[folder.relative_to(root).as_posix()] = _read_meta(folder)
    return found


def damaged_datasets(root: Path | None = None) -> dict[str, str]:
    """Name -> what is wrong, of every dataset that `list_datasets` leaves out."""
    root = root or data_root()
    found = {}
    for folder in _dataset_folders(root):
        try:
            _read_meta(folder)
        except ValueError as problem:
            found[folder.relative_to(root).as_posix()] = str(problem)
    return found


def delete_dataset(name: str, root: Path | None = None) -> None:
    """Removes a dataset: first out of sight in one step, then from disk. Raises LookupError if there is none."""
    root = root or data_root()
    folder = root / _stored_name(name, root)
    remove_folder(root, folder)


def new_folder(name: str, kind: str, root: Path, overwrite: bool = False) -> Path:
    """The folder of a dataset yet to be written from a source of `kind`.

    Raises ValueError for a bad name or D4RL's name on other data, FileExistsError for a taken one.
    """
    folder = check_free(root, name)
    if claims_d4rl(name) and kind != "d4rl":
        raise ValueError(f"{name!r} is a D4RL name, but this data is not D4RL's; choose a name of its own")
    refuse_existing(folder, overwrite)
    return folder


def anonymous_interface(obs_dim: int, act_dim: int, control_dt: float = 1.0) -> Interface:
    """Numbered, unit-less channels for data whose robot is unknown; control_dt 1.0 s says nothing about the robot."""
    obs = tuple(Channel(f"obs_{i}", "1") for i in range(obs_dim))
    action = tuple(Channel(f"action_{i}", "1", -1.0, 1.0) for i in range(act_dim))
    return Interface(obs, action, control_dt)


def _dataset_folders(folder: Path) -> Iterator[Path]:
    """Every folder with a meta.json below `folder`, without looking inside one or into hidden ones."""
    for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
        if inner.is_dir() and not inner.name.startswith("."):
            if (inner / "meta.json").exists():
                yield inner
            else:
                yield from _dataset_folders(inner)


def _read_meta(folder: Path) -> DatasetMeta:
    path = folder / "meta.json"
    try:
        return DatasetMeta.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not readable JSON ({problem}); write the dataset again") from None


def _stored_name(name: str, root: Path) -> str:
    stored = list_datasets(root)
    if name in stored or name in damaged_datasets(root):
        return name
    by_alias = [key for key, meta in stored.items() if meta.d4rl_id == name]
    if by_alias:
        return by_alias[0]
    if Path(name).expanduser().is_dir():
        raise ValueError(f"{name} is a folder without meta.json; import it first: robot-cl data import {name}")
    hint = "D4RL sets are not shipped; import the HDF5 file" if d4rl_id({"kind": "d4rl", "file": name}) else ""
    if not hint and not stored:
        check_name(name)
    raise not_found("dataset", name, stored, hint)


def map_array(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped copy-on-write. Raises OSError or ValueError in a sentence."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; write the dataset again")
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); write the dataset again") from None


__all__ = [
    "Episode",
    "StoredDataset",
    "anonymous_interface",
    "damaged_datasets",
    "delete_dataset",
    "find_dataset",
    "list_datasets",
    "map_array",
    "new_folder",
    "open_dataset",
    "write_dataset",
]
