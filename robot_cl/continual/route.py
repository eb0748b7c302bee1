"""What the library does about a task: candidates that were tried, and the way that was chosen for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Mix = dict[str, float]  # skill -> coefficient; {}: the bare base


@dataclass(frozen=True)
class Route:
    """What one seed does about one task: the composition it begins with (`mix`), how well that did in a trial (mean
    and standard error over its starts), the level it had to reach, and how it ended: the skill played, and whether it
    was learned for this task."""

    task: str
    mix: Mix
    kind: str  # base, skill, mean or sum
    trial: float
    wanted: float | None
    reached: bool
    skill: str = ""
    learned: bool = False
    level: float = 0.0
    error: float = 0.0


class Tried(NamedTuple):
    """A candidate, and its scores (starts,) in a trial."""

    kind: str
    mix: Mix
    scores: np.ndarray

    @property
    def score(self) -> float:
        return float(self.scores.mean())

    def less(self, errors: float) -> float:
        """The score less so many standard errors."""
        return self.score - errors * standard_error(self.scores)


class Decision(NamedTuple):
    """A route for each seed, the steps per seed that finding them took, and how the task began (P, F)."""

    routes: list[Route]
    spent: int
    sketch: np.ndarray


def played(route: Route) -> Mix:
    """What is played on a finished task: the skill learned for it, else the composition that was enough."""
    return {route.skill: 1.0} if route.learned else dict(route.mix)


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The best first."""
    return sorted(tried, key=lambda t: -t.score)


def promising(base: Tried, tried: Sequence[Tried], doubt: float) -> list[Tried]:
    """Those that a short trial has not ruled out, by scoring `doubt` of the base's level below it: what is played on
    the task that began most alike (the first of `tried`), then the others, the best first."""
    left = ranked([t for t in tried if t.score > base.score - doubt * abs(base.score)])
    return sorted(left, key=lambda t: t is not tried[0])


def summed(mixes: Sequence[Mix], weight: float) -> Mix:
    """Each at `weight`."""
    total: Mix = {}
    for mix in mixes:
        for skill, coefficient in mix.items():
            total[skill] = total.get(skill, 0.0) + weight * coefficient
    return total


def worse(scores: np.ndarray, mean: float, error: float) -> bool:
    """Whether scores (starts,) lie below such a mean by more than two standard errors of the difference."""
    return float(scores.mean()) < mean - 2.0 * np.hypot(standard_error(scores), error)


def standard_error(scores: np.ndarray) -> float:
    """Of the mean of scores (starts,); 0 for a single start, which then has to be believed."""
    return float(scores.std(ddof=1) / np.sqrt(scores.size)) if scores.size > 1 else 0.0
