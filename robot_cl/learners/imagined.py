"""Advantages by imagination: what an action brings, from rollouts of the policy in learned dynamics.

On data of one narrow behaviour a state explains nearly all of what follows, so that neither values nor the data's
trajectories tell actions apart. Models of the dynamics do, as far as they were shown the states: short rollouts begin
at states of the data and give generalised advantages (Kurutach et al. 2018, "Model-Ensemble Trust-Region Policy
Optimization", whose rollouts each stay with one model). What models disagree about they were not shown. There a policy
stays with its clone, which has been seen to run: models imagine no stumble that no episode of the data had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.imagine import widened
from dynamics.losses import nll
from policies.actor import StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import StackedMLP
from robot_cl.batch import Transitions
from robot_cl.learners.draws import Draws
from robot_cl.learners.ppo import gae
from robot_cl.learners.ranges import positive

SURE_ROWS = 5000  # rows of the data that say how far models disagree there
CANDIDATES = 10  # states of the data of which the one with the rarest begins a rollout
Ends = Callable[[Tensor], Tensor]  # raw next observations (P, R, ·) -> bool (P, R)
Value = Callable[[Tensor], Tensor]  # raw observations (P, R, ·) -> (P, R), in units of the scaled reward


@dataclass
class ImaginationConfig:
    """Options of advantages by imagination."""

    members: int = 4  # models to imagine in, besides those of the gate
    horizon: int = 25  # steps of each rollout
    rollouts: int = 256  # of each policy; each stays with one model
    every: int = 25  # policy gradient steps with the same rollouts
    minibatch: int = 1024  # imagined steps per policy gradient step and policy
    trace: float = 0.95  # λ of the advantages
    rare: float = 0.3  # share of the rollouts that begin where models disagree most
    sure: tuple[float, float] = (0.9, 0.99)  # quantiles of the data's disagreement: full reach up to one, none from two
    reach: float = 1.0  # farthest mean distance from the clone, in its own deviations: as gate.reach, where it is sure
    doubt: float = 0.0  # reward deviations that a disagreement as at the second quantile costs
    value_lr: float = 1e-3  # Adam's learning rate of what values lack

    def __post_init__(self) -> None:
        self.sure = (float(self.sure[0]), float(self.sure[1]))
        if self.members < 2 or min(self.horizon, self.rollouts, self.every, self.minibatch) < 1:
            raise ValueError("imagined.members must be at least 2, and horizon, rollouts, every, minibatch at least 1")
        if self.rollouts % self.members:
            raise ValueError(f"{self.rollouts} rollouts cannot be shared by {self.members} models; give a multiple")
        if not 0.0 <= self.sure[0] < self.sure[1] <= 1.0 or not 0.0 <= self.rare <= 1.0 or self.doubt < 0.0:
            raise ValueError("imagined.sure are two rising shares, rare is one and doubt is not negative")
        if not 0.0 <= self.trace <= 1.0:
            raise ValueError(f"imagined.trace is {self.trace}; expected a number between 0 and 1")
        positive(self, "value_lr", "reach")


@dataclass(frozen=True)
class Judged:
    """What all members say of the same rows: delta (P, M, R, obs_dim), reward (P, R), `apart` (P, R), see gate."""

    delta: Tensor
    reward: Tensor
    apart: Tensor


class Imagination(nn.Module):
    """Models of P seeds, M each, and what n policies of each seed lack in value.

    Remembers the models (seed p's are members p·M to p·M + M − 1), the corrections of V with their units (P·n,), and
    between which disagreements a policy's room shrinks from all of its reach to none, (P, 2).
    """

    sure: Tensor
    unit: Tensor

    def __init__(
        self, obs_dim: int, act_dim: int, rngs: Sequence[torch.Generator], policies: int, config: ImaginationConfig,
        dynamics: EnsembleConfig, critic: CriticConfig,
    ):  # fmt: skip
        super().__init__()
        self.config, self.policies, self.seeds = config, policies, len(rngs)
        self.each = replace(dynamics, members=config.members, elites=config.members)
        count = len(rngs) * config.members
        every = replace(dynamics, members=count, elites=count)
        self.models = Ensemble(obs_dim, act_dim, every, [torch.Generator()] * count).requires_grad_(False)
        owners = [rng for rng in rngs for _ in range(policies)]
        shape = (obs_dim, critic.hidden, 1, owners, critic.activation, critic.layer_norm)
        self.lack = StackedMLP(*shape, init="orthogonal", out_gain=0.01)
        self.register_buffer("unit", torch.zeros(len(owners)))
        self.register_buffer("sure", torch.zeros(len(rngs), 2))

    # -- the models ---------------------------------------------------------------------------------------------------

    def fit(self, data: Transitions, config: FitConfig, rngs: Sequence[torch.Generator]) -> None:
        """Fit each seed's models to raw transitions, and see what they are sure of."""
        M, found = self.config.members, []
        for rng in rngs:
            seed = int(torch.randint(2**31, (), generator=rng))
            own = [torch.Generator().manual_seed(seed + e) for e in range(M)]
            model = Ensemble(data.obs_dim, data.act_dim, self.each, own).to(self.sure.device)
            fit(model, data, nll, config, own[0])
            found.append(model.state_dict())
        networks = {name for name, _ in self.models.named_parameters()}
        joined = {k: torch.cat([state[k] for state in found]) if k in networks else found[0][k] for k in found[0]}
        self.models.load_state_dict(joined | {"elites": self.models.elites})
        self.measure(data)

    @torch.no_grad()
    def measure(self, data: Transitions) -> None:
        """See what the models are sure of, in raw transitions."""
        rows = torch.linspace(0, len(data) - 1, min(len(data), SURE_ROWS), device=data.obs.device).long()
        apart = self.judge(*(x[rows].expand(self.seeds, -1, -1) for x in (data.obs, data.action))).apart
        self.sure.copy_(apart.quantile(torch.tensor(self.config.sure, device=apart.device), dim=1).T)
        self.unit.zero_()

    def judge(self, obs: Tensor, action: Tensor) -> Judged:
        """Raw obs (P, R, obs_dim), action (P, R, act_dim), each seed's before all of its members."""
        obs, action = (x.repeat_interleave(self.config.members, 0) for x in (obs, action))
        delta, reward = (x.unflatten(0, (self.seeds, -1)) for x in self.models.means(obs, action) if x is not None)
        said = delta / self.models.delta_scale
        apart = (said - said.mean(1, keepdim=True)).square().mean(-1).sqrt().amax(1)
        return Judged(delta, reward.mean(1), apart)

    def room(self, apart: Tensor) -> Tensor:
        """Share of its reach that a policy has at rows (P, ...) of this disagreement."""
        low, high = (x.view(-1, *[1] * (apart.dim() - 1)) for x in self.sure.unbind(1))
        return ((high - apart) / (high - low).clamp(min=1e-9)).clamp(0.0, 1.0)

    # -- rollouts -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollouts(
        self, actor: StackedGaussianActor, data: Transitions, draws: Draws, value: Value, scale: Tensor,
        discount: float, ends: Ends | None = None,
    ) -> Tensor:  # fmt: skip
        """[z | action | log π(a) | advantage | what V lacks | room] of every imagined step, (P·n, H·R, ·).

        `actor` has P·n members; `scale` () brings rewards to the unit of `value`. A rollout that ends begins anew.
        """
        c, (P, n) = self.config, (self.seeds, self.policies)
        obs = begin = self.starts(actor, data, draws)
        rows, costs, steps = [], c.doubt * self.models.reward_scale / self.sure[:, 1:].clamp(min=1e-9), []
        low, high = widened(self.models.obs_low, self.models.obs_high, 0.1)
        member = torch.arange(c.rollouts, device=obs.device) % c.members
        own = member.repeat(n).view(1, 1, -1, 1).expand(P, 1, -1, obs.shape[-1])
        for _ in range(c.horizon):
            z = actor.normalizer(obs)
            mean, log_std = actor.heads(z)
            noise = draws.normal(n, c.rollouts, mean.shape[-1]).flatten(0, 1)
            action, log_prob = actor.sample(mean, log_std, noise)
            here = obs.view(P, n * c.rollouts, -1)
            said = self.judge(here, action.view(P, n * c.rollouts, -1).clamp(-1.0, 1.0))
            raw = self.models.advance(here, said.delta.gather(1, own)[:, 0])
            after = torch.maximum(torch.minimum(torch.where(raw.isfinite(), raw, here), high), low)
            over = torch.zeros_like(said.reward) if ends is None else ends(after).float()
            z_after = actor.normalizer(after.view_as(z))
            base, next_base = value(here).view(P * n, -1), value(after).view(P * n, -1)
            reward = ((said.reward - costs * said.apart) * scale).view(P * n, -1)
            next_v = next_base + self.lacking(z_after)
            steps.append(torch.stack([reward, base, self.lacking(z), next_v, over.view_as(base)]))
            rows.append(torch.cat([z, action, log_prob.unsqueeze(-1), self.room(said.apart).view(P * n, -1, 1)], -1))
            obs = torch.where(over.view(P * n, -1, 1) > 0, begin, after.view_as(begin))
        return self._credited(torch.stack(rows, 1), torch.stack(steps, 2), discount)

    def _credited(self, rows: Tensor, steps: Tensor, discount: float) -> Tensor:
        """Advantages and targets beside the rows (P·n, H, R, ·), from [reward, V, lack, V', end] (5, P·n, H, R)."""
        reward, base, lack, next_v, over = steps
        last = over.clone()
        last[:, -1] = 1.0
        advantage = gae(reward, base + lack, next_v, over, last, discount, self.config.trace)
        if not self.unit.any():  # what V lacks is of the order of what the first policy is told
            self.unit.copy_(advantage.flatten(1).std(1) + 1e-8)
        told = torch.stack([advantage, advantage + lack], -1)
        return torch.cat([rows[..., :-1], told, rows[..., -1:]], -1).flatten(1, 2)

    def starts(self, actor: StackedGaussianActor, data: Transitions, draws: Draws) -> Tensor:
        """States of the data (P·n, R, obs_dim): the share `rare` where models disagree most about what actor does."""
        c, n = self.config, self.policies
        rare = round(c.rare * c.rollouts)
        found = [data.obs[draws.rows(data, n * (c.rollouts - rare))].unflatten(1, (n, -1))]
        if rare:
            some = data.obs[draws.rows(data, CANDIDATES * n * rare)]  # (P, C·n·R', ·)
            action = actor.mode(some.reshape(self.seeds * n, -1, some.shape[-1]))
            apart = self.judge(some, action.view(*some.shape[:2], -1)).apart
            grouped, apart = some.unflatten(1, (n, rare, CANDIDATES)), apart.unflatten(1, (n, rare, CANDIDATES))
            best = apart.argmax(-1)[..., None, None].expand(-1, -1, -1, 1, some.shape[-1])
            found.append(grouped.gather(3, best)[:, :, :, 0])
        together = torch.cat(found, 2)
        order = draws.subset(c.rollouts, c.rollouts)[:, None, :, None].expand_as(together)
        return together.gather(2, order).flatten(0, 1)

    def lacking(self, z: Tensor) -> Tensor:
        """What the seed's V lacks of each policy's, z (P·n, R, ·) -> (P·n, R)."""
        return self.lack(z).squeeze(-1) * self.unit.unsqueeze(1)
