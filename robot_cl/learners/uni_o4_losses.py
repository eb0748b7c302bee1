"""What Uni-O4 minimises offline: expectiles of values, diverse clones, and an improvement that is clipped.

Lei et al. 2024, sections 3 and 4. Every loss keeps its leading axes: one number per member.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Compat(StrEnum):
    """`ours`, or `reference`: as the published code behaves.

    Its diversity term compares with the best of the other members only (a constant factor, so without effect under
    Adam), its gate looks at one unpaired mean, and its result is the last policy, whether it was accepted or not.
    """

    ours = "ours"
    reference = "reference"


def expectile_loss(gap: Tensor, expectile: float) -> Tensor:
    """Phase 1: mean_B |ω − 1(u < 0)| u² of u = min Q̄(s, a) − V(s), (P, B) -> (P,)."""
    weight = torch.where(gap.detach() < 0.0, 1.0 - expectile, expectile)
    return (weight * gap.square()).mean(-1)


def behaviour_loss(log_prob: Tensor, diversity: float, compat: Compat = Compat.ours) -> Tensor:
    """Phase 3: −log π_i − α (log π_i − max_j log π_j), log_prob (P, n, B) -> (P, n).

    The maximum includes i itself, the others are constants: the extra weight acts where i is not the best.
    """
    top = log_prob.detach().topk(min(2, log_prob.shape[1]), 1).values
    best, second = top[:, 0], top[:, -1]  # (P, B)
    is_best = log_prob.detach() == best.unsqueeze(1)
    others = torch.where(is_best, second.unsqueeze(1), best.unsqueeze(1))
    peak = others if compat is Compat.reference else torch.maximum(log_prob, others)
    return -(log_prob + diversity * (log_prob - peak)).mean(-1)


def standardised(advantage: Tensor) -> Tensor:
    """Zero mean, unit deviation over the last axis, for every member on its own."""
    return (advantage - advantage.mean(-1, keepdim=True)) / (advantage.std(-1, keepdim=True) + 1e-8)


def clipped_improvement(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Phase 4: −mean_B min(ρ Â, clip(ρ, 1 ± ε) Â), (..., B) -> (...)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean(-1)
