"""Whether the copy that Minari reads holds what the transitions hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robot_cl.data.checks.subject import Finding, Subject

MAX_EPISODES = 200  # looked into, evenly spread with the first and the last
FIELDS = {"observations": "obs", "actions": "action", "rewards": "reward", "terminations": "terminated",
          "truncations": "truncated"}  # fmt: skip


def minari_copy(subject: Subject) -> Finding | None:
    """Looks at `data/`; where the transitions themselves have changed nothing is said of their copy."""
    folder = subject.path / "data"
    if not subject.unchanged:
        return None
    if not folder.is_dir():
        return Finding("minari_copy", f"there is no {folder}, so that Minari cannot read this dataset", "note")
    try:
        problem = _problem(subject, folder)
    except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        problem = f"cannot be read ({' '.join(str(error).split())[:120]})"
    if problem is None:
        return None
    return Finding("minari_copy", f"{folder}, which Minari reads, {problem}; write or import the dataset again")


def _problem(subject: Subject, folder: Path) -> str | None:
    told = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    counts = told["total_episodes"], told["total_steps"]
    if counts != (len(subject.lengths), len(subject.rows)):
        return f"has {counts[0]} episodes and {counts[1]} steps, not {len(subject.lengths)} and {len(subject.rows)}"
    some = np.unique(np.linspace(0, len(subject.lengths) - 1, MAX_EPISODES).astype(int))
    read = _hdf5 if told["data_format"] == "hdf5" else _arrow
    for e, found in read(folder, some, subject):
        for theirs, ours in FIELDS.items():
            if not _same(found[theirs], _expected(subject, e, ours)):
                return f"has other {theirs} in episode {e} than the transitions"
    return None


def _expected(subject: Subject, e: int, field: str) -> np.ndarray:
    rows = slice(subject.starts[e], subject.stops[e])
    values = np.asarray(subject.fields[field][rows])
    return np.concatenate((values, subject.fields["next_obs"][rows][-1:])) if field == "obs" else values


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.array_equal(found.astype(np.float32), expected, equal_nan=True))


def _hdf5(folder: Path, episodes: np.ndarray, subject: Subject) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    import h5py

    with h5py.File(folder / "main_data.hdf5", "r") as file:
        for e in episodes.tolist():
            yield e, {name: file[f"episode_{e}"][name][:] for name in FIELDS}


def _arrow(folder: Path, episodes: np.ndarray, subject: Subject) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Minari pads everything but the observations by one row."""
    import pyarrow as pa

    widths = {"observations": subject.meta.obs_dim, "actions": subject.meta.act_dim}
    for e in episodes.tolist():
        (part,) = (folder / str(e)).glob("*.arrow")
        with pa.memory_map(str(part)) as source:
            table = pa.ipc.open_file(source).read_all().combine_chunks()
            found = {}
            for name in FIELDS:
                column = table[name].chunk(0)
                flat = column.flatten() if name in widths else column
                values = flat.to_numpy(zero_copy_only=False).reshape(-1, *([widths[name]] if name in widths else []))
                found[name] = np.array(values if name == "observations" else values[:-1])
        yield e, found
