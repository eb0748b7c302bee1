"""Worker processes on this machine, by joblib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching
    from robot_cl.scale.sweep import Sweep, Work


def launch(
    sweep: Sweep, work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]
) -> list[int]:
    """Worker processes on this machine, by joblib.

    One dead worker makes joblib drop the whole pool. The jobs on disk say what is left, and a new pool goes on with it;
    its neighbours lose what they had not yet put into a checkpoint. Which of them killed it nobody tells: a job whose
    tries are used up beside others is taken up once more by itself.
    """
    before = {number: sweep.attempts(number) for number in numbers}
    left, by_itself, idle = list(numbers), set[int](), 0
    while left:
        taken = sum(map(sweep.attempts, left))
        side_by_side(work, left, launching, tell)
        by_itself |= set(left) if len(left) == 1 else set()
        idle = idle + 1 if sum(map(sweep.attempts, left)) == taken else 0
        if idle > launching.retries:  # workers that die before they take anything up
            return [number for number in numbers if not sweep.settled(number)]
        left = [number for number in left if not sweep.settled(number) and _tries(sweep, before, number, launching)]
    for number in numbers:
        if not sweep.settled(number) and number not in by_itself:
            side_by_side(work, [number], launching, tell)
    return [number for number in numbers if not sweep.settled(number)]


def side_by_side(work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]) -> None:
    """One pool of workers, until all is done or one of them dies."""
    from joblib import Parallel, delayed

    pool = Parallel(launching.jobs, backend="loky", batch_size=1, return_as="generator_unordered")
    try:
        for _ in pool(delayed(work)(number) for number in numbers):
            tell()
    except BrokenProcessPool:
        tell()


def _tries(sweep: Sweep, before: dict[int, int], number: int, launching: Launching) -> bool:
    """Whether a job may be taken up once more."""
    return sweep.attempts(number) - before[number] <= launching.retries
