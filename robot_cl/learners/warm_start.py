"""How a policy learned offline is moved online without losing it: values first, and then in small steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.critics import polyak
from robot_cl.learners.base import Learner
from robot_cl.learners.sac import CloningConfig, actor_lr

ANCHOR, SINCE = "anchor", "online_since"


@dataclass
class WarmStartConfig(CloningConfig):
    """Options of those that go on online from a policy."""

    critic_only: int = 2_500  # online: first updates, in which the critics learn what the policy earns and it waits
    anchor: float = 0.1  # online: weight per nat of how far the policy is from its anchor, which it came online as
    anchor_tau: float = 1e-3  # online: how far the anchor moves to the policy per update of it, 0: not at all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_only < 0 or self.anchor < 0.0 or not 0.0 <= self.anchor_tau <= 1.0:
            raise ValueError(
                f"critic_only is {self.critic_only}, anchor {self.anchor} and anchor_tau {self.anchor_tau}; "
                "expected 0 or more, and anchor_tau at most 1"
            )


class WarmStart:
    """A learner's online part: which update began it, and the anchor, an exponential average of the policy since then.

    The penalty makes each step one of mirror descent (Tomar et al. 2022, "Mirror Descent Policy Optimization"), from
    the average instead of the last policy; the average is also what is published. Remembers both in the learner, so
    that they are saved and captured with it.
    """

    def __init__(self, learner: Learner, config: WarmStartConfig):
        self.learner, self.config = learner, config
        self.policy: StackedGaussianActor = learner.add(ANCHOR, copy.deepcopy(learner.actor)).requires_grad_(False)
        self.policy.normalizer = learner.actor.normalizer
        learner.extra[SINCE] = torch.tensor(-1)

    @property
    def published(self) -> StackedGaussianActor:
        begun = self.config.anchor_tau and self.learner.extra[SINCE] >= 0
        return self.policy if begun else self.learner.actor

    @property
    def waits(self) -> bool:
        """Whether the next update moves the critics alone."""
        since = int(self.learner.extra[SINCE])
        return since < 0 or self.learner.step - since < self.config.critic_only

    def begin_anew(self) -> None:
        """Forget the online part of a run that is continued: this one has its own."""
        self.learner.extra[SINCE].fill_(-1)

    @torch.no_grad()
    def schedule(self, online: bool) -> None:
        """The policy's rate at the next update; before the first one online the anchor is where it stands."""
        learner = self.learner
        learner.opts["actor"].lr = actor_lr(self.config, learner.step, online)
        if online and learner.extra[SINCE] < 0:
            learner.extra[SINCE].fill_(learner.step)
            polyak(self.policy, learner.actor, 1.0)

    def follow(self) -> None:
        """The anchor after an update of the policy."""
        if self.config.anchor_tau:
            polyak(self.policy, self.learner.actor, self.config.anchor_tau)

    def penalty(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Weight times the KL divergence of the policy at z from its anchor, (P, B)."""
        with torch.no_grad():
            anchor = self.policy.heads(z)
        return self.config.anchor * gaussian_kl(mean, log_std, *anchor)


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, σ) ‖ N(other_mean, other_σ)) in nats, summed over the last axis: of their tanh it is the same."""
    apart = (2.0 * (log_std - other_log_std)).exp() + ((mean - other_mean) * (-other_log_std).exp()).square()
    return (0.5 * (apart - 1.0) + other_log_std - log_std).sum(-1)
