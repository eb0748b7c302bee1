"""A task of one step with a known best action, data of it, and learners without its advantages."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import UniO4Config

# Two policies per seed that learn the task in a second; values and models are left to the tests.
SMALL_UNI_O4 = UniO4Config(
    actor=replace(UniO4Config().actor, hidden=(32, 32)),
    critic=CriticConfig(hidden=(32, 32)),
    behaviours=2,
    behaviour_steps=400,
    improve_steps=150,
    improve_lr=1e-3,
    discount=0.5,
    gate=GateConfig(every=10, horizon=4, starts=16, end_steps=1, confidence=0.5),
)


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
