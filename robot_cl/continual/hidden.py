"""The library where nobody announces borders: contexts that it found by itself in place of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter
from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.continual.actors import side_by_side
from robot_cl.continual.likeness import same
from robot_cl.continual.method import Setup, below, learned_skills
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.route import Decision, Route, Tried
from robot_cl.continual.trials import Snapshots, scores
from robot_cl.learners.base import Learner
from sim.stream import Stage

HEARD = 5  # times that what is being learned plays in its context without `checks`: once that is over, it cannot
SETTLED = 0.5  # a skill trained for less than this share of a task's budget is trained on, however well it does


class HiddenLibrary(SkillLibrary):
    """The library with contexts it found by itself in place of tasks. Remembers where it is, the names of the contexts,
    for how many steps each skill has been trained, and what is being learned did when it last played."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.here = setup.stream.stages[0]  # the world as it is; whatever plays plays in it
        self.contexts: list[str] = []
        self.learning: Learner | None = None  # in the context that goes on
        self.trained: dict[str, int] = {}
        self.hearings, self.heard = Snapshots(0, []), np.empty(0)

    def stage(self, k: int) -> Stage:
        return replace(self.here, name=self.contexts[k])

    def meet(self) -> tuple[Learner | None, int]:
        """Something new is going on: a context of its own, decided about as an announced task would be."""
        self.contexts.append(f"context {len(self.contexts) + 1}")
        self.learning, spent = self.begin(len(self.contexts) - 1)
        self.hearings, self.heard = Snapshots(HEARD, [], self.trials.learning(self.here)), np.empty(0)
        return self.learning, spent

    def during(self, k: int, learner: Learner, fresh: Transitions, done: float) -> int:
        if self.config.checks:
            return super().during(k, learner, fresh, done)
        if not self.hearings.due(fresh.reward[0].numel()):
            return 0
        self.heard, spent = self.trials.long(self._with(learned_skills(learner)), self.here)
        return spent

    def _outcome(self, k: int, learner: Learner) -> list[tuple[Adapter | None, float]]:
        """As it was when it last played: the world in which it was learned is gone."""
        if self.config.checks:
            return list(zip(self.snapshots.skills, self.snapshots.levels, strict=True))
        gained = learned_skills(learner)
        return self._judged(gained, self.heard) if self.heard.size else [(gained[0], self.now[0].trial)]

    def unchanged(self) -> tuple[bool, int]:
        """Whether the context goes on, and the steps that finding out took; in a world with noise of its own every
        alarm counts."""
        _, spent, sketch = self._meet(self.here)
        return same(self.sketch[0], sketch[0]), spent

    def decide(self, stage: Stage) -> Decision:
        found = super().decide(stage)
        return found._replace(routes=[replace(r, reached=r.reached and self._settled(r, stage)) for r in found.routes])

    def _settled(self, route: Route, stage: Stage) -> bool:
        return sum(self.trained.get(name, 0) for name in route.mix) >= SETTLED * stage.steps

    def leave(self, learner: Learner | None, steps: int) -> None:
        """The context is over: keep what was learned in it."""
        self.end(len(self.contexts) - 1, learner, None)
        ended = self.routes[-1][0]
        if ended.learned:
            self.trained[ended.skill] = steps

    def kept_bytes(self) -> int:
        """With what is being learned: it is played like what is published."""
        factors = learned_skills(self.learning)[0].layers.values() if self.learning is not None else ()
        return super().kept_bytes() + sum(t.numel() * t.element_size() for pair in factors for t in pair)

    def policy(self, j: int) -> StackedGaussianActor:
        """No task is known by name: the base, what is played in the contexts that began most alike, and what is being
        learned play whole episodes of it, and the best of them goes on. A policy that falls late looks as good as one
        that never does in anything shorter."""
        stage = self.setup.stream.stages[j]
        bare, _, sketch = self._meet(stage)
        known = self._known([Tried("base", {}, bare[0])], sketch[0], 0)
        actors = [self._composed([mix]) for mix in ({}, *(mix for _, mix in known))]
        if self.learning is not None:
            actors.append(self.current(-1, self.learning))
        found = scores(self.trials.play(side_by_side(actors), stage, None), stage)
        return actors[int(found.mean(-1).argmax())]

    # The state, with what is being learned in the context that goes on

    def tensors(self) -> dict[str, Tensor]:
        learner = self.learning.state_dict() if self.learning is not None else {}
        here = {"now.sketch": torch.from_numpy(self.sketch), "now.heard": torch.from_numpy(self.heard)}
        return super().tensors() | here | {f"learner.{name}": value for name, value in learner.items()}

    def facts(self) -> dict[str, Any]:
        return super().facts() | {
            "contexts": self.contexts,
            "now": [asdict(route) for route in self.now],
            "trained": self.trained,
            "hearings": self.hearings.facts(),
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.contexts, self.trained = list(facts["contexts"]), dict(facts["trained"])
        self.now = [Route(**route) for route in facts["now"]]
        self.hearings.restore({}, facts["hearings"])
        self.sketch, self.heard = tensors["now.sketch"].numpy(), tensors["now.heard"].numpy()
        state = below(tensors, "learner.")
        self.learning = self._new_learner(len(self.contexts) - 1) if state else None
        if self.learning is not None:
            self.learning.load_state_dict(state)

    def drop_unknown(self) -> None:
        """Take out of the library what is not part of the state: a process that was killed has gone on after it."""
        for library, known in zip(self.libraries, self.levels, strict=True):
            for name in library.names():
                if name not in known:
                    library.remove(name)


class Playing:
    """An explorer that learns nothing: the composition that was enough, with the base's own noise."""

    def __init__(self, actor: StackedGaussianActor, seed: int):
        self.actor, self.rng, self.seeds, self.device = actor, generators(seed, 1), 1, "cpu"

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=self.rng[0])

    @torch.inference_mode()
    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(obs)
        return self.actor.sample(mean, log_std, noise)[0]
