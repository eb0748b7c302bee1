"""Other ways to keep going when a robot changes: a model per robot that learns on, and recursive least squares.

They are what an action flow is held against, and the first is its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.effectiveness import effective_action
from dynamics.ensemble import Ensemble
from dynamics.fit import OnlineConfig
from policies.policy import Policy

Reward = Callable[[Tensor, Tensor, Tensor], Tensor]  # obs, action, next obs (rows, ·) -> (rows,)


class RowAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) for parameters (B, ...), each row with its own count of steps: one that
    begins later than others does not take over their bias correction, with which it would move too far at first."""

    def __init__(self, parameters: Iterable[Tensor], rows: int, lr: float):
        self.parameters, self.lr, self.count = list(parameters), lr, torch.zeros(rows, dtype=torch.int64)
        self.first, self.second = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    def reset(self, rows: Tensor) -> None:
        """As if these rows, a bool mask or indices, had never taken a step."""
        self.count[rows] = 0
        for moment in (*self.first, *self.second):
            moment[rows] = 0.0

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor], rows: Tensor) -> None:
        """Move these rows (B,) bool down their gradients, alike in shape to the parameters, and leave the others."""
        self.count += rows
        at = slice(None) if rows.all() else rows  # a view where there is nobody to leave out
        counts = self.count[at].double()
        size, root = self.lr / (1.0 - 0.9**counts), (1.0 - 0.999**counts).sqrt()
        for p, gradient, first, second in zip(self.parameters, gradients, self.first, self.second, strict=True):
            per_row, g = (-1, *[1] * (p.dim() - 1)), gradient[at]
            first[at] = first[at].lerp(g, 0.1)
            second[at] = second[at].lerp(g.square(), 0.001)
            far = first[at] / (second[at].sqrt() / root.view(per_row).float() + 1e-8)
            p[at] -= size.view(per_row).float() * far


class RowModels:
    """One model per row of a batch of robots, each a copy of the best elite, updated from its own robot alone: what a
    row learns, and from which draws, does not depend on how many others there are or when they learn.

    Remembers the models, their optimiser and the newest `capacity` transitions of each row. Serves as judge of a
    `ReshapedPolicy` and, through `returns`, as the model of a planner. `leads` (B,) says in which rows the planner is
    to use them (all, unless a `ReshapedPolicy` decides); the others plan with the nominal model. `start` holds one
    model for each row to begin with instead, of the nominal one's shape and statistics.
    """

    leads: Tensor

    def __init__(self, model: Ensemble, config: OnlineConfig, rng: torch.Generator, start: Ensemble | None = None):
        self.nominal, self.config, self.rng, self.start = model.subset(model.elites[:1]), config, rng, start
        self._begin(0)

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Back to what they began with: all rows, or these (bool mask or indices)."""
        if rows is None or not len(self._held):
            self._begin(0)
            return
        at = torch.as_tensor(rows)
        with torch.no_grad():
            originals = self._fresh(len(self._held)).parameters()
            for mine, original in zip(self.models.parameters(), originals, strict=True):
                mine[at] = original[at]
        self._opt.reset(at)
        self._held[at] = 0

    def forget(self, rows: Tensor) -> None:
        """Drop the transitions of these rows (B,) bool and keep what was learned from them."""
        if len(rows) == len(self._held):
            self._held[rows] = 0

    def observe(self, obs: Tensor, action: Tensor, next_obs: Tensor, fresh: Tensor) -> None:
        """Remember one transition of each row where `fresh` (B,), and take the configured gradient steps there."""
        if len(obs) != len(self._held):
            self._begin(len(obs))
        rows = torch.nonzero(fresh)[:, 0]
        if not len(rows):
            return
        at = rows * self.config.capacity + self._held[rows] % self.config.capacity
        self.obs[at], self.action[at], self.next_obs[at] = obs[rows], action[rows], next_obs[rows]
        self._held[rows] += 1
        have = self._held.clamp(1, self.config.capacity).view(-1, 1, 1)
        draw = torch.zeros(len(have), self.config.steps, self.config.batch)
        for row in rows.tolist():
            draw[row] = torch.rand(draw.shape[1:], generator=self._rngs[row])
        offset = torch.arange(len(have)).view(-1, 1, 1) * self.config.capacity
        for index in (offset + (draw * have).long()).unbind(1):
            self._opt.step(self._gradients(index), fresh)

    @torch.no_grad()
    def predict(self, obs: Tensor, action: Tensor) -> Tensor:
        """Next state (B, obs_dim), row b by model b."""
        if len(obs) != len(self._held):
            self._begin(len(obs))
        delta, _ = self.models.means(obs.unsqueeze(1), action.unsqueeze(1), with_reward=False)
        return self.models.advance(obs, delta[:, 0])

    def returns(self, reward_fn: Reward) -> RowReturns:
        """What a planner asks: obs (B, obs_dim), actions (B, K, H, act_dim) -> returns (B, K), row b by model b."""
        return RowReturns(self, reward_fn)

    def asked(self, rows: int) -> Ensemble:
        """One model for each of `rows` rows: its own where it leads, the nominal one elsewhere."""
        if rows != len(self._held):
            self._begin(rows)
        return self._asked()

    def _asked(self) -> Ensemble:
        if self.leads.all():
            return self.models
        trios = zip(self._mixed.parameters(), self.models.parameters(), self.nominal.parameters(), strict=True)
        for mixed, mine, original in trios:
            mixed.copy_(torch.where(self.leads.view(-1, *[1] * (mine.dim() - 1)), mine, original))
        return self._mixed

    def _gradients(self, index: Tensor) -> list[Tensor]:
        """Of the normalised state error of row b on the transitions index[b], (B, batch)."""
        with torch.enable_grad():
            delta, _ = self.models.means(self.obs[index], self.action[index], with_reward=False)
            error = self.models.wrap_angles(self.obs[index] + delta - self.next_obs[index]) / self.models.delta_scale
            return list(torch.autograd.grad(error.square().mean((-1, -2)).sum(), self._opt.parameters))

    def _fresh(self, rows: int) -> Ensemble:
        """A copy of what `rows` rows begin with."""
        if self.start is None:
            return self.nominal.subset(torch.zeros(max(rows, 1), dtype=torch.int64))
        if rows and rows != self.start.config.members:
            raise ValueError(f"start holds {self.start.config.members} models for {rows} rows; pass one per row")
        return self.start.subset(torch.arange(self.start.config.members))

    def _begin(self, rows: int) -> None:
        self.models, self._mixed = self._fresh(rows), self._fresh(rows)
        self._opt = RowAdam(self.models.state_net.parameters(), rows, self.config.lr)
        seed = int(torch.randint(2**40, (), generator=self.rng))
        self._rngs = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
        size, d = rows * self.config.capacity, self.nominal.obs_dim
        self.obs, self.next_obs = torch.zeros(size, d), torch.zeros(size, d)
        self.action, self._held = torch.zeros(size, self.nominal.act_dim), torch.zeros(rows, dtype=torch.int64)
        self.leads = torch.ones(rows, dtype=torch.bool)


def rolled(models: Ensemble, reward_fn: Reward, obs: Tensor, actions: Tensor) -> Tensor:
    """Returns (B, K) of actions (B, K, H, act_dim) from obs (B, obs_dim), row b rolled through member b."""
    state, total = obs.unsqueeze(1).expand(-1, actions.shape[1], -1), actions.new_zeros(actions.shape[:2])
    for h in range(actions.shape[2]):
        delta, _ = models.means(state, actions[:, :, h], with_reward=False)
        after = models.advance(state, delta)
        flat = (state.flatten(0, 1), actions[:, :, h].flatten(0, 1), after.flatten(0, 1))
        total, state = total + reward_fn(*flat).reshape(total.shape), after
    return total


class RowReturns:
    """Evaluates a planner's candidates by the models of `RowModels`; with `rows` (R,) those of these rows alone."""

    def __init__(self, models: RowModels, reward_fn: Reward, rows: Tensor | None = None):
        self.models, self.reward_fn, self.rows = models, reward_fn, rows

    def among(self, rows: Tensor) -> RowReturns:
        return RowReturns(self.models, self.reward_fn, rows)

    @torch.no_grad()
    def __call__(self, obs: Tensor, actions: Tensor) -> Tensor:
        count = len(obs) if self.rows is None else len(self.models.leads)
        models = self.models.asked(count)
        if self.rows is not None:
            models = models.subset(self.rows)
        return rolled(models, self.reward_fn, obs, actions)


@dataclass
class GainsConfig:
    """Recursive least squares on one gain, and one offset where wanted, per action dimension."""

    forgetting: float = 0.9  # weight of the past at each step
    prior: float = 0.01  # trust in gain 1 and offset 0, in transitions of full action
    offset: bool = False  # with one, steady driving at one command cannot tell it from the gain
    smallest: float = 0.05  # absolute gain below which an axis counts as this weak

    def __post_init__(self) -> None:
        if not 0 < self.forgetting <= 1 or self.prior <= 0 or self.smallest <= 0:
            raise ValueError("forgetting must be in (0, 1], prior and smallest positive")


class RecursiveGains:
    """Divides a policy's action by gains estimated on line: the best there is where gains are all that changed.

    The effective action of a step, the one that explains it by the model, is found by the model's linearisation in
    the action; gain and offset of each dimension are regressed on it. Remembers the regression per row.
    """

    _known: Tensor

    def __init__(self, policy: Policy, model: Ensemble, config: GainsConfig | None = None):
        self.policy, self.model, self.config = policy, model, config or GainsConfig()
        self.obs_dim, self.act_dim = policy.obs_dim, policy.act_dim
        self._begin(0)

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.policy.reset(rows)
        if rows is None:
            self._begin(0)
            return
        at = torch.as_tensor(rows)
        self._known[at] = False
        self._gram[at], self._moment[at] = self._prior()

    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if len(state) != len(self._known):
            self._begin(len(state))
        with torch.no_grad():
            if self._known.any():
                self._learn(state)
            planned = torch.as_tensor(np.asarray(self.policy.act(state.numpy())), dtype=torch.float32)
            gain, offset = self.gains()
            action = ((planned - offset) / gain).clamp(-1.0, 1.0)
        self._obs, self._action, self._known = state, action, torch.ones(len(state), dtype=torch.bool)
        return action.numpy().copy()

    def gains(self) -> tuple[Tensor, Tensor]:
        """Estimated gain and offset of every row and action dimension, (B, act_dim) each."""
        both = torch.linalg.solve(self._gram, self._moment.unsqueeze(-1)).squeeze(-1)
        gain = both[..., 0]
        sign = torch.where(gain < 0, -1.0, 1.0)
        return sign * gain.abs().clamp_min(self.config.smallest), both[..., 1]

    def _prior(self) -> tuple[Tensor, Tensor]:
        p = self.config.prior
        return p * torch.eye(2), p * torch.tensor([1.0, 0.0])

    def _begin(self, rows: int) -> None:
        gram, moment = self._prior()
        self._obs, self._action = torch.zeros(rows, self.obs_dim), torch.zeros(rows, self.act_dim)
        self._known = torch.zeros(rows, dtype=torch.bool)
        self._gram = gram.repeat(rows, self.act_dim, 1, 1)
        self._moment = moment.repeat(rows, self.act_dim, 1)

    def _learn(self, state: Tensor) -> None:
        amounted = effective_action(self.model, self._obs, self._action, state)
        one = torch.full_like(self._action, float(self.config.offset))
        seen = torch.stack([self._action, one], -1)  # (B, act_dim, 2)
        gram, moment = self._prior()
        keep = self.config.forgetting
        new_gram = keep * self._gram + (1 - keep) * gram + seen.unsqueeze(-1) * seen.unsqueeze(-2)
        new_moment = keep * self._moment + (1 - keep) * moment + seen * amounted.unsqueeze(-1)
        usable = (self._known & amounted.isfinite().all(-1)).view(-1, 1, 1)
        self._gram = torch.where(usable.unsqueeze(-1), new_gram, self._gram)
        self._moment = torch.where(usable, new_moment, self._moment)
