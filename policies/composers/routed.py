"""One skill per observation, chosen by a router that was solved for, not trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.composers.composer import Composer, CompositionShape
from policies.routers.ridge import Ridge

NEVER = -1e9  # score of a choice that was right nowhere


class Routed(Composer):
    """Coefficients (B, K), one of them 1 or all of them 0, which is the base: the choice of analytic ridge regression.

    `fit` learns which choice is right where; before that everything goes to the base. Remembers the regression's
    frozen features and its weights (features, 1 + K).
    """

    project: Tensor
    shift: Tensor
    weights: Tensor

    def __init__(self, shape: CompositionShape, features: int = 256, ridge: float = 1.0, seed: int = 0):
        super().__init__(shape)
        self.width, self.ridge, self.seed = features, ridge, seed
        router = self.router()
        self.register_buffer("project", router._project.float())
        self.register_buffer("shift", router._shift.float())
        self.register_buffer("weights", torch.zeros(1 + shape.obs_dim + features, 1 + shape.skills))

    def router(self) -> Ridge:
        return Ridge(self.shape.obs_dim, features=self.width, ridge=self.ridge, seed=self.seed)

    def settings(self) -> dict[str, Any]:
        return {"features": self.width, "ridge": self.ridge, "seed": self.seed}

    def fit(self, obs: Tensor, errors: Tensor) -> None:
        """Normalised observations (N, obs_dim) and what the base and each skill would have done wrong, (N, 1 + K)."""
        if errors.shape != (len(obs), 1 + self.shape.skills):
            expected = (len(obs), 1 + self.shape.skills)
            raise ValueError(f"errors are {tuple(errors.shape)}, expected {expected}: the base's, then each skill's")
        router, right = self.router(), errors.argmin(1)
        present = right.unique().tolist()
        for choice in present:
            router.observe(obs[right == choice], f"{choice:06d}")  # names sort as the choices do
        self.weights.zero_()
        self.weights[0] = NEVER  # of the constant feature
        self.weights[:, present] = router.weights.to(self.weights)

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        hidden = torch.relu(obs @ self.project + self.shift)
        scores = torch.cat([torch.ones_like(obs[..., :1]), obs, hidden], -1) @ self.weights
        chosen = torch.nn.functional.one_hot(scores.argmax(-1), 1 + self.shape.skills)
        return chosen[..., 1:].to(obs.dtype)
