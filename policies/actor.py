"""Gaussian actors, stacked: one class for cloning, offline improvement and online learning, with one σ mapping."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from policies.networks import ACTIVATIONS, INITS, StackedMLP
from policies.normalizer import Normalizer

ATANH_LIMIT = 1.0 - 1e-5  # actions at ±1 have no finite atanh
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class Distribution(StrEnum):
    """`gaussian`: N(mean, σ), clipped to [-1, 1] when acted; `tanh_gaussian`: tanh of N(mean, σ)."""

    gaussian = "gaussian"
    tanh_gaussian = "tanh_gaussian"


class Sigma(StrEnum):
    """Where log σ comes from: a `parameter`, a `head` squashed into its range, or a `clamped_head`."""

    parameter = "parameter"
    head = "head"
    clamped_head = "clamped_head"


@dataclass
class ActorConfig:
    """What an actor looks like. The defaults are IQL's; Uni-O4's are sigma=head with log_std in [-5, 0]."""

    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    activation: str = "relu"  # relu, tanh, silu, mish or gelu
    layer_norm: bool = False  # normalise each hidden layer before its activation
    distribution: Distribution = Distribution.gaussian  # gaussian (clipped when acted) or tanh_gaussian
    squash_mean: bool = True  # gaussian only: the mean is tanh of the network's output
    sigma: Sigma = Sigma.parameter  # a state-independent parameter, or a head of the network
    log_std_init: float = 0.0  # start of the parameter, ignored by a head
    log_std_min: float = -5.0  # bounds of log σ
    log_std_max: float = 2.0  # bounds of log σ
    init: str = "torch"  # torch or orthogonal
    out_gain: float = 0.01  # gain of the output layer, orthogonal only

    def __post_init__(self) -> None:
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise ValueError(f"actor.hidden is {self.hidden}; expected at least one positive width, e.g. [256,256]")
        for name, table in (("activation", ACTIVATIONS), ("init", INITS)):
            if getattr(self, name) not in table:
                raise ValueError(f"actor.{name} {getattr(self, name)!r} is unknown; one of {', '.join(table)}")
        if not self.log_std_min < self.log_std_max:
            raise ValueError(f"actor.log_std_min {self.log_std_min} must lie below log_std_max {self.log_std_max}")


class StackedGaussianActor(nn.Module):
    """π(a|s) of P members: obs (P, B, obs_dim), or shared (B, obs_dim), raw -> mean, log_std (P, B, act_dim).

    The normaliser is inside: callers pass raw observations. `heads` takes normalised ones, for learners that
    normalise a batch once. Remembers parameters and statistics only; randomness is passed in.
    """

    kind: ClassVar[str] = "gaussian"

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        rngs: Sequence[torch.Generator],
        config: ActorConfig | None = None,
        normalizer: Normalizer | None = None,
    ):
        super().__init__()
        self.config = config or ActorConfig()
        self.obs_dim, self.act_dim, self.population = obs_dim, act_dim, len(rngs)
        self.normalizer = normalizer or Normalizer(obs_dim)
        c, outputs = self.config, act_dim if self.config.sigma is Sigma.parameter else 2 * act_dim
        self.net = StackedMLP(
            obs_dim, c.hidden, outputs, rngs, c.activation, c.layer_norm, c.init, c.out_gain
        )  # a head's outputs are [mean | log σ before its range]
        if c.sigma is Sigma.parameter:
            self.log_std = nn.Parameter(torch.full((self.population, 1, act_dim), float(c.log_std_init)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.normalizer(obs))

    def heads(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised observations (P, B, obs_dim) -> mean, log_std (P, B, act_dim)."""
        c, out = self.config, self.net(z)
        if c.sigma is Sigma.parameter:
            mean, log_std = out, self.log_std.clamp(c.log_std_min, c.log_std_max)
        else:
            mean, raw = out.chunk(2, dim=-1)
            log_std = raw.clamp(c.log_std_min, c.log_std_max) if c.sigma is Sigma.clamped_head else self._range(raw)
        if c.squash_mean and c.distribution is Distribution.gaussian:
            mean = torch.tanh(mean)
        return mean, log_std.expand_as(mean)

    def _range(self, raw: Tensor) -> Tensor:
        """log σ = low + (high − low)/2 · (tanh + 1): −5 + 2.5 (tanh + 1) for [-5, 0]."""
        low, high = self.config.log_std_min, self.config.log_std_max
        return low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)

    def log_prob(self, mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
        """log π(action) (P, B) in nats; `action` is unclipped for a gaussian, in (-1, 1) for a tanh_gaussian."""
        if self.config.distribution is Distribution.gaussian:
            return gaussian_log_prob(mean, log_std, action)
        before = torch.atanh(action.clamp(-ATANH_LIMIT, ATANH_LIMIT))
        return gaussian_log_prob(mean, log_std, before) - log_tanh_slope(before).sum(-1)

    def sample(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action (P, B, act_dim) and its log π (P, B), from standard normal `noise` like `mean`."""
        before = mean + log_std.exp() * noise
        log_prob = -(0.5 * noise.square() + log_std + HALF_LOG_TWO_PI).sum(-1)
        if self.config.distribution is Distribution.gaussian:
            return before, log_prob
        return torch.tanh(before), log_prob - log_tanh_slope(before).sum(-1)

    def mode(self, obs: Tensor) -> Tensor:
        """The deterministic action (P, B, act_dim) in [-1, 1]."""
        mean, _ = self(obs)
        return mean.clamp(-1.0, 1.0) if self.config.distribution is Distribution.gaussian else torch.tanh(mean)

    def member(self, p: int) -> StackedGaussianActor:
        """A copy of member p as an actor of population 1. Raises LookupError if there is none."""
        if not 0 <= p < self.population:
            raise LookupError(f"there is no member {p}; this actor has members 0 to {self.population - 1}")
        one = StackedGaussianActor(
            self.obs_dim, self.act_dim, [torch.Generator()], self.config, self.normalizer.member(p)
        ).to(next(self.parameters()).device)
        with torch.no_grad():
            for mine, copy in zip(self.parameters(), one.parameters(), strict=True):
                copy.copy_(mine[p : p + 1])
        return one

    def spec(self) -> dict[str, Any]:
        """Plain JSON data from which `from_spec` builds an actor of the same shape."""
        shared = self.normalizer.population is None
        config = {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self.config).items()}
        return {
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "population": self.population,
            "config": config | {"hidden": list(self.config.hidden)},
            "normalizer": {"clip": self.normalizer.clip, "eps": self.normalizer.eps, "shared": shared},
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> StackedGaussianActor:
        """An actor of the shape that `spec` describes, its weights yet to be loaded. Raises ValueError."""
        try:
            given, norm = dict(spec["config"]), spec["normalizer"]
            known = {f.name for f in fields(ActorConfig)}
            if set(given) - known:
                raise ValueError(f"unknown actor options {', '.join(sorted(set(given) - known))}")
            config = ActorConfig(
                **given
                | {
                    "hidden": tuple(int(width) for width in given["hidden"]),
                    "distribution": Distribution(given["distribution"]),
                    "sigma": Sigma(given["sigma"]),
                }
            )
            obs_dim, act_dim, population = (int(spec[k]) for k in ("obs_dim", "act_dim", "population"))
            members = None if norm["shared"] else population
            normalizer = Normalizer(obs_dim, float(norm["clip"]), float(norm["eps"]), members)
        except (KeyError, TypeError) as problem:
            raise ValueError(f"this does not describe a gaussian actor ({problem!r})") from None
        return cls(obs_dim, act_dim, [torch.Generator() for _ in range(population)], config, normalizer)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """log N(x; mean, exp(log_std)) summed over the last axis."""
    scaled = (x - mean) * torch.exp(-log_std)
    return -(0.5 * scaled.square() + log_std + HALF_LOG_TWO_PI).sum(-1)


def log_tanh_slope(u: Tensor) -> Tensor:
    """log(1 − tanh²(u)) per element, without cancellation at large |u|."""
    return 2.0 * (math.log(2.0) - u - nn.functional.softplus(-2.0 * u))


class ActorPolicy:
    """One member of an actor as a `Policy`: numpy in, numpy out, deterministic.

    `interface` (a sim.spec.Interface) and `task` are what it was trained under, None if unknown.
    """

    def __init__(
        self,
        actor: StackedGaussianActor,
        member: int = 0,
        interface: Any = None,
        task: str | None = None,
        name: str = "actor",
    ):
        self.actor = actor.member(member).eval().requires_grad_(False)
        self.obs_dim, self.act_dim = actor.obs_dim, actor.act_dim
        self.interface, self.task, self.name = interface, task, name

    @torch.inference_mode()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """obs (B, obs_dim) -> action (B, act_dim) float32 in [-1, 1]. Raises ValueError for another width."""
        return self.actor.mode(self._rows(obs))[0].cpu().numpy()

    @torch.inference_mode()
    def sample(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """obs (B, obs_dim) -> action (B, act_dim) float32 in [-1, 1] drawn from the policy's own distribution."""
        if not hasattr(self.actor, "heads"):  # a generative actor: no density, but samples
            generative: Any = self.actor
            drawn = generative.sample(self._rows(obs), [torch.Generator().manual_seed(int(rng.integers(2**63)))])
            return drawn[0].cpu().numpy()
        mean, log_std = self.actor(self._rows(obs))
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)).to(mean.device)
        return self.actor.sample(mean, log_std, noise)[0][0].clamp(-1.0, 1.0).cpu().numpy()

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing to forget."""

    @property
    def digest(self) -> str:
        """sha256 hex of the parameters and statistics."""
        digest = hashlib.sha256()
        for name, tensor in self.actor.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _rows(self, obs: np.ndarray) -> Tensor:
        rows = torch.as_tensor(np.asarray(obs, dtype=np.float32), device=next(self.actor.parameters()).device)
        if rows.dim() != 2 or rows.shape[1] != self.obs_dim:
            raise ValueError(f"obs has shape {tuple(rows.shape)}, this policy reads (B, {self.obs_dim})")
        return rows
