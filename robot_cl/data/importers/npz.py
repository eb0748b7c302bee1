"""Plain arrays in an .npz, under the names people use for them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from robot_cl.data.importers.steps import Columns

ALIASES: dict[str, tuple[str, ...]] = {
    "obs": ("obs", "observation", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_obs": ("next_obs", "next_observation", "next_observations"),
    "terminated": ("terminated", "terminal", "terminals", "terminations"),
    "truncated": ("truncated", "timeout", "timeouts", "truncations"),
    "lengths": ("episode_lengths", "lengths"),
}
_REQUIRED = ("obs", "action", "reward")


def read_npz(path: Path) -> Columns:
    """Raises ValueError, naming the file, if it is damaged, needs unpickling, or lacks a column."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: [key for key in keys if key in stored.files] for name, keys in ALIASES.items()}
            _check_names(path, found, stored.files)
            arrays = {name: stored[keys[0]] for name, keys in found.items() if keys}
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, zipfile.error) as problem:
        raise ValueError(f"{path} is not a whole .npz file ({problem}); write it again") from None
    except ValueError as problem:
        if "allow_pickle" in str(problem) or "Object arrays" in str(problem):
            raise ValueError(
                f"{path} holds pickled objects, which can run code when read; save plain number arrays instead"
            ) from None
        raise
    return Columns(**arrays)


def _check_names(path: Path, found: dict[str, list[str]], files: list[str]) -> None:
    missing = [f"{name} ({' or '.join(ALIASES[name])})" for name in _REQUIRED if not found[name]]
    if missing:
        hint = "; 'dones' does not tell a terminal from a timeout" if "dones" in files or "done" in files else ""
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(files[:12]) or 'nothing'}{hint}")
    twice = [keys for keys in found.values() if len(keys) > 1]
    if twice:
        raise ValueError(f"{path} has {' and '.join(twice[0])}, which mean the same; keep one of them")
