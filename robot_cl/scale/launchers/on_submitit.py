"""SLURM jobs, or processes of their own on this machine, by submitit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching
    from robot_cl.scale.sweep import Sweep, Work

PATIENCE = 0.2  # seconds between looks at jobs that are running, growing to
LONGEST = 10.0


class Resumable:
    """A job as submitit sends it. What is pickled is a name in this package, the text in `work` and a number."""

    def __init__(self, work: Work, number: int):
        self.work, self.number = work, number

    def __call__(self) -> None:
        self.work(self.number)

    def checkpoint(self) -> Any:
        """Asked for when SLURM preempts the job or its time is over: the same again, it goes on from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(Resumable(self.work, self.number))


def launch(
    sweep: Sweep, work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]
) -> list[int]:
    """SLURM jobs, or processes of their own on this machine, by submitit.

    At most `launching.jobs` are submitted at a time; a job that died is submitted again.
    """
    import submitit

    logs = sweep.folder / "submitit"
    logs.mkdir(mode=0o700, exist_ok=True)  # submitit hands jobs over as pickles: nobody else may write them
    executor = submitit.AutoExecutor(folder=logs, cluster=launching.address)
    executor.update_parameters(timeout_min=launching.minutes, cpus_per_task=launching.cpus, name=sweep.folder.name)
    if launching.partition is not None:
        executor.update_parameters(slurm_partition=launching.partition)
    waiting, running, tries = list(reversed(numbers)), dict[int, Any](), dict.fromkeys(numbers, 0)
    pause = PATIENCE
    while waiting or running:
        while waiting and len(running) < launching.jobs:
            number = waiting.pop()
            tries[number] += 1
            running[number] = executor.submit(Resumable(work, number))
        ended = [number for number, job in running.items() if job.done()]
        for number in ended:
            del running[number]
            if not sweep.settled(number) and tries[number] <= launching.retries:
                waiting.append(number)
            tell()
        pause = PATIENCE if ended else min(LONGEST, 1.2 * pause)
        if running:
            time.sleep(pause)
    return [number for number in numbers if not sweep.settled(number)]
