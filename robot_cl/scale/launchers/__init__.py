"""The launchers by name. A new one is one file, a line here, and its package below; nothing is imported before.

A launcher is called as launch(sweep, work, numbers, launching, tell): it calls `work(number)` in some process for every
number, at most `launching.jobs` at a time and again up to `launching.retries` times where that process dies, and
`tell()` whenever one has ended. It returns the numbers that it gave up. What a job says or raises is on disk already.
Before that `check` has said whether it can.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robot_cl.scale.sweep import Sweep, Work

Launch = Callable[["Sweep", "Work", Sequence[int], "Launching", Callable[[], None]], list[int]]

LAUNCHERS = {
    "here": "robot_cl.scale.launchers.here:launch",
    "joblib": "robot_cl.scale.launchers.on_joblib:launch",
    "submitit": "robot_cl.scale.launchers.on_submitit:launch",
    "ray": "robot_cl.scale.launchers.on_ray:launch",
}
NEEDED = ("joblib", "submitit", "ray")  # those that need a package, which has the same name


class On(StrEnum):
    """Where jobs run."""

    here = "here"
    joblib = "joblib"
    submitit = "submitit"
    ray = "ray"


@dataclass
class Launching:
    """How the jobs of a sweep are launched."""

    on: On | None = None  # here, joblib, submitit (SLURM) or ray; none: here, or joblib for more than one at a time
    jobs: int = 1  # at a time
    cpus: int = 1  # processor cores, and threads, of each job
    retries: int = 10  # times a job is taken up again, from its newest checkpoint, after its process died
    address: str | None = None  # ray: of a running cluster, HOST:PORT; submitit: slurm or local; none: found
    partition: str | None = None  # submitit: of SLURM
    minutes: int = 240  # submitit: after which SLURM ends a job; it is then taken up again

    def __post_init__(self) -> None:
        for key in ("jobs", "cpus", "minutes"):
            if getattr(self, key) < 1:
                raise ValueError(f"launch.{key} is {getattr(self, key)}; expected at least 1")
        if self.retries < 0:
            raise ValueError(f"launch.retries is {self.retries}; expected 0 or more")
        if self.on is On.here and self.jobs > 1:
            raise ValueError("launch.on=here does one job at a time; leave out launch.jobs, or take launch.on=joblib")

    @property
    def chosen(self) -> On:
        return self.on or (On.here if self.jobs == 1 else On.joblib)


def check(launching: Launching) -> None:
    """Raises ImportError or ConnectionError, saying what to do, where jobs cannot be launched so."""
    on = launching.chosen
    if on in NEEDED and importlib.util.find_spec(on) is None:
        raise ImportError(f"launch.on={on} needs {on}; install it with: pip install 'robot-cl[scale]'")
    if on is On.ray and launching.address is not None:
        answers(launching.address)


def answers(address: str, patience: float = 5.0) -> None:
    """Raises ConnectionError unless something listens at HOST:PORT: Ray itself tries for minutes. ValueError for any
    other form of address."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"launch.address is {address!r}; expected HOST:PORT of a Ray cluster")
    try:
        socket.create_connection((host, int(port)), patience).close()
    except OSError as problem:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({problem}); start one with: ray start --head --port={port}"
        ) from None


def launcher(name: str) -> Launch:
    """Raises LookupError for an unknown name."""
    if name not in LAUNCHERS:
        raise LookupError(f"no launcher {name!r}; launchers: {', '.join(LAUNCHERS)}")
    module, function = LAUNCHERS[name].split(":")
    return getattr(importlib.import_module(module), function)
