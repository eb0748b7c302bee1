"""What a dynamics model is fitted to: likelihood, squared error, value difference, or value gradients (VaGraM).

A loss is a callable `Errors -> (E,)`, one number per member. Values come in as callables `value_fn`: states
(B, obs_dim) -> values (B,); none of the losses ever puts a gradient on a critic's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, Prediction

ValueFn = Callable[[Tensor], Tensor]
# index (E, B) into the data set and its next_obs (E, B, obs_dim) -> gradients of C critics (C, E, B, obs_dim)
Gradients = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Errors:
    """What a loss sees of one batch: E members, B rows each, in the units of the data.

    state (E, B, obs_dim) is predicted minus true next state with angles wrapped, reward (E, B) likewise; the scales are
    the targets' standard deviations; next_obs (E, B, obs_dim) is the true next state; index (E, B) says which row of
    the data set each is.
    """

    state: Tensor
    reward: Tensor
    state_scale: Tensor
    reward_scale: Tensor
    next_obs: Tensor
    terminated: Tensor
    index: Tensor
    state_log_var: Tensor | None = None
    reward_log_var: Tensor | None = None


Loss = Callable[[Errors], Tensor]


def errors(
    model: Ensemble, said: Prediction, obs: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor, index: Tensor
) -> Errors:
    """Compare what the members said of obs (E, B, obs_dim) with what happened."""
    return Errors(
        model.wrap_angles(obs + said.delta - next_obs), said.reward - reward, model.delta_scale, model.reward_scale,
        next_obs, terminated, index, said.delta_log_var, said.reward_log_var,
    )


# -- losses that know no value ----------------------------------------------------------------------------------


def mse(e: Errors) -> Tensor:
    """Mean squared error in the data's units, states and reward added."""
    return e.state.square().mean((-1, -2)) + e.reward.square().mean(-1)


def normalised_mse(e: Errors) -> Tensor:
    """Mean squared error in standard deviations of the targets: 1 per term is what predicting the mean costs."""
    return _normalised_state(e).square().mean((-1, -2)) + (e.reward / e.reward_scale).square().mean(-1)


def nll(e: Errors) -> Tensor:
    """Gaussian negative log-likelihood of the normalised targets, without its constant (PETS, eq. 1)."""
    if e.state_log_var is None or e.reward_log_var is None:
        raise ValueError("nll needs predicted variances; build the ensemble with gaussian=True or choose another loss")
    state = _normalised_state(e).square() * torch.exp(-e.state_log_var) + e.state_log_var
    reward = (e.reward / e.reward_scale).square() * torch.exp(-e.reward_log_var) + e.reward_log_var
    return 0.5 * (state.mean((-1, -2)) + reward.mean(-1))


def _normalised_state(e: Errors) -> Tensor:
    return e.state / e.state_scale


# -- values -----------------------------------------------------------------------------------------------------


def state_value(q_fn: Callable[[Tensor, Tensor], Tensor], actor: Callable[[Tensor], Tensor]) -> ValueFn:
    """V(x) = Q(x, μ(x)) with the action detached: how the value changes with the state, not with the policy."""

    def value(x: Tensor) -> Tensor:
        return q_fn(x, actor(x).detach())

    return value


def on_normalised(value_fn: ValueFn, normalizer: nn.Module) -> ValueFn:
    """A critic that was trained on normalised observations, as a function of raw ones; brings the chain rule along."""

    def value(x: Tensor) -> Tensor:
        return value_fn(normalizer(x))

    return value


def value_gradient(value_fn: ValueFn, states: Tensor) -> tuple[Tensor, Tensor]:
    """V(x) (...,) and ∂V/∂x (..., obs_dim) at the given states, both without a graph. Parameters get no gradient.

    Raises ValueError if the value has no gradient at all, as one that went through numpy.
    """
    with torch.enable_grad():
        x = states.detach().reshape(-1, states.shape[-1]).requires_grad_()
        value = value_fn(x)
        if not value.requires_grad:
            raise ValueError("value_fn has no gradient with respect to the state; it must be made of torch operations")
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach().reshape(states.shape[:-1]), gradient.reshape(states.shape)


class ValueDifference:
    """(V(ŝ') − V(s'))², averaged over the critics; no next value at terminals (Farahmand 2018, eq. 4)."""

    def __init__(self, value_fns: Sequence[ValueFn]):
        self.value_fns = tuple(value_fns)

    def __call__(self, e: Errors) -> Tensor:
        predicted = e.next_obs + e.state
        total = e.state.new_zeros(e.state.shape[0])
        for value_fn in self.value_fns:
            value, gradient = value_gradient(value_fn, predicted)
            # Same value and same first derivative as V(ŝ'), but no path back to the critic's parameters.
            value = value + ((predicted - predicted.detach()) * gradient).sum(-1)
            with torch.no_grad():
                target = value_fn(e.next_obs.reshape(-1, e.next_obs.shape[-1])).reshape(value.shape)
            total = total + ((value - target) * (1.0 - e.terminated)).square().mean(-1)
        return total / len(self.value_fns) + e.reward.square().mean(-1)


# -- VaGraM -----------------------------------------------------------------------------------------------------


def clip_norm(gradient: Tensor, quantile: float = 0.95) -> Tensor:
    """Shorten the rows of gradient (..., B, obs_dim) whose norm is beyond the batch's quantile to that norm."""
    norm = gradient.norm(dim=-1)  # (..., B)
    limit = torch.quantile(norm, quantile, dim=-1, keepdim=True)
    return gradient * (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0).unsqueeze(-1)


class GradientCache:
    """∂V_c/∂x at the true next state of every transition, for each critic c, computed once per critic version.

    Remembers one row per *transition* of the data set, so that members which draw the same transition at different
    places of their bootstraps read the same gradient.
    """

    def __init__(self, value_fns: Sequence[ValueFn]):
        if not value_fns:
            raise ValueError("value-gradient weights need at least one value_fn")
        self.value_fns = tuple(value_fns)
        self.version: int | None = None
        self._known = torch.zeros(0, dtype=torch.bool)
        self._gradient = torch.zeros(0)

    def refresh(self, version: int) -> None:
        """Say which critic the value functions stand for now; a new version empties the cache."""
        if version != self.version:
            self.version = version
            self._known = torch.zeros_like(self._known)

    def forget(self, rows: Tensor) -> None:
        """Rows of the data set (int64) that now hold other transitions."""
        self._known[rows[rows < len(self._known)]] = False

    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        """index (E, B) into the data set and its next_obs (E, B, obs_dim) -> gradients (C, E, B, obs_dim)."""
        self._grow(int(index.max()) + 1, next_obs)
        missing = ~self._known[index]
        if missing.any():
            rows, states = index[missing], next_obs[missing]
            for c, value_fn in enumerate(self.value_fns):
                self._gradient[c, rows] = value_gradient(value_fn, states)[1]
            self._known[rows] = True
        return self._gradient[:, index]

    def _grow(self, rows: int, like: Tensor) -> None:
        have = len(self._known)
        if rows <= have:
            return
        size = max(rows, have + have // 2)  # half as much again, so that a growing data set is not copied each time
        known = torch.zeros(size, dtype=torch.bool, device=like.device)
        gradient = like.new_zeros(len(self.value_fns), size, like.shape[-1])
        if have:
            known[:have], gradient[:, :have] = self._known, self._gradient
        self._known, self._gradient = known, gradient


class GradientTable:
    """Gradients of all transitions of a data set, known beforehand: (C, N, obs_dim), one row per *transition*."""

    def __init__(self, gradient: Tensor):
        self.gradient = gradient

    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        """index (E, B) -> gradients (C, E, B, obs_dim)."""
        return self.gradient[:, index]


class VaGraM:
    """Value-gradient weighted model loss: mean_B Σ_d (g_d (ŝ'_d − s'_d))² + (r̂ − r)² (Voelcker et al. 2022, eq. 7).

    g = ∂V/∂x at the true next state, clipped per batch and critic, zero where the episode ended; the squared weighted
    errors are averaged over the critics. `floor` keeps a share of normalised error, in units of the mean weight, so
    that a dimension today's value ignores is not lost. `plain` adds normalised error in full: for the first steps,
    while the critic means nothing.
    """

    def __init__(self, cache: Gradients, quantile: float = 0.95, floor: float = 1e-3, plain: bool = False):
        if not 0.0 < quantile <= 1.0 or floor < 0.0:
            raise ValueError(f"quantile must be in (0, 1] and floor at least 0, got {quantile} and {floor}")
        self.cache, self.quantile, self.floor, self.plain = cache, quantile, floor, plain

    def weights(self, e: Errors) -> Tensor:
        """g (C, E, B, obs_dim), masked at terminals and clipped."""
        gradient = self.cache(e.index, e.next_obs) * (1.0 - e.terminated).unsqueeze(-1)
        return clip_norm(gradient, self.quantile)

    def state_term(self, e: Errors) -> Tensor:
        """(E,) the weighted state error with its floor; scaling every value by c scales it by c²."""
        g = self.weights(e)
        weighted = (g * e.state).square().sum(-1).mean(-1).mean(0)  # (C, E, B, obs_dim) -> (E,)
        unit = (g * e.state_scale).square().mean((0, 2, 3))  # (E,) mean squared weight of one standard deviation
        return weighted + self.floor * unit * _normalised_state(e).square().sum(-1).mean(-1)

    def __call__(self, e: Errors) -> Tensor:
        loss = self.state_term(e) + e.reward.square().mean(-1)
        return loss + normalised_mse(e) if self.plain else loss


LOSSES: dict[str, Loss] = {"nll": nll, "mse": mse, "normalised_mse": normalised_mse}
