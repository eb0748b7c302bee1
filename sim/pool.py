"""A few persistent threads that share out simulations; MuJoCo releases the interpreter lock while it steps one."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Work = Callable[[Iterator[Any]], None]


class Pool:
    """Runs `work(items)` on `threads` threads, the caller's among them; each pulls the next item when it is free.

    With one thread nothing is started and `each` is a plain call. Threads start at first use, again after a fork, and
    end with the pool. Not for concurrent use by several callers.
    """

    def __init__(self, threads: int):
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.threads = threads
        self._helpers: list[_Helper] = []
        self._pid = 0

    def each(self, work: Work, items: Iterable[Any]) -> None:
        """Call `work` once per thread with one iterator shared by all; waits for all and raises what they raised."""
        shared = iter(items)  # a range's or list's iterator hands out each element once, whoever asks
        if self.threads == 1:
            work(shared)
            return
        if self._pid != os.getpid():
            self._start()
        for helper in self._helpers:
            helper.begin(work, shared)
        try:
            work(shared)
        finally:
            problems = [problem for helper in self._helpers if (problem := helper.finish())]
        if problems:
            raise problems[0]

    def _start(self) -> None:
        self._helpers = [_Helper() for _ in range(self.threads - 1)]
        self._pid = os.getpid()
        weakref.finalize(self, _stop, self._helpers, self._pid)


class _Helper:
    """One thread waiting on a raw lock, the cheapest hand-over Python has."""

    def __init__(self) -> None:
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._job: tuple[Work, Iterator[Any]] | None = None
        self._problem: BaseException | None = None
        threading.Thread(target=self._loop, name="sim", daemon=True).start()

    def begin(self, work: Work | None, shared: Iterator[Any]) -> None:
        self._job = (work, shared) if work else None
        self._go.release()

    def finish(self) -> BaseException | None:
        """Wait until the job is done -> what it raised, or what interrupted the waiting."""
        interrupted = None
        while True:
            try:
                self._done.acquire()
                break
            except KeyboardInterrupt as problem:  # the thread is still at work on the caller's simulations
                interrupted = problem
        raised, self._problem = self._problem, None
        return raised or interrupted

    def _loop(self) -> None:
        while True:
            self._go.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            try:
                job[0](job[1])
            except BaseException as problem:  # handed to the caller by finish
                self._problem = problem
            del job  # a waiting thread must not keep a world alive
            self._done.release()


def _stop(helpers: list[_Helper], pid: int) -> None:
    if pid == os.getpid():
        for helper in helpers:
            helper.begin(None, iter(()))
