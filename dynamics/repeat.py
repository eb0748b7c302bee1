"""Work that is done many times on the same memory: on a GPU as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

WARMUP = 2  # calls before the capture, in which libraries choose their kernels and take their memory


class Repeated:
    """Calls `work`; on a GPU the third call records it, and that one and all later ones replay the recording.

    `work` reads and writes in place, draws nothing and looks at no number. Where it cannot be captured it says why,
    once, and goes on as it is. Remembers the graph.
    """

    def __init__(self, work: Callable[[], object], device: torch.device | str):
        self.work, self.cuda = work, torch.device(device).type == "cuda"
        self._calls, self._graph = 0, torch.cuda.CUDAGraph() if self.cuda else None

    def __call__(self) -> None:
        self._calls += 1
        if self._graph is None:
            self.work()
        elif self._calls <= WARMUP:
            self._aside()
        else:
            if self._calls == WARMUP + 1:
                self._capture()
            if self._graph is not None:
                self._graph.replay()

    def _aside(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self) -> None:
        assert self._graph is not None
        try:
            with torch.cuda.graph(self._graph):
                self.work()
        except RuntimeError as problem:
            warnings.warn(f"runs without a graph: {problem.__context__ or problem}", stacklevel=3)
            self._graph = None
            self.work()
