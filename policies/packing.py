"""What makes a library of thousands fast: one memory map of all skills' factors, and one table of their sketches.

Both are derived from the skill files and may be deleted at any time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.adapter import Adapter, Factors, Header
from policies.skill_file import write_atomically

Stamp = tuple[int, int]  # modification time in ns and size of a skill file: what the pack was made from


def stamp_of(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


class SketchTable:
    """Names and their sketches (N, size), with exact nearest neighbours. Remembers what is set until it is dropped."""

    def __init__(self, size: int):
        self.size = size
        self.names: list[str] = []
        self.row: dict[str, int] = {}
        self._data, self._norm = torch.zeros(64, size), torch.zeros(64)

    def set(self, name: str, vector: Tensor) -> None:
        if name not in self.row:
            self.row[name] = len(self.names)
            self.names.append(name)
            if len(self.names) > len(self._data):  # doubling, so that adding stays cheap
                self._data = torch.cat([self._data, torch.zeros_like(self._data)])
                self._norm = torch.cat([self._norm, torch.zeros_like(self._norm)])
        self._data[self.row[name]] = vector
        self._norm[self.row[name]] = vector.norm()

    def drop(self, name: str) -> None:
        """Its place is taken by the last one."""
        row, last = self.row.pop(name), self.names.pop()
        if last != name:
            self.names[row], self.row[last] = last, row
            self._data[row], self._norm[row] = self._data[len(self.names)].clone(), self._norm[len(self.names)].clone()

    def vector(self, name: str) -> Tensor:
        return self._data[self.row[name]]

    def nearest(self, vector: Tensor, k: int) -> list[tuple[str, float]]:
        """The k names with the smallest ‖v − v_n‖ / max(‖v‖, ‖v_n‖), closest first; 0: they do the same."""
        n = len(self.names)
        if not n:
            return []
        data, norm, own = self._data[:n], self._norm[:n], vector.norm()
        larger = torch.maximum(norm, own).clamp_min(1e-30)
        squared = (norm.square() + own.square() - 2 * (data @ vector)) / larger.square()
        rows = squared.topk(min(n, k + 8), largest=False).indices
        exact = (data[rows] - vector).norm(dim=1) / larger[rows]  # the products above cancel badly near 0
        order = exact.argsort()[:k]
        return [(self.names[int(rows[i])], float(exact[i])) for i in order]


@dataclass
class Pack:
    """One float32 row per skill, `rank` ranks per layer (fewer are zero-padded), memory-mapped.

    A row is used only while the skill file's stamp is the one it was made from, and its checksum holds.
    """

    rank: int
    layout: dict[str, tuple[int, int]]  # layer -> (d_out, d_in)
    entries: dict[str, dict[str, Any]]  # name -> row, stamp, ranks, checksum, content
    rows: np.ndarray  # (N, width)
    sketches: np.ndarray  # (N, size)

    @classmethod
    def open(cls, folder: Path, layout: Mapping[str, tuple[int, int]], size: int) -> Pack | None:
        """The pack of a library folder, or None if there is none that fits (it will be written again).

        `size` is that of a sketch.
        """
        index = folder / "pack.json"
        if not index.exists():
            return None
        try:
            data = json.loads(index.read_bytes())
            entries, files = dict(data["entries"]), folder / data["folder"]
            count = len(entries)
            rows = np.memmap(files / "rows.f32", np.float32, "r").reshape(count, -1) if count else np.zeros((0, 1))
            sketches = np.fromfile(files / "sketches.f32", np.float32).reshape(count, size)
            pack = cls(int(data["rank"]), dict(layout), entries, rows, sketches)
        except (ValueError, KeyError, TypeError, OSError):
            return None  # derived data: whatever is wrong with it, the skill files say the same
        return pack if not count or rows.shape[1] == pack.width else None

    @property
    def width(self) -> int:
        return sum(self.rank * (d_out + d_in) for d_out, d_in in self.layout.values())

    def entry(self, name: str, stamp: Stamp) -> dict[str, Any] | None:
        found = self.entries.get(name)
        return found if found is not None and tuple(found["stamp"]) == stamp else None

    def load(self, name: str, stamp: Stamp, header: Header) -> Adapter | None:
        """The skill, or None if it is not packed as it is on disk now."""
        found = self.entry(name, stamp)
        if found is None or not found["packed"]:
            return None
        row = np.array(self.rows[found["row"]])  # a copy: the map is read-only
        if zlib.crc32(row.data) != found["checksum"]:
            return None
        return Adapter(self._unpack(torch.from_numpy(row), found["ranks"]), header)

    def _unpack(self, row: Tensor, ranks: Mapping[str, int]) -> dict[str, Factors]:
        layers, at = {}, 0
        for name, (d_out, d_in) in self.layout.items():
            down = row[at : at + self.rank * d_in].view(self.rank, d_in)
            at += self.rank * d_in
            up = row[at : at + self.rank * d_out].view(self.rank, d_out)
            at += self.rank * d_out
            if name in ranks:
                layers[name] = Factors(down[: ranks[name]], up[: ranks[name]].T)
        return layers

    def pack_row(self, adapter: Adapter) -> np.ndarray:
        row = np.zeros(self.width, np.float32)
        at = 0
        for name, (d_out, d_in) in self.layout.items():
            if name in adapter.layers:
                down, up = adapter.layers[name]
                row[at : at + down.numel()] = down.reshape(-1)
                row[at + self.rank * d_in :][: up.numel()] = up.T.reshape(-1)
            at += self.rank * (d_out + d_in)
        return row


def write_pack(
    folder: Path,
    layout: Mapping[str, tuple[int, int]],
    rank: int,
    skills: Iterable[tuple[str, Adapter, Stamp, str, Tensor]],
) -> None:
    """Write the pack of (name, adapter, stamp, content, sketch) beside the old one, then switch over in one step."""
    old = sorted(folder.glob(".pack-*"))
    newest = max((int(p.name.split("-")[1]) for p in old), default=0)
    files = folder / f".pack-{newest + 1}"
    files.mkdir()
    pack = Pack(rank, dict(layout), {}, np.zeros((0, 1)), np.zeros((0, 1)))
    with (files / "rows.f32").open("wb") as rows, (files / "sketches.f32").open("wb") as sketches:
        for i, (name, adapter, stamp, content, sketch) in enumerate(skills):
            fits = max(adapter.ranks.values()) <= rank
            row = pack.pack_row(adapter) if fits else np.zeros(pack.width, np.float32)
            rows.write(row.tobytes())
            sketches.write(sketch.numpy().astype(np.float32).tobytes())
            pack.entries[name] = {
                "row": i, "stamp": stamp, "ranks": adapter.ranks, "packed": fits,
                "checksum": zlib.crc32(row.data), "content": content,
            }  # fmt: skip
    index = json.dumps({"folder": files.name, "rank": rank, "entries": pack.entries})
    write_atomically(folder / "pack.json", index.encode(), folder / "pack.json.tmp", durable=False)
    for path in old:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
