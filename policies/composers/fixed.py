"""The same coefficients everywhere: a merge that was not merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.composers.composer import Composer, CompositionShape


class Fixed(Composer):
    """Constant coefficients (K,) or (K, L), 1/K each unless given. Raises ValueError for a wrong number."""

    weights: Tensor

    def __init__(self, shape: CompositionShape, weights: Sequence[float] | Tensor | None = None):
        super().__init__(shape)
        given = torch.full((shape.skills,), 1.0 / shape.skills) if weights is None else torch.as_tensor(weights)
        if tuple(given.shape) not in ((shape.skills,), (shape.skills, shape.layers)):
            raise ValueError(
                f"weights {tuple(given.shape)} do not fit {shape.skills} skills and {shape.layers} layers; "
                "give one number per skill, or per skill and layer"
            )
        self.register_buffer("weights", given.float().clone())

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights.tolist()}

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        return self.weights.unsqueeze(0)
