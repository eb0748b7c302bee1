"""Trials of policies on a task, part of its budget, and the snapshot of each seed's skill that did best in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors
from robot_cl.continual.likeness import LOOKS
from robot_cl.continual.method import Setup
from robot_cl.continual.stage_worlds import Played, play, stage_world
from robot_cl.seeding import EVALUATION_SEED
from sim.stream import Stage

TRIAL_SEED = EVALUATION_SEED // 2
FINALISTS = 3  # the base and two others play whole episodes after the short trial, as what comes of the training does


class Trials:
    """Deterministic policies in a setup's `trial_worlds`, always from the same starts."""

    def __init__(self, setup: Setup):
        self.setup, self.config = setup, setup.config

    def play(self, actor: StackedGaussianActor, stage: Stage, steps: int | None) -> Played:
        """None: whole episodes."""
        worlds = self.config.trial_worlds
        world = stage_world([stage] * (actor.population * worlds), self.setup.threads)
        return play(actor, world, [TRIAL_SEED + i % worlds for i in range(world.num_worlds)], steps, max(LOOKS))

    def long(self, actor: StackedGaussianActor, stage: Stage) -> tuple[np.ndarray, int]:
        """Scores (members, starts) in the longer trial, and the steps per seed that it took."""
        done = self.play(actor, stage, self.length(stage))
        return scores(done, stage), self.config.trial_worlds * done.steps

    def length(self, stage: Stage) -> int:
        """Steps of the longer trial at most: an episode, but no more than half of `trial_share` in all."""
        share = 0.5 * self.config.trial_share * stage.steps
        return max(self.config.trial_steps, int(share / ((FINALISTS + 1) * self.config.trial_worlds)))


def scores(done: Played, stage: Stage) -> np.ndarray:
    """What counts on a task, (members, starts)."""
    return done.returns if stage.measure == "return" else np.maximum(done.success, 0).astype(float)


class Snapshots:
    """What each seed is learning, as it was when it did best in a trial: a policy that falls in one rollout and not in
    the next is played as it was when it did not. Remembers the best score so far, of what is played without a skill at
    first, the skill that had it, if any, and whether that was the last trial: then learning leads, and is played as it
    goes on, until a trial says otherwise."""

    def __init__(self, checks: int, best: Sequence[float], leads: Sequence[bool]):
        self.checks, self.best, self.leads = checks, list(best), list(leads)
        self.skills: list[Adapter | None] = [None] * len(self.best)
        self.looked = 0

    def due(self, done: float) -> bool:
        """Whether it is time for the next of `checks` trials, equally spaced over the budget; it counts as made."""
        due = min(int(done * (self.checks + 1)), self.checks)
        late, self.looked = due > self.looked, max(due, self.looked)
        return late

    def heard(self, skills: Sequence[Adapter], found: np.ndarray) -> None:
        """Present skills and their scores (seeds, starts)."""
        for p, score in enumerate(found.mean(-1).tolist()):
            self.leads[p] = score > self.best[p]
            if self.leads[p]:
                self.best[p], self.skills[p] = score, skills[p]

    def played(self, skills: Sequence[Adapter]) -> list[Adapter | None]:
        """Present skills where learning leads, else the best ones."""
        return [now if leads else best for now, best, leads in zip(skills, self.skills, self.leads, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        return {f"snapshot.{name}": tensor for name, tensor in stored(self.skills).items()}

    def facts(self) -> dict[str, Any]:
        return {"best": [None if b == -np.inf else b for b in self.best], "leads": self.leads, "looked": self.looked}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.best = [-np.inf if b is None else float(b) for b in facts["best"]]
        self.looked, self.leads = int(facts["looked"]), list(facts["leads"])
        self.skills = [skill_in(tensors, f"snapshot.{p}/") for p in range(len(self.best))]


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
