"""Our own way: try what is there, combine it, and learn only the rest, as a new skill in the library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, compress, linear_combination
from policies.card import SkillCard
from policies.library import SAME, Library
from policies.lora import extract
from robot_cl.batch import Transitions
from robot_cl.continual.actors import mixed_states, side_by_side, with_skills
from robot_cl.continual.method import Method, Setup, learner_values
from robot_cl.continual.stage_worlds import play, stage_world
from robot_cl.learners.base import Learner
from robot_cl.seeding import EVALUATION_SEED
from robot_cl.skills import library_of
from sim.stream import Stage

Mix = dict[str, float]  # skill -> coefficient; {}: the bare base
TRIAL_SEED = EVALUATION_SEED // 2
FINALISTS = 2  # the best of a short trial play whole episodes, as what comes out of the training does


@dataclass(frozen=True)
class Route:
    """What one seed does about one task: the composition it begins with (`mix`), how well that did in a trial (mean
    and standard error over its starts), the level it had to reach, and how it ended: the skill played, and whether it
    was learned for this task."""

    task: str
    mix: Mix
    kind: str  # base, skill, mean or sum
    trial: float
    wanted: float | None
    reached: bool
    skill: str = ""
    learned: bool = False
    level: float = 0.0
    error: float = 0.0


class SkillLibrary(Method):
    """Zero-shot, composition, residual adapter on the best composition; dedupe; publish.

    Every candidate (the base, each skill, sum and mean of the two best) plays `trial_worlds` × `trial_steps` steps of
    the new task, the two best of them whole episodes where the budget allows it; all of it counts as part of the
    budget. The best does if it scores `reach` of the best that any skill of this library has reached on any task, and
    hardly more than its parts did on their own tasks: a task on which a skill does far better than at home is an
    easier one, not one that is mastered. Else an adapter is trained on it, and published unless the composition alone
    did better beyond doubt: a few episodes tell little, and a skill thrown away cannot be had again. Remembers a
    library on disk per seed, and the routes.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.libraries = [self._open(p) for p in range(setup.seeds)]
        self.routes: list[list[Route]] = []  # of each finished task, one per seed
        self.now: list[Route] = []  # of the task in progress
        self.levels: list[dict[str, float]] = [{} for _ in range(setup.seeds)]  # skill -> trial score on its own task
        self.from_task: list[dict[str, int]] = [{} for _ in range(setup.seeds)]  # skill -> task, for its values

    def _open(self, p: int) -> Library:
        assert self.setup.interface is not None
        actor, task = self.setup.base.member(p), self.setup.stream.base.task
        return library_of(actor, self.setup.interface, task, self.setup.folder / "library")

    # Deciding

    def begin(self, k: int) -> tuple[Learner | None, int]:
        self.now, spent = self.decide(self.stage(k))
        if all(route.reached for route in self.now):
            return None, spent
        parents = [self._values_of(p, route.mix) for p, route in enumerate(self.now)]
        values = mixed_states([self.setup.values, *self.values], parents)
        learner = self.learner(k, self._composed([r.mix for r in self.now]), values, adapter=True)
        return learner, spent

    def decide(self, stage: Stage) -> tuple[list[Route], int]:
        """The best composition of each seed for a task, and the steps per seed that finding it took."""
        names = self._names()
        candidates = [("base" if not name else "skill", self.mixes(name)) for name in ["", *names]]
        tried, spent = self.trial([mixes for _, mixes in candidates], stage)
        scores = tried.mean(-1)  # (C, P)
        if len(names) > 1:
            pairs = [np.argsort(-scores[1:, p], kind="stable")[:2] for p in range(self.setup.seeds)]
            for kind, weight in (("mean", 0.5), ("sum", 1.0)):
                mixes = [self._pair(p, [names[i] for i in pair], weight) for p, pair in enumerate(pairs)]
                candidates.append((kind, mixes))
            more, cost = self.trial([mixes for _, mixes in candidates[-2:]], stage)
            scores, spent = np.concatenate([scores, more.mean(-1)]), spent + cost
        finals = [np.argsort(-scores[:, p], kind="stable")[:FINALISTS] for p in range(self.setup.seeds)]
        places = range(min(FINALISTS, len(candidates)))
        seated = [[candidates[finals[p][i]][1][p] for p in range(self.setup.seeds)] for i in places]
        tried, cost = self.trial(seated, stage, final=True)
        spent += cost + cost // len(seated)  # and what comes out of the training plays as long at its end
        best = tried.mean(-1).argmax(0)
        routes = []
        for p, i in enumerate(best):
            kind, mixes = candidates[int(finals[p][i])]
            routes.append(self._route(stage, p, kind, mixes[p], tried[i, p]))
        return routes, spent

    def _route(self, stage: Stage, p: int, kind: str, mix: Mix, played: np.ndarray) -> Route:
        best = max(self.levels[p].values(), default=None)
        wanted = None if best is None else best - (1.0 - self.config.reach) * abs(best)
        score, home = float(played.mean()), max((self.levels[p].get(name, -np.inf) for name in mix), default=-np.inf)
        easier = score > home + (1.0 - self.config.reach) * abs(home)
        reached = bool(mix) and wanted is not None and score >= wanted and not easier
        return Route(stage.name, mix, kind, score, wanted, reached, error=standard_error(played))

    def _names(self) -> list[str]:
        """Tasks learned so far, the first of those on which the same is played; each seed plays its own for each."""
        names: dict[str, list[Mix]] = {}
        for routes in self.routes:
            mixes = [played(route) for route in routes]
            if mixes not in names.values():
                names[routes[0].task] = mixes
        return list(names)

    def mixes(self, task: str) -> list[Mix]:
        """What each seed plays for a task learned before ("" for the base)."""
        if not task:
            return [{} for _ in range(self.setup.seeds)]
        routes = next(routes for routes in self.routes if routes[0].task == task)
        return [played(route) for route in routes]

    def _pair(self, p: int, tasks: Sequence[str], weight: float) -> Mix:
        mix: Mix = {}
        for task in tasks:
            for skill, coefficient in self.mixes(task)[p].items():
                mix[skill] = mix.get(skill, 0.0) + weight * coefficient
        return mix

    def trial(
        self, candidates: Sequence[Sequence[Mix]], stage: Stage, final: bool = False
    ) -> tuple[np.ndarray, int]:
        """Scores (C, P, starts) of candidates[c][p], all at once, and the steps per seed that took."""
        actors, worlds = [self._composed(mixes) for mixes in candidates], self.config.trial_worlds
        scores, steps = self._tried(side_by_side(actors), stage, final)
        return scores.reshape(len(candidates), self.setup.seeds, worlds), len(candidates) * worlds * steps

    def _tried(self, actor: StackedGaussianActor, stage: Stage, final: bool = True) -> tuple[np.ndarray, int]:
        """Scores (members, starts) in the trial's worlds, always from the same starts, and the steps it took."""
        worlds = self.config.trial_worlds
        world = stage_world([stage] * (actor.population * worlds), self.setup.threads)
        seeds = [TRIAL_SEED + i % worlds for i in range(world.num_worlds)]
        done = play(actor, world, seeds, self._final_length(stage) if final else self.config.trial_steps)
        return done.returns if stage.measure == "return" else np.maximum(done.success, 0).astype(float), done.steps

    def _final_length(self, stage: Stage) -> int:
        """Steps of the longer trial at most: an episode, but no more than half of `trial_share` in all."""
        share = 0.5 * self.config.trial_share * stage.steps
        return max(self.config.trial_steps, int(share / ((FINALISTS + 1) * self.config.trial_worlds)))

    # Keeping

    def current(self, k: int, learner: Learner | None) -> StackedGaussianActor:
        routes = self.now or self.routes[k]
        mixes = [route.mix for route in routes]
        if learner is None:
            return self._composed(mixes)
        return with_skills(self.setup.base, [self._grown(learner, p, route) for p, route in enumerate(routes)])

    def _grown(self, learner: Learner, p: int, route: Route) -> Adapter | None:
        """Seed p's composition with what the learner has added, unless the composition was enough."""
        parts = [self.libraries[p].adapter(name) for name in route.mix]
        if route.reached:
            return linear_combination(parts, list(route.mix.values())) if parts else None
        residual = extract(learner.actor, p).with_header(self.libraries[p].header)
        return linear_combination([*parts, residual], [*route.mix.values(), 1.0])

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        done, stage = list(self.now), self.stage(k)
        self.values.append(learner_values(learner) if learner else mixed_states(
            [self.setup.values, *self.values], [self._values_of(p, r.mix) for p, r in enumerate(self.now)]
        ))  # fmt: skip
        if learner is not None:
            grown, _ = self._tried(self.current(k, learner), stage)
            for p, route in enumerate(self.now):
                if not route.reached and not worse(grown[p], route):
                    level = float(grown[p].mean())
                    name = self._publish(k, p, learner, level)
                    done[p] = Route(**{**asdict(route), "skill": name, "learned": True, "level": level})
        self.routes.append(done)
        self.now = []

    def _publish(self, k: int, p: int, learner: Learner, level: float) -> str:
        """Into seed p's library, unless the same skill is there already -> its name."""
        library, route, stage = self.libraries[p], self.now[p], self.stage(k)
        whole = self._grown(learner, p, route)
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
            residual = extract(learner.actor, p).with_header(library.header)
            library.publish(name, residual, card, replace=True, parents=route.mix or None)
        self.levels[p][name], self.from_task[p][name] = level, k
        return name

    def policy(self, j: int) -> StackedGaussianActor:
        if j < len(self.routes):
            return self._composed([played(route) for route in self.routes[j]])
        routes, _ = self.decide(self.stage(j))  # a task not met yet is routed by the same trial
        return self._composed([route.mix for route in routes])

    def _composed(self, mixes: Sequence[Mix]) -> StackedGaussianActor:
        skills = []
        for p, mix in enumerate(mixes):
            parts = [self.libraries[p].adapter(name) for name in mix]
            skills.append(linear_combination(parts, list(mix.values())) if parts else None)
        return with_skills(self.setup.base, skills)

    def _values_of(self, p: int, mix: Mix) -> int:
        """Index of the values of the strongest parent: 0 the base's, k + 1 those of task k."""
        return 1 + self.from_task[p][max(mix, key=lambda name: mix[name])] if mix else 0

    # The state: routes; the skills themselves are in the libraries

    def kept_bytes(self) -> int:
        """Files of the present skills, per seed."""
        files = [p for library in self.libraries for p in library.folder.glob("[a-z0-9]*/skill.safetensors")]
        return sum(p.stat().st_size for p in files) // self.setup.seeds

    def facts(self) -> dict[str, Any]:
        return {
            "routes": [[asdict(route) for route in routes] for routes in self.routes],
            "levels": self.levels,
            "from_task": self.from_task,
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.routes = [[Route(**route) for route in routes] for routes in facts["routes"]]
        self.levels, self.from_task = list(facts["levels"]), list(facts["from_task"])


def played(route: Route) -> Mix:
    """What is played on a finished task: the skill learned for it, else the composition that was enough."""
    return {route.skill: 1.0} if route.learned else dict(route.mix)


def worse(scores: np.ndarray, route: Route) -> bool:
    """Whether scores (starts,) lie below the route's trial by more than two standard errors of the difference."""
    return float(scores.mean()) < route.trial - 2.0 * np.hypot(standard_error(scores), route.error)


def standard_error(scores: np.ndarray) -> float:
    """Of the mean of scores (starts,); 0 for a single start, which then has to be believed."""
    return float(scores.std(ddof=1) / np.sqrt(scores.size)) if scores.size > 1 else 0.0


def slug(name: str) -> str:
    """A stage's name as a skill's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64]
