"""Statistics of a handful of noisy scores: point estimates with the intervals that belong to them.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": interquartile mean,
stratified bootstrap, performance profile, probability of improvement. Wilson 1927 for success rates, of several
training seeds with the bootstrap over seeds. Scores come as (runs,), as (runs, tasks), or as a list with one (runs,)
array per task where the counts differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Scores = np.ndarray | Sequence[np.ndarray] | Sequence[float]
Statistic = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A point estimate and the two ends of its confidence interval, in the unit of the scores."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis: (..., n) -> (...)."""
    return np.asarray(scores, dtype=np.float64).mean(axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis, (..., n) -> (...): floor(n/4) scores are cut from either end."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    n = ordered.shape[-1]
    return ordered[..., n // 4 : n - n // 4].mean(axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over the last axis: (..., n) -> (...)."""
    return np.median(np.asarray(scores, dtype=np.float64), axis=-1)


def strata(scores: Scores) -> list[np.ndarray]:
    """One finite (runs,) float64 array per task. Raises ValueError on empty, non-finite or oddly shaped scores."""
    if isinstance(scores, np.ndarray):
        parts = [scores] if scores.ndim == 1 else list(scores.T)
    else:
        parts = list(scores) if len(scores) and np.ndim(scores[0]) else [np.asarray(scores)]  # type: ignore[arg-type]
    parts = [np.asarray(part, dtype=np.float64) for part in parts]
    if not parts or any(part.ndim != 1 or part.size == 0 for part in parts):
        raise ValueError(f"scores need shape (runs,) or (runs, tasks) and at least one run, got {np.shape(parts)}")
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("scores contain NaN or infinity; a run that failed must be left out or scored, not averaged")
    return parts


def stratified_bootstrap(
    scores: Scores,
    rng: np.random.Generator,
    statistic: Statistic = iqm,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of `statistic` over all scores, runs redrawn with replacement within each task.

    Raises ValueError if a task has fewer than two runs, where an interval would pretend to know.
    """
    parts = strata(scores)
    if min(part.size for part in parts) < 2:
        raise ValueError("an interval needs at least two scores per task; run more episodes or more seeds")
    drawn = np.concatenate([_redraw(part, rng, resamples) for part in parts], axis=1)  # (resamples, runs of all tasks)
    return _percentiles(float(statistic(np.concatenate(parts))), statistic(drawn), confidence)


def _redraw(part: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    return part[rng.integers(0, part.size, (resamples, part.size))]


def _percentiles(estimate: float, draws: np.ndarray, confidence: float) -> Interval:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Success rate of independent trials with Wilson's score interval, which stays inside [0, 1] and is honest at 0 of
    n and n of n. For the episodes of several training seeds see `success_rate`."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials is not a rate")
    z = NormalDist().inv_cdf(0.5 + 0.5 * confidence)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else float(centre - half)  # exact, where rounding would leave 1e-17
    high = 1.0 if successes == trials else float(centre + half)
    return Interval(rate, low, high)


def probability_of_improvement(
    scores: Scores,
    baseline: Scores,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """P(a random run of `scores` beats a random run of `baseline`), ties counting half, averaged over tasks.

    The Mann-Whitney statistic over n·m pairs. Both sides need the same tasks in the same order.
    """
    ours, theirs = strata(scores), strata(baseline)
    if len(ours) != len(theirs):
        raise ValueError(f"scores cover {len(ours)} tasks, the baseline {len(theirs)}; compare the same tasks")
    point = np.mean([_win_rate(x, y) for x, y in zip(ours, theirs, strict=True)])
    draws = np.zeros(resamples)
    for x, y in zip(ours, theirs, strict=True):
        drawn_x, drawn_y = _redraw(x, rng, resamples), _redraw(y, rng, resamples)
        draws += [_win_rate(a, b) for a, b in zip(drawn_x, drawn_y, strict=True)]
    return _percentiles(float(point), draws / len(ours), confidence)


def _win_rate(x: np.ndarray, y: np.ndarray) -> float:
    """Fraction of pairs with x > y, plus half the fraction with x = y, in O(n log m)."""
    ordered = np.sort(y)
    below, not_above = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    return float((below + not_above).sum()) / (2.0 * x.size * y.size)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Fraction of runs scoring above each threshold, tasks weighing equally: (thresholds,) in [0, 1]."""
    levels = np.asarray(thresholds, dtype=np.float64)
    return np.mean([(part[:, None] > levels).mean(axis=0) for part in strata(scores)], axis=0)


def profile_band(
    scores: Scores,
    thresholds: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise lower and upper end (thresholds,) of the performance profile under the stratified bootstrap."""
    parts = strata(scores)
    again = ([_redraw(part, rng, 1)[0] for part in parts] for _ in range(resamples))
    draws = np.stack([performance_profile(drawn, thresholds) for drawn in again])
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return low, high


def nested_bootstrap(
    groups: Sequence[np.ndarray],
    rng: np.random.Generator,
    statistic: Statistic = mean,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval over all scores of several groups, such as the episodes of several training seeds, equally many each.

    Groups are redrawn first and scores within them after that, because episodes of one trained network share its luck.
    A single group is an ordinary bootstrap. Raises ValueError where groups differ in size or hold fewer than two.
    """
    scores = _groups(groups)
    return _percentiles(float(statistic(scores.ravel())), statistic(_nested(scores, rng, resamples)), confidence)


def success_rate(
    groups: Sequence[np.ndarray] | Sequence[Sequence[bool]],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Share of successes (true or 1) of several training seeds' episodes, (seeds, episodes).

    For one seed Wilson's interval, for several that of `nested_bootstrap`, for what one network manages in one episode
    it tends to manage in the next. It is never narrower than Wilson's over all episodes, where resampling what always
    or never succeeded would leave no width at all.
    """
    told = np.asarray(groups, dtype=np.float64)
    if told.ndim != 2 or not np.isin(told, (0.0, 1.0)).all():
        raise ValueError(f"successes are 0 or 1 of shape (seeds, episodes), got shape {told.shape}")
    plain = wilson(int(told.sum()), told.size, confidence)
    if min(told.shape) < 2:  # of one seed, or one episode each: nothing shares a network
        return plain
    nested = nested_bootstrap(list(told), rng, resamples=resamples, confidence=confidence)
    return Interval(plain.estimate, min(plain.low, nested.low), max(plain.high, nested.high))


def nested_improvement(
    groups: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """As `probability_of_improvement` of all scores of several groups over all of `baseline`'s, both redrawn as in
    `nested_bootstrap`: many episodes of few training seeds do not tell what another seed would do."""
    x, y = _groups(groups), _groups(baseline)
    drawn = zip(_nested(x, rng, resamples), _nested(y, rng, resamples), strict=True)
    return _percentiles(_win_rate(x.ravel(), y.ravel()), np.array([_win_rate(a, b) for a, b in drawn]), confidence)


def nested_difference(
    groups: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval of the mean of groups − baseline, (groups, episodes) each, where episode k of all shares seed k.

    Episodes are redrawn for both sides at once, which keeps the pairing, and each side's groups on their own.
    """
    x, y = _groups(groups), _groups(baseline)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"paired scores need equally many episodes, got {x.shape[1]} and {y.shape[1]}")
    episodes = rng.integers(0, x.shape[1], (resamples, 1, x.shape[1]))

    def redrawn(side: np.ndarray) -> np.ndarray:
        return side[rng.integers(0, len(side), (resamples, len(side), 1)), episodes].mean(axis=(1, 2))

    return _percentiles(float(x.mean() - y.mean()), redrawn(x) - redrawn(y), confidence)


def _groups(groups: Sequence[np.ndarray]) -> np.ndarray:
    scores = np.asarray(groups, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(f"groups need equal sizes of at least two finite scores, got shape {scores.shape}")
    return scores


def _nested(scores: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Groups redrawn, and scores within them: (groups, size) -> (resamples, groups · size)."""
    count, size = scores.shape
    which = rng.integers(0, count, (resamples, count, 1))
    return scores[which, rng.integers(0, size, (resamples, count, size))].reshape(resamples, -1)
