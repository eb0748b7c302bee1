"""Several ensembles side by side, one per seed of a run: one matrix product for all, statistics for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig, Rng
from policies.normalizer import Normalizer


class EnsembleStack(Ensemble):
    """P ensembles of E members as P·E networks: member e of ensemble p is network p·E + e.

    Each ensemble has statistics, elites and a range of its own. `rngs` has one generator per ensemble, so that ensemble
    p of a stack equals a lone one with the same generator. Where an Ensemble takes (B, ·), this takes (P, B, ·), and
    where that takes (E, B, ·), this takes (P·E, B, ·); `config` is that of one ensemble, `self.config` counts all.
    """

    first: Tensor

    def __init__(self, obs_dim: int, act_dim: int, config: EnsembleConfig, rngs: Sequence[torch.Generator]):
        P, E = len(rngs), config.members
        every = replace(config, members=P * E, elites=P * config.elites)
        super().__init__(obs_dim, act_dim, every, [g for g in rngs for _ in range(E)])
        self.population, self.each = P, config
        self.input_norm = EachNormalizer(self.input_norm.width, self.input_norm.clip, population=P)
        self.delta_norm = EachNormalizer(obs_dim, self.delta_norm.clip, population=P)
        self.reward_norm = EachNormalizer(1, self.reward_norm.clip, population=P)
        self.elites = torch.arange(config.elites).repeat(P, 1)  # (P, elites), members of each
        self.obs_low, self.obs_high = (x.repeat(P, 1, 1) for x in (self.obs_low, self.obs_high))  # (P, 1, obs_dim)
        self.reward_range = self.reward_range.view(2, 1, 1).repeat(1, P, 1)  # (2, P, 1)
        self.register_buffer("first", E * torch.arange(P).unsqueeze(1), persistent=False)  # (P, 1)

    @property
    def delta_scale(self) -> Tensor:
        """Standard deviation of each dimension's change in each network's data, (P·E, 1, obs_dim) float32."""
        return self._each(torch.sqrt(self.delta_norm.var + self.delta_norm.eps).float())

    @property
    def reward_scale(self) -> Tensor:
        """Standard deviation of the reward in each network's data, (P·E, 1) float32."""
        return self._each(torch.sqrt(self.reward_norm.var + self.reward_norm.eps).float()[..., 0])

    def _each(self, x: Tensor) -> Tensor:
        """(P, ...) -> (P·E, ...)."""
        return x.repeat_interleave(self.each.members, 0)

    def of(self, scale: Tensor, member: Tensor) -> Tensor:
        return scale[member, 0]

    def route(self, rows: int, rng: Rng) -> Tensor:
        """A random elite of each ensemble for each of its rows, as network numbers (P, rows) int64."""
        assert not isinstance(rng, torch.Generator)
        order = torch.stack([torch.randperm(rows, generator=g) for g in rng]).to(self.elites.device)
        return self.first + self.elites.gather(1, order % self.elites.shape[1])

    def measure_range(self, obs: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """The range of (P, N, ·) rows, in which imagined states and rewards are kept."""
        both = torch.cat([obs, next_obs], 1)
        self.obs_low.copy_(both.amin(1, keepdim=True))
        self.obs_high.copy_(both.amax(1, keepdim=True))
        self.reward_range.copy_(torch.stack([reward.amin(1, keepdim=True), reward.amax(1, keepdim=True)]))

    def choose_elites(self, score: Tensor) -> None:
        """The members with the lowest score (P·E,) of each ensemble become its elites."""
        best = score.view(self.population, -1).argsort(1)[:, : self.elites.shape[1]]
        self.elites.copy_(best.sort(1).values)

    @torch.no_grad()
    def disagreement(self, obs: Tensor, action: Tensor) -> Tensor:
        """How far the elites are apart at (P, B, ·), in standard deviations of the data's changes, (P, B).

        The largest distance of an elite from their mean, as root mean square over the dimensions.
        """
        P, E = self.population, self.each.members
        obs, action = (x.unsqueeze(1).expand(-1, E, -1, -1).flatten(0, 1) for x in (obs, action))
        delta = self.means(obs, action, with_reward=False)[0] / self.delta_scale
        delta = delta.view(P, E, *delta.shape[1:])
        delta = delta[torch.arange(P, device=delta.device).unsqueeze(1), self.elites]  # (P, elites, B, obs_dim)
        return (delta - delta.mean(1, keepdim=True)).square().mean(-1).amax(1).sqrt()

    def one(self, p: int) -> Ensemble:
        """A copy of ensemble p as an Ensemble of its own. Raises LookupError if there is none."""
        if not 0 <= p < self.population:
            raise LookupError(f"there is no ensemble {p}; this stack has 0 to {self.population - 1}")
        E = self.each.members
        alone = Ensemble(self.obs_dim, self.act_dim, self.each, [torch.Generator()] * E)
        networks = {name for name, _ in self.named_parameters()}
        state = {k: v[p * E : (p + 1) * E] for k, v in self.state_dict().items() if k in networks}
        for name in ("input_norm", "delta_norm", "reward_norm"):
            norm = getattr(self, name)
            state |= {f"{name}.mean": norm.mean[p, 0], f"{name}.var": norm.var[p, 0]}
            state |= {f"{name}.count": norm.count, f"{name}.frozen": norm.frozen}
        state |= {"elites": self.elites[p], "obs_low": self.obs_low[p, 0], "obs_high": self.obs_high[p, 0]}
        alone.load_state_dict(state | {"reward_range": self.reward_range[:, p, 0]})
        return alone.to(self.elites.device)


class EachNormalizer(Normalizer):
    """Statistics of each of P ensembles, applied to the rows of all their networks (P·E, B, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(self.population or 1, -1, self.width)).view(x.shape)

    def inverse(self, z: Tensor) -> Tensor:
        return super().inverse(z.reshape(self.population or 1, -1, self.width)).view(z.shape)
