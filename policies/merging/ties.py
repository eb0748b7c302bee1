"""Trim, elect a sign, average what agrees."""

import torch
from torch import Tensor

from policies.merging.operator import checked, largest, share_of, weighted_sum


def ties(
    deltas: Tensor,
    weights: Tensor,
    rng: torch.Generator | None = None,
    density: float = 0.2,
    scale: float = 1.0,
) -> Tensor:
    """Keep the `density` largest of each τ, elect per element the sign of Σ w τ, and take the mean of the contributions
    with that sign, times `scale`. A zero skill changes nothing. Yadav et al. 2023."""
    deltas, weights = checked(deltas, weights)
    if len(deltas) == 1:
        return weighted_sum(deltas, weights)
    kept = deltas * largest(deltas, share_of("density", density))
    contribution = kept * weights.view(-1, *[1] * (deltas.dim() - 1))
    sign = torch.sign(contribution.sum(0))
    agrees = (torch.sign(contribution) == sign) & (contribution != 0)
    return scale * (contribution * agrees).sum(0) / agrees.sum(0).clamp_min(1)
