"""A fresh skill for each task, kept but never used for another: a library without its use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, with_skills
from robot_cl.continual.method import Method, Setup, learned_skills
from robot_cl.continual.methods.one_network import flat, listed
from robot_cl.continual.trials import Snapshots, Trials, skill_in, stored
from robot_cl.learners.base import Learner


class Fresh(Method):
    """Learn a skill on the frozen base for each task; with `checks` it is played and kept as it was when it last did
    better in a trial. Remembers them; a task not seen yet gets the base."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.skills: list[State] = []  # of each task: "<member>/<layer>/down" and "up"
        self.trials, self.snapshots = Trials(setup), Snapshots(0, [])

    def begin(self, k: int) -> tuple[Learner | None, int]:
        leads = [True] * self.setup.seeds
        self.snapshots = Snapshots(self.config.checks, leads, self.trials.learning(self.stage(k)))
        return self.learner(k, self.setup.base, self.setup.values, skill=True), 0

    def during(self, k: int, learner: Learner, fresh: Transitions, done: float) -> int:
        return self._check(k, learner) if self.snapshots.due(fresh.reward[0].numel()) else 0

    def _check(self, k: int, learner: Learner) -> int:
        """Present skills against those kept, from starts of their own -> the steps per seed."""
        gained, kept = learned_skills(learner), with_skills(self.setup.base, self.snapshots.skills)
        now, before, spent = self.trials.between(learner.policy(), kept, self.stage(k), self.snapshots.looked)
        self.snapshots.heard(gained, now, before)
        return spent

    def current(self, k: int, learner: Learner | None) -> StackedGaussianActor:
        if not self.config.checks or learner is None:
            return super().current(k, learner)
        return with_skills(self.setup.base, self.snapshots.played(learned_skills(learner)))

    def afterwards(self, k: int) -> int:
        return 2 * self.config.trial_worlds * self.trials.length(self.stage(k)) if self.config.checks else 0

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        assert learner is not None
        if self.config.checks:
            self.snapshots.looked += 1
            self._check(k, learner)
        self.skills.append(stored(self.snapshots.skills if self.config.checks else learned_skills(learner)))

    def policy(self, j: int) -> StackedGaussianActor:
        if j >= len(self.skills):
            return self.setup.base
        return with_skills(self.setup.base, [skill_in(self.skills[j], f"{p}/") for p in range(self.setup.seeds)])

    def kept(self) -> dict[str, Tensor]:
        return flat("skill", self.skills)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self.kept() | self.snapshots.tensors()

    def facts(self) -> dict[str, Any]:
        return {"snapshots": self.snapshots.facts()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.skills = listed(tensors, "skill")
        self.snapshots.restore(tensors, facts["snapshots"])
