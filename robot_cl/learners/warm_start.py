"""How a policy learned offline is moved online without losing it: values first, and then near where it stood."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.learners.base import Learner
from robot_cl.learners.sac import CloningConfig, actor_lr

ANCHOR, WEIGHT, SINCE = "anchor", "anchor_weight", "online_since"


@dataclass
class WarmStartConfig(CloningConfig):
    """Options of those that go on online from a policy."""

    critic_only: int = 2_500  # online: first updates, in which the critics learn what the policy earns and it waits
    anchor: float = 1.0  # online: weight per nat of how far the policy is from the one that came online
    anchor_decay: int = 50_000  # online: updates over which that weight falls linearly to zero, 0: it stays
    online_lr: float | None = None  # online: Adam's learning rate of the policy, none: lr

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.critic_only, self.anchor, self.anchor_decay) < 0:
            raise ValueError(
                f"critic_only is {self.critic_only}, anchor {self.anchor} and anchor_decay {self.anchor_decay}; "
                "expected 0 or more"
            )


class WarmStart:
    """A learner's online part so far: the policy with which it began, and since which update.

    Remembers both in the learner, so that they are saved and captured with it.
    """

    def __init__(self, learner: Learner, config: WarmStartConfig):
        self.learner, self.config = learner, config
        self.policy: StackedGaussianActor = learner.add(ANCHOR, copy.deepcopy(learner.actor)).requires_grad_(False)
        learner.extra[SINCE] = torch.tensor(-1)
        learner.extra[WEIGHT] = torch.zeros((), device=learner.device)

    @property
    def updates(self) -> int:
        """Online updates so far."""
        since = int(self.learner.extra[SINCE])
        return 0 if since < 0 else self.learner.step - since

    @property
    def waits(self) -> bool:
        """Whether the next update moves the critics alone."""
        return self.updates < self.config.critic_only

    def begin_anew(self) -> None:
        """Forget the online part of a run that is continued: this one has its own."""
        self.learner.extra[SINCE].fill_(-1)

    @torch.no_grad()
    def schedule(self, online: bool) -> None:
        """Rates and weights of the next update; before the first one online, where the policy stands is kept."""
        learner, c = self.learner, self.config
        learner.opts["actor"].lr = actor_lr(c, learner.step, online)
        if not online:
            return
        if c.online_lr is not None:
            learner.opts["actor"].lr = c.online_lr
        if learner.extra[SINCE] < 0:
            learner.extra[SINCE].fill_(learner.step)
            self.policy.load_state_dict(learner.actor.state_dict())
        moved = max(0, self.updates - c.critic_only)
        left = max(0.0, 1.0 - moved / c.anchor_decay) if c.anchor_decay else 1.0
        learner.extra[WEIGHT].fill_(c.anchor * left)

    def penalty(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Weight times the KL divergence of the policy at z from that with which it began, (P, B)."""
        with torch.no_grad():
            before = self.policy.heads(z)
        return self.learner.extra[WEIGHT] * gaussian_kl(mean, log_std, *before)


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, σ) ‖ N(other_mean, other_σ)) in nats, summed over the last axis: of their tanh it is the same."""
    apart = (2.0 * (log_std - other_log_std)).exp() + ((mean - other_mean) * (-other_log_std).exp()).square()
    return (0.5 * (apart - 1.0) + other_log_std - log_std).sum(-1)
