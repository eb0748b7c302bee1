"""Captured updates of soft actor-critic in several processes at once, as where cells of a grid share a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

from gpu_parts.learners import WORK, Row, build, random_data, speed, step_of


def crowd(counts: Sequence[int], command: Sequence[str]) -> Iterator[Row]:
    """Updates per second of `count` processes together; `command` starts one, which says when it is warm and waits."""
    for count in counts:
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in processes:  # all are warm before the first is let go
            assert process.stdout is not None
            process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield {"processes": count, "rate": sum(float(process.communicate()[0] or 0.0) for process in processes)}


def member(rows: int, seconds: float, device: str) -> None:
    """Warm up, say so, wait to be let go, and print updates per second."""
    data = random_data(rows, device)
    learner, updates = build("sac", data, True, device)
    step = step_of(WORK["sac"][0][0], learner, updates, data)
    for _ in range(50):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    print(speed(step, seconds, device))
