"""Coefficients as a learned function of the observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.composers.composer import Composer, CompositionShape
from policies.networks import StackedMLP, generators


class ContextGate(Composer):
    """PSEC, Liu et al. 2025, eq. 6: α(s) by an MLP with K unbounded outputs, (B, K); (B, K, L) with `per_layer`.

    α may be negative or above 1: there is no softmax. Starts at 1/K everywhere. With `blind` the gate sees zeros
    instead of the observation: the control that shows whether context matters.
    """

    def __init__(
        self,
        shape: CompositionShape,
        hidden: Sequence[int] = (256, 256),
        per_layer: bool = False,
        blind: bool = False,
        seed: int = 0,
    ):
        super().__init__(shape)
        self.per_layer, self.blind = per_layer, blind
        outputs = shape.skills * (shape.layers if per_layer else 1)
        self.net = StackedMLP(shape.obs_dim, hidden, outputs, generators(seed, 1))
        with torch.no_grad():
            last = self.net.layers[-1]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.constant_(last.bias, 1.0 / shape.skills)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        return {"hidden": list(self.net.hidden), "per_layer": self.per_layer, "blind": self.blind}

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        alpha = self.net(torch.zeros_like(obs) if self.blind else obs)[0]
        return alpha.view(-1, self.shape.skills, self.shape.layers) if self.per_layer else alpha
