"""Trials of policies on a task, part of its budget, and the snapshot of each seed's skill that won them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors
from robot_cl.continual.actors import side_by_side
from robot_cl.continual.likeness import LOOKS
from robot_cl.continual.method import Setup
from robot_cl.continual.stage_worlds import Played, play, stage_world
from robot_cl.seeding import EVALUATION_SEED
from sim.stream import Stage

TRIAL_SEED = EVALUATION_SEED // 2
LEAD = 0.1  # share of a score by which another is more than a little better
FINALISTS = 3  # the base and two others play whole episodes after the short trial, as what comes of the training does


class Trials:
    """Deterministic policies in a setup's `trial_worlds`, from the same starts whoever plays."""

    def __init__(self, setup: Setup):
        self.setup, self.config = setup, setup.config

    def play(self, actor: StackedGaussianActor, stage: Stage, steps: int | None, number: int = 0) -> Played:
        """At most so many steps, None: whole episodes. Trials of other numbers have other starts."""
        worlds = self.config.trial_worlds
        world = stage_world([stage] * (actor.population * worlds), self.setup.threads)
        first = TRIAL_SEED + number * worlds
        return play(actor, world, [first + i % worlds for i in range(world.num_worlds)], steps, max(LOOKS))

    def long(self, actor: StackedGaussianActor, stage: Stage, number: int = 0) -> tuple[np.ndarray, int]:
        """Scores (members, starts) in the longer trial, and the steps that it took of each member."""
        done = self.play(actor, stage, self.length(stage), number)
        return scores(done, stage), self.config.trial_worlds * done.steps

    def between(
        self, one: StackedGaussianActor, other: StackedGaussianActor, stage: Stage, number: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Both in the longer trial -> scores (seeds, starts) of each, and the steps per seed."""
        found, steps = self.long(side_by_side([one, other]), stage, number)
        first, second = np.split(found, 2)
        return first, second, 2 * steps

    def length(self, stage: Stage) -> int:
        """Steps of the longer trial at most: an episode, but no more than half of `trial_share` in all."""
        share = 0.5 * self.config.trial_share * stage.steps
        return max(self.config.trial_steps, int(share / ((FINALISTS + 1) * self.config.trial_worlds)))

    def learning(self, stage: Stage) -> int:
        """Steps of the budget that are left to learn from once the `checks` and the last trial are paid."""
        trials = (self.config.checks + 1) * 2 * self.config.trial_worlds * self.length(stage)
        return max(1, stage.steps - trials)


def scores(done: Played, stage: Stage) -> np.ndarray:
    """What counts on a task, (members, starts)."""
    return done.returns if stage.measure == "return" else np.maximum(done.success, 0).astype(float)


class Snapshots:
    """What each seed is learning, as it was when it last won a trial: a policy that falls in one rollout and not in the
    next is played as it was when it did not.

    In each of `checks` trials, equally spaced over the `steps` that are learned from, whatever else was paid out of the
    budget, the present skill plays against the one that is kept, at first none, from starts that neither has played
    from: else whoever was lucky once would stay. It is kept where it does better; where it does so by `LEAD`, learning
    leads, and is played as it goes on until the next trial. Remembers these skills, who leads, the score of the one
    kept in the last trial, and the steps so far.
    """

    def __init__(self, checks: int, leads: Sequence[bool], steps: int = 1):
        self.checks, self.leads, self.steps = checks, list(leads), steps
        self.skills: list[Adapter | None] = [None] * len(self.leads)
        self.levels = [0.0] * len(self.leads)
        self.looked = self.learned = 0

    def due(self, more: int) -> bool:
        """Whether after so many steps more it is time for the next trial; it counts as made."""
        self.learned += more
        due = min(self.learned * (self.checks + 1) // self.steps, self.checks)
        late, self.looked = due > self.looked, max(due, self.looked)
        return late

    def heard(self, skills: Sequence[Adapter], now: np.ndarray, kept: np.ndarray) -> None:
        """Present skills, their scores (seeds, starts), and those of what is kept."""
        for p, (one, other) in enumerate(zip(now.mean(-1).tolist(), kept.mean(-1).tolist(), strict=True)):
            self.leads[p], self.levels[p] = one > other + LEAD * abs(other), max(one, other)
            if one > other:
                self.skills[p] = skills[p]

    def played(self, skills: Sequence[Adapter]) -> list[Adapter | None]:
        """Present skills where learning leads, else the ones kept."""
        return [now if leads else kept for now, kept, leads in zip(skills, self.skills, self.leads, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        return {f"snapshot.{name}": tensor for name, tensor in stored(self.skills).items()}

    def facts(self) -> dict[str, Any]:
        names = ("checks", "steps", "leads", "levels", "looked", "learned")
        return {name: getattr(self, name) for name in names}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.checks, self.steps = facts.get("checks", self.checks), facts.get("steps", self.steps)
        self.leads, self.levels = list(facts["leads"]), list(facts["levels"])
        self.looked, self.learned = int(facts["looked"]), int(facts["learned"])
        self.skills = [skill_in(tensors, f"snapshot.{p}/") for p in range(len(self.leads))]


def stored(skills: Sequence[Adapter | None]) -> dict[str, Tensor]:
    """ "<member>/<layer>/down" and "up" of each member that has a skill."""
    return {
        f"{p}/{layer}/{part}": tensor
        for p, skill in enumerate(skills) if skill is not None
        for layer, factors in skill.layers.items()
        for part, tensor in factors._asdict().items()
    }  # fmt: skip


def skill_in(tensors: Mapping[str, Tensor], prefix: str) -> Adapter | None:
    """The skill stored as "<prefix><layer>/down" and "up"; None where there is none."""
    layers = sorted({name.removeprefix(prefix).rsplit("/", 1)[0] for name in tensors if name.startswith(prefix)})
    factors = {n: Factors(tensors[f"{prefix}{n}/down"], tensors[f"{prefix}{n}/up"]) for n in layers}
    return Adapter(factors) if factors else None
