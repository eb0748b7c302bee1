"""One learned number per skill and layer: the composer for one to three demonstrations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.composers.composer import Composer, CompositionShape


class Anisotropic(Composer):
    """aTLAS, Zhang et al. 2024 (knowledge composition using task vectors): coefficients (K, L), learned, from `start`.

    Starting at 0 is starting at the base. Has K·L parameters and reads no context.
    """

    def __init__(self, shape: CompositionShape, start: float = 0.0):
        super().__init__(shape)
        self.weights = nn.Parameter(torch.full((shape.skills, shape.layers), float(start)))

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        return self.weights.unsqueeze(0)
