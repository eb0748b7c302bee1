"""Leave out the largest outliers and the smallest noise, then sum."""

import torch
from torch import Tensor

from policies.merging.operator import SMALL, checked, weighted_sum


def breadcrumbs(
    deltas: Tensor,
    weights: Tensor,
    rng: torch.Generator | None = None,
    density: float = 0.85,
    top: float = 0.01,
    scale: float = 1.0,
) -> Tensor:
    """λ Σ w_k (m_k ∘ τ_k), m_k without the `top` share of largest |τ| and without the smallest, `density` kept in all.

    Davari and Belilovsky 2024. Small tensors are summed whole; a zero skill changes nothing.
    """
    if not (0.0 <= top < 1.0 and 0.0 < density <= 1.0 - top):
        raise ValueError(f"density {density} and top {top} do not fit; expected 0 < density ≤ 1 − top")
    deltas, weights = checked(deltas, weights)
    if len(deltas) == 1:
        return weighted_sum(deltas, weights)
    n = deltas[0].numel()
    if n < SMALL:
        return scale * weighted_sum(deltas, weights)
    place = deltas.abs().flatten(1).argsort(dim=1, stable=True).argsort(dim=1)  # 0: smallest
    highest = n - int(top * n)
    kept = (place < highest) & (place >= highest - max(1, round(density * n)))
    return scale * weighted_sum(deltas * kept.view_as(deltas), weights)
