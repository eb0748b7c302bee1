"""Time is passed in: the real monotonic clock on a robot, a virtual one in tests and rehearsals."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back and have nothing to do with the time of day."""

    def now(self) -> float: ...

    def sleep_until(self, when: float) -> None:
        """Return at `when` or at once if it has passed. Always a deadline, never "sleep dt after the work"."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock; on Linux the one that goes on while a machine sleeps, so that a state
    from before somebody closed a laptop is old when it opens."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def sleep_until(self, when: float) -> None:
        left = when - self.now()
        if left > 0:
            time.sleep(left)


class VirtualClock:
    """Time that passes only when told to. Remembers the present."""

    def __init__(self, start: float = 1000.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, when: float) -> None:
        self._now = max(self._now, when)

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds
