"""Policy evaluation on a dataset: what policies are worth that move away from what acted there.

The values of a dataset are those of its behaviour. A policy that is improved step by step leaves it, and what an action
brings then depends on what that policy does afterwards: so critics are fitted to the policy itself, by one-step targets
with a next action drawn from it. Where no data tells, critics that began apart disagree, and what they
disagree about is taken off (Ghasemipour et al. 2022, "Why So Pessimistic?", whose independent targets these are not:
one pessimistic target serves all).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from policies.critics import CriticConfig, StackedQ, polyak
from robot_cl.learners.ranges import not_negative, positive
from robot_cl.learners.sac import bellman_target, td_loss


@dataclass
class EvaluationConfig:
    """Options of advantages by policy evaluation."""

    critics: int = 3  # of each policy
    doubt: float = 1.0  # standard deviations between critics that are taken off their mean
    before: int = 3_000  # updates of the critics before the first policy gradient step
    updates: int = 8  # of the critics per policy gradient step
    lr: float = 1e-3  # Adam's learning rate of the critics, falling to zero along a cosine
    tau: float = 0.005  # how far the targets move to the critics per update

    def __post_init__(self) -> None:
        positive(self, "critics", "lr", "updates")
        not_negative(self, "doubt", "before")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"evaluated.tau is {self.tau}; expected a number in (0, 1]")


class Evaluation(nn.Module):
    """Critics of policies, `config.critics` each, and their slow targets; layers are normalised. Remembers both."""

    def __init__(
        self, obs_dim: int, act_dim: int, rngs: Sequence[torch.Generator], config: EvaluationConfig,
        critic: CriticConfig,
    ):  # fmt: skip
        super().__init__()
        self.config = config
        self.q = StackedQ(obs_dim, act_dim, rngs, config.critics, replace(critic, layer_norm=True))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """What the critics agree on: z (M, B, obs_dim), action (M, B, act_dim) -> (M, B)."""
        return self._agreed(self.q(z, action))

    def loss(
        self, z: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, z_next: Tensor, next_action: Tensor,
        discount: float,
    ) -> Tensor:  # fmt: skip
        """One-step error of M policies, each row of its own: (M, B, ·) and (M, B) -> (M,)."""
        with torch.no_grad():
            target = bellman_target(reward, terminated, self._agreed(self.target(z_next, next_action)), discount)
        return td_loss(self.q(z, action), target)

    def follow(self) -> None:
        """The targets, after an update of the critics."""
        polyak(self.target, self.q, self.config.tau)

    def _agreed(self, q: Tensor) -> Tensor:
        """Mean less doubt, (M, N, B) -> (M, B)."""
        spread = q.std(1) if q.shape[1] > 1 else torch.zeros_like(q[:, 0])
        return q.mean(1) - self.config.doubt * spread
