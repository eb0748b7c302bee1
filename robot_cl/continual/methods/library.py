"""Our own way: try what is there, combine it, and learn only the rest, as a new skill in the library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, compress, linear_combination
from policies.card import SkillCard
from policies.library import SAME, Library
from robot_cl.batch import Transitions
from robot_cl.continual.actors import mixed_states, side_by_side, with_skills
from robot_cl.continual.likeness import nearest, same, sketch_of
from robot_cl.continual.method import Method, Setup, learned_skills, learner_values
from robot_cl.continual.route import (
    Decision,
    Mix,
    Route,
    Tried,
    played,
    promising,
    ranked,
    standard_error,
    summed,
    worse,
)
from robot_cl.continual.trials import FINALISTS, Snapshots, Trials, scores
from robot_cl.learners.base import Learner
from robot_cl.skills import library_of
from sim.stream import Stage


class SkillLibrary(Method):
    """Zero-shot, composition, residual adapter on the best composition; dedupe; publish.

    Every candidate (the base, what is played on the tasks that began most alike, sum and mean of the two best) plays
    `trial_worlds` × `trial_steps` steps of the new task; the base and two that this has not ruled out (`doubt`), that
    of the task most alike before all others, play whole episodes where the budget allows it. All of it counts as part
    of the budget. The best does if it scores `reach` of the best that any skill of this library has reached on any
    task, and hardly more than its parts did on their own tasks: a task on which a skill does far better than at home is
    an easier one, not one that is mastered. Else a skill is learned on it, or on the base where it is hardly better
    (`margin`, not asked of the most alike) or gains little of what it gains at home (`fit`): what does not fit is a bad
    place to learn from. It is published unless the composition alone did better beyond doubt: a few episodes tell
    little, and a skill thrown away cannot be had again. With `checks` the composition is played until the skill has
    done better in a trial, and the skill as it was when it last did where it does not any more; that is published.
    Remembers a library on disk per seed, the routes, and how each task began.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.libraries = [self._open(p) for p in range(setup.seeds)]
        self.trials = Trials(setup)
        self.snapshots = Snapshots(0, [])  # of what is being learned
        self.routes: list[list[Route]] = []  # of each finished task, one per seed
        self.now: list[Route] = []  # of the task in progress
        self.levels: list[dict[str, float]] = [{} for _ in range(setup.seeds)]  # skill -> trial score on its own task
        self.from_task: list[dict[str, int]] = [{} for _ in range(setup.seeds)]  # skill -> its values: 1 the first
        self.sketches: list[np.ndarray] = []  # how each finished task began: (P, F)
        self.sketch = np.empty(0)  # how the task in progress began

    def _open(self, p: int) -> Library:
        assert self.setup.interface is not None
        actor, task = self.setup.base.member(p), self.setup.stream.base.task
        return library_of(actor, self.setup.interface, task, self.setup.folder / "library")

    # Deciding

    def begin(self, k: int) -> tuple[Learner | None, int]:
        self.now, spent, self.sketch = self.decide(self.stage(k))
        leads = [not route.mix for route in self.now]
        self.snapshots = Snapshots(self.config.checks, leads, self.trials.learning(self.stage(k)))
        return None if all(route.reached for route in self.now) else self._new_learner(k), spent

    def _new_learner(self, k: int) -> Learner:
        """What learns the task in progress, before its first update: a skill on each seed's composition."""
        parents = [self._values_of(p, route.mix) for p, route in enumerate(self.now)]
        values = mixed_states([self.setup.values, *self.values], parents)
        return self.learner(k, self._composed([r.mix for r in self.now]), values, skill=True)

    def decide(self, stage: Stage) -> Decision:
        """The best composition of each seed for a task."""
        seeds = range(self.setup.seeds)
        bare, spent, sketch = self._meet(stage)
        found = [[Tried("base", {}, bare[p])] for p in seeds]
        for options in (self._known, self._pairs):
            asked = [options(found[p], sketch[p], p) for p in seeds]
            more, cost = self.trial(asked, stage)
            found, spent = [found[p] + more[p] for p in seeds], spent + cost
        alike = [tried[1].mix if len(tried) > 1 else None for tried in found]
        again = [self._met_before(p, sketch[p]) for p in seeds]
        finals = [self._finals(found[p], again[p]) for p in seeds]
        if max(map(len, finals)) > 1:
            found, cost = self.trial([[(t.kind, t.mix) for t in tried] for tried in finals], stage, final=True)
            spent += cost
        else:
            found = finals
        best = [self._best(p, found[p], alike[p], again[p]) for p in seeds]
        return Decision([self._route(stage, p, best[p]) for p in seeds], spent, sketch)

    def _met_before(self, p: int, sketch: np.ndarray) -> Mix:
        """What seed p plays on the task that began as this one does: {} where none did."""
        known = [sketches[p] for sketches in self.sketches]
        k = int(nearest(known, sketch)[0]) if known else 0
        return played(self.routes[k][p]) if known and same(known[k], sketch) else {}

    def _finals(self, tried: Sequence[Tried], again: Mix) -> list[Tried]:
        """Those that play whole episodes, the base first; where the task was met before, only what is played on it."""
        left = promising(tried[0], tried[1:], self.config.doubt)[: FINALISTS - 1]
        return [tried[0], *([t for t in tried[1:] if t.mix == again] if again else left)]

    def _best(self, p: int, tried: Sequence[Tried], alike: Mix | None = None, again: Mix | None = None) -> Tried:
        """The best composition that fits, else the base, which comes first. Of what is played on the task that began
        most alike no margin is asked, and nothing at all of what is played on the same task, unless the base is better
        beyond doubt: a task that returns is begun with its own skill, whatever two episodes say."""
        base, highest = tried[0], max(map(abs, self.levels[p].values()), default=0.0)
        if again and len(tried) > 1 and not worse(tried[1].scores, base.score, standard_error(base.scores)):
            return tried[1]
        fitting = []
        for t in tried[1:]:
            gain = self.config.fit * (self._home(p, t.mix) - base.score)  # of what it gains on the task it is from
            if t.less(self.config.caution) > base.score + max(
                gain, 0.0 if t.mix == alike else self.config.margin * highest
            ):
                fitting.append(t)
        return ranked(fitting)[0] if fitting else base

    def _home(self, p: int, mix: Mix) -> float:
        """The best level of its parts on their own tasks."""
        return max((self.levels[p].get(name, -np.inf) for name in mix), default=-np.inf)

    def _known(self, tried: Sequence[Tried], sketch: np.ndarray, p: int) -> list[tuple[str, Mix]]:
        """What seed p plays on the tasks that began most like this one: `shortlist` compositions at most, so that a
        trial costs the same however much the library holds."""
        mixes: list[Mix] = [{}]
        for k in nearest([known[p] for known in self.sketches], sketch) if self.sketches else ():
            mix = played(self.routes[k][p])
            if mix not in mixes and len(mixes) <= self.config.shortlist:
                mixes.append(mix)
        return [("skill", mix) for mix in mixes[1:]]

    def _pairs(self, tried: Sequence[Tried], sketch: np.ndarray, p: int) -> list[tuple[str, Mix]]:
        """The two best of what is known, on average and in sum."""
        best = [t.mix for t in ranked(tried[1:])[:2]]
        return [("mean", summed(best, 0.5)), ("sum", summed(best, 1.0))] if len(best) > 1 else []

    def _route(self, stage: Stage, p: int, tried: Tried) -> Route:
        mix, best = tried.mix, max(self.levels[p].values(), default=None)
        wanted = None if best is None else best - (1.0 - self.config.reach) * abs(best)
        score, home = tried.score, self._home(p, mix)
        easier = score > home + (1.0 - self.config.reach) * abs(home)
        reached = bool(mix) and wanted is not None and score >= wanted and not easier
        return Route(stage.name, mix, tried.kind, score, wanted, reached, error=standard_error(tried.scores))

    def _meet(self, stage: Stage) -> tuple[np.ndarray, int, np.ndarray]:
        """The bare base plays first -> its scores (P, starts), the steps per seed, and what it met (P, F)."""
        done = self.trials.play(self._composed([{}] * self.setup.seeds), stage, self.config.trial_steps)
        return scores(done, stage), self.config.trial_worlds * done.steps, sketch_of(done.opening)

    def trial(
        self, asked: Sequence[Sequence[tuple[str, Mix]]], stage: Stage, final: bool = False
    ) -> tuple[list[list[Tried]], int]:
        """What each seed asks for (kind, mix), played all at once -> the same with scores, and the steps per seed."""
        count = max(map(len, asked))
        if not count:
            return [[] for _ in asked], 0
        rows = [[mixes[i][1] if i < len(mixes) else {} for mixes in asked] for i in range(count)]
        length = self.trials.length(stage) if final else self.config.trial_steps
        done = self.trials.play(side_by_side([self._composed(mixes) for mixes in rows]), stage, length)
        earned = scores(done, stage).reshape(count, len(asked), -1)
        found = [[Tried(*option, earned[i, p]) for i, option in enumerate(mixes)] for p, mixes in enumerate(asked)]
        return found, count * self.config.trial_worlds * done.steps

    def afterwards(self, k: int) -> int:
        """What comes out of the training plays as long as the finalists, with `checks` against what is kept."""
        return (2 if self.config.checks else 1) * self.config.trial_worlds * self.trials.length(self.stage(k))

    def during(self, k: int, learner: Learner, fresh: Transitions, done: float) -> int:
        return self._check(k, learner) if self.snapshots.due(fresh.reward[0].numel()) else 0

    def _check(self, k: int, learner: Learner) -> int:
        """Present skills against those kept, from starts of their own -> the steps per seed."""
        gained, kept = learned_skills(learner), self._with(self.snapshots.skills)
        now, before, spent = self.trials.between(self._with(gained), kept, self.stage(k), self.snapshots.looked)
        self.snapshots.heard(gained, now, before)
        return spent

    # Keeping

    def current(self, k: int, learner: Learner | None) -> StackedGaussianActor:
        routes = self.now or self.routes[k]
        if learner is None:
            return self._composed([route.mix for route in routes])
        gained = learned_skills(learner)
        return self._with(self.snapshots.played(gained) if self.config.checks else gained)

    def _with(self, gained: Sequence[Adapter | None]) -> StackedGaussianActor:
        """Each seed's composition with what was gained on it."""
        return with_skills(self.setup.base, [self._grown(gained[p], p, route) for p, route in enumerate(self.now)])

    def _grown(self, gained: Adapter | None, p: int, route: Route) -> Adapter | None:
        """Seed p's composition with what was gained on it, unless the composition was enough."""
        parts = [self.libraries[p].adapter(name) for name in route.mix]
        if route.reached or gained is None:
            return linear_combination(parts, list(route.mix.values())) if parts else None
        residual = gained.with_header(self.libraries[p].header)
        return linear_combination([*parts, residual], [*route.mix.values(), 1.0])

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        done = list(self.now)
        if learner is not None:
            self.values.append(learner_values(learner))
            for p, (gained, level) in enumerate(self._outcome(k, learner)):
                if gained is not None and not self.now[p].reached:
                    name = self._publish(k, p, gained, level)
                    done[p] = replace(self.now[p], skill=name, learned=True, level=level)
        self.routes.append(done)
        self.sketches.append(self.sketch)
        self.now = []

    def _outcome(self, k: int, learner: Learner) -> list[tuple[Adapter | None, float]]:
        """What each seed has gained, if it is to be kept, and its score in the longer trial."""
        if self.config.checks:
            self.snapshots.looked += 1
            self._check(k, learner)
            return list(zip(self.snapshots.skills, self.snapshots.levels, strict=True))
        gained = learned_skills(learner)
        return self._judged(gained, self.trials.long(self._with(gained), self.stage(k))[0])

    def _judged(self, gained: Sequence[Adapter], found: np.ndarray) -> list[tuple[Adapter | None, float]]:
        """Skills that did not do worse than their compositions beyond doubt, by scores (seeds, starts), and these."""
        # The first skill is kept whatever it does.
        kept = [r.wanted is None or not worse(found[p], r.trial, r.error) for p, r in enumerate(self.now)]
        return [(gained[p] if kept[p] else None, float(found[p].mean())) for p in range(self.setup.seeds)]

    def _publish(self, k: int, p: int, gained: Adapter, level: float) -> str:
        """Into seed p's library, unless the same skill is there already -> its name."""
        library, route, stage = self.libraries[p], self.now[p], self.stage(k)
        whole = self._grown(gained, p, route)
        assert whole is not None
        name = slug(stage.name)
        twins = [n for n, gap in library.search(compress(whole), 2) if n != name and gap < SAME] if len(library) else []
        if twins:
            name = twins[0]
        else:
            where = stage.task if stage.shift == "none" else f"{stage.task} · {stage.shift}"
            card = SkillCard(
                name, description=f"{stage.task} under {stage.shift}", learner=self.setup.learner_name,
                seed=self.setup.seed + p, scores={where: level}, created=float(k + 1),
            )  # fmt: skip
            library.publish(name, gained.with_header(library.header), card, replace=True, parents=route.mix or None)
        self.levels[p][name], self.from_task[p][name] = level, len(self.values)
        return name

    def policy(self, j: int) -> StackedGaussianActor:
        if j < len(self.routes):
            return self._composed([played(route) for route in self.routes[j]])
        decision = self.decide(self.stage(j))  # a task not met yet is routed by the same trial
        return self._composed([route.mix for route in decision.routes])

    def _composed(self, mixes: Sequence[Mix]) -> StackedGaussianActor:
        skills = []
        for p, mix in enumerate(mixes):
            parts = [self.libraries[p].adapter(name) for name in mix]
            skills.append(linear_combination(parts, list(mix.values())) if parts else None)
        return with_skills(self.setup.base, skills)

    def _values_of(self, p: int, mix: Mix) -> int:
        """Index of the values of the strongest parent, 0 being the base's."""
        return self.from_task[p][max(mix, key=lambda name: mix[name])] if mix else 0

    # The state: routes and sketches; the skills themselves are in the libraries

    def kept(self) -> dict[str, Tensor]:
        return {f"sketch.{k}": torch.from_numpy(sketch).float() for k, sketch in enumerate(self.sketches)}

    def kept_bytes(self) -> int:
        """Sketches, and the files of the present skills, per seed."""
        files = [p for library in self.libraries for p in library.folder.glob("[a-z0-9]*/skill.safetensors")]
        return super().kept_bytes() + sum(p.stat().st_size for p in files) // self.setup.seeds

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self.kept() | self.snapshots.tensors()

    def facts(self) -> dict[str, Any]:
        return {
            "routes": [[asdict(route) for route in routes] for routes in self.routes],
            "levels": self.levels,
            "from_task": self.from_task,
            "snapshots": self.snapshots.facts(),
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.routes = [[Route(**route) for route in routes] for routes in facts["routes"]]
        self.levels, self.from_task = list(facts["levels"]), list(facts["from_task"])
        self.snapshots.restore(tensors, facts["snapshots"])
        self.sketches = [tensors[f"sketch.{k}"].numpy() for k in range(len(self.routes))]


def slug(name: str) -> str:
    """A stage's name as a skill's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64]
