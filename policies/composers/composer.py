"""The one shape of a composer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from policies.mixture import Coefficients, Mixture


@dataclass(frozen=True)
class CompositionShape:
    """Numbers a composer is built for: observation width, skills K, mixed layers L, largest rank R."""

    obs_dim: int
    skills: int
    layers: int = 1
    rank: int = 1

    @classmethod
    def of(cls, mixture: Mixture, obs_dim: int) -> CompositionShape:
        return cls(obs_dim, mixture.num_skills, len(mixture.mixed), max(mixture.ranks))


class Composer(nn.Module):
    """Normalised observations (B, obs_dim) [and a task vector] -> coefficients, one of

    (1, K) or (1, K, L) if they are the same for all rows, (B, K), (B, K, L), (B, K, L, R), or a function that reads
    each layer's own activations. Row i follows from observation i alone. Coefficient 1: the skill as trained.
    """

    def __init__(self, shape: CompositionShape):
        super().__init__()
        if shape.skills < 1:
            raise ValueError("a composer needs at least one skill")
        self.shape = shape

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Coefficients:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Plain JSON data: the keyword arguments, besides the shape, of a composer whose tensors are then loaded."""
        return {}
