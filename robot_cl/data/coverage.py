"""How much of states, actions and returns a dataset covers, and which learner that suits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_cl.data.checks.subject import Subject
from robot_cl.data.near_best import near_best

_NEIGHBOUR_ROWS = 2000
_CHUNK = 250
_NARROW_SPREAD, _NARROW_DISAGREEMENT, _EXPERT_SCORE = 0.15, 0.75, 80.0  # noisy experts: 0.4 to 0.6; random: 1
_LEAST = 0.05  # share of the steps that has to be near the best
_POOR, _NOTICED = 0.5, 0.02  # what a poor episode falls short of the best by, and the share of the steps that counts
_RANDOM_DISAGREEMENT, _UNIFORM = 0.97, 0.03  # random: unrelated to the state, and as spread as uniform ones to 3 %


@dataclass(frozen=True)
class Coverage:
    """`return_spread` is the 90th minus the 10th percentile of episode returns, over the larger magnitude of the two:
    0 is one quality of behaviour only.

    `action_disagreement` is the root mean square difference of the actions at a state and at its nearest neighbour
    from another episode, over that of two random steps: 0 is a function of the state, 1 is no relation to it.
    `action_spread` is the standard deviation of actions over that of uniform ones; `effective_dimensions` the
    participation ratio of the standardised observations' covariance, out of obs_dim. What begins with `best` is of
    the episodes that `percent_bc` clones, those within a tenth of the best ones' return: their share of all steps, mean
    return weighted by steps, disagreement of actions. `poor_share` is the share of the steps in whole episodes that
    fall short of that return by more than half of the larger magnitude of the two.
    """

    episodes: int
    steps: int
    return_quantiles: tuple[float, float, float]
    return_spread: float
    action_disagreement: float
    action_spread: float
    effective_dimensions: float
    best_share: float = float("nan")
    best_return: float = float("nan")
    best_disagreement: float = float("nan")
    poor_share: float = 0.0


@dataclass(frozen=True)
class Recommendation:
    """A learner's name and the sentences that speak for it."""

    learner: str
    evidence: list[str]


def coverage(subject: Subject) -> Coverage:
    whole = subject.complete if subject.complete.any() else np.ones_like(subject.complete)
    low, middle, high = (float(q) for q in np.nanquantile(subject.returns[whole], (0.1, 0.5, 0.9)))
    best = _near_best(subject)
    by_step = np.repeat(subject.returns[best], subject.lengths[best])
    poor = whole & _far_below(subject.returns, float(by_step.mean()))
    obs = subject.obs[subject.some_rows].astype(np.float64)
    z = (obs - obs.mean(axis=0)) / np.maximum(obs.std(axis=0), 1e-6)
    spectrum = np.linalg.eigvalsh(np.cov(z, rowvar=False).reshape(z.shape[1], -1)).clip(min=0.0)
    return Coverage(
        episodes=len(subject.lengths),
        steps=len(subject.reward),
        return_quantiles=(low, middle, high),
        return_spread=_spread(subject.returns[whole]),
        action_disagreement=_disagreement(subject, subject.some_rows),
        action_spread=float(subject.action[subject.some_rows].std(axis=0, dtype=np.float64).mean() * np.sqrt(3.0)),
        effective_dimensions=float(spectrum.sum() ** 2 / max((spectrum**2).sum(), 1e-12)),
        best_share=len(by_step) / len(subject.reward),
        best_return=float(by_step.mean()),
        best_disagreement=_disagreement(subject, _rows_of(subject, best)),
        poor_share=float(subject.lengths[poor].sum() / len(subject.reward)),
    )


def recommend(
    found: Coverage, score: float | None, informative_reward: bool = True, best_score: float | None = None
) -> Recommendation:
    """Near-expert, narrow data: imitate (bc), or the best episodes if they are so (percent_bc), also where so
    few are poor that the tenths' returns do not show it. Mixed data, or room above the behaviour: improve on it (iql).
    Random actions: nothing is worth imitating, but every action was tried; values with a lower bound (lcb). Scores are
    of all data and of the best episodes, none where there is no scale; narrow data then counts as an expert's.
    """
    spread = f"returns spread by {found.return_spread:.0%} between the worst and the best tenth of the episodes"
    actions = f"actions at neighbouring states differ {found.action_disagreement:.2f} as much as random ones"
    differ = found.action_disagreement >= _NARROW_DISAGREEMENT
    if np.isnan(found.action_disagreement):
        actions = "its actions cannot be compared with those of another episode"
    narrow = found.return_spread < _NARROW_SPREAD and not differ
    if not informative_reward:
        return Recommendation("bc", ["the reward tells nothing of the state, only imitation is left", spread, actions])
    expert = narrow if score is None else score >= _EXPERT_SCORE
    quality = "no reference score is known" if score is None else f"the mean score is {score:.0f}"
    mixed = found.poor_share >= _NOTICED
    if narrow and expert and not mixed:
        return Recommendation("bc", [spread, actions, f"{quality}: one behaviour, hardly anything to choose between"])
    if narrow and not mixed:
        return Recommendation("iql", [spread, actions, f"{quality}: there is room above it"])
    if expert and found.action_disagreement <= found.best_disagreement:
        rest = f"{quality}, and poor episodes act as the best do: one behaviour and its bad luck"
        return Recommendation("bc", [spread, actions, rest])
    near_expert = narrow if best_score is None else best_score >= _EXPERT_SCORE
    if near_expert and found.best_share >= _LEAST and found.best_disagreement < _NARROW_DISAGREEMENT:
        scored = "" if best_score is None else f", score {best_score:.0f}"
        best = f"the best episodes, {found.best_share:.0%} of the steps{scored}: one behaviour"
        poor = [f"{found.poor_share:.0%} of the steps are of episodes far below the best"] if mixed else []
        return Recommendation("percent_bc", [spread, actions, *poor, best])
    if found.action_disagreement > _RANDOM_DISAGREEMENT and abs(found.action_spread - 1.0) < _UNIFORM:
        return Recommendation("lcb", [spread, actions, "nobody is worth imitating, but every action was tried"])
    return Recommendation("iql", [spread, actions, "better and worse behaviour can be told apart"])


def _spread(returns: np.ndarray) -> float:
    """90th minus 10th percentile over the larger magnitude of the two; of the finite ones, NaN if there is none."""
    finite = returns[np.isfinite(returns)]
    if not len(finite):
        return float("nan")
    low, high = (float(q) for q in np.quantile(finite, (0.1, 0.9)))
    return (high - low) / max(abs(low), abs(high), 1e-9)


def _far_below(returns: np.ndarray, best: float) -> np.ndarray:
    """Episodes (E,) bool whose finite return is that much less than the best ones'."""
    with np.errstate(invalid="ignore"):
        short = (best - returns) / np.maximum(np.maximum(np.abs(returns), abs(best)), 1e-9)
        return np.isfinite(returns) & (short > _POOR)


def _near_best(subject: Subject) -> np.ndarray:
    """Indices of the episodes near the best; one whose return is no number is not among them."""
    known = np.flatnonzero(np.isfinite(subject.returns))
    returns, lengths = subject.returns[known], subject.lengths[known]
    if not len(known):
        return np.arange(len(subject.returns))
    return known[near_best(returns, lengths)]


def _rows_of(subject: Subject, episodes: np.ndarray) -> np.ndarray:
    """Those of `some_rows` that lie in these episodes."""
    rows = subject.some_rows
    return rows[np.isin(np.searchsorted(subject.stops, rows, side="right"), episodes)]


def _disagreement(subject: Subject, among: np.ndarray) -> float:
    """Nearest-neighbour action disagreement among an even sample of steps, neighbours from other episodes only."""
    rows = among[:: max(1, len(among) // _NEIGHBOUR_ROWS)]
    owner = np.searchsorted(subject.stops, rows, side="right")
    if len(np.unique(owner)) < 2:
        return float("nan")
    obs, action = subject.obs[rows], subject.action[rows].astype(np.float64)
    z = (obs - obs.mean(axis=0)) / np.maximum(obs.std(axis=0), 1e-6)
    squares = (z**2).sum(axis=1)
    nearest = np.empty(len(rows), dtype=int)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        distance = squares[part, None] + squares[None] - 2.0 * z[part] @ z.T
        distance[owner[part, None] == owner[None]] = np.inf
        nearest[part] = distance.argmin(axis=1)
    beside = ((action - action[nearest]) ** 2).sum(axis=1).mean()
    # The expected squared difference of two independent draws is twice the variance.
    apart = 2.0 * action.var(axis=0).sum()
    return float(np.sqrt(beside / max(apart, 1e-12)))
