"""Averages of the policies that a run passes through: what is published, while the last one acts and learns."""

from __future__ import annotations

import copy

from policies.actor import StackedGaussianActor
from policies.critics import polyak
from robot_cl.learners.base import Learner

AVERAGE = "average"


class PolicyAverage:
    """The exponential average of a learner's policy, weight by weight (Polyak & Juditsky 1992).

    Remembers it as one of the learner's networks, saved with it; it shares the statistics of what acts.
    """

    def __init__(self, learner: Learner, decay: float):
        """`decay` is the weight that the average keeps at every step."""
        self.learner, self.decay = learner, decay
        self.policy: StackedGaussianActor = learner.add(AVERAGE, copy.deepcopy(learner.actor)).requires_grad_(False)
        self.policy.normalizer = learner.actor.normalizer

    def begin(self) -> None:
        """The average is the policy as it stands."""
        polyak(self.policy, self.learner.actor, 1.0)

    def follow(self) -> None:
        """One step of the average towards the policy."""
        self.policy.config = self.learner.actor.config
        polyak(self.policy, self.learner.actor, 1.0 - self.decay)
