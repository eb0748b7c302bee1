"""What makes a skill imitate, seek reward or avoid cost: weights of the imitation loss, and their value targets.

PSEC (Liu et al. 2025, section 4); the cost value is FISOR's (Zheng et al. 2024). Pure functions of tensors of any
shape. Imitation is weight 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_WEIGHT = 100.0


def reward_weight(q: Tensor, v: Tensor, temperature: float = 1.0, largest: float = LARGEST_WEIGHT) -> Tensor:
    """min(exp((Q − V) / temperature), largest): more of what is better than the data's average. Not differentiated."""
    return torch.exp(((q - v) / temperature).detach()).clamp_max(largest)


def cost_weight(q_cost: Tensor, v_cost: Tensor, largest: float = LARGEST_WEIGHT) -> Tensor:
    """1[Q_h < V_h] · min(exp(V_h − Q_h), largest): only what is safer than expected. Not differentiated."""
    safer = (v_cost - q_cost).detach()
    return torch.where(safer > 0, torch.exp(safer).clamp_max(largest), torch.zeros_like(safer))


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|expectile − 1[u < 0]| u² per element, u = Q − V; 0.7 makes V lean to the best actions. Kostrikov et al. 2022."""
    return torch.where(difference < 0, 1.0 - expectile, expectile) * difference.square()


def reversed_expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|expectile − 1[u > 0]| u², u = Q_h − V_h; 0.9 makes V_h lean to the safest actions."""
    return expectile_loss(-difference, expectile)


def cost_target(cost: Tensor, next_v_cost: Tensor, discount: float) -> Tensor:
    """Hamilton-Jacobi target (1 − γ) c + γ max(c, V_h(s')): the worst cost ahead, not the sum. Fisac et al. 2019."""
    return (1.0 - discount) * cost + discount * torch.maximum(cost, next_v_cost)
