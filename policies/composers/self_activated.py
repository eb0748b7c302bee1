"""No router network: each rank of each skill says itself whether it is meant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.composers.composer import Composer, CompositionShape
from policies.mixture import Gate, MixedLinear


class SelfActivated(Composer):
    """MoRA, Lu et al. 2025 (arXiv 2506.21035). In each layer the rows k_j of A are keys for the layer's input h:

        s = |k_j · h| / ‖(k_i · h)_i‖,   p = softmax(s / temperature),   the `top` largest with s ≥ threshold stay.

    The coefficients are R · p, at most 1, with R the ranks of one skill: the skill whose ranks share all the activation
    acts as trained. With a single skill there is nothing to select and its coefficients are 1. Nothing is learned.
    """

    def __init__(
        self, shape: CompositionShape, temperature: float = 0.1, top: int | None = None, threshold: float = 0.0
    ):
        super().__init__(shape)
        if not temperature > 0 or (top is not None and top < 1):
            raise ValueError(f"temperature is {temperature} and top {top}; expected positive numbers")
        self.temperature, self.top, self.threshold = temperature, top, threshold

    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top": self.top, "threshold": self.threshold}

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Gate:
        return self.coefficients

    def coefficients(self, h: Tensor, layer: MixedLinear) -> Tensor:
        """Activations (..., R_layer) = x A_catᵀ -> coefficients (..., R_layer)."""
        if self.shape.skills == 1:
            return torch.ones_like(h)
        score = h.abs() / h.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        p = torch.softmax(score / self.temperature, dim=-1)
        kept = score >= self.threshold
        top = self.top if self.top is not None else self.shape.rank
        if top < p.shape[-1]:
            kept &= p >= p.topk(top, dim=-1).values[..., -1:]
        return (p * kept * self.shape.rank).clamp_max(1.0)
