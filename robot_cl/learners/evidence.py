"""How far the data bears out what values claim of actions, before a policy is moved by them.

A value learned by bootstrapping can tell of every action how good it was, and be wrong: it remembers the accidents of
single transitions, above all where one narrow behaviour was seen. What happened in the steps after tells otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robot_cl.batch import Transitions

STEPS = 10  # of the data that are looked ahead: with more, what else happened there drowns the action


def follows(data: Transitions) -> Tensor:
    """Whether the next row goes on where this one ends, (N,) bool."""
    found = torch.zeros(len(data), dtype=torch.bool, device=data.obs.device)
    ended = (data.terminated + data.truncated) > 0
    found[:-1] = ~ended[:-1] & (data.next_obs[:-1] == data.obs[1:]).all(-1)
    return found


def realised(data: Transitions, value: Tensor, next_value: Tensor, discount: float, steps: int = STEPS) -> Tensor:
    """Σ_k γ^k r_k + γ^n V(s_n) − V(s), what came of each action of data (N,); both values (P, N) -> (P, N).

    n is `steps`, or less where the transitions that follow in the data are not of the same episode. Rewards are in the
    unit of the values.
    """
    N, goes_on = len(data), follows(data)
    at, weight = torch.arange(N, device=data.obs.device), 1.0
    total, going = torch.zeros_like(value), torch.ones(N, device=data.obs.device)
    for k in range(steps):
        total += going * weight * data.reward[at]
        last = going * (1.0 if k == steps - 1 else (~goes_on[at]).float())
        total += last * discount * weight * (1.0 - data.terminated[at]) * next_value[:, at]
        going = going - last
        at, weight = (at + 1).clamp(max=N - 1), weight * discount
    return total - value


def trust(claimed: Tensor, found: Tensor, steps: int = STEPS, deviations: float = 2.0) -> Tensor:
    """Share of a claimed advantage that was found, (P, N) twice -> (P,) in [0, 1].

    The slope of the regression of `found` on `claimed`, less `deviations` standard errors; of rows that look ahead over
    the same steps only one in `steps` counts.
    """
    x, y = claimed - claimed.mean(1, keepdim=True), found - found.mean(1, keepdim=True)
    spread = x.square().sum(1).clamp_min(1e-12)
    slope = (x * y).sum(1) / spread
    rest = (y - slope.unsqueeze(1) * x).square().mean(1)
    return (slope - deviations * (rest * steps / spread).sqrt()).clamp(0.0, 1.0)
