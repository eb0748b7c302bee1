"""The release gate: a new library or policy is promoted only if no task got worse.

Both sides are evaluated on the same seeds, task by task. A task passes when the one-sided lower bound of the paired
difference stays above −margin · |old|: not "no evidence of harm", but evidence of no harm. With too few or too noisy
episodes the bound is wide and the gate refuses, saying how many episodes would decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

PERCENTILES = (10, 20, 50)
FEW = 30  # differences, below which redrawing them knows too little of what they have not shown
POWER = 0.95  # share of equal policies that pass with as many episodes as the gate asks for


@dataclass
class GateConfig:
    """What "no worse" means."""

    margin: float = 0.05  # tolerated loss as a fraction of the old mean's magnitude, per task
    confidence: float = 0.95  # of the one-sided bound, per task
    resamples: int = 2000  # bootstrap draws

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 1.0:
            raise ValueError(f"margin is a fraction between 0 and 1, got {self.margin}")
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(f"confidence is a fraction between 0.5 and 1, got {self.confidence}")


@dataclass(frozen=True)
class TaskVerdict:
    """One task: means, the lower bound of the paired difference, the tolerated loss, percentiles old and new."""

    task: str
    old: float
    new: float
    lower: float
    tolerated: float
    percentiles: dict[int, tuple[float, float]]
    episodes: int
    episodes_needed: int

    @property
    def passed(self) -> bool:
        return self.lower >= -self.tolerated

    def sentence(self) -> str:
        change = f"{self.task}: {self.old:.4g} → {self.new:.4g}, at worst {self.lower:+.4g}"
        if self.passed:
            return f"{change}, within −{self.tolerated:.4g}"
        if self.tolerated == 0.0 and self.new >= self.old:
            return f"{change}: of a mean of 0 no share can be tolerated; choose a task on which the old one scores"
        if self.new - self.old >= -self.tolerated and self.episodes_needed > self.episodes:
            return f"{change}: {self.episodes} episodes cannot tell; about {self.episodes_needed} would"
        return f"{change}: worse than −{self.tolerated:.4g}"


@dataclass(frozen=True)
class GateVerdict:
    """Promotion needs every task to pass."""

    tasks: list[TaskVerdict] = field(default_factory=list)

    @property
    def promoted(self) -> bool:
        return all(t.passed for t in self.tasks)


def judge(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], config: GateConfig, rng: np.random.Generator
) -> GateVerdict:
    """Returns per task and seed, (episodes,) each, entry k of both sides from the same seed -> verdict.

    Raises ValueError when the sides cover different tasks or seeds.
    """
    if set(new) != set(old) or not old:
        raise ValueError(f"both sides need the same tasks; only one has {sorted(set(new) ^ set(old)) or 'any'}")
    return GateVerdict([judge_task(task, new[task], old[task], config, rng, len(old)) for task in old])


def judge_task(
    task: str, new: np.ndarray, old: np.ndarray, config: GateConfig, rng: np.random.Generator, tasks: int = 1
) -> TaskVerdict:
    """One of `tasks` tasks; new and old (episodes,), paired by seed."""
    new, old = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if new.shape != old.shape or new.ndim != 1 or new.size < 2:
        raise ValueError(f"task {task!r} needs the same two or more seeds on both sides, got {new.shape}, {old.shape}")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise ValueError(f"task {task!r} has returns that are not finite")
    difference = new - old
    tolerated = config.margin * abs(old.mean())
    return TaskVerdict(
        task, float(old.mean()), float(new.mean()), lower_bound(difference, config, rng), float(tolerated),
        {q: (float(np.percentile(old, q)), float(np.percentile(new, q))) for q in PERCENTILES},
        new.size, episodes_needed(difference, tolerated, config.confidence, tasks),
    )  # fmt: skip


def lower_bound(difference: np.ndarray, config: GateConfig, rng: np.random.Generator) -> float:
    """One-sided bound of the mean of differences (episodes,), by the bootstrap; of few of them Student's where that is
    lower, for the mean of two redrawn values lies above the lesser one at any confidence."""
    drawn = difference[rng.integers(0, difference.size, (config.resamples, difference.size))].mean(-1)
    lower = float(np.quantile(drawn, 1.0 - config.confidence))
    if difference.size >= FEW:
        return lower
    spread = float(np.std(difference, ddof=1)) / math.sqrt(difference.size)
    return min(lower, float(difference.mean()) - student(config.confidence, difference.size - 1) * spread)


def student(share: float, freedom: int) -> float:
    """Quantile of Student's t: the angle atan(t / √freedom) has a density that goes with cos^(freedom − 1)."""
    angle = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 100_001)
    below = np.cumsum(np.cos(angle) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(float(np.interp(share, below / below[-1], angle)))


def episodes_needed(difference: np.ndarray, tolerated: float, confidence: float, tasks: int = 1) -> int:
    """Episodes after which an equal policy passes all of `tasks` like this one nineteen times out of twenty:
    ((z_confidence + z_p) s / tolerated)² with p = 0.95^(1/tasks), if the spread s seen so far is all there is."""
    spread = float(np.std(difference, ddof=1))
    if spread == 0.0:
        return 2
    if tolerated == 0.0:
        return np.iinfo(np.int64).max
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER ** (1 / tasks))
    return max(2, math.ceil((z * spread / tolerated) ** 2))
