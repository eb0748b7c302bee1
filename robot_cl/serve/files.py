"""Which file a request may read: a plain file inside one folder, not hidden, not a link out of it, not too large."""

from __future__ import annotations

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
    for part in inside.split("/"):
        _check_part(part)
        path = path / part
        if path.is_symlink():
            raise RefusedError(403, f"{part!r} is a link; links are not followed")
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
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
    found = sorted([*base.glob("*"), *base.glob("*/*")])
    shown = [p for p in found if not p.is_symlink() and p.is_file() and not _hidden(p.relative_to(base))]
    for path in shown[:MAX_LISTED]:
        size = path.stat().st_size
        yield path.relative_to(base).as_posix(), size, path.suffix in TYPES and size <= MAX_FILE


def _check_part(part: str) -> None:
    if not part or part.startswith(".") or any(c in part for c in "/\\\0") or len(part.encode()) > 255:
        raise RefusedError(404, "this path leads nowhere")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
