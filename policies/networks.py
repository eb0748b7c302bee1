"""Networks with a leading population axis: P members side by side, one matrix product per layer.

Ensemble members, twin critics and seeds are all populations. Member p of a stack initialised and trained here equals
a network initialised and trained alone (to 1e-5), because every random draw comes from that member's own generator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def tanh(x: Tensor) -> Tensor:
    """tanh(x) = 2 σ(2x) − 1 on the CPU, where torch's sigmoid is several times faster than its tanh (equal to 2e-7)."""
    return torch.tanh(x) if x.is_cuda else torch.sigmoid(x * 2.0) * 2.0 - 1.0


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": tanh,
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
    "gelu": nn.functional.gelu,
}
INITS = ("torch", "orthogonal")


def generators(seed: int, population: int) -> list[torch.Generator]:
    """One CPU generator per member; member p of any stack draws what a lone network seeded `seed + p` draws."""
    return [torch.Generator().manual_seed(seed + p) for p in range(population)]


class StackedLinear(nn.Module):
    """y = x Wᵀ + b for each member: x (P, B, d_in) -> (P, B, d_out).

    weight (P, d_out, d_in) and bias (P, 1, d_out), as in torch.nn.Linear with a leading population axis.
    `init` "torch" is nn.Linear's uniform(±1/sqrt(d_in)); "orthogonal" is orthogonal with `gain` and zero bias.
    """

    def __init__(self, d_in: int, d_out: int, rngs: Sequence[torch.Generator], init: str = "torch", gain: float = 1.0):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init {init!r} is unknown; one of {', '.join(INITS)}")
        self.d_in, self.d_out, self.population = d_in, d_out, len(rngs)
        weight, bias = torch.empty(self.population, d_out, d_in), torch.zeros(self.population, 1, d_out)
        bound = 1.0 / math.sqrt(d_in)
        for p, rng in enumerate(rngs):
            if init == "torch":
                weight[p].uniform_(-bound, bound, generator=rng)
                bias[p].uniform_(-bound, bound, generator=rng)
            else:
                nn.init.orthogonal_(weight[p], gain, generator=rng)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.population == 1:  # one GEMM is faster than a batched one of size one
            y = nn.functional.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return y if y.dim() == 3 else y.unsqueeze(0)
        if x.dim() == 2:
            x = x.expand(self.population, *x.shape)
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class StackedLayerNorm(nn.Module):
    """Layer normalisation of the last axis with one gain and bias (P, 1, width) per member."""

    def __init__(self, width: int, population: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(population, 1, width))
        self.bias = nn.Parameter(torch.zeros(population, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias, normal, self.weight)


class StackedMLP(nn.Module):
    """Multi-layer perceptron per member: x (P, B, d_in) or shared (B, d_in) -> (P, B, d_out)."""

    def __init__(
        self,
        d_in: int,
        hidden: Sequence[int],
        d_out: int,
        rngs: Sequence[torch.Generator],
        activation: str = "relu",
        layer_norm: bool = False,
        init: str = "torch",
        out_gain: float = 1.0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
        self.activation, self.population = activation, len(rngs)
        self.d_in, self.hidden, self.d_out = d_in, tuple(hidden), d_out
        widths = [d_in, *hidden]
        gain = math.sqrt(2.0)
        self.layers = nn.ModuleList(
            StackedLinear(a, b, rngs, init, gain) for a, b in itertools.pairwise(widths)
        )
        self.layers.append(StackedLinear(widths[-1], d_out, rngs, init, out_gain))
        self.norms = nn.ModuleList(StackedLayerNorm(w, self.population) for w in hidden) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.norms is not None:
                x = self.norms[i](x)
            x = act(x)
        return self.layers[-1](x)
