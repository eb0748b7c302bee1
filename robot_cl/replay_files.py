"""A replay buffer on disk: chunks that are only ever added, so that a checkpoint writes what is new."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from robot_cl.batch import Transitions
from robot_cl.checkpoint import load_tensors, save_tensors
from robot_cl.learners.replay import ReplayBuffer

FOLDER = "replay"


def save_replay(run: Path, buffer: ReplayBuffer, stored: int) -> int:
    """Write the rows added after the first `stored`, drop chunks the ring has overwritten. Returns the new total."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    rows = buffer.since(stored)
    if rows.shape[1]:
        first = buffer.total - rows.shape[1]
        part = folder / ".part"
        save_tensors(part, {"rows": rows})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(folder / f"{first}-{buffer.total}.safetensors")
    for path, _, last in _chunks(folder):
        if last <= buffer.total - buffer.capacity:
            path.unlink()
    return buffer.total


def restore_replay(run: Path, buffer: ReplayBuffer, total: int) -> None:
    """Fill an empty `buffer` with what it held when `total` rows had been added; later chunks are deleted.

    Raises ValueError if chunks are missing.
    """
    folder = run / FOLDER
    chunks = sorted(_chunks(folder), key=lambda chunk: chunk[1]) if folder.exists() else []
    for path, _, last in chunks:
        if last > total:
            path.unlink()
    chunks = [chunk for chunk in chunks if chunk[2] <= total]
    buffer.total = chunks[0][1] if chunks else 0
    if chunks and buffer.total > max(0, total - buffer.capacity):
        raise ValueError(f"{folder} lacks the rows before {buffer.total}; this run cannot be continued")
    for path, first, last in chunks:
        if first != buffer.total:
            raise ValueError(f"{folder} lacks the rows from {buffer.total} to {first}; this run cannot be continued")
        buffer.add_packed(load_tensors(path)["rows"].to(buffer.device))
        if buffer.total != last:
            raise ValueError(f"{path} does not hold the rows its name says")
    if buffer.total != total:
        raise ValueError(f"{folder} has {buffer.total} of {total} rows; this run cannot be continued")


def lived(run: Path, obs_dim: int, act_dim: int, worlds: int = 1) -> Transitions | None:
    """What a run's seeds went through (N,), world by world in the order of time; None if it kept no replay buffer.

    A run with several worlds per seed lays them side by side; of a full ring only the newest part is left.
    """
    chunks = sorted(_chunks(run / FOLDER), key=lambda chunk: chunk[1])
    if not chunks:
        return None
    rows = torch.cat([load_tensors(path)["rows"] for path, _, _ in chunks], 1)  # (P, n, row_width)
    rows = rows[:, : rows.shape[1] // worlds * worlds]
    ordered = rows.unflatten(1, (-1, worlds)).transpose(1, 2).flatten(0, 2)
    return Transitions.unpack(ordered, obs_dim, act_dim)


def _chunks(folder: Path) -> list[tuple[Path, int, int]]:
    """(path, first, last) of every chunk."""
    found = []
    for path in folder.glob("*-*.safetensors"):
        first, _, last = path.stem.partition("-")
        found.append((path, int(first), int(last)))
    return found
