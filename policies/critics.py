"""Action values and state values, stacked: members and their twins are one population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.networks import ACTIVATIONS, INITS, StackedMLP


@dataclass
class CriticConfig:
    """What critics look like."""

    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    activation: str = "relu"  # relu, tanh, silu, mish or gelu
    layer_norm: bool = False  # normalise each hidden layer before its activation
    init: str = "torch"  # torch or orthogonal

    def __post_init__(self) -> None:
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise ValueError(f"critic.hidden is {self.hidden}; expected at least one positive width, e.g. [256,256]")
        for name, table in (("activation", ACTIVATIONS), ("init", INITS)):
            if getattr(self, name) not in table:
                raise ValueError(f"critic.{name} {getattr(self, name)!r} is unknown; one of {', '.join(table)}")


class StackedQ(nn.Module):
    """Q(s, a) of P members with `twins` critics each: z (P, B, obs_dim), action (P, B, act_dim) -> (P, twins, B).

    z is the normalised observation. Each twin is a network of its own; a member's twins are drawn one after the other
    from that member's generator, so that member p of a stack equals a lone member with the same generator.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        rngs: Sequence[torch.Generator],
        twins: int = 2,
        config: CriticConfig | None = None,
    ):
        super().__init__()
        if twins < 1:
            raise ValueError(f"twins is {twins}; a member needs at least one critic")
        self.population, self.twins = len(rngs), twins
        each = [rng for rng in rngs for _ in range(twins)]
        c = config or CriticConfig()
        self.net = StackedMLP(obs_dim + act_dim, c.hidden, 1, each, c.activation, c.layer_norm, c.init)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([z, action], dim=-1)
        rows = x.shape[-2]
        if x.dim() == 3 and self.twins > 1:
            if x.shape[0] == 1:
                x = x[0]  # (B, d), read by every critic without a copy
            else:
                x = x.unsqueeze(1).expand(-1, self.twins, -1, -1).reshape(-1, rows, x.shape[-1])  # (P twins, B, d)
        return self.net(x).view(self.population, self.twins, rows)


class StackedV(nn.Module):
    """V(s) of P members: z (P, B, obs_dim) normalised, or shared (B, obs_dim) -> (P, B)."""

    def __init__(self, obs_dim: int, rngs: Sequence[torch.Generator], config: CriticConfig | None = None):
        super().__init__()
        c, self.population = config or CriticConfig(), len(rngs)
        self.net = StackedMLP(obs_dim, c.hidden, 1, rngs, c.activation, c.layer_norm, c.init)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(-1)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target ← (1 − τ) target + τ source, all parameters in one call."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
