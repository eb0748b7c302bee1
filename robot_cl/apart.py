"""One run in several processes: each trains some of the members, and the run writes what they have come to.

Members are independent, so a process trains its own as a run of their seeds, from the state that all had when it was
forked, and nobody waits for anybody. Where the whole run has something to write, the parts send what it needs; it is
put together and written as if it had been trained in one piece. The numbers are, bit for bit, those of a stack of a
part's seeds alone, and to rounding those of one stack of all.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from robot_cl.learners import learner_class, name_of
from robot_cl.learners.base import LearnerConfig, Metrics
from robot_cl.learners.members import joined, narrowed
from robot_cl.learners.rollout import Collector
from robot_cl.learners.sb3 import SB3Config
from robot_cl.run import DIGEST_UPDATES, Run
from robot_cl.run_config import TrainConfig
from robot_cl.seeding import cores

Arrays = dict[str, np.ndarray]
ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class News:
    """What some members have come to, as plain arrays for the way from process to process.

    `updates` since the last news: number, metrics, and of the first ones a hash of all weights. `state` (of the
    learner) and `worlds` are empty where only metrics are written.
    """

    step: int = 0
    updates: list[tuple[int, Arrays, str | None]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)
    state: Arrays = field(default_factory=dict)
    worlds: Arrays = field(default_factory=dict)
    actor: Any = None  # the actor's options: training may raise the smallest σ


@dataclass
class Problem:
    """What a process raised, and where: a traceback does not survive the way."""

    problem: BaseException
    where: str

    @classmethod
    def of(cls, problem: BaseException) -> Problem:
        """An exception that does not survive the way either becomes a RuntimeError of the same words."""
        try:
            ForkingPickler.loads(ForkingPickler.dumps(problem))
        except Exception:
            problem = RuntimeError(f"{type(problem).__name__}: {problem}").with_traceback(problem.__traceback__)
        return cls(problem, "".join(traceback.format_exception(problem)))


class Processes:
    """The processes of a run. Remembers how many members each has, their numbers, and the pipes they send through."""

    def __init__(self, run: Run, updates: int | None):
        """Start them; each ends with the run, or after so many updates. Raises OSError if the system has no more."""
        self.learner = run.learner
        self.counts = shares(run.config.seeds, run.config.processes or 1)
        self.pids, self.pipes = list[int](), list[Connection]()
        try:
            for i in range(len(self.counts)):
                self._start(run, i, updates)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, run: Run, i: int, updates: int | None) -> None:
        receive, send = Pipe(duplex=False)
        held = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until a process has answers of its own to them
        try:
            pid = os.fork()
            if not pid:
                _train(run, sum(self.counts[:i]), self.counts[i], updates, send, [receive, *self.pipes])
            self.pids.append(pid)
            self.pipes.append(receive)
        except OSError as problem:
            raise OSError(f"process {i + 1} of {len(self.counts)} could not be started ({problem.strerror}); give "
                          "processes=1, or free some memory") from None  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            send.close()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        """End them: they hold nothing that is not sent."""
        for pid, pipe in zip(self.pids, self.pipes, strict=True):
            pipe.close()
            os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)

    def news(self) -> tuple[News, dict[str, Tensor]]:
        """The next of all members, and the learner's state if they sent theirs.

        Raises what a process raised, ChildProcessError if one was ended.
        """
        parts = [self._received(i) for i in range(len(self.pipes))]
        first = parts[0]
        together = replace(
            first,
            updates=[_update(same) for same in zip(*(part.updates for part in parts), strict=True)],
            returns=[own for part in parts for own in part.returns],
            worlds={name: np.concatenate([part.worlds[name] for part in parts]) for name in first.worlds},
        )
        return together, joined(self.learner, [part.state for part in parts], self.counts) if first.state else {}

    def _received(self, i: int) -> News:
        try:
            news = self.pipes[i].recv()
        except (EOFError, OSError):  # between two messages, or within one
            first = sum(self.counts[:i])
            raise ChildProcessError(
                f"the process of seeds {first + 1} to {first + self.counts[i]} of {sum(self.counts)} was ended, "
                "perhaps for want of memory; go on from the last checkpoint with robot-cl resume"
            ) from None
        if isinstance(news, Problem):
            raise news.problem from RuntimeError(f"in a process of the run\n{news.where}")
        assert isinstance(news, News)
        return news


class Part(Run):
    """Some members of a run: what its loops come to is sent, not written."""

    def __init__(self, whole: Run, first: int, count: int, pipe: Connection):
        c = whole.config
        threads = max(1, (c.threads or 1) // (c.processes or 1))
        own = replace(c, seeds=count, seed=c.seed + first, threads=threads, processes=1)
        actor: Any = whole.learner.policy()
        blank = actor.from_spec(actor.spec() | {"population": count})  # its weights are of the learner's state
        super().__init__(own, whole.learner.config, blank, like=whole)
        self.learner.load_state_dict(narrowed(whole.learner, self.learner, first))
        worlds = whole.collector.state() if whole.collector is not None else {}
        if isinstance(self.collector, Collector) and worlds:  # of a run that was taken up again
            rows = slice(first * self.collector.worlds, (first + count) * self.collector.worlds)
            self.collector.restore({name: value[rows] for name, value in worlds.items()})
        self.step, self._pipe, self._parent, self._news = whole.step, pipe, os.getppid(), News()

    def _record(self, metrics: Metrics) -> None:
        digest = self._digest() if self.learner.step <= DIGEST_UPDATES else None
        self._news.updates.append((self.learner.step, {k: value.numpy() for k, value in metrics.items()}, digest))

    def _advance(self, steps: int) -> None:
        before, self.step = self.step, self.step + steps
        if os.getppid() != self._parent:
            raise ProcessLookupError("the run that this is a part of was ended")
        if self._due(before, self.config.log_every, self.config.eval_every, self.config.checkpoint_every):
            self.send(self._due(before, self.config.eval_every, self.config.checkpoint_every))

    @property
    def unsent(self) -> bool:
        return bool(self._news.updates)

    def send(self, state: bool) -> None:
        """What is new, with the state of learner and worlds if that is wanted."""
        news, self._news = self._news, News()
        news.step, news.actor = self.step, self.learner.actor.config
        if self.collector is not None:
            news.returns, self.collector.returns = self.collector.returns, [[] for _ in range(self.config.seeds)]
        if state:
            news.state = {name: value.numpy() for name, value in self.learner.state_dict().items()}
            news.worlds = self.collector.state() if self.collector is not None else {}
        self._pipe.send(news)


def _update(parts: Sequence[tuple[int, Arrays, str | None]]) -> tuple[int, Arrays, str | None]:
    """One update of all members: its number, metrics (P,) and hash."""
    number, metrics, digest = parts[0]
    if digest is not None:
        digest = hashlib.sha256("".join(str(part[2]) for part in parts).encode()).hexdigest()
    return number, {name: np.concatenate([part[1][name] for part in parts]) for name in metrics}, digest


def processes_for(config: TrainConfig, learner: LearnerConfig | SB3Config, phases: Sequence[str], device: str) -> int:
    """How many share the seeds: `config.processes`, or at least as many as there are threads, where that can be.

    Raises ValueError if several are asked for and cannot be.
    """
    problem = _problem(config, learner, phases, device)
    if problem and (config.processes or 1) > 1:
        raise ValueError(f"processes={config.processes}, but {problem}; leave it out")
    if problem:
        return 1
    return min(config.seeds, config.processes) if config.processes else _evenly(config.seeds, config.threads or cores())


def _evenly(seeds: int, threads: int) -> int:
    """As many processes as there are threads, or so many more that none has more than its thread's share of seeds."""
    return next((n for n in range(threads, seeds) if -(-seeds // n) * threads <= seeds), seeds) if threads > 1 else 1


def _problem(config: TrainConfig, learner: LearnerConfig | SB3Config, phases: Sequence[str], device: str) -> str | None:
    """Why the seeds of a run stay in one process."""
    if isinstance(learner, SB3Config):
        return "Stable-Baselines3 trains one seed at a time"
    together = [phase for phase in phases if phase not in learner_class(name_of(learner)).apart]
    if together:
        return f"the seeds of {name_of(learner)} learn {together[0]} in one process"
    if device != "cpu":
        return "a GPU trains all seeds at once"
    if config.compile:
        return "compile=true makes code for all seeds at once"
    if (config.torch_threads or 1) > 1:
        return f"torch_threads={config.torch_threads} are for one process"
    return None if sys.platform == "linux" else "this system does not fork processes safely"


def shares(seeds: int, processes: int) -> list[int]:
    """How many members each process has, as even as can be."""
    least, more = divmod(seeds, processes)
    return [least + (i < more) for i in range(processes)]


def _train(
    run: Run, first: int, count: int, updates: int | None, pipe: Connection, others: Sequence[Connection]
) -> NoReturn:
    """All that such a process does; `others` are the run's ends of pipes, which it has inherited."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its processes
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        for other in others:
            other.close()
        gc.freeze()  # what was there before is never garbage here
        part = Part(run, first, count, pipe)
        part.go(updates)
        if part.unsent:
            part.send(True)
    except BaseException as problem:  # handed over by `_received`
        with suppress(OSError):
            pipe.send(Problem.of(problem))
    finally:
        os._exit(0)
