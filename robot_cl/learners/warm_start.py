"""How a cloned policy is improved, offline and online, without losing it: values first, and then in small steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from policies.actor import HALF_LOG_TWO_PI, ActorConfig, Sigma, StackedGaussianActor
from policies.critics import polyak
from policies.networks import StackedLinear
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, Metrics
from robot_cl.learners.incumbent import Incumbent, IncumbentConfig
from robot_cl.learners.sac import CloningConfig, Temperature, actor_lr

ANCHOR, WEIGHT, PART, SINCE = "anchor", "anchor_weight", "anchored_part", "anchored_since"
WANTED = "entropy_wanted"
SEEN = 4096  # states of the data, at most, over which the entropy of a clone is taken


class Part(IntEnum):
    """Where a run is: before its policy is a clone, after that on the dataset, or online."""

    clones = 0
    offline = 1
    online = 2


def clone_actor() -> ActorConfig:
    """A Gaussian that is cut off at the bounds: its logarithms of actions there are finite, those of a tanh are not."""
    return ActorConfig(sigma=Sigma.clamped_head, log_std_min=-5.0)


@dataclass
class WarmStartConfig(CloningConfig):
    """Options of those that improve a policy which was cloned, here or by another run.

    `kl_per_action` and `anchor_tau` together say how fast it moves: by about √(2 act_dim kl_per_action) of its own
    deviations in 1/anchor_tau updates.
    """

    actor: ActorConfig = field(default_factory=clone_actor)  # shape of the policy; ignored when one is loaded
    critic_only: int = 2_500  # first updates offline after cloning, and online, in which the policy waits for critics
    kl_per_action: float = 0.05  # nats from its anchor that the policy is held at, over act_dim
    anchor_tau: float = 3e-4  # how far the anchor moves to the policy per update of it, 0: not at all
    anchor: float = 1.0  # start of the weight per nat that holds it there
    anchor_lr: float = 3e-3  # Adam's learning rate of that weight, 0: it stays
    incumbent: IncumbentConfig = field(default_factory=lambda: IncumbentConfig(3, lost=0.2))  # what is published

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_only < 0 or not 0.0 <= self.anchor_tau <= 1.0:
            raise ValueError(
                f"critic_only is {self.critic_only} and anchor_tau {self.anchor_tau}; expected 0 or more, and "
                "anchor_tau at most 1"
            )
        if not (self.kl_per_action > 0.0 and self.anchor > 0.0 and self.anchor_lr >= 0.0):
            raise ValueError(
                f"kl_per_action is {self.kl_per_action}, anchor {self.anchor} and anchor_lr {self.anchor_lr}; "
                "expected positive numbers, anchor_lr also 0"
            )


class WarmStart:
    """The anchor of a learner's policy: an exponential average of it since it was a clone or came online.

    The policy is held within a few nats of it: a trust region in the form of a penalty whose weight adapts, as SAC's
    temperature does (Abdolmaleki et al. 2018, "Maximum a Posteriori Policy Optimisation"), around the average instead
    of the last policy. The average is also what challenges the incumbent (see incumbent.py), and is published where
    there is none. Remembers all of it in the learner, so that it is saved and captured with it.
    """

    def __init__(self, learner: Learner, config: WarmStartConfig):
        self.learner, self.config = learner, config
        self.policy: StackedGaussianActor = learner.add(ANCHOR, copy.deepcopy(learner.actor)).requires_grad_(False)
        self.policy.normalizer = learner.actor.normalizer
        learner.extra[PART] = torch.tensor(int(Part.clones))
        learner.extra[SINCE] = torch.tensor(0)
        self.weight = learner.add(WEIGHT, Temperature(learner.seeds, config.anchor))
        learner.opts[WEIGHT] = learner.optimiser([self.weight], config.anchor_lr)
        self.apart: Tensor | None = None  # (P,) nats at the last update
        self.usual = config.entropy_per_action * learner.act_dim
        learner.extra[WANTED] = torch.full((learner.seeds,), self.usual, device=learner.device)
        self.states: Tensor | None = None
        if config.incumbent.trials:
            learner.incumbent = Incumbent(learner, config.incumbent, lambda: self.candidates)

    @property
    def candidates(self) -> tuple[StackedGaussianActor, ...]:
        follows = self.config.anchor_tau > 0.0 and int(self.learner.extra[PART]) != Part.clones
        return (self.policy, self.learner.actor) if follows else (self.learner.actor,)

    def part(self, online: bool) -> Part:
        """Of the next update."""
        return Part.online if online else Part.clones if self.learner.step < self.config.cloning else Part.offline

    def moves(self, online: bool) -> bool:
        """Whether the next update moves the policy, or the critics alone."""
        known = int(self.learner.extra[PART]) == self.part(online)
        since = int(self.learner.extra[SINCE]) if known else self.learner.step
        return self.learner.step - since >= self.config.critic_only

    @property
    def wanted(self) -> Tensor:
        """The target of the entropy (P,), in nats: a clone that is narrower need not become wider.

        The anchor would hold it, and the entropy's weight rise until nothing else counts.
        """
        return self.learner.extra[WANTED]

    def attach_data(self, data: Transitions) -> None:
        """States (N, obs_dim) in which policies are compared with the target of the entropy."""
        self.states = data.obs[:: -(-len(data) // SEEN)]

    def begin_anew(self) -> None:
        """Forget the parts of a run that is continued: this one has its own."""
        self.learner.extra[PART].fill_(int(Part.clones))
        self.learner.extra[WANTED].fill_(self.usual)
        with torch.no_grad():
            self.weight.log_alpha.fill_(math.log(self.config.anchor))

    def schedule(self, online: bool) -> None:
        """The policy's rate at the next update; where cloning is over, its anchor is where it stands."""
        learner, part = self.learner, self.part(online)
        learner.opts["actor"].lr = actor_lr(self.config, learner.step, online)
        if int(learner.extra[PART]) != part:
            self._settle(part)
            if int(learner.extra[PART]) == Part.clones or part is Part.online:
                polyak(self.policy, learner.actor, 1.0)
            learner.extra[PART].fill_(int(part))
            learner.extra[SINCE].fill_(learner.step)

    @torch.no_grad()
    def _settle(self, part: Part) -> None:
        """Compare the policy's entropy with its target; what comes online wider than that becomes narrower at once.

        A clone of several behaviours has as much noise as these differ, and may fall over where its mean runs: what it
        explores would tell little about what is published, and values would have to learn to stand first.
        """
        if self.states is None or part is Part.clones:
            return
        _, log_std = self.learner.actor(self.states.expand(self.learner.seeds, -1, -1))
        entropy = (log_std + HALF_LOG_TWO_PI + 0.5).sum(-1).mean(-1)
        widths = widths_of(self.learner.actor) if part is Part.online else None
        if widths is not None:
            beyond = (entropy - self.usual).clamp(min=0.0)
            widths -= (beyond / self.learner.act_dim).view(-1, 1, 1)
            entropy = entropy - beyond
        self.wanted.copy_(entropy.clamp(max=self.usual))

    def penalty(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Weight times the KL divergence of the policy at z from its anchor, (P, B)."""
        with torch.no_grad():
            anchor = self.policy.heads(z)
        apart = gaussian_kl(mean, log_std, *anchor)
        self.apart = apart.detach().mean(-1)
        return self.weight().detach() * apart

    def follow(self) -> Metrics:
        """Anchor and weight after an update of the policy: the weight rises while it is too far away."""
        assert self.apart is not None
        wanted = self.config.kl_per_action * self.learner.act_dim
        (self.weight.log_alpha[:, 0] * (wanted - self.apart)).sum().backward()
        self.learner.opts[WEIGHT].step()
        if self.config.anchor_tau:
            polyak(self.policy, self.learner.actor, self.config.anchor_tau)
        return {"apart": self.apart, "anchor_weight": self.weight()[:, 0].detach()}


def widths_of(actor: StackedGaussianActor) -> Tensor | None:
    """What log σ grows with in all states alike, a view (P, 1, act_dim); None where there is no such parameter."""
    if actor.config.sigma is Sigma.parameter:
        return actor.log_std
    last = actor.net.layers[-1]
    if actor.config.sigma is Sigma.clamped_head and isinstance(last, StackedLinear):
        return last.bias[:, :, actor.act_dim :]
    return None


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, σ) ‖ N(other_mean, other_σ)) in nats, summed over the last axis: of their tanh it is the same."""
    apart = (2.0 * (log_std - other_log_std)).exp() + ((mean - other_mean) * (-other_log_std).exp()).square()
    return (0.5 * (apart - 1.0) + other_log_std - log_std).sum(-1)
