"""Drop at random and rescale, then sum."""

import torch
from torch import Tensor

from policies.merging.operator import SMALL, checked, skill_generators, weighted_sum


def dare(
    deltas: Tensor,
    weights: Tensor,
    rng: torch.Generator | None = None,
    drop: float = 0.5,
    scale: float = 1.0,
) -> Tensor:
    """λ Σ w_k (m_k ∘ τ_k) / (1 − p), m_k Bernoulli(1 − p). Yu et al. 2024.

    A skill's mask follows from `rng` and its own content. Small tensors are summed whole; a zero skill changes nothing.
    """
    if not 0.0 <= drop < 1.0:
        raise ValueError(f"drop is {drop}; expected a probability in [0, 1)")
    deltas, weights = checked(deltas, weights)
    if len(deltas) == 1:
        return weighted_sum(deltas, weights)
    if deltas[0].numel() < SMALL:
        return scale * weighted_sum(deltas, weights)
    draws = [torch.rand(deltas.shape[1:], generator=g) for g in skill_generators(deltas, rng)]
    kept = torch.stack(draws).to(deltas.device) >= drop
    return scale * weighted_sum(deltas * kept / (1.0 - drop), weights)
