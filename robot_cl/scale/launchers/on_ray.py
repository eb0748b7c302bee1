"""Tasks of a Ray cluster, or of one started on this machine for the time being."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching
    from robot_cl.scale.sweep import Sweep, Work

STORE = 100 * 2**20  # bytes of shared memory of a cluster of our own: jobs hand over nothing but their numbers


def launch(
    sweep: Sweep, work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]
) -> list[int]:
    """Tasks of a Ray cluster, or of one started on this machine for the time being.

    The cluster's machines need this package and the same storage under the same paths. Ray runs a task again when its
    process or its machine is lost, and the job goes on from its checkpoint.
    """
    with connected(launching) as ray:
        task = ray.remote(num_cpus=launching.cpus, max_retries=launching.retries)(call)
        waiting, running = list(reversed(numbers)), dict[Any, int]()
        while waiting or running:
            while waiting and len(running) < launching.jobs:
                number = waiting.pop()
                running[task.remote(work, number)] = number
            for ended in ray.wait(list(running), num_returns=1)[0]:
                running.pop(ended)
                with suppress(ray.exceptions.RayError):  # died more often than `retries`: given up below
                    ray.get(ended)
                tell()
    return [number for number in numbers if not sweep.settled(number)]


def call(work: Work, number: int) -> None:
    work(number)


@contextmanager
def connected(launching: Launching) -> Iterator[Any]:
    """The ray module, connected; a cluster of our own listens on 127.0.0.1 only and ends with the sweep."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if launching.address is None:  # Ray's name for a switch that also keeps Linux from listening on every interface
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    if launching.address is not None:
        ray.init(address=launching.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local", num_cpus=launching.jobs * launching.cpus, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, object_store_memory=STORE, _node_ip_address="127.0.0.1",
        )  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()
