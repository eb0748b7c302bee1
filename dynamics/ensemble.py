"""Learned dynamics: a stack of networks that predict the change of the state and the reward.

Chua et al. 2018 (PETS), section 4, and Janner et al. 2019 (MBPO), appendix C, with three departures: state and reward
have networks and target statistics of their own (one joint loss lets the larger of the two starve the other), each
candidate is routed to one member instead of being sent through all, and the bounds of the log-variance are fixed,
which they can be because targets are normalised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamics.model_file import check_finite, check_room, read_model, restored
from policies.networks import ACTIVATIONS, StackedMLP
from policies.normalizer import Normalizer

Rng = torch.Generator | Sequence[torch.Generator]


def standard_normal(like: Tensor, rng: Rng) -> Tensor:
    """Draws of the shape of `like`; several generators draw the blocks of its first axis, one each."""
    if isinstance(rng, torch.Generator):
        return torch.randn(like.shape, generator=rng, device=like.device, dtype=like.dtype)
    return torch.stack([torch.randn(like.shape[1:], generator=g, dtype=like.dtype) for g in rng]).to(like.device)


@dataclass
class EnsembleConfig:
    """Shape of the ensemble; defaults from MBPO."""

    members: int = 7
    elites: int = 5  # members used for prediction, the best on held-out data
    hidden: tuple[int, ...] = (200, 200, 200, 200)  # widths of the state network
    reward_hidden: tuple[int, ...] = (100, 100)  # widths of the reward network
    activation: str = "silu"
    gaussian: bool = True  # False: means only, as VaGraM asks
    angles: tuple[int, ...] = ()  # state dimensions in radians: seen as sine and cosine, errors wrapped to ±π
    unseen: tuple[int, ...] = ()  # state dimensions that are predicted but no input, as a position on open ground
    log_var_min: float = -10.0  # of normalised targets
    log_var_max: float = 0.5

    def __post_init__(self) -> None:
        self.hidden, self.reward_hidden = tuple(self.hidden), tuple(self.reward_hidden)
        self.angles, self.unseen = tuple(self.angles), tuple(self.unseen)
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites must be between 1 and members={self.members}, got {self.elites}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
        if not self.log_var_min < self.log_var_max:
            raise ValueError(f"log_var_min {self.log_var_min} must lie below log_var_max {self.log_var_max}")


@dataclass
class Prediction:
    """What E members say of B rows, in the units of the data. Log-variances are of normalised targets, or None.

    delta (E, B, obs_dim), reward (E, B), delta_log_var (E, B, obs_dim), reward_log_var (E, B).
    """

    delta: Tensor
    reward: Tensor
    delta_log_var: Tensor | None = None
    reward_log_var: Tensor | None = None


def wrap(angle: Tensor) -> Tensor:
    """Radians to [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class Ensemble(nn.Module):
    """E dynamics networks side by side; remembers target statistics, the elites and the range of its data.

    `rngs` holds one generator per member. `forward` asks every member; `predict` sends each row to one.
    """

    elites: Tensor
    obs_low: Tensor
    obs_high: Tensor
    reward_range: Tensor

    def __init__(self, obs_dim: int, act_dim: int, config: EnsembleConfig, rngs: Sequence[torch.Generator]):
        super().__init__()
        beyond = [d for d in (*config.angles, *config.unseen) if not 0 <= d < obs_dim]
        if beyond:
            raise ValueError(f"angles and unseen name dimensions {beyond}, the state has 0..{obs_dim - 1}")
        if len(rngs) != config.members:
            raise ValueError(f"{len(rngs)} generators for {config.members} members; pass one per member")
        self.obs_dim, self.act_dim, self.config = obs_dim, act_dim, config
        both = 2 if config.gaussian else 1
        d_in = obs_dim + act_dim + len(set(config.angles) - set(config.unseen)) - len(config.unseen)
        self.state_net = StackedMLP(d_in, config.hidden, both * obs_dim, rngs, config.activation)
        self.reward_net = StackedMLP(d_in, config.reward_hidden, both, rngs, config.activation)
        self.input_norm = Normalizer(d_in)
        self.delta_norm = Normalizer(obs_dim, clip=math.inf)
        self.reward_norm = Normalizer(1, clip=math.inf)
        self.register_buffer("elites", torch.arange(config.elites))
        self.register_buffer("obs_low", torch.full((obs_dim,), -math.inf))
        self.register_buffer("obs_high", torch.full((obs_dim,), math.inf))
        self.register_buffer("reward_range", torch.tensor([-math.inf, math.inf]))

    # -- prediction ---------------------------------------------------------------------------------------------

    def features(self, obs: Tensor, action: Tensor) -> Tensor:
        """(..., obs_dim), (..., act_dim) -> (..., d_in), not normalised: seen dimensions, angles as sine and cosine."""
        c = self.config
        if not c.angles and not c.unseen:
            return torch.cat([obs, action], -1)
        plain = [d for d in range(self.obs_dim) if d not in c.angles and d not in c.unseen]
        angles = obs[..., [d for d in c.angles if d not in c.unseen]]
        return torch.cat([obs[..., plain], torch.sin(angles), torch.cos(angles), action], -1)

    def forward(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (E, B, obs_dim) or shared (B, obs_dim), action alike -> what every member predicts."""
        x = self.input_norm(self.features(obs, action))
        state, reward = self.state_net(x), self.reward_net(x)
        if not self.config.gaussian:
            return Prediction(self.delta_norm.inverse(state), self.reward_norm.inverse(reward).squeeze(-1))
        mean, log_var = state.chunk(2, -1)
        r_mean, r_log_var = reward.chunk(2, -1)
        return Prediction(
            self.delta_norm.inverse(mean),
            self.reward_norm.inverse(r_mean).squeeze(-1),
            self.soft_clamp(log_var),
            self.soft_clamp(r_log_var).squeeze(-1),
        )

    def means(self, obs: Tensor, action: Tensor, with_reward: bool = True) -> tuple[Tensor, Tensor | None]:
        """Mean delta (E, B, obs_dim) and reward (E, B) of every member, without the work for variances or reward."""
        x = self.input_norm(self.features(obs, action))
        delta = self.delta_norm.inverse(self.state_net(x)[..., : self.obs_dim])
        return delta, self.reward_norm.inverse(self.reward_net(x)[..., :1]).squeeze(-1) if with_reward else None

    def changes(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Delta and its log-variance (E, B, obs_dim) of every member, as in `Prediction`, without the reward."""
        state = self.state_net(self.input_norm(self.features(obs, action)))
        if not self.config.gaussian:
            return self.delta_norm.inverse(state), None
        mean, log_var = state.chunk(2, -1)
        return self.delta_norm.inverse(mean), self.soft_clamp(log_var)

    def soft_clamp(self, log_var: Tensor) -> Tensor:
        """Smoothly into [log_var_min, log_var_max], with a gradient everywhere (PETS, appendix A.1)."""
        low, high = self.config.log_var_min, self.config.log_var_max
        log_var = high - nn.functional.softplus(high - log_var)
        return low + nn.functional.softplus(log_var - low)

    def predict(
        self, obs: Tensor, action: Tensor, member: Tensor, rng: Rng | None = None
    ) -> tuple[Tensor, Tensor]:
        """obs (..., B, obs_dim), action (..., B, act_dim), member (..., B) int -> next_obs like obs, reward (..., B).

        Each row goes through network member[row] alone. With `rng` a Gaussian ensemble is sampled, otherwise the mean
        is returned; several generators draw the blocks of the first axis, one each.
        """
        lead, flat = member.shape, member.reshape(-1)
        slot, width = _slots(flat, self.config.members)
        rows = torch.cat([obs, action], -1).reshape(len(flat), -1)
        grid = rows.new_zeros(self.config.members, width, rows.shape[-1])
        grid[flat, slot] = rows
        answer = self(grid[..., : self.obs_dim], grid[..., self.obs_dim :])
        delta, reward = answer.delta[flat, slot].view(*lead, -1), answer.reward[flat, slot].view(lead)
        if rng is not None and answer.delta_log_var is not None and answer.reward_log_var is not None:
            spread = torch.exp(0.5 * answer.delta_log_var[flat, slot]).view(*lead, -1)
            delta = delta + standard_normal(delta, rng) * spread * self.of(self.delta_scale, member)
            spread = torch.exp(0.5 * answer.reward_log_var[flat, slot]).view(lead)
            reward = reward + standard_normal(reward, rng) * spread * self.of(self.reward_scale, member)
        return self.advance(obs, delta), reward

    def of(self, scale: Tensor, member: Tensor) -> Tensor:
        """What `scale` is for the data of each member: one ensemble has one set of statistics."""
        return scale

    def belief(self, obs: Tensor, action: Tensor, floor: float = 0.01) -> tuple[Tensor, Tensor]:
        """Next state (B, obs_dim) averaged over the elites and its standard deviation, all members' work per row.

        The deviation has the members' disagreement and the noise they predict; it is never below `floor` times that of
        the data's changes, because a network is not surer than that of anything.
        """
        said = self(obs, action)
        delta = said.delta[self.elites]
        variance = delta.var(0, unbiased=False)
        if said.delta_log_var is not None:
            variance = variance + torch.exp(said.delta_log_var[self.elites]).mean(0) * self.delta_scale.square()
        return self.advance(obs, delta.mean(0)), (variance + (floor * self.delta_scale).square()).sqrt()

    def advance(self, obs: Tensor, delta: Tensor) -> Tensor:
        """obs + delta with the angles brought back to [-π, π)."""
        return self.wrap_angles(obs + delta)

    def wrap_angles(self, x: Tensor) -> Tensor:
        """A state, or a difference of two, with its angle dimensions in [-π, π)."""
        if not self.config.angles:
            return x
        angles = list(self.config.angles)
        return x.index_copy(-1, torch.tensor(angles, device=x.device), wrap(x[..., angles]))

    def route(self, rows: int, rng: Rng) -> Tensor:
        """A random elite for each row, (rows,) int64, as evenly as possible."""
        assert isinstance(rng, torch.Generator)
        order = torch.randperm(rows, generator=rng, device=self.elites.device)
        return self.elites[order % len(self.elites)]

    # -- statistics ---------------------------------------------------------------------------------------------

    @property
    def delta_scale(self) -> Tensor:
        """Standard deviation of each dimension's change in the data, (obs_dim,) float32."""
        return torch.sqrt(self.delta_norm.var + self.delta_norm.eps).float()

    @property
    def reward_scale(self) -> Tensor:
        """Standard deviation of the reward in the data, () float32."""
        return torch.sqrt(self.reward_norm.var + self.reward_norm.eps).float()[0]

    def measure(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """Take input and target statistics and the range of the data from these rows, replacing the old ones."""
        for norm, rows in (
            (self.input_norm, self.features(obs, action)),
            (self.delta_norm, self.wrap_angles(next_obs - obs)),
            (self.reward_norm, reward.unsqueeze(-1)),
        ):
            norm.frozen.fill_(False)
            norm.fit(rows)
        self.measure_range(obs, reward, next_obs)

    def measure_range(self, obs: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """The range of these rows, in which imagined states and rewards are kept."""
        both = torch.cat([obs, next_obs])
        self.obs_low.copy_(both.amin(0))
        self.obs_high.copy_(both.amax(0))
        self.reward_range.copy_(torch.stack([reward.min(), reward.max()]))

    # -- copies and files ---------------------------------------------------------------------------------------

    def subset(self, members: Tensor) -> Ensemble:
        """A copy that holds only these members, all of them elites: what a planner or a rollout keeps."""
        count = len(members)
        config = replace(self.config, members=count, elites=count)
        small = Ensemble(self.obs_dim, self.act_dim, config, [torch.Generator()] * count)
        networks = {name for name, _ in self.named_parameters()}
        state = {k: v[members.to(v.device)] if k in networks else v for k, v in self.state_dict().items()}
        small.load_state_dict({**state, "elites": torch.arange(count)})
        return small.to(self.elites.device)

    def save(self, path: Path | str) -> None:
        """Weights, statistics and configuration in one safetensors file."""
        about = {"obs_dim": self.obs_dim, "act_dim": self.act_dim, "config": asdict(self.config)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, str(path), metadata={"robot_cl.ensemble": json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> Ensemble:
        """Inverse of `save`. Raises OSError if there is no such file, ValueError if it holds something else."""
        told, tensors = read_model(path, "robot_cl.ensemble", "dynamics model", "Ensemble")

        def make() -> Ensemble:
            config, obs_dim, act_dim = EnsembleConfig(**told["config"]), int(told["obs_dim"]), int(told["act_dim"])
            check_room(tensors, config.members, [obs_dim, *config.hidden, obs_dim], config.reward_hidden)
            check_finite(tensors, ("obs_low", "obs_high", "reward_range"))
            if not ((tensors["elites"] >= 0) & (tensors["elites"] < config.members)).all():
                raise ValueError(f"elites {tensors['elites'].tolist()} of {config.members} members")
            return cls(obs_dim, act_dim, config, [torch.Generator() for _ in range(config.members)])

        return restored(path, tensors, make)


def _slots(member: Tensor, members: int) -> tuple[Tensor, int]:
    """Position of each row within its member's group, (B,), and the size of the largest group."""
    order = torch.argsort(member, stable=True)
    counts = torch.bincount(member, minlength=members)
    start = torch.cumsum(counts, 0) - counts
    slot = torch.empty_like(member)
    slot[order] = torch.arange(len(member), device=member.device) - start[member[order]]
    return slot, int(counts.max())
