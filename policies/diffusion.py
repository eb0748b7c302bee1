"""Generative actors: a diffusion policy of five steps and a flow policy of a few Euler steps, one interface.

PSEC (Liu et al. 2025), after IDQL (Hansen-Estruch et al. 2023). What is frozen and shipped is `net`, stacked with
a population axis; randomness is passed in, one generator per member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from policies.networks import ACTIVATIONS, StackedLayerNorm, StackedLinear
from policies.normalizer import Normalizer

Actor = TypeVar("Actor", bound="GenerativeActor")


@dataclass
class GenerativeConfig:
    """What a generative actor looks like. The defaults are PSEC's; training and use share one activation."""

    steps: int = 5  # of denoising, or Euler steps of a flow
    hidden: int = 256  # width of the residual stream; blocks widen it four times
    blocks: int = 3  # residual blocks
    features: int = 64  # learnable Fourier features of the time, half sines and half cosines
    time_width: int = 128  # width of the time code
    dropout: float = 0.1  # in each block, only while training
    activation: str = "mish"  # relu, tanh, silu, mish or gelu
    temperature: float = 0.0  # scale of the fixed noise behind the deterministic action; 0 starts at the centre
    beta_min: float = 0.1  # diffusion only: variance-preserving schedule
    beta_max: float = 10.0  # diffusion only

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"actor.activation {self.activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
        if not 1 <= self.steps <= 100 or self.features % 2 or self.blocks < 1:
            raise ValueError(
                f"steps {self.steps}, features {self.features} and blocks {self.blocks} do not fit; "
                "expected 1 to 100 steps, an even number of features, at least one block"
            )
        if min(self.hidden, self.features, self.time_width) < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"hidden {self.hidden}, features {self.features}, time_width {self.time_width} and dropout "
                f"{self.dropout} do not fit; expected positive widths and a dropout in [0, 1)"
            )
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if not 0.0 < self.beta_min <= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} and beta_max {self.beta_max}; expected 0 < beta_min ≤ beta_max")


class Drawn(NamedTuple):
    """The random numbers behind one imitation loss: `share` (P, B, 1) in [0, 1) says when on the way from noise to
    action, `noise` (P, B, act_dim) is standard normal, `dropout` (P, blocks) in [0, 1) seeds what is dropped (None:
    nothing)."""

    share: Tensor
    noise: Tensor
    dropout: Tensor | None = None

    @property
    def seeds(self) -> tuple[Tensor, ...]:
        """The network's last argument, or none: what stands in the network's place reads tensors only."""
        return () if self.dropout is None else (self.dropout,)


class ConditionalNet(nn.Module):
    """x (P, B, act_dim), obs (P, B, obs_dim) normalised, time (P, B, 1) -> (P, B, act_dim).

    Fourier features of the time → MLP; [x, obs, time code] → residual blocks {dropout, LayerNorm, widen by 4,
    activation, narrow} → activation → out. Leading axes of 1 stand for all members. `dropout` as in Drawn.
    """

    def __init__(self, obs_dim: int, act_dim: int, rngs: Sequence[torch.Generator], config: GenerativeConfig):
        super().__init__()
        c, self.config = config, config
        frequencies = [torch.randn(1, c.features // 2, generator=g) * 0.2 for g in rngs]
        self.frequencies = nn.Parameter(torch.stack(frequencies))  # (P, 1, features / 2), cycles per unit of time
        self.time1 = StackedLinear(c.features, c.time_width, rngs)
        self.time2 = StackedLinear(c.time_width, c.time_width, rngs)
        self.enter = StackedLinear(act_dim + obs_dim + c.time_width, c.hidden, rngs)
        self.norms = nn.ModuleList(StackedLayerNorm(c.hidden, len(rngs)) for _ in range(c.blocks))
        self.widen = nn.ModuleList(StackedLinear(c.hidden, 4 * c.hidden, rngs) for _ in range(c.blocks))
        self.narrow = nn.ModuleList(StackedLinear(4 * c.hidden, c.hidden, rngs) for _ in range(c.blocks))
        self.leave = StackedLinear(c.hidden, act_dim, rngs)

    def forward(self, x: Tensor, obs: Tensor, time: Tensor, dropout: Tensor | None = None) -> Tensor:
        act = ACTIVATIONS[self.config.activation]
        angle = 2.0 * math.pi * time * self.frequencies
        code = self.time2(act(self.time1(torch.cat([angle.cos(), angle.sin()], -1))))
        members = max(part.shape[0] for part in (x, obs, code))
        h = self.enter(torch.cat([part.expand(members, -1, -1) for part in (x, obs, code)], -1))
        for i, (norm, widen, narrow) in enumerate(zip(self.norms, self.widen, self.narrow, strict=True)):
            kept = h if dropout is None else h * kept_scale(dropout[:, i], h.shape[-2:], self.config.dropout)
            h = h + narrow(act(widen(norm(kept))))
        return self.leave(act(h))


class GenerativeActor(nn.Module):
    """What the diffusion and the flow actor share: obs (P, B, obs_dim), or shared (B, obs_dim), raw -> actions.

    Remembers parameters, statistics and the fixed noise (steps, act_dim) behind `mode`.
    """

    kind: ClassVar[str]
    noise: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        rngs: Sequence[torch.Generator],
        config: GenerativeConfig | None = None,
        normalizer: Normalizer | None = None,
    ):
        super().__init__()
        self.config = config or GenerativeConfig()
        self.obs_dim, self.act_dim, self.population = obs_dim, act_dim, len(rngs)
        self.normalizer = normalizer or Normalizer(obs_dim)
        self.net = ConditionalNet(obs_dim, act_dim, rngs, self.config)
        fixed = torch.randn(self.config.steps, act_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", fixed)

    def loss(
        self, obs: Tensor, action: Tensor, rngs: Sequence[torch.Generator], weight: Tensor | None = None
    ) -> Tensor:
        """(P,) mean over rows of weight · squared error, summed over action dimensions; member p draws from rngs[p].

        obs (P, B, obs_dim) raw and action (P, B, act_dim), or both without P; weight (P, B) or (B,).
        """
        return self.loss_at(obs, action, self.draw(obs.shape[-2], rngs), weight)

    def loss_at(self, obs: Tensor, action: Tensor, drawn: Drawn, weight: Tensor | None = None) -> Tensor:
        """`loss` with random numbers drawn elsewhere."""
        z, action = _members(self.normalizer(obs)), _members(action)
        error = self._error(z, action, drawn)  # (P, B)
        return (error if weight is None else error * weight).mean(-1)

    def draw(self, rows: int, rngs: Sequence[torch.Generator]) -> Drawn:
        """The random numbers of one loss on `rows` rows, member by member; something is dropped only while training."""
        share = torch.stack([torch.rand(rows, 1, generator=g) for g in rngs])
        noise = torch.stack([torch.randn(rows, self.act_dim, generator=g) for g in rngs])
        seeds = torch.stack([torch.rand(self.config.blocks, generator=g) for g in rngs]) if self.drops else None
        home = self.noise.device
        return Drawn(share.to(home), noise.to(home), None if seeds is None else seeds.to(home))

    @property
    def drops(self) -> bool:
        return self.training and self.config.dropout > 0.0

    def sample(self, obs: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Random actions (P, B, act_dim) in [-1, 1]; member p draws from rngs[p]."""
        z = _members(self.normalizer(obs))
        shape = (self.config.steps, z.shape[-2], self.act_dim)
        noise = torch.stack([torch.randn(shape, generator=g) for g in rngs], 1).to(z)  # (steps, P, B, act_dim)
        return self._generate(z, noise)

    def mode(self, obs: Tensor) -> Tensor:
        """The deterministic action (P, B, act_dim): `temperature` times one fixed noise, the same for every row."""
        z = _members(self.normalizer(obs))
        fixed = self.noise[:, None, None] * self.config.temperature
        return self._generate(z, fixed.expand(-1, 1, z.shape[-2], -1))

    def _error(self, z: Tensor, action: Tensor, drawn: Drawn) -> Tensor:
        raise NotImplementedError

    def _generate(self, z: Tensor, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def member(self: Actor, p: int) -> Actor:
        """A copy of member p as an actor of population 1. Raises LookupError if there is none."""
        if not 0 <= p < self.population:
            raise LookupError(f"there is no member {p}; this actor has members 0 to {self.population - 1}")
        one = type(self)(self.obs_dim, self.act_dim, [torch.Generator()], self.config, self.normalizer.member(p))
        with torch.no_grad():
            for mine, copy in zip(self.parameters(), one.parameters(), strict=True):
                copy.copy_(mine[p : p + 1])
        return one.to(self.noise.device)

    def spec(self) -> dict[str, Any]:
        """Plain JSON data from which `generative_from_spec` builds an actor of the same shape."""
        shared = self.normalizer.population is None
        return {
            "kind": self.kind,
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "population": self.population,
            "config": asdict(self.config),
            "normalizer": {"clip": self.normalizer.clip, "eps": self.normalizer.eps, "shared": shared},
        }


    @staticmethod
    def from_spec(spec: dict[str, Any]) -> GenerativeActor:
        return generative_from_spec(spec)


class DiffusionActor(GenerativeActor):
    """DDPM (Ho et al. 2020) with a variance-preserving schedule and integer times 0 … T−1:

    α_t = exp(−b_min / T − (b_max − b_min)(2t + 1) / (2 T²)),  loss ‖ε̂(√ᾱ_t a + √(1−ᾱ_t) ε, s, t) − ε‖².
    Every step clips to ±1; the last adds no noise.
    """

    kind = "diffusion"
    alpha: Tensor
    alpha_bar: Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        c = self.config
        t = torch.arange(c.steps, dtype=torch.float64)
        alpha = torch.exp(-c.beta_min / c.steps - (c.beta_max - c.beta_min) * (2 * t + 1) / (2 * c.steps**2))
        self.register_buffer("alpha", alpha.float())
        self.register_buffer("alpha_bar", alpha.cumprod(0).float())

    def _error(self, z: Tensor, action: Tensor, drawn: Drawn) -> Tensor:
        t = (drawn.share * self.config.steps).long()
        keep = self.alpha_bar[t]
        noised = keep.sqrt() * action + (1.0 - keep).sqrt() * drawn.noise
        return (self.net(noised, z, t.to(z.dtype), *drawn.seeds) - drawn.noise).square().sum(-1)

    def _generate(self, z: Tensor, noise: Tensor) -> Tensor:
        x = noise[-1]
        for t in reversed(range(self.config.steps)):
            predicted = self.net(x, z, torch.full((1, z.shape[-2], 1), float(t), device=z.device))
            x = (x - (1.0 - self.alpha[t]) / (1.0 - self.alpha_bar[t]).sqrt() * predicted) / self.alpha[t].sqrt()
            if t:
                x = x + (1.0 - self.alpha[t]).sqrt() * noise[t - 1]
            x = x.clamp(-1.0, 1.0)
        return x


class FlowActor(GenerativeActor):
    """Flow matching on straight paths (Lipman et al. 2023, Liu et al. 2023): x_τ = (1−τ) ε + τ a, velocity a − ε.

    loss ‖v̂(x_τ, s, τ) − (a − ε)‖²; actions by `steps` Euler steps from ε, clipped to ±1 at the end.
    """

    kind = "flow"

    def _error(self, z: Tensor, action: Tensor, drawn: Drawn) -> Tensor:
        tau = drawn.share
        between = (1.0 - tau) * drawn.noise + tau * action
        return (self.net(between, z, tau, *drawn.seeds) - (action - drawn.noise)).square().sum(-1)

    def _generate(self, z: Tensor, noise: Tensor) -> Tensor:
        x, steps = noise[-1], self.config.steps
        for i in range(steps):
            x = x + self.net(x, z, torch.full((1, z.shape[-2], 1), i / steps, device=z.device)) / steps
        return x.clamp(-1.0, 1.0)


GENERATIVE: dict[str, type[GenerativeActor]] = {"diffusion": DiffusionActor, "flow": FlowActor}


def generative_from_spec(spec: dict[str, Any]) -> GenerativeActor:
    """An actor of the shape that `spec` describes, its weights yet to be loaded. Raises ValueError."""
    try:
        given, norm = dict(spec["config"]), spec["normalizer"]
        unknown = set(given) - {f.name for f in fields(GenerativeConfig)}
        if unknown or spec["kind"] not in GENERATIVE:
            raise ValueError(f"unknown actor options {', '.join(sorted(unknown)) or spec['kind']}")
        obs_dim, act_dim, population = (int(spec[k]) for k in ("obs_dim", "act_dim", "population"))
        members = None if norm["shared"] else population
        normalizer = Normalizer(obs_dim, float(norm["clip"]), float(norm["eps"]), members)
        rngs = [torch.Generator() for _ in range(population)]
        return GENERATIVE[spec["kind"]](obs_dim, act_dim, rngs, GenerativeConfig(**given), normalizer)
    except (KeyError, TypeError) as problem:
        raise ValueError(f"this does not describe a generative actor ({problem!r})") from None


def kept_scale(seed: Tensor, shape: torch.Size, share: float) -> Tensor:
    """seed (P,) in [0, 1) -> (P, *shape): 0 for about `share` of the places, else 1 / (1 − share).

    Places are hashed with their member's seed (the last steps of MurmurHash3), so that a seed drops the same on every
    device and a member the same alone and in company.
    """
    place = torch.arange(shape.numel(), device=seed.device).view(shape)
    x = place * 0x9E3779B1 + (seed.double() * 2.0**32).long().view(-1, *[1] * len(shape))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    x = x & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >= int(share * 2**32)) / (1.0 - share)


def _members(x: Tensor) -> Tensor:
    """(B, d) -> (1, B, d)."""
    return x if x.dim() == 3 else x.unsqueeze(0)
