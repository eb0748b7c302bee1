"""Does a better model mean a better policy? Objective mismatch measured over a population of models.

Lambert et al. 2020 (L4DC), "Objective mismatch in model-based reinforcement learning": one-step likelihood ranks models
badly by the return they lead to. Every function here is pure; `report` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble
from dynamics.fit import Data, member_errors
from dynamics.losses import GradientCache, VaGraM, ValueFn

METRICS = ("nll", "normalised_mse", "raw_mse", "open_loop_5", "open_loop_20", "value_error", "vagram")


# -- correlation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval; nan where there is nothing to correlate."""

    value: float
    low: float
    high: float


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis, ties share their mean rank; (..., N) -> (..., N)."""
    here, other = x[..., :, None], x[..., None, :]
    return (other < here).sum(-1) + ((other == here).sum(-1) - 1) / 2


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear correlation of (..., N) with (..., N); nan where either is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (x * y).sum(-1) / scale, np.nan)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation of (..., N) with (..., N)."""
    return pearson(ranks(x), ranks(y))


def with_interval(
    how: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 2000,
    block: int = 100,
) -> Interval:
    """`how` (pearson or spearman) with the percentile interval over resampled models."""
    picks = rng.integers(len(x), size=(resamples, len(x)))
    values = np.concatenate([how(x[p], y[p]) for p in np.split(picks, range(block, resamples, block))])
    values, value = values[np.isfinite(values)], float(how(x, y))
    if not len(values):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, float(low), float(high))


# -- what one model is like -------------------------------------------------------------------------------------------


@torch.no_grad()
def open_loop_error(model: Ensemble, obs: Tensor, action: Tensor, horizon: int) -> Tensor:
    """Normalised squared error after `horizon` steps without looking, each member alone, (E,).

    obs (N, T + 1, obs_dim) and action (N, T, act_dim) are pieces of episodes, T ≥ horizon; errors are in standard
    deviations of the states. A member whose rollout leaves the finite numbers has infinite error.
    """
    if action.shape[1] < horizon:
        raise ValueError(f"pieces of {action.shape[1]} steps cannot show {horizon}-step errors; pass longer ones")
    scale = obs.flatten(0, 1).std(0).clamp_min(1e-6)
    state = obs[:, 0].expand(model.config.members, -1, -1)
    for h in range(horizon):
        delta, _ = model.means(state, action[:, h].expand(len(state), -1, -1), with_reward=False)
        state = model.advance(state, delta)
    error = (model.wrap_angles(state - obs[:, horizon]) / scale).square().mean((-1, -2))
    return torch.where(error.isfinite(), error, torch.inf)


@torch.no_grad()
def one_step_errors(model: Ensemble, data: Data) -> dict[str, Tensor]:
    """Each member's nll, normalised_mse and raw_mse on the data, (E,).

    A deterministic member's likelihood is that of its residuals with their own variance per dimension.
    """
    rows = torch.arange(len(data.obs), device=data.obs.device).expand(model.config.members, -1)
    e = member_errors(model, data, rows)
    z = e.state / e.state_scale
    log_var = z.var(1, keepdim=True).clamp_min(1e-12).log() if e.state_log_var is None else e.state_log_var
    return {
        "nll": 0.5 * (z.square() * torch.exp(-log_var) + log_var).mean((-1, -2)),
        "normalised_mse": z.square().mean((-1, -2)),
        "raw_mse": e.state.square().sum(-1).mean(-1),
    }


@torch.no_grad()
def value_error(model: Ensemble, value_fn: ValueFn, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Root mean square of V(ŝ') − V(s') per member, (E,)."""
    delta, _ = model.means(obs, action, with_reward=False)
    predicted = model.advance(obs, delta)
    value = value_fn(predicted.flatten(0, 1)).reshape(predicted.shape[:2])
    return (value - value_fn(next_obs)).square().mean(-1).sqrt()


@torch.no_grad()
def vagram_loss(model: Ensemble, data: Data, value_fns: Sequence[ValueFn]) -> Tensor:
    """The value-gradient weighted loss of each member's mean on the data, state term only, (E,)."""
    cache = GradientCache(value_fns)
    cache.refresh(0)
    rows = torch.arange(len(data.obs), device=data.obs.device).expand(model.config.members, -1)
    return VaGraM(cache, floor=0.0).state_term(member_errors(model, data, rows))


def scores(
    model: Ensemble, data: Data, pieces: tuple[Tensor, Tensor], value_fn: ValueFn, horizons: Sequence[int] = (5, 20)
) -> dict[str, Tensor]:
    """All of METRICS per member on held-out data; `pieces` are obs (N, T + 1, ·) and action (N, T, ·) of episodes."""
    result = one_step_errors(model, data)
    for h in horizons:
        result[f"open_loop_{h}"] = open_loop_error(model, *pieces, h)
    result["value_error"] = value_error(model, value_fn, data.obs, data.action, data.next_obs)
    result["vagram"] = vagram_loss(model, data, [value_fn])
    return result


# -- the population ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """How one metric (an error, smaller is better) goes with the return over one slice of the population."""

    slice: str
    metric: str
    pearson: Interval
    spearman: Interval
    regret: float  # best return of the slice minus that of the model this metric would choose


def report(
    metrics: Mapping[str, np.ndarray], returns: np.ndarray, slices: Mapping[str, np.ndarray], rng: np.random.Generator
) -> list[Correlation]:
    """Correlate every metric (N,) with the returns (N,) within every slice (bool (N,)); good metrics are near −1.

    Raises ValueError for fewer than 12 models: below that a rank correlation says nothing.
    """
    if len(returns) < 12:
        raise ValueError(f"{len(returns)} models are too few for a correlation; use at least 12")
    rows = []
    for name, mask in slices.items():
        for metric, values in metrics.items():
            x, y = np.where(np.isfinite(values), values, np.finfo(np.float32).max)[mask], returns[mask]
            linear, ranked = with_interval(pearson, x, y, rng), with_interval(spearman, x, y, rng)
            rows.append(Correlation(name, metric, linear, ranked, float(y.max() - y[np.argmin(x)])))
    return rows


def best_metric(rows: Sequence[Correlation], slice_name: str) -> str:
    """The metric whose ranking goes best with the return in a slice (most negative rank correlation)."""
    inside = [r for r in rows if r.slice == slice_name and math.isfinite(r.spearman.value)]
    if not inside:
        raise LookupError(f"no correlations for slice {slice_name!r}; slices: {sorted({r.slice for r in rows})}")
    return min(inside, key=lambda r: r.spearman.value).metric


def epoch_regret(error: np.ndarray, returns: np.ndarray) -> tuple[int, int, float]:
    """(best epoch by error, best epoch by return, return lost by stopping at the former), from (epochs,) each.

    An error that is no number, of a model that diverged, is the worst.
    """
    by_error, by_return = int(np.argmin(np.where(np.isnan(error), np.inf, error))), int(np.argmax(returns))
    return by_error, by_return, float(returns[by_return] - returns[by_error])


def exploitation_gap(predicted: np.ndarray, realised: np.ndarray) -> float:
    """Mean of predicted − realised return of the plans that were chosen: what the planner gains from model errors."""
    return float(np.mean(np.asarray(predicted) - np.asarray(realised)))


# -- adversarial gap --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The return before and after an attack that keeps the likelihood, and the likelihoods, in nats per dimension."""

    before: float
    after: float
    nll_before: float
    nll_after: float


def cma_es(
    cost: Callable[[np.ndarray], float], start: np.ndarray, sigma: float, generations: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Minimise cost over (n,) with a diagonal covariance (Ros & Hansen 2008, sep-CMA-ES). Returns the best seen."""
    n, size = len(start), 4 + int(3 * math.log(len(start)))
    weights = np.log(size / 2 + 0.5) - np.log(np.arange(1, size // 2 + 1))
    weights /= weights.sum()
    mu_eff = 1.0 / (weights**2).sum()
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
    damping = 1 + c_sigma + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1)
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    faster = (n + 2) / 3  # a diagonal has that many fewer numbers to learn
    c_1 = min(1.0, faster * 2 / ((n + 1.3) ** 2 + mu_eff))
    c_mu = min(1 - c_1, faster * 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))
    expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    mean, diagonal, path_s, path_c = start.astype(float), np.ones(n), np.zeros(n), np.zeros(n)
    best, best_cost = mean.copy(), cost(mean)
    for generation in range(generations):
        z = rng.standard_normal((size, n))
        steps = z * np.sqrt(diagonal)
        costs = np.array([cost(mean + sigma * s) for s in steps])
        order = np.argsort(costs)[: len(weights)]
        if costs[order[0]] < best_cost:
            best, best_cost = mean + sigma * steps[order[0]], float(costs[order[0]])
        step = weights @ steps[order]
        mean = mean + sigma * step
        path_s = (1 - c_sigma) * path_s + math.sqrt(c_sigma * (2 - c_sigma) * mu_eff) * (weights @ z[order])
        length = np.linalg.norm(path_s) / expected
        rising = length < (1.4 + 2 / (n + 1)) * math.sqrt(1 - (1 - c_sigma) ** (2 * generation + 2))
        path_c = (1 - c_c) * path_c + rising * math.sqrt(c_c * (2 - c_c) * mu_eff) * step
        diagonal = (1 - c_1 - c_mu) * diagonal + c_1 * path_c**2 + c_mu * (weights @ steps[order] ** 2)
        sigma *= math.exp((c_sigma / damping) * (length - 1))
    return best, best_cost


def adversarial_gap(
    model: Ensemble,
    nll_of: Callable[[Ensemble], float],
    return_of: Callable[[Ensemble], float],
    rng: np.random.Generator,
    generations: int = 15,
    slack: float = 0.05,
    sigma: float = 0.01,
) -> Gap:
    """How low the return can be made by changing the state network's last weights while the likelihood holds.

    The negative log-likelihood may rise to nll₀ + slack · |nll₀|: 1.05 times a positive one. `sigma` is the first
    step, in standard deviations of those weights. The model is given back unchanged.
    """
    layer = model.state_net.layers[-1]
    weight = layer.weight
    assert isinstance(weight, torch.nn.Parameter)
    original = weight.detach().clone()
    scale = float(original.std())
    before, nll_before = return_of(model), nll_of(model)
    limit = nll_before + slack * abs(nll_before)

    def put(x: np.ndarray) -> None:
        with torch.no_grad():
            weight.copy_(original + scale * torch.as_tensor(x, dtype=original.dtype).reshape(original.shape))

    def cost(x: np.ndarray) -> float:
        put(x)
        nll = nll_of(model)
        # Outside the constraint the return is not even looked at; the distance to it leads back in.
        return return_of(model) if nll <= limit else 1e6 * (1.0 + nll - limit)

    try:
        best, after = cma_es(cost, np.zeros(original.numel()), sigma, generations, rng)
        put(best)
        return Gap(before, after, nll_before, nll_of(model))
    finally:
        put(np.zeros(original.numel()))

