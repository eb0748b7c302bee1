"""Weighted mean of the skills."""

import torch
from torch import Tensor

from policies.merging.operator import checked


def average(deltas: Tensor, weights: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Σ w_k τ_k / Σ w_k. A zero skill dilutes the mean. Raises ValueError if the weights sum to 0.

    Wortsman et al. 2022 (model soups).
    """
    checked(deltas, weights)  # the checks only: here zero skills count
    weights = weights.to(deltas)
    total = weights.sum()
    if abs(total) < 1e-12:
        raise ValueError("the weights of an average sum to 0; give weights with a positive sum")
    return torch.tensordot(weights / total, deltas, 1)
