"""A task of one step with a known best action, data of it, and learners without its advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from robot_cl.batch import Transitions
from robot_cl.learners.uni_o4 import UniO4


def best_action(obs: Tensor) -> Tensor:
    return 0.5 * torch.tanh(obs[..., :1])


def task(rows: int = 3000, worth: float = 0.0) -> Transitions:
    """Reward 1 − (a − best(s))² beside `worth` of the state's second number, actions of the data N(0, 0.3), the next
    state is a small walk."""
    rng = torch.Generator().manual_seed(1)
    obs = torch.randn(rows, 2, generator=rng)
    action = (0.3 * torch.randn(rows, 1, generator=rng)).clamp(-1, 1)
    reward = 1.0 - (action - best_action(obs)).square().squeeze(-1) + worth * obs[:, 1]
    after = 0.9 * obs + 0.1 * torch.randn(rows, 2, generator=rng)
    return Transitions(obs, action, reward, after, torch.zeros(rows), torch.zeros(rows))


class Permuted(UniO4):
    """Advantages of other states."""

    def credited(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return super().credited(log_ratio, advantage.roll(17, -1))


class Negated(UniO4):
    def credited(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return super().credited(log_ratio, -advantage)
