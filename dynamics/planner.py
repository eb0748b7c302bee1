"""Planning by sampling: model-predictive path integral control over a learned model or a true simulator.

Williams et al. 2017, "Information theoretic MPC", algorithm 2 without its control cost: candidate action sequences
around the last plan are weighted by the softmax of their return, and their weighted mean is the new plan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble

# obs (B, obs_dim), actions (B, K, H, act_dim) -> return of every candidate (B, K)
Evaluate = Callable[[Tensor, Tensor], Tensor]
# obs (B, obs_dim), count -> action sequences (B, count, H, act_dim)
Propose = Callable[[Tensor, int], Tensor]


@dataclass
class PlannerConfig:
    """How to sample; actions are in [-1, 1]."""

    samples: int = 256  # candidates per decision
    horizon: int = 5  # steps
    sigma: float = 0.5  # standard deviation of the perturbations
    smoothness: float = 0.0  # correlation of a perturbation with that of the step before, in [0, 1)
    effective: tuple[float, float] = (0.1, 0.3)  # wanted share of effective samples, steers the temperature
    policy_share: float = 0.1  # of the candidates, where a policy proposes
    iterations: int = 1  # rounds of sampling per decision

    def __post_init__(self) -> None:
        self.effective = (float(self.effective[0]), float(self.effective[1]))
        if min(self.samples - 1, self.horizon, self.iterations) < 1 or self.sigma <= 0.0:
            raise ValueError("samples must be at least 2, horizon and iterations at least 1 and sigma positive")
        if not 0.0 < self.effective[0] < self.effective[1] < 1.0:
            raise ValueError(f"effective is a range of shares, 0 < low < high < 1, got {self.effective}")
        if not (0.0 <= self.policy_share < 1.0 and 0.0 <= self.smoothness < 1.0):
            raise ValueError("policy_share and smoothness must be in [0, 1)")


def softmax_weights(returns: Tensor, temperature: Tensor) -> Tensor:
    """exp(return / temperature), normalised over candidates; returns (B, K), temperature (B,) -> (B, K)."""
    return torch.softmax(returns / temperature.unsqueeze(-1), -1)


def effective_share(weights: Tensor) -> Tensor:
    """Effective share of samples, 1 / (K Σ w²), in (0, 1]; weights (B, K) -> (B,)."""
    return 1.0 / (weights.shape[-1] * weights.square().sum(-1))


def adapt_temperature(
    returns: Tensor, temperature: Tensor, effective: tuple[float, float], rounds: int = 30
) -> tuple[Tensor, Tensor]:
    """The weights (B, K) and the temperature (B,) nearest to the one given whose effective share is within bounds.

    Bisects the logarithm; candidates that are all alike have no such temperature and get equal weights.
    """
    low, high = effective
    cold, hot = torch.zeros_like(temperature), torch.full_like(temperature, torch.inf)
    for _ in range(rounds):
        weights = softmax_weights(returns, temperature)
        share = effective_share(weights)
        above, below = share > high, share < low
        if not (above.any() or below.any()):
            break
        hot = torch.where(above, temperature, hot)
        cold = torch.where(below, temperature, cold)
        warmer = torch.where(hot.isinf(), 4.0 * temperature, (cold * hot).sqrt())
        colder = torch.where(cold == 0.0, 0.25 * temperature, (cold * hot).sqrt())
        temperature = torch.where(below, warmer, torch.where(above, colder, temperature))
    return weights, temperature.clamp(1e-6, 1e6)


class MPPI:
    """A policy that plans: obs (B, obs_dim) -> action (B, act_dim) in [-1, 1].

    Remembers per row the plan (shifted by one step at each decision) and the temperature, in standard deviations of
    the returns. `evaluate` says what every candidate earns: `ModelRollout`, or a true simulator. Rows that are not
    `awake` (B,) bool need no plan; an `evaluate` with a method `among(rows)` is asked about the others alone.
    """

    awake: Tensor | None = None

    def __init__(
        self,
        evaluate: Evaluate,
        obs_dim: int,
        act_dim: int,
        config: PlannerConfig,
        rng: torch.Generator,
        propose: Propose | None = None,
    ):
        self.evaluate, self.propose, self.config, self.rng = evaluate, propose, config, rng
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self._plan = torch.zeros(0, config.horizon, act_dim)
        self._temperature = torch.ones(0)
        self.expected = torch.zeros(0)  # (B,) weighted mean of the returns at the last decision

    def reset(self, rows: np.ndarray | None = None) -> None:
        if rows is None:
            self._resize(0)
        else:
            self._plan[torch.as_tensor(rows)] = 0.0
            self._temperature[torch.as_tensor(rows)] = 1.0

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.plan(torch.as_tensor(np.asarray(obs), dtype=torch.float32))[:, 0].numpy()

    @torch.no_grad()
    def plan(self, obs: Tensor) -> Tensor:
        """obs (B, obs_dim) -> the new plan (B, H, act_dim); the next call starts from it, one step on."""
        if len(obs) != len(self._plan):
            self._resize(len(obs))
        plan = self._plan
        for _ in range(self.config.iterations):
            candidates = self._candidates(obs, plan)
            returns = self._returns(obs, candidates)
            weights, self._temperature = self._weights(returns)
            self.expected = (weights * returns.nan_to_num(0.0, 0.0, 0.0)).sum(-1)
            plan = torch.einsum("bk,bkha->bha", weights, candidates)
        self._plan = torch.cat([plan[:, 1:], plan[:, -1:]], 1)
        return plan

    def _resize(self, rows: int) -> None:
        self._plan = torch.zeros(rows, self.config.horizon, self.act_dim)
        self._temperature = torch.ones(rows)

    def _candidates(self, obs: Tensor, plan: Tensor) -> Tensor:
        """(B, K, H, act_dim) within bounds: the plan itself, the policy's proposals, the plan perturbed."""
        c = self.config
        proposed = min(round(c.policy_share * c.samples), c.samples - 1) if self.propose else 0  # the plan stays in
        noise = torch.randn(len(obs), c.samples - proposed, c.horizon, self.act_dim, generator=self.rng)
        if c.smoothness:
            for h in range(1, c.horizon):
                noise[:, :, h] = c.smoothness * noise[:, :, h - 1] + (1 - c.smoothness**2) ** 0.5 * noise[:, :, h]
        noise[:, 0] = 0.0
        candidates = plan.unsqueeze(1) + c.sigma * noise
        if self.propose is not None and proposed:
            candidates = torch.cat([candidates, self.propose(obs, proposed)], 1)
        return candidates.clamp(-1.0, 1.0)

    def _returns(self, obs: Tensor, candidates: Tensor) -> Tensor:
        among = getattr(self.evaluate, "among", None)
        if among is None or self.awake is None or self.awake.all():
            return self.evaluate(obs, candidates)
        rows = torch.nonzero(self.awake)[:, 0]
        returns = obs.new_zeros(candidates.shape[:2])
        if len(rows):
            returns[rows] = among(rows)(obs[rows], candidates[rows])
        return returns

    def _weights(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the candidates; one whose return is not finite gets none (all of them: equal ones)."""
        finite = returns.isfinite()
        worst = torch.where(finite, returns, torch.inf).amin(-1, keepdim=True)
        safe = torch.where(finite, returns, worst.nan_to_num(0.0, 0.0, 0.0))
        scaled = (safe - safe.amax(-1, keepdim=True)) / safe.std(-1, keepdim=True).clamp_min(1e-9)
        weights, temperature = adapt_temperature(scaled, self._temperature, self.config.effective)
        weights = torch.where(finite | ~finite.any(-1, keepdim=True), weights, 0.0)
        return weights / weights.sum(-1, keepdim=True), temperature


class ModelRollout:
    """Return of action sequences under an ensemble, each candidate routed to one elite.

    `reward_fn` (obs, action, next_obs) -> (rows,) replaces the learned reward where the task's is known; `value_fn`
    (rows, obs_dim) -> (rows,) adds the value of the last state. Keeps a copy of the elites: call `refresh` after
    the model was fitted. `half` runs the state network in bfloat16, a third of a percent beside the exact change and
    twice as fast on processors that multiply such numbers.
    """

    def __init__(
        self,
        model: Ensemble,
        reward_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        value_fn: Callable[[Tensor], Tensor] | None = None,
        discount: float = 1.0,
        half: bool = False,
    ):
        self.model, self.reward_fn, self.value_fn, self.discount = model, reward_fn, value_fn, discount
        self.half = half
        self.refresh()

    def refresh(self) -> None:
        """Take over the model's present weights and elites."""
        everyone = len(self.model.elites) == self.model.config.members
        self._elites = self.model if everyone else self.model.subset(self.model.elites)
        self._state_net = copy.deepcopy(self._elites.state_net).bfloat16() if self.half else None

    def among(self, rows: Tensor) -> ModelRollout:
        """What evaluates these rows (R,) alone: the same model."""
        return self

    @torch.no_grad()
    def __call__(self, obs: Tensor, actions: Tensor) -> Tensor:
        b, k, horizon, act_dim = actions.shape
        rows = self._routed(obs.unsqueeze(1).expand(b, k, -1).reshape(b * k, -1))
        steps = self._routed(actions.reshape(b * k, horizon * act_dim)).unflatten(-1, (horizon, act_dim))
        total, weight = rows.new_zeros(rows.shape[:2]), 1.0
        for h in range(horizon):
            if h == horizon - 1 and self.reward_fn is None and self.value_fn is None:
                return self._unrouted(total + weight * self._reward(rows, steps[:, :, h]), b, k)
            after, reward = self._step(rows, steps[:, :, h])
            total, rows, weight = total + weight * reward, after, weight * self.discount
        if self.value_fn is not None:
            total = total + weight * self.value_fn(rows.flatten(0, 1)).reshape(total.shape)
        return self._unrouted(total, b, k)

    def _reward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The learned reward alone, (E, rows): after the last step nobody asks for the state."""
        elites = self._elites
        return self._reward_of(elites.input_norm(elites.features(obs, action)))

    def _reward_of(self, x: Tensor) -> Tensor:
        """x (E, rows, d_in), normalised -> (E, rows)."""
        elites = self._elites
        return elites.reward_norm.inverse(elites.reward_net(x)[..., :1]).squeeze(-1)

    def _step(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """obs (E, rows, obs_dim) -> next_obs, reward (E, rows)."""
        delta, reward = self._means(obs, action, self.reward_fn is None)
        after = self._elites.advance(obs, delta)
        if self.reward_fn is not None:
            flat = (obs.flatten(0, 1), action.flatten(0, 1), after.flatten(0, 1))
            reward = self.reward_fn(*flat).reshape(obs.shape[:2])
        assert reward is not None
        return after, reward

    def _means(self, obs: Tensor, action: Tensor, with_reward: bool) -> tuple[Tensor, Tensor | None]:
        elites = self._elites
        if self._state_net is None:
            return elites.means(obs, action, with_reward)
        x = elites.input_norm(elites.features(obs, action))
        delta = elites.delta_norm.inverse(self._state_net(x.bfloat16())[..., : elites.obs_dim].float())
        return delta, self._reward_of(x) if with_reward else None

    def _routed(self, rows: Tensor) -> Tensor:
        """(N, width) -> (E, ceil(N / E), width): row i goes to member i % E, the last rows fill up with zeros."""
        members = len(self._elites.elites)
        short = -len(rows) % members
        if short:
            rows = torch.cat([rows, rows.new_zeros(short, rows.shape[-1])])
        return rows.reshape(-1, members, rows.shape[-1]).transpose(0, 1).contiguous()

    @staticmethod
    def _unrouted(rows: Tensor, b: int, k: int) -> Tensor:
        """(E, rows) -> (B, K), the inverse of `_routed`."""
        return rows.T.reshape(-1)[: b * k].reshape(b, k)

    def proposals(self, actor: Callable[[Tensor], Tensor], horizon: int, rng: torch.Generator, sigma: float) -> Propose:
        """What `actor` (rows, obs_dim) -> (rows, act_dim) would do, rolled through the model, with noise `sigma`."""

        @torch.no_grad()
        def propose(obs: Tensor, count: int) -> Tensor:
            rows = self._routed(obs.repeat_interleave(count, 0))
            steps = []
            for _ in range(horizon):
                action = actor(rows.flatten(0, 1)).reshape(*rows.shape[:2], -1)
                action = (action + sigma * torch.randn(action.shape, generator=rng)).clamp(-1.0, 1.0)
                steps.append(action)
                rows = self._elites.advance(rows, self._means(rows, action, False)[0])
            stacked = torch.stack(steps, 2).transpose(0, 1).flatten(0, 1)  # (E, rows, H, A) -> (rows * E, H, A)
            return stacked[: len(obs) * count].reshape(len(obs), count, horizon, -1)

        return propose
