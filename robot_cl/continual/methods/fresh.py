"""A fresh skill for each task, kept but never used for another: a library without its use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, with_skills
from robot_cl.continual.method import Method, Setup, learned_skills
from robot_cl.continual.methods.one_network import flat, listed
from robot_cl.learners.base import Learner


class Fresh(Method):
    """Learn a skill on the frozen base for each task. Remembers them; a task not seen yet gets the base."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.skills: list[State] = []  # of each task: "<member>.<layer>.down" and "up"

    def begin(self, k: int) -> tuple[Learner | None, int]:
        return self.learner(k, self.setup.base, self.setup.values, skill=True), 0

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        assert learner is not None
        self.skills.append({
            f"{p}/{layer}/{part}": tensor
            for p, skill in enumerate(learned_skills(learner))
            for layer, factors in skill.layers.items()
            for part, tensor in factors._asdict().items()
        })  # fmt: skip

    def policy(self, j: int) -> StackedGaussianActor:
        if j >= len(self.skills):
            return self.setup.base
        return with_skills(self.setup.base, [self._skill(j, p) for p in range(self.setup.seeds)])

    def _skill(self, j: int, p: int) -> Adapter:
        found = self.skills[j]
        layers = {name.split("/")[1] for name in found if name.startswith(f"{p}/")}
        return Adapter({n: Factors(found[f"{p}/{n}/down"], found[f"{p}/{n}/up"]) for n in sorted(layers)})

    def kept(self) -> dict[str, Tensor]:
        return flat("skill", self.skills)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self.kept()

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.skills = listed(tensors, "skill")
