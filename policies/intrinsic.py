"""How many numbers does a skill need? Training in a random subspace, to size ranks and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from policies.lora import base_layer, layer_shape, linear_layers
from policies.networks import StackedLinear


class SubspaceLinear(nn.Module):
    """One layer of θ = θ0 + P θ_d. Each weight follows one coordinate of `theta` (d,), shared by all layers, with a
    random sign: P has one entry per row, so its columns are orthogonal and it costs no memory to speak of."""

    index: Tensor
    sign: Tensor

    def __init__(self, base: nn.Linear | StackedLinear, theta: nn.Parameter, index: Tensor, sign: Tensor):
        super().__init__()
        self.base, self.theta = base, theta
        self.register_buffer("index", index)
        self.register_buffer("sign", sign)

    @property
    def delta(self) -> Tensor:
        """ΔW (d_out, d_in)."""
        return self.theta[self.index] * self.sign

    def forward(self, x: Tensor) -> Tensor:
        change = nn.functional.linear(x, self.delta.to(x))
        return self.base(x) + change


def attach_subspace(module: nn.Module, dimension: int, rng: torch.Generator) -> nn.Parameter:
    """Freeze `module` and return the one trainable parameter θ_d (dimension,), zero at the start.

    Raises ValueError for a dimension outside 1 … number of weights, or a module that is adapted already.
    """
    found = list(linear_layers(module))
    sizes = [layer_shape(layer)[0] * layer_shape(layer)[1] for *_, layer in found]
    if not 1 <= dimension <= sum(sizes):
        raise ValueError(f"dimension {dimension} lies outside 1 … {sum(sizes)}, the number of weights")
    if any(base_layer(layer) is not layer for *_, layer in found):
        raise ValueError("the module carries an adapter already; detach it first")
    module.requires_grad_(False)
    theta = nn.Parameter(torch.zeros(dimension))
    index = (torch.randperm(sum(sizes), generator=rng) % dimension).split(sizes)
    count = torch.bincount(torch.cat(index), minlength=dimension).float()
    for (_, parent, attribute, layer), own in zip(found, index, strict=True):
        signs = torch.randint(0, 2, own.shape, generator=rng) * 2.0 - 1.0
        shape = layer_shape(layer)
        sign = (signs / count[own].sqrt()).view(shape)  # columns of norm 1
        wrapped = SubspaceLinear(cast(nn.Linear, layer), theta, own.view(shape), sign)
        setattr(parent, attribute, wrapped)
    return theta


def subspace_deltas(module: nn.Module) -> dict[str, Tensor]:
    """Dense changes {layer: (d_out, d_in)} of what was trained, for merging or factorising."""
    layers = {name: layer for name, _, _, layer in linear_layers(module)}
    return {name: layer.delta.detach() for name, layer in layers.items() if isinstance(layer, SubspaceLinear)}


@dataclass(frozen=True)
class IntrinsicReport:
    """The smallest dimension that reached the target (None: none did), and the score of each one tried."""

    dimension: int | None
    target: float
    scores: dict[int, float]


def intrinsic_dimension(
    score_at: Callable[[int], float], dimensions: Sequence[int], reference: float, baseline: float, share: float = 0.9
) -> IntrinsicReport:
    """Smallest d whose training in a random subspace reaches baseline + share · (reference − baseline).

    `score_at(d)` trains and scores (higher is better); `reference` is the full training's score, `baseline` the
    untrained base's. Li et al. 2018 (intrinsic dimension of objective landscapes).
    """
    target, scores = baseline + share * (reference - baseline), {}
    for dimension in sorted(dimensions):
        scores[dimension] = float(score_at(dimension))
        if scores[dimension] >= target:
            return IntrinsicReport(dimension, target, scores)
    return IntrinsicReport(None, target, scores)


def suggested_rank(dimension: int, shapes: Mapping[str, tuple[int, int]]) -> int:
    """Smallest rank whose factors hold at least `dimension` numbers over all layers (d_out, d_in)."""
    return max(1, -(-dimension // sum(d_out + d_in for d_out, d_in in shapes.values())))
