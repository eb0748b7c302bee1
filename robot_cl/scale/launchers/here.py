"""One job after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching
    from robot_cl.scale.sweep import Sweep, Work


def launch(
    sweep: Sweep, work: Work, numbers: Sequence[int], launching: Launching, tell: Callable[[], None]
) -> list[int]:
    """One job after the other, in this process."""
    for number in numbers:
        work(number)
        tell()
    return []
