"""Making Python keep its appointments: no garbage collection, short thread turns, and where permitted a processor that
stays awake and real-time scheduling."""

from __future__ import annotations

import gc
import os
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

SWITCH_S = 0.0002
WAKEFULNESS = Path("/dev/cpu_dma_latency")  # Linux: held open, it bounds the time an idle core may take to wake


@contextmanager
def punctual(priority: int | None = None, beside: Sequence[int] = ()) -> Iterator[str | None]:
    """Within it, other threads hold the interpreter for at most 0.2 ms and the collector rests, and idle cores do not
    sleep deeply where this process may ask for that (on Linux usually root alone).

    `priority` (1 to 99) asks for SCHED_FIFO for the calling thread, and one less for the threads `beside` it (native
    ids), on whose answers it waits. Yields None, or why it was not granted. A loop under SCHED_FIFO must block each
    period, or nothing else runs on its core.
    """
    refusal = None
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    collecting = gc.isenabled()
    gc.disable()
    policy = os.sched_getscheduler(0), os.sched_getparam(0)
    awake = stay_awake()
    try:
        if priority is not None:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
                for thread in beside:
                    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(max(priority - 1, 1)))
            except OSError as problem:
                refusal = f"no real-time scheduling: {problem.strerror} (try `ulimit -r 99`)"
        yield refusal
    finally:
        if priority is not None and refusal is None:
            for thread in (*beside, 0):
                with suppress(ProcessLookupError):  # one that has ended
                    os.sched_setscheduler(thread, *policy)
        if collecting:
            gc.enable()
        gc.unfreeze()
        sys.setswitchinterval(before)
        if awake is not None:
            os.close(awake)


def stay_awake() -> int | None:
    """A file descriptor; as long as it is open, cores wake at once. None where the system does not permit it."""
    try:
        held = os.open(WAKEFULNESS, os.O_WRONLY)
    except OSError:
        return None
    try:
        os.write(held, struct.pack("i", 0))
    except OSError:
        os.close(held)
        return None
    return held


class Finishes(Protocol):
    def finish(self) -> None: ...


# What ends a process, and what stops it in its tracks: a suspended program would leave the robot its last command.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


@contextmanager
def stop_on_signals(runner: Finishes) -> Iterator[None]:
    """Within it, Ctrl-C, Ctrl-Z, Ctrl-\\, SIGTERM and a terminal that closes end `run` with a stop command instead of
    ending the process. A closing terminal that was to be ignored (nohup) still is. Main thread only."""
    signals = [s for s in ENDING if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda *_: runner.finish()) for s in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
