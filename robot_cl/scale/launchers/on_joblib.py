"""Worker processes on this machine, by joblib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from robot_cl.scale.launchers import MISSING

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching
    from robot_cl.scale.sweep import Sweep, Work


def launch(
    sweep: Sweep, work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]
) -> list[int]:
    """Worker processes on this machine, by joblib.

    One dead worker makes joblib drop the whole pool. The jobs on disk say what is left, and a new pool goes on with it;
    its neighbours lose what they had not yet put into a checkpoint. Raises ImportError without joblib.
    """
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise ImportError(MISSING.format("joblib", "joblib")) from None
    before = {number: sweep.attempts(number) for number in numbers}
    left = list(numbers)
    while left:
        pool = Parallel(launching.jobs, backend="loky", batch_size=1, return_as="generator_unordered")
        try:
            for _ in pool(delayed(work)(number) for number in left):
                tell()
        except BrokenProcessPool:
            tell()
        left = [number for number in left if not sweep.settled(number) and _tries(sweep, before, number, launching)]
    return [number for number in numbers if not sweep.settled(number)]


def _tries(sweep: Sweep, before: dict[int, int], number: int, launching: Launching) -> bool:
    """Whether a job may be taken up once more."""
    return sweep.attempts(number) - before[number] <= launching.retries
