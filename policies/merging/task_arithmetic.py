"""Sum of the skills."""

import torch
from torch import Tensor

from policies.merging.operator import checked, weighted_sum


def task_arithmetic(deltas: Tensor, weights: Tensor, rng: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
    """λ Σ w_k τ_k, with λ = scale for two skills or more. A zero skill changes nothing. Ilharco et al. 2023."""
    deltas, weights = checked(deltas, weights)
    return weighted_sum(deltas, weights) * (scale if len(deltas) > 1 else 1.0)
