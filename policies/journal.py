"""A library's append-only journal: one JSON object per line; a line counts when its newline is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Remembers nothing: the file does. Only whoever holds the library's lock appends."""

    def __init__(self, path: Path, durable: bool = True):
        self.path, self.durable = path, durable

    def append(self, entry: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
            file.flush()
            if self.durable:
                os.fsync(file.fileno())

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def entries(self) -> list[dict[str, Any]]:
        """All whole lines, oldest first."""
        return [json.loads(line) for line in self._whole().splitlines()] if self.size else []

    def since(self, offset: int) -> tuple[list[str], int]:
        """Skills named in the whole lines after `offset`, each once, and the offset behind the last of these lines."""
        with self.path.open("rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":  # inside a line that was being written, or was cut short since
                file.seek(0)
            start = file.tell()
            tail = file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        names = dict.fromkeys(str(json.loads(line)["skill"]) for line in whole.splitlines())
        return list(names), start + len(whole)

    def last(self) -> dict[str, Any] | None:
        """The last whole line, read from the end; a line cut short by a crash is removed first."""
        if not self.size:
            return None
        with self.path.open("r+b") as file:
            start = max(0, self.size - 65536)
            file.seek(start)
            tail = file.read()
            kept = tail.rfind(b"\n") + 1
            if kept != len(tail):
                file.truncate(start + kept)
        lines = tail[:kept].splitlines()
        return json.loads(lines[-1]) if lines else None

    def _whole(self) -> bytes:
        data = self.path.read_bytes()
        return data[: data.rfind(b"\n") + 1]
