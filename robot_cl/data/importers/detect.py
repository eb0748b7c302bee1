"""`import_dataset`: what a file is, told by its content, and the dataset it becomes."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.importers import minari as minari_reader
from robot_cl.data.importers.d4rl import read_d4rl
from robot_cl.data.importers.lerobot import INFO, read_lerobot
from robot_cl.data.importers.mcap import MAGIC as MCAP
from robot_cl.data.importers.mcap import read_recordings
from robot_cl.data.importers.npz import read_npz
from robot_cl.data.importers.steps import Columns, Counts, Rules, build
from robot_cl.data.minari_io import Progress
from robot_cl.data.reference import D4RL, d4rl_id, task_key
from robot_cl.data.store import StoredDataset, anonymous_interface, new_folder, write_dataset
from robot_cl.paths import data_root
from sim.spec import Interface

_HDF5, _NPY, _ZIP, _PICKLE = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04", re.compile(rb"\x80[\x02-\x05]")


@dataclass(frozen=True)
class ImportReport:
    """The new dataset and what was counted on the way; `sentences()` says it for a reader."""

    dataset: StoredDataset
    kind: str
    counts: Counts

    def sentences(self) -> list[str]:
        meta, counts = self.dataset.meta, self.counts
        said = [
            f"{meta.steps} transitions of {meta.episodes} episodes: "
            f"{meta.terminals} terminals, {meta.timeouts} timeouts, {meta.cuts} cut short"
        ]
        if counts.dropped:
            said.append(
                f"{counts.dropped} last steps have no next observation and were dropped, "
                f"{counts.dropped_terminals} of them terminal"
                + ("; keep_terminals=true keeps those" if counts.dropped_terminals else "")
            )
        if counts.repeated:
            said.append(f"{counts.repeated} terminal steps have no next observation; theirs repeats their observation")
        if counts.relabelled:
            said.append(f"{counts.relabelled} terminals at the time limit are stored as timeouts")
        if counts.clipped:
            said.append(f"{counts.clipped} numbers of actions lay beyond the limits and are stored clipped as executed")
        return said + counts.notes


def detect(path: Path) -> str:
    """"d4rl", "npz", "minari", "lerobot" or "mcap", by content.

    Raises OSError if there is nothing, ValueError if it is something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        if (path / INFO).is_file():
            return "lerobot"
        if minari_reader.data_folder(path) is None:
            wanted = f"Minari's data/metadata.json or LeRobot's {INFO}"
            raise ValueError(f"{path} is a folder without {wanted}; name a dataset's own folder")
        return "minari"
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise ValueError(f"{path} is empty")
    if head.startswith(_HDF5):
        return "minari" if minari_reader.data_folder(path.parent) == path.parent else "d4rl"
    if head.startswith(_ZIP):
        return _detect_zip(path)
    if head.startswith(MCAP):
        return "mcap"
    if head.startswith(_NPY):
        raise ValueError(f"{path} is a single array; expected an .npz with obs, action, reward, ...")
    if _PICKLE.match(head):
        raise ValueError(f"{path} is a pickle, which can run code when read; save plain number arrays (.npz) instead")
    forms = "D4RL HDF5, .npz, a recording (.mcap), a Minari or a LeRobot folder"
    raise ValueError(f"{path} is none of {forms} (it begins with {head[:8]!r})")


def _detect_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as problem:
        raise ValueError(f"{path} is not a whole .npz file ({problem}); write it again") from None
    if "policy.pth" in names:
        raise ValueError(f"{path} is a Stable-Baselines3 agent, not data; collect with it: data collect policy={path}")
    if any(re.fullmatch(r"[Wb]\d+\.npy", name) for name in names):
        raise ValueError(f"{path} is a behaviour, not data; collect with it: data collect policy={path}")
    if not any(name.endswith(".npy") for name in names):
        raise ValueError(f"{path} is a zip without arrays in it; expected an .npz with obs, action, reward, ...")
    return "npz"


def import_dataset(
    path: str | Path,
    name: str | None = None,
    task: str | None = None,
    *,
    horizon: int | None = None,
    clip: bool = False,
    keep_terminals: bool = False,
    limit: int | None = None,
    storage: str = "hdf5",
    root: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    more: Sequence[str | Path] = (),
) -> ImportReport:
    """Reads a D4RL HDF5, an .npz, a recording, a Minari or LeRobot folder and stores it as dataset `name` (by default
    named after the file). `more` are further recordings of the same robot, which become one dataset with the first.

    `task` gives channel names and action limits; None: guessed from the file's name where the widths agree. For
    `horizon`, `clip`, `keep_terminals`, `limit` see `Rules`. Raises ValueError, LookupError or OSError in one sentence,
    and then leaves nothing behind.
    """
    path, rules, counts = Path(path).expanduser(), Rules(horizon, clip, keep_terminals, limit), Counts()
    kind = detect(path)
    root, name = root or data_root(), name or default_name(path, kind)
    new_folder(name, kind, root, overwrite)
    if more and kind != "mcap":
        raise ValueError(f"{path} is no recording; only recordings (.mcap) are imported several at once")
    paths = [path, *(Path(other).expanduser() for other in more)]
    content = _read(paths, kind, progress, task, counts)
    try:
        task, interface = _task_interface(task, content, counts)
        recording = build(content.columns, interface, rules, counts)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    if content.seeds is not None:
        recording.seeds = content.seeds
    facts = {"kind": kind, "file": path.name, "sha256": file_hash(path, kind), "dtypes": _dtypes(content.columns)}
    if more:
        facts["more"] = {other.name: file_hash(other, kind) for other in paths[1:]}
    fits = interface is not None and interface.obs_dim == recording.obs_dim
    dataset = write_dataset(
        name,
        recording,
        interface if fits else None,
        task=task,
        source=facts | content.extra,
        storage=storage,
        root=root,
        overwrite=overwrite,
        progress=progress,
    )
    if kind == "minari":
        counts.notes.append("Minari's sets are new recordings under new names: their scores do not compare to D4RL's")
    return ImportReport(dataset, kind, counts)


def default_name(path: Path, kind: str) -> str:
    """hopper_medium-v2.hdf5 -> d4rl/hopper/medium-v2; Minari's -> minari/<their id>; others -> imported/<file>-v0."""
    if kind == "minari":
        return "minari/" + str(minari_reader.read_metadata(_minari_folder(path))["dataset_id"])
    known = d4rl_id({"kind": kind, "file": path.name})
    if known is not None:
        return "d4rl/" + known.replace("-", "/", 1)
    stem = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "data"
    group = {"mcap": "robot", "lerobot": "lerobot"}.get(kind, "imported")
    return f"{group}/{stem}" if re.search(r"-v\d+$", stem) else f"{group}/{stem}-v0"


def file_hash(path: Path, kind: str) -> str:
    """sha256 hex of the file, or of all files of a folder in the order of their names."""
    if kind not in ("minari", "lerobot"):
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    folder = _minari_folder(path) if kind == "minari" else path
    for inner in sorted(folder.rglob("*")):
        if inner.is_file():
            digest.update(file_hash(inner, "file").encode())
    return digest.hexdigest()


def _minari_folder(path: Path) -> Path:
    folder = minari_reader.data_folder(path if path.is_dir() else path.parent)
    if folder is None:
        raise ValueError(f"{path} belongs to no Minari dataset; name the dataset's own folder")
    return folder


@dataclass
class _Content:
    """What a file gave: columns, the names its task may go by, the task if it says so, and what only some keep."""

    columns: Columns
    titles: list[str]
    seeds: np.ndarray | None = None
    interface: Interface | None = None
    task: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, int]:
        obs, action = (np.shape(value) for value in (self.columns.obs, self.columns.action))
        return (obs[-1] if len(obs) == 2 else 0, action[-1] if len(action) == 2 else 0)


def _read(
    paths: Sequence[Path], kind: str, progress: Progress | None, task: str | None, counts: Counts
) -> _Content:
    path = paths[0]
    if kind == "mcap":
        recorded, face, task = read_recordings(paths, task, counts)
        return _Content(recorded, [], interface=face, task=task)
    if kind == "lerobot":
        steps, named, robot = read_lerobot(path, counts)
        return _Content(steps, [path.name, robot], interface=named)
    if kind == "d4rl":
        return _Content(read_d4rl(path), [path.stem])
    if kind == "npz":
        return _Content(read_npz(path), [path.stem])
    folder = _minari_folder(path)
    metadata = minari_reader.read_metadata(folder)
    columns, seeds = minari_reader.read_minari(folder, progress)
    interface = minari_reader.space_interface(metadata, columns)
    environments = minari_reader.environment_ids(metadata)
    titles = [*environments, *str(metadata["dataset_id"]).split("/")]
    extra = {"minari_id": str(metadata["dataset_id"]), "environment": "".join(environments)}
    return _Content(columns, titles, seeds, interface, extra=extra)


def _task_interface(task: str | None, content: _Content, counts: Counts) -> tuple[str | None, Interface | None]:
    """The task's name and its interface, which may be of other widths; (name, None) if nothing tells the limits."""
    if content.task is not None and content.interface is not None:
        return content.task, content.interface
    if task is None:
        for title in content.titles:
            guess = task_key(title)
            interface = _sim_interface(guess)
            if interface is not None and (interface.obs_dim, interface.act_dim) == content.widths:
                counts.notes.append(f"task {guess} guessed from the name {title}; its channels and limits fit")
                return guess, interface
        return None, content.interface
    interface = _sim_interface(task)
    if interface is None:
        if task_key(task) not in D4RL:
            import sim

            sim.get_task(task)  # raises, with near matches
        # Every environment of D4RL takes commands in [-1, 1].
        return task, anonymous_interface(*content.widths)
    if interface.act_dim != content.widths[1]:
        raise ValueError(f"actions are {content.widths[1]} wide, task {task} has {interface.act_dim}; name its task")
    if interface.obs_dim != content.widths[0]:
        counts.notes.append(
            f"observations are {content.widths[0]} wide, task {task} gives {interface.obs_dim} here: another version "
            f"of the environment, on which nothing trained on this data can be evaluated"
        )
    return task, interface


def _sim_interface(task: str) -> Interface | None:
    import sim

    try:
        known = sim.get_task(task)
    except LookupError:
        return None
    return sim.make(known, num_worlds=1, threads=1).interface


def _dtypes(columns: Columns) -> dict[str, str]:
    return {key: str(value.dtype) for key, value in vars(columns).items() if value is not None}
