"""Randomness of a population: drawn on the host by the members' own generators, used where the networks are.

An update captured in a CUDA graph cannot draw. What it asks for is therefore noted once, given fixed places in one
buffer on the device, and drawn again before every replay: the same numbers in the same order as without a graph, so
that a seed means the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLOTS = 32  # updates whose numbers may be on their way to the device at once
ALIGNMENT = 16  # bytes between the places of two requests


@dataclass(frozen=True)
class Request:
    """What an update asks for: `fill` writes one member's numbers (shape) with that member's generator."""

    fill: Callable[[Tensor, torch.Generator], Any]
    rngs: Sequence[torch.Generator]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size((len(self.rngs), *self.shape)).numel() * self.dtype.itemsize

    def draw(self, into: Tensor) -> Tensor:
        """`into` (P, *shape), drawn member by member. Returns it."""
        for member, rng in zip(into, self.rngs, strict=True):
            self.fill(member, rng)
        return into


class Tape:
    """What one update draws, in order. Remembers the requests and, once `fixed`, where their numbers lie."""

    def __init__(self, device: torch.device | str):
        self.device, self.requests, self.places = torch.device(device), list[Request](), list[Tensor]()
        self._next = 0

    def fix(self) -> None:
        """Give every request its place; from now on these are handed out."""
        size = sum(_aligned(request.bytes) for request in self.requests)
        pinned = self.device.type == "cuda"
        self._host = torch.empty(SLOTS, max(size, 1), dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
        self._copied = [torch.cuda.Event() if pinned else None for _ in range(SLOTS)]
        self._drawn = [self._views(slot) for slot in self._host]
        self.places, self._turn = self._views(self._device), 0

    def refill(self) -> None:
        """Draw for all requests and send it off; the host waits only where it is `SLOTS` updates ahead."""
        slot, self._turn = self._turn, (self._turn + 1) % SLOTS
        event = self._copied[slot]
        if event is not None:
            event.synchronize()
        for request, place in zip(self.requests, self._drawn[slot], strict=True):
            request.draw(place)
        self._device.copy_(self._host[slot], non_blocking=True)
        if event is not None:
            event.record()

    def rewind(self) -> None:
        self._next = 0

    def give(self, request: Request) -> Tensor:
        """The next request's place. Raises RuntimeError if it is another one than was noted."""
        if not self.places:
            self.requests.append(request)
            return _drawn(request).to(self.device)
        noted = self.requests[self._next] if self._next < len(self.requests) else None
        if noted is None or (noted.shape, noted.dtype) != (request.shape, request.dtype):
            raise RuntimeError("an update drew other numbers than the one of the same graph_key before it")
        self._next += 1
        return self.places[self._next - 1]

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The places of all requests in a flat buffer of bytes, (P, *shape) each."""
        views, start = [], 0
        for r in self.requests:
            views.append(flat[start : start + r.bytes].view(r.dtype).view(len(r.rngs), *r.shape))
            start += _aligned(r.bytes)
        return views


class Draws:
    """Random numbers (P, *shape) on the device, member p's from rngs[p].

    Remembers the tape that is being recorded or played, if any. `of` shares it with other generators.
    """

    def __init__(self, rngs: Sequence[torch.Generator], device: torch.device | str = "cpu", root: Draws | None = None):
        self.rngs, self.device, self._root = list(rngs), torch.device(device), root or self
        self._tape: Tape | None = None

    def of(self, rngs: Sequence[torch.Generator]) -> Draws:
        """The same with other generators, as for networks of which a member has several."""
        return Draws(rngs, self.device, self._root)

    @contextmanager
    def through(self, tape: Tape) -> Iterator[None]:
        """Within: requests are noted on `tape`, or answered from it once it is fixed."""
        tape.rewind()
        self._root._tape = tape
        try:
            yield
        finally:
            self._root._tape = None

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return self._ask(lambda x, rng: x.normal_(generator=rng), shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return self._ask(lambda x, rng: x.uniform_(generator=rng), shape)

    def rows(self, source: Sized, batch: int) -> Tensor:
        """Row numbers (P, batch) of what `source` holds at that time, with replacement."""
        return self._ask(lambda x, rng: x.random_(0, len(source), generator=rng), (batch,), torch.int64)

    def subset(self, of: int, count: int) -> Tensor:
        """`count` different numbers below `of`, (P, count)."""
        return self._ask(lambda x, rng: x.copy_(torch.randperm(of, generator=rng)[:count]), (count,), torch.int64)

    def _ask(
        self, fill: Callable[[Tensor, torch.Generator], Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        request, tape = Request(fill, self.rngs, shape, dtype), self._root._tape
        return _drawn(request).to(self.device) if tape is None else tape.give(request)


def _drawn(request: Request) -> Tensor:
    return request.draw(torch.empty((len(request.rngs), *request.shape), dtype=request.dtype))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
