"""Folders that appear whole or not at all, whatever kills the writer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MANY = 64
_TEMPORARY, _REPLACED = ".tmp", ".old"


@contextmanager
def whole_folder(root: Path, final: Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty hidden folder under `root`; on success it is synced to disk and renamed to `final`.

    An exception removes it. What a killed process left is invisible (hidden, never listed) and is removed by the next
    writer. Raises FileExistsError if `final` exists and `overwrite` is False.
    """
    refuse_existing(final, overwrite)
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    work = _hidden(root, _TEMPORARY)
    work.mkdir()
    try:
        yield work
        _sync_tree(work)
        final.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing(final, overwrite)
        _rename(root, work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(root: Path) -> None:
    """Removes what killed writers left under `root`, and puts back what one of them had moved aside."""
    for left in root.glob(f"{_REPLACED}-*"):
        if _abandoned(left):
            original = _original(root, left)
            if original is not None and not original.exists():
                left.rename(original)
            else:
                shutil.rmtree(left, ignore_errors=True)
    for left in root.glob(f"{_TEMPORARY}-*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)


def remove_folder(root: Path, folder: Path) -> None:
    """Takes `folder` out of sight in one step, then off the disk, with parents that became empty."""
    hidden = _hidden(root, _TEMPORARY)
    folder.rename(hidden)
    shutil.rmtree(hidden)
    for parent in folder.parents:
        if parent == root or any(parent.iterdir()):
            break
        parent.rmdir()


_CLAIMED: dict[Path, int] = {}  # folder -> the descriptor that holds this process's claim


def claim(folder: Path) -> None:
    """The folder is this process's to write to until it ends, however it ends; what it claims again stays its own.

    Raises ValueError if another process has claimed it.
    """
    path = folder.resolve()
    if path in _CLAIMED:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{folder} is being written by another process; wait for it, or stop that one first") from None
    except OSError:  # a file system without locks; better no protection than no run
        os.close(handle)
        return
    _CLAIMED[path] = handle


def _disclaim() -> None:
    """In a forked process: the claims are its parent's, and end with that."""
    for handle in _CLAIMED.values():
        os.close(handle)
    _CLAIMED.clear()


os.register_at_fork(after_in_child=_disclaim)


def write_json(path: Path, data: object, sort_keys: bool = True) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(data, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n", encoding="utf-8")


def refuse_existing(final: Path, overwrite: bool) -> None:
    """Raises FileExistsError if `final` is there and may not be replaced."""
    if final.exists() and not overwrite:
        raise FileExistsError(f"{final} exists already; choose another name, or pass overwrite=true to replace it")


def _rename(root: Path, work: Path, final: Path) -> None:
    aside = _hidden(root, _REPLACED)
    replaced = final.exists()
    if replaced:
        final.rename(aside)
    try:
        work.rename(final)
    except OSError as problem:
        if replaced:
            aside.rename(final)
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{final} was written by another process meanwhile; choose another name") from None
        raise
    _sync(final.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def _original(root: Path, left: Path) -> Path | None:
    """Where a folder moved aside came from: its own meta.json names it."""
    try:
        return root / str(json.loads((left / "meta.json").read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return None


def _hidden(root: Path, kind: str) -> Path:
    """A new name that says which process of which machine it belongs to."""
    return root / f"{kind}-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _abandoned(left: Path) -> bool:
    """Whether the process that made it ran on this machine and is no more."""
    made_here, _, rest = left.name.partition("-")[2].rpartition("-")[0].rpartition("-")
    if made_here != platform.node() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _sync_tree(folder: Path) -> None:
    """Everything below `folder` is on the disk when this returns."""
    if sum(1 for _ in folder.rglob("*")) > _MANY:
        os.sync()  # one flush of everything takes far less than thousands of single ones
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
