"""Which file a request may read: a plain file inside one folder, not hidden, not a link out of it, not too large."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_FILE = 64_000_000  # bytes; what is larger is copied from the disk, not through a browser
MAX_LISTED = 500
TYPES = {
    ".html": "text/html; charset=utf-8", ".json": "application/json", ".csv": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8",
    ".png": "image/png", ".svg": "image/svg+xml", ".pdf": "application/pdf", ".mp4": "video/mp4",
}  # fmt: skip


class RefusedError(Exception):
    """A request that is not answered; `status` is its HTTP code, the message one sentence for the reader."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def folder(root: Path, name: str) -> Path:
    """The folder `name` in `root`. Raises RefusedError for another path, a link, or nothing."""
    _check_part(name)
    path = root / name
    if path.is_symlink() or not path.is_dir():
        raise RefusedError(404, f"there is no {name!r} here")
    return path


def file(base: Path, inside: str, types: dict[str, str] = TYPES) -> Path:
    """The file `inside` (parts separated by /) below `base`, which may be read and shown. Raises RefusedError."""
    path = base
    try:
        for part in inside.split("/"):
            _check_part(part)
            path = path / part
            if path.is_symlink():
                raise RefusedError(403, f"{part!r} is a link; links are not followed")
        found = path.stat(follow_symlinks=False)
    except OSError:  # nothing there, or a path longer than any can be
        raise RefusedError(404, f"there is no file {inside!r}") from None
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(404, f"{inside!r} is not a file")
    if path.suffix not in types:
        raise RefusedError(403, f"files such as {path.name!r} are not shown in a browser; they are on the disk")
    if found.st_size > MAX_FILE:
        raise RefusedError(413, f"{inside!r} has {found.st_size / 1e6:.0f} MB; more than {MAX_FILE // 1_000_000} MB")
    return path


def listing(base: Path) -> Iterator[tuple[str, int, bool]]:
    """(path inside, bytes, whether it may be shown) of up to MAX_LISTED files, two levels deep, none that is hidden."""
    for name, entry in list(itertools.islice(_walk(base, "", 2), MAX_LISTED)):
        try:
            size = entry.stat(follow_symlinks=False).st_size
        except OSError:  # a run that is being trained removes what it no longer needs
            continue
        yield name, size, os.path.splitext(name)[1] in TYPES and size <= MAX_FILE  # noqa: PTH122 (text, not a path)


def _check_part(part: str) -> None:
    if not part or part.startswith(".") or any(c in part for c in "/\\\0") or len(part.encode()) > 255:
        raise RefusedError(404, "this path leads nowhere")


def _walk(folder: Path | str, prefix: str, levels: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Plain files by name, those of folders after their folder's place; neither hidden ones nor links."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            yield prefix + entry.name, entry
        elif levels > 1 and entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{entry.name}/", levels - 1)
