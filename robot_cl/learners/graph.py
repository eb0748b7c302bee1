"""The offline update on a GPU: one CUDA graph over fixed addresses, without Python or waiting between kernels."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.base import Learner, Metrics

SLOTS = 8  # row numbers drawn ahead of the device
WARMUP = 3  # updates before a capture, which let libraries choose their kernels and take their memory


class GraphedUpdate:
    """`learner.update_offline(sampler.sample(batch))`, captured once and replayed; the numbers are the same.

    The dataset stays on the device. Row numbers are drawn by the members' own generators on the host, as `Sampler`
    draws them, and copied to the one buffer that the graph reads; nothing comes back until somebody looks at the
    metrics. A learner says by `graph_key` which updates run the same kernels; one without a key runs as ever, and so
    does everything on a CPU, over the same buffers.
    Remembers the graphs by key, and how many updates each key has seen. Not run on a GPU so far.
    """

    def __init__(self, learner: Learner, sampler: Sampler, batch: int):
        self.learner, self.sampler, self.batch = learner, sampler, batch
        rows = learner.seeds * batch
        self.cuda = sampler.rows.is_cuda
        self._drawn = torch.empty(SLOTS, rows, dtype=torch.int64, pin_memory=self.cuda)
        self._copied = [torch.cuda.Event() if self.cuda else None for _ in range(SLOTS)]
        self._turn = 0
        self._index = torch.zeros(rows, dtype=torch.int64, device=sampler.rows.device)
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Metrics]] = {}
        self._seen: dict[Hashable, int] = {}

    def __call__(self) -> Metrics:
        key = self.learner.graph_key()
        self._draw()
        if key is None or not self.cuda:
            return self._eager()
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= WARMUP:
            return self._aside()
        if key not in self._graphs:
            self._graphs[key] = self._capture()
        graph, metrics = self._graphs[key]
        graph.replay()
        self.learner.step += 1
        return {name: value.clone() for name, value in metrics.items()}

    def _draw(self) -> None:
        """New row numbers into the graph's buffer; the host waits only where it is `SLOTS` updates ahead."""
        slot, self._turn = self._turn % SLOTS, self._turn + 1
        event = self._copied[slot]
        if event is not None:
            event.synchronize()
        for member, rng in zip(self._drawn[slot].view(self.learner.seeds, -1), self.sampler.rngs, strict=True):
            member.random_(0, len(self.sampler.rows), generator=rng)
        self._index.copy_(self._drawn[slot], non_blocking=True)
        if event is not None:
            event.record()

    def _eager(self) -> Metrics:
        return self.learner.update_offline(self._gathered())

    def _gathered(self) -> Transitions:
        picked = self.sampler.rows.index_select(0, self._index).view(self.learner.seeds, self.batch, -1)
        return Transitions.unpack(picked, self.sampler.obs_dim, self.sampler.act_dim)

    def _aside(self) -> Metrics:
        """A real update on a stream of its own, as a capture must be preceded by."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            metrics = self._eager()
        torch.cuda.current_stream().wait_stream(stream)
        return metrics

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Metrics]:
        """Record the kernels of one update without running them."""
        graph, step = torch.cuda.CUDAGraph(), self.learner.step
        with torch.cuda.graph(graph):
            metrics: dict[str, Tensor] = self._eager()
        self.learner.step = step
        return graph, metrics
