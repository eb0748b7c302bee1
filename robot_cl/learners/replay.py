"""Fresh experience kept for off-policy learners: one ring per member."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robot_cl.batch import Transitions, row_width


def draw(rows: int, batch: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """Row numbers (P, batch) in [0, rows), member p's from rngs[p]."""
    if len(rngs) == 1:
        return torch.randint(rows, (1, batch), generator=rngs[0])
    return torch.stack([torch.randint(rows, (batch,), generator=g) for g in rngs])


class ReplayBuffer:
    """A ring of the last `capacity` transitions of each member, packed (P, capacity, row_width).

    Remembers the rows and how many were ever added (`total`, per member). Memory is taken as it fills.
    """

    def __init__(
        self, capacity: int, seeds: int, obs_dim: int, act_dim: int, device: str = "cpu", whole: bool = False
    ):
        self.capacity, self.seeds, self.obs_dim, self.act_dim = capacity, seeds, obs_dim, act_dim
        self.total = 0
        # On a GPU, and if `whole`, all of it at once: recorded updates read where it lies.
        start = min(capacity, 4096) if torch.device(device).type == "cpu" and not whole else capacity
        self._hold(torch.empty(seeds, start, row_width(obs_dim, act_dim), device=device))

    @property
    def device(self) -> torch.device:
        return self._rows.device

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def add(self, fresh: Transitions) -> None:
        """Append (P, T, W): time first, then world."""
        self.add_packed(fresh.pack().flatten(1, 2))

    def add_packed(self, rows: Tensor) -> None:
        """Append (P, n, row_width)."""
        self._reserve(min(self.total + rows.shape[1], self.capacity))
        for part in rows.split(self.capacity, dim=1):
            start, n = self.total % self.capacity, part.shape[1]
            head = min(n, self.capacity - start)
            self._rows[:, start : start + head] = part[:, :head]
            self._rows[:, : n - head] = part[:, head:]
            self.total += n

    def since(self, position: int) -> Tensor:
        """The rows (P, n, row_width) added after the first `position`, as far as they are still held, oldest first."""
        first = max(position, self.total - len(self))
        index = torch.arange(first, self.total, device=self._rows.device) % self.capacity
        return self._rows.index_select(1, index)

    def sample(self, batch: int, rngs: Sequence[torch.Generator]) -> Transitions:
        """(P, batch), member p from its own rows, with replacement. Raises ValueError while empty."""
        if not self.total:
            raise ValueError("the replay buffer is empty; collect before sampling")
        return self.take(draw(len(self), batch, rngs).to(self._rows.device))

    def take(self, index: Tensor) -> Transitions:
        """Rows index (P, B) on the buffer's device, each member's of its own, gathered: (P, B)."""
        width = self._rows.shape[-1]
        rows = self._rows.view(-1, width).index_select(0, (index + self._first).view(-1)).view(*index.shape, width)
        return Transitions.unpack(rows, self.obs_dim, self.act_dim)

    def _reserve(self, rows: int) -> None:
        held = self._rows.shape[1]
        if rows > held:
            room = self._rows.new_empty(self.seeds, min(max(rows, 2 * held), self.capacity), self._rows.shape[2])
            room[:, :held] = self._rows
            self._hold(room)

    def _hold(self, rows: Tensor) -> None:
        self._rows = rows
        self._first = torch.arange(self.seeds, device=rows.device).view(-1, 1) * rows.shape[1]
