"""The default router: linear regression on frozen features, exactly as if all contexts had been seen at once."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.routers.router import Router


class Ridge(Router):
    """Analytic learning on frozen features: W = (G + ridge · I)⁻¹ Xᵀ Y from running sums.

    Equals recursive least squares (R −= R Xᵀ(I + X R Xᵀ)⁻¹ X R, W += R Xᵀ(Y − X W)) and the joint solution, in any
    order; unlike R and W the sums can be merged across robots. Features: [1, x, relu(P x + b)] with fixed random P, b
    (Zhuang et al. 2022). With `balanced`, rare skills are filled up to the commonest one's count by pseudo-features
    from their mean and variance, in expectation (AEF-OCL, Zhuang et al. 2024), so that rarity is not unlikeliness.
    """

    def __init__(
        self, width: int, robot: str = "robot", features: int = 256, ridge: float = 1.0, balanced: bool = True,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(width, robot)
        self.raw = slice(1, 1 + width)
        self.ridge, self.balanced = ridge, balanced
        rng = torch.Generator().manual_seed(seed)
        self._project = torch.randn(width, features, generator=rng, dtype=torch.float64) / width**0.5
        self._shift = torch.rand(features, generator=rng, dtype=torch.float64) * 2.0 - 1.0
        self._weights: Tensor | None = None

    def features(self, context: Tensor) -> Tensor:
        x = context.double()
        return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x, torch.relu(x @ self._project + self._shift)], 1)

    def _changed(self) -> None:
        super()._changed()
        self._weights = None

    @property
    def weights(self) -> Tensor:
        """W (d, K)."""
        if self._weights is None:
            known = self.total
            assert known.gram is not None
            counts = torch.tensor([m.count for m in known.moments.values()], dtype=torch.float64)
            means = torch.stack([m.mean for m in known.moments.values()])
            gram, filled = known.gram, counts
            if self.balanced:
                filled = counts.max().expand_as(counts)
                for moments, extra in zip(known.moments.values(), (filled - counts).tolist(), strict=True):
                    variance = moments.m2 / max(moments.count - 1.0, 1.0)
                    gram = gram + extra * (torch.outer(moments.mean, moments.mean) + torch.diag(variance))
            targets = means.T * filled  # Xᵀ Y of one-hot rows: each skill's summed features
            regular = gram + self.ridge * torch.eye(len(gram), dtype=torch.float64)
            self._weights = torch.linalg.solve(regular, targets)
        return self._weights

    def logits(self, context: Tensor) -> Tensor:
        return self.features(context) @ self.weights
