"""Updates recorded over fixed addresses: as CUDA graphs on a GPU, and as compiled code on a CPU where asked for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robot_cl.learners.compiled import compiled as compiled_work
from robot_cl.learners.draws import Tape

if TYPE_CHECKING:
    from robot_cl.data.sampler import Sampler
    from robot_cl.learners.base import Learner, Metrics
    from robot_cl.learners.replay import ReplayBuffer

WARMUP = 3  # calls before a capture, in which libraries choose their kernels and take their memory
Outputs = dict[str, Tensor]
Work = Callable[[], Outputs]


@dataclass
class Recording:
    """A recorded call: its draws, what replays it (None: its Python, as it is), and the updates it makes."""

    tape: Tape
    replay: Work | None
    updates: int


class Captured:
    """Calls work as it is, or on a GPU records it once per key and replays it; the numbers are the same.

    Work with equal keys must run the same kernels on the same addresses, and draw by `learner.draws` only. Outputs hold
    until the next call. A call that cannot be captured says why, once, and runs as it is. `fixed` on a CPU takes the
    path of a GPU without graphs: the same draws, through the same fixed places. `compiled` replays compiled code
    there, from the first call on, so that a resumed run makes the same numbers.
    Remembers the recordings by key, and how many calls each key has seen.
    """

    def __init__(self, learner: Learner, fixed: bool | None = None, compiled: bool = False):
        self.learner, self.cuda, self.compiled = learner, torch.device(learner.device).type == "cuda", compiled
        self.fixed = self.cuda or compiled if fixed is None else fixed
        self.recordings: dict[Hashable, Recording] = {}
        self.refused: dict[Hashable, str] = {}
        self._seen: dict[Hashable, int] = {}
        self._stream = torch.cuda.Stream() if self.cuda else None

    def __call__(self, key: Hashable | None, work: Work) -> Outputs:
        if not self.fixed or key is None or key in self.refused:
            return work()
        if key not in self.recordings and self.compiled:
            self._compile(key, work)
            return self(key, work)
        if key not in self.recordings:
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            return self._aside(work) if seen < WARMUP else self._record(key, work)
        recording = self.recordings[key]
        recording.tape.refill()
        if recording.replay is None:
            with self.learner.draws.through(recording.tape):
                return work()
        outputs = recording.replay()
        self.learner.step += recording.updates
        return outputs

    def _compile(self, key: Hashable, work: Work) -> None:
        """Two real calls, one that notes its draws and one that is traced; afterwards all is as it was before them."""
        learner, tape = self.learner, Tape(self.learner.draws.device)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        for opt in learner.opts.values():
            opt.by_pieces()
        with learner.draws.through(tape):
            work()
        tape.fix()
        updates = learner.step - int(before["step"])
        _put_back(learner, before)
        tape.refill()
        try:
            with learner.draws.through(tape):
                self.recordings[key] = Recording(tape, compiled_work(work), updates)
        except RuntimeError as problem:
            self._refuse(key, f"is not compiled: {problem}")
        finally:
            _put_back(learner, before)

    def _record(self, key: Hashable, work: Work) -> Outputs:
        """A real call that notes its draws, then the capture, which runs nothing."""
        tape, before = Tape(self.learner.draws.device), self.learner.step
        with self.learner.draws.through(tape):
            outputs = self._aside(work)
        tape.fix()
        recording, after = Recording(tape, None, self.learner.step - before), self.learner.step
        try:
            if self.cuda:
                self.learner.step = before
                recording.replay = self._capture(tape, work)
            self.recordings[key] = recording
        except RuntimeError as problem:
            self._refuse(key, f"runs without a graph: {problem.__context__ or problem}")
        self.learner.step = after
        return outputs

    def _refuse(self, key: Hashable, why: str) -> None:
        """Work with this key stays as it is."""
        self.refused[key] = why.partition("\n")[0]
        warnings.warn(f"{key} {self.refused[key]}", stacklevel=3)
        for opt in self.learner.opts.values():
            opt.clear()

    def _capture(self, tape: Tape, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with self.learner.draws.through(tape), torch.cuda.graph(graph):
            outputs = work()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _aside(self, work: Work) -> Outputs:
        """A real call on a stream of its own, as a capture must be preceded by."""
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs


def _put_back(learner: Learner, state: dict[str, Tensor]) -> None:
    """An earlier state, into the tensors that are there."""
    extra = dict(learner.extra)
    learner.load_state_dict(state)
    for name, value in extra.items():
        value.copy_(learner.extra[name])
    learner.extra = extra


class Updates:
    """A run's updates: rows drawn from the dataset and from the replay buffer, gathered there, and learned from."""

    def __init__(self, learner: Learner, sampler: Sampler | None, buffer: ReplayBuffer | None, batch: int):
        """`batch` transitions per update and member; online, the share that the learner's plan says is old."""
        self.learner, self.sampler, self.buffer, self.batch = learner, sampler, buffer, batch
        plan = learner.plan()
        self.old = round(batch * plan.batches * plan.offline_share) if sampler else 0
        self.fresh = batch * plan.batches - self.old

    def offline(self) -> Metrics:
        return self._run("offline", self._offline)

    def online(self) -> Metrics:
        return self._run("online", self._online)

    def _run(self, phase: str, work: Callable[[], Metrics]) -> Metrics:
        learner, key = self.learner, self.learner.graph_key(phase == "online")
        if key is None or not learner.captured.fixed:
            return work()
        learner.schedule(phase == "online")  # outside the graph, which reads the rates from the device
        found = learner.captured((phase, key), work)
        return dict(zip(found, torch.stack(list(found.values())).unbind(), strict=True))  # one copy for all of them

    def _offline(self) -> Metrics:
        assert self.sampler is not None
        return self.learner.update_offline(self.sampler.take(self.learner.draws.rows(self.sampler, self.batch)))

    def _online(self) -> Metrics:
        assert self.buffer is not None
        draws = self.learner.draws
        fresh = self.buffer.take(draws.rows(self.buffer, self.fresh))
        old = self.sampler.take(draws.rows(self.sampler, self.old)) if self.sampler and self.old else None
        return self.learner.update_online(fresh, old)


class Acting:
    """The learner as a collector needs it: itself, or beside a GPU a copy of its policy on the host.

    There a step of the world waits for no kernel; the copy is brought up to date when a round begins.
    """

    def __init__(self, learner: Learner, apart: bool | None = None):
        """`apart` says whether there is a copy; None: on a GPU."""
        self.learner, self.seeds, self.device = learner, learner.seeds, "cpu"
        apart = torch.device(learner.device).type == "cuda" if apart is None else apart
        self.actor = copy.deepcopy(learner.actor).cpu() if apart else learner.actor

    def noise(self, *shape: int) -> Tensor:
        """Of a whole round, (P, *shape)."""
        if self.actor is not self.learner.actor:
            for mine, theirs in zip(_tensors(self.actor), _tensors(self.learner.actor), strict=True):
                mine.copy_(theirs)
        return self.learner.noise(*shape).cpu()

    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs (P, W, obs_dim), noise (P, W, act_dim) -> action (P, W, act_dim), all on the host."""
        return self.learner.explore(obs, noise, self.actor)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
