"""Which folder a word on the command line means."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

LAST = "last"


def find_run(word: str) -> Path:
    """A run folder from its path, its name under runs/, an unambiguous part of its name, or "last" for the newest.

    Raises LookupError with near names otherwise.
    """
    from robot_cl.data.naming import not_found
    from robot_cl.paths import runs_root

    path = Path(word).expanduser()
    if (path / "config.yaml").exists():
        return path
    root, names = runs_root(), _names()
    if word == LAST and names:
        return _shown(max((root / name for name in names), key=lambda p: (p / "config.yaml").stat().st_mtime))
    fits = [name for name in names if word in (name, _label(name))] or [name for name in names if word in name]
    if len(fits) == 1:
        return _shown(root / fits[0])
    if len(fits) > 1:
        raise LookupError(f"{word!r} fits {len(fits)} runs: {', '.join(fits[-8:])}; write more of the name, or {LAST}")
    if path.exists():
        raise LookupError(f"{path} is not a run: it has no config.yaml; runs lie under {root}")
    labels = {_label(name) for name in names}
    raise not_found("run", word, labels, "" if labels else "train makes one")


def _names() -> list[str]:
    """The folders under runs/ that are runs, oldest first by name."""
    from robot_cl.paths import runs_root

    root = runs_root()
    return sorted(p.name for p in root.iterdir() if (p / "config.yaml").exists()) if root.is_dir() else []


def with_sweeps_opened(runs: list[Path]) -> list[Path]:
    """The same runs, and in place of each sweep those of its jobs that are done. Raises LookupError if it has none."""
    from robot_cl.scale.sweep import Sweep, is_sweep

    found: list[Path] = []
    for path in runs:
        inner = [_shown(Path(said["run"])) for said in Sweep(path).results().values() if "run" in said]
        if is_sweep(path) and not inner:
            raise LookupError(f"{path} is a sweep without a finished run yet; go on with it: robot-cl resume {path}")
        found += inner or [path]
    return found


def plain_names(names: list[str]) -> list[str]:
    """Runs' names without their dates, where these do not tell them apart."""
    labels = [_label(name) for name in names]
    return labels if len(set(labels)) == len(set(names)) else names


def _label(name: str) -> str:
    """A run's name without its date."""
    return re.sub(r"^\d{4}-\d\d-\d\d-(\d{6}-)?", "", name)


def find_source(word: str) -> tuple[Path | str, Path | None]:
    """What `load_policy` should read, and the run folder it belongs to, if any.

    A run, a checkpoint of one, a bundle, a file, or a behaviour's name.
    """
    path = Path(word).expanduser()
    if (path / "policy.json").exists() and path.parent.name == "checkpoints":
        return path, path.parent.parent
    if path.exists() and not (path / "config.yaml").exists():
        return path, None
    try:
        run = find_run(word)
        return run, run
    except LookupError:
        from robot_cl.data.behaviours import list_behaviours
        from robot_cl.data.naming import not_found

        if word in list_behaviours():
            return word, None
        if os.sep in word or word.endswith((".zip", ".npz", ".safetensors")):
            raise FileNotFoundError(f"there is no {word}; give a run, a checkpoint, a bundle or a file") from None
        if any(word in name for name in _names()):
            raise
        known = {*map(_label, _names()), *list_behaviours()}
        raise not_found("run or behaviour", word, known, "the path of a policy file works too") from None


def typed(path: Path | str) -> str:
    """A path as it stands in a command: relative if it lies below the working directory, quoted if it has blanks."""
    return shlex.quote(str(_shown(Path(path))))


def _shown(path: Path) -> Path:
    """Relative to the working directory where it lies below it, as one would type it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
