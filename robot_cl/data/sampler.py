"""Uniform batches: one gather of packed rows per draw, for all members of a population at once."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from robot_cl.batch import Transitions, row_width

# Up to here a dataset is copied into memory: reading a mapped file at random pays a page fault per row at first.
IN_MEMORY_BYTES = 4 << 30
_LARGE_PAGE = 2 << 20


class Sampler:
    """Draws (P, B) transitions uniformly with replacement; member p draws with generator p, alone or in company.

    rows (N, row_width) float32, packed as `Transitions.pack`, on the device where batches are wanted. Remembers the
    generators' states: `state()` and `restore()` continue a sequence of draws bit for bit. A batch is fresh memory;
    its fields are views of it.
    """

    def __init__(self, rows: Tensor, obs_dim: int, act_dim: int, rngs: Sequence[torch.Generator]):
        if rows.dim() != 2 or rows.shape[1] != row_width(obs_dim, act_dim) or rows.dtype != torch.float32:
            expected = f"float32 (N, {row_width(obs_dim, act_dim)})"
            raise ValueError(f"packed rows are {rows.dtype} {tuple(rows.shape)}, expected {expected}")
        if not len(rows):
            raise ValueError("there is nothing to sample from: the dataset has no transitions")
        if not rngs:
            raise ValueError("sampling needs one generator per member of the population, got none")
        self.rows, self.obs_dim, self.act_dim, self.rngs = rows, obs_dim, act_dim, list(rngs)
        self._index = torch.empty(0, dtype=torch.int64)
        self._members: list[Tensor] = []

    @staticmethod
    def over(
        data: Transitions, rngs: Sequence[torch.Generator], device: torch.device | str = "cpu"
    ) -> Sampler:
        """A sampler of `data` packed onto `device`; a dataset of the store that fits into memory is read once."""
        return Sampler(packed_rows(data).to(device), data.obs_dim, data.act_dim, rngs)

    @property
    def population(self) -> int:
        return len(self.rngs)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, batch: int) -> Transitions:
        """-> transitions with leading shape (P, batch)."""
        if self._index.numel() != self.population * batch:
            self._index = torch.empty(self.population * batch, dtype=torch.int64)
            self._members = list(self._index.view(self.population, batch))
        for member, rng in zip(self._members, self.rngs, strict=True):
            member.random_(0, len(self.rows), generator=rng)
        return self.take(self._index.view(self.population, batch).to(self.rows.device))

    def take(self, index: Tensor) -> Transitions:
        """Rows index (P, B) on the device of the data, gathered: transitions (P, B)."""
        picked = self.rows.index_select(0, index.view(-1)).view(*index.shape, -1)
        return Transitions.unpack(picked, self.obs_dim, self.act_dim)

    def state(self) -> Tensor:
        """(P, bytes) uint8: the generators' states."""
        return torch.stack([rng.get_state() for rng in self.rngs])

    def restore(self, state: Tensor) -> None:
        """Goes on as the sampler whose `state()` this is. Raises ValueError for another population."""
        if state.shape[0] != self.population:
            raise ValueError(f"the state is of {state.shape[0]} members, this sampler has {self.population}")
        for rng, saved in zip(self.rngs, state, strict=True):
            rng.set_state(saved.clone())  # torch crashes on a state that is a view into a larger tensor


def packed_rows(data: Transitions) -> Tensor:
    """(N, row_width) float32 of `data` (N, ...).

    Nothing is copied if `data` already are views of packed rows larger than IN_MEMORY_BYTES.
    """
    width = row_width(data.obs_dim, data.act_dim)
    whole = data.obs.as_strided((len(data), width), (width, 1)) if _is_view_of_rows(data, width) else None
    if whole is not None and whole.numel() * 4 > IN_MEMORY_BYTES:
        return whole
    memory = _memory(len(data), width)
    return memory.copy_(whole) if whole is not None else memory.copy_(data.pack())


def _memory(rows: int, width: int) -> Tensor:
    """(rows, width) float32, not set, in large pages where the system has them: a fifth less time for each draw."""
    size = 4 * rows * width
    if size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, width)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages says so here; ordinary ones serve as well
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(block, dtype=np.float32)).view(rows, width)


def _is_view_of_rows(data: Transitions, width: int) -> bool:
    """Whether the six fields lie in one packed array, as `Transitions.unpack` leaves them."""
    d, a = data.obs_dim, data.act_dim
    offsets = {"obs": 0, "action": d, "reward": d + a, "next_obs": d + a + 1, "terminated": width - 2}
    offsets["truncated"] = width - 1
    start = data.obs.storage_offset()
    parts = [(getattr(data, name), offset) for name, offset in offsets.items()]
    same = {part.untyped_storage().data_ptr() for part, _ in parts}
    return len(same) == 1 and all(
        part.dim() > 0 and part.stride(0) == width and part.storage_offset() == start + offset for part, offset in parts
    )
