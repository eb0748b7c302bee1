"""The library on a stream whose borders nobody announces: it notices a change, and routes by trying.

Seeds notice at different moments, so each runs alone. A seed killed before its end begins anew: a minute or two.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter
from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, copied, side_by_side
from robot_cl.continual.change import ChangeWatch
from robot_cl.continual.likeness import same
from robot_cl.continual.loop import Measuring, Progress
from robot_cl.continual.method import SEEDS_PER_STAGE, Setup, learned_skills
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.route import Decision, Route, Tried
from robot_cl.continual.stage_worlds import score, stage_world
from robot_cl.continual.trials import Snapshots
from robot_cl.continual.trials import scores as trial_scores
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.learners.base import Learner
from robot_cl.learners.rollout import Collector
from robot_cl.seeding import EVALUATION_SEED
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
        scores = trial_scores(self.trials.play(side_by_side(actors), stage, None), stage)
        return actors[int(scores.mean(-1).argmax())]


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


@dataclass
class Alarm:
    """When the detector rang, or a look met another world: the step of the whole stream, the true task then, and the
    steps since it began."""

    step: int
    task: int
    since: int


def run_hidden(setup: Setup, measuring: Measuring, progress: Progress | None = None) -> tuple[list[dict], dict]:
    """All seeds, one after the other -> rows as `loop.run_method` gives them, and facts with each seed's alarms."""
    parts = []
    for p in range(setup.seeds):
        folder = setup.folder / f"seed-{p}"
        if not (folder / "rows.json").exists():
            rows, facts = run_seed(member_setup(setup, p), measuring, progress)
            with whole_folder(setup.folder, folder) as part:
                write_json(part / "rows.json", rows)
                write_json(part / "facts.json", facts)
        parts.append(tuple(json.loads((folder / f"{name}.json").read_text()) for name in ("rows", "facts")))
    return [joined([rows[k] for rows, _ in parts]) for k in range(len(setup.stream.stages))], merged_facts(parts)


def member_setup(setup: Setup, p: int) -> Setup:
    """Seed p alone."""

    def own(name: str, value: Tensor) -> Tensor:
        if not value.dim():
            return value
        axis = 0 if name.startswith("nets.") else value.dim() - 1
        return value.tensor_split(setup.seeds, axis)[p].clone()

    base = copied(setup.base.member(p))
    base.normalizer.freeze()
    values: State = {name: own(name, value) for name, value in setup.values.items()}
    return replace(setup, base=base, values=values, seed=setup.seed + p, folder=setup.folder / f"libraries-{p}")


def run_seed(setup: Setup, measuring: Measuring, progress: Progress | None) -> tuple[list[dict], dict]:
    """One seed through the stream; the world changes under it at the end of each task's budget."""
    run, rows = _Seed(setup, measuring), []
    for k, stage in enumerate(setup.stream.stages):
        began = time.monotonic()
        curve = run.live(k, stage, progress)
        scores = score([run.method.policy(j) for j in range(len(setup.stream.stages))], setup.stream.stages,
                       measuring.episodes, EVALUATION_SEED, setup.threads)  # fmt: skip
        rows.append({
            "stage": stage.name, "scores": scores.tolist(), "curve": [curve], "before": [curve[0]],
            "steps": stage.steps, "bytes": run.method.kept_bytes(), "wall_s": round(time.monotonic() - began, 2),
        })  # fmt: skip
    return rows, run.method.facts() | {"alarms": [asdict(alarm) for alarm in run.alarms]}


class _Seed:
    """One robot's life. Remembers the method, the context in progress, the watch, the alarms, and whether the world
    repeats itself: of one with noise of its own only an alarm can tell that it has changed."""

    def __init__(self, setup: Setup, measuring: Measuring):
        self.setup, self.measuring, self.method = setup, measuring, HiddenLibrary(setup)
        self.watch: ChangeWatch | None = None
        self.alarms: list[Alarm] = []
        self.learner: Learner | None = None
        self.trained = 0  # steps in this context
        self.total = 0
        self.repeats = False

    def live(self, k: int, stage: Stage, progress: Progress | None) -> list[float]:
        """The budget of true task k -> its learning curve. Nothing here tells the method where it is."""
        seed, points = self.setup.seed + SEEDS_PER_STAGE * (k + 1), self.measuring.points
        world = stage_world([stage] * self.setup.num_worlds, self.setup.threads)
        collector, steps = Collector(world, 1, seed), 0
        self.method.here = stage
        if self.watch is None:  # the robot's first moment: it knows that it knows nothing
            self.watch = ChangeWatch(self.setup.base.normalizer, world.interface.act_dim, self.setup.seed)
            steps += self._meet()
        curve = [self._score(stage)]
        while steps < stage.steps:
            steps += self._round(collector, stage, k, steps)
            while len(curve) < 1 + int(points * min(1.0, steps / stage.steps)):
                curve.append(self._score(stage))
            if progress is not None:
                progress(f"library, hidden: {stage.name}", self.total + steps, self.budget)
        self.total += stage.steps
        return [*curve, *[self._score(stage)] * (points + 1 - len(curve))]  # trials may have used up the rest

    def _round(self, collector: Collector, stage: Stage, k: int, steps: int) -> int:
        """Act and watch; learn where nothing has changed, decide anew where something has -> steps taken."""
        assert self.watch is not None
        seed = self.setup.seed + SEEDS_PER_STAGE * (k + 1) + steps
        actor = self.learner or Playing(self.method.current(-1, None), seed)
        fresh = collector.collect(actor, int(getattr(self.setup.learner, "horizon", 64)))
        taken, rang, goes_on = fresh.reward.numel(), self.watch.see(fresh), True
        if rang or self._look(taken):
            goes_on, spent = self.method.unchanged()
            taken += spent
        if rang or not goes_on:
            self.alarms.append(Alarm(self.total + steps, k, steps))
            collector.begin(seed + 1)  # after the trials; what the old policy had come to may be lying on its back
        if not goes_on:
            self.watch.restart()
            self.method.leave(self.learner, self.trained)
            return taken + self._meet()
        if self.learner is not None:
            self.learner.update_online(fresh, None)
            taken += self.method.during(-1, self.learner, fresh, (self.trained + taken) / stage.steps)
        self.trained += taken
        return taken

    @property
    def budget(self) -> int:
        return sum(stage.steps for stage in self.setup.stream.stages)

    def _look(self, taken: int) -> bool:
        """Whether it is time to look, without an alarm, if the world is still the same."""
        every = self.setup.config.look if self.repeats else 0
        return bool(every) and (self.trained + taken) // every > self.trained // every

    def _meet(self) -> int:
        self.learner, spent = self.method.meet()
        self.trained = 0
        if self.setup.config.look:
            self.repeats, more = self.method.unchanged()
            spent += more
        return spent

    def _score(self, stage: Stage) -> float:
        actor = self.method.current(-1, self.learner)
        found = score([actor], [stage], self.measuring.curve_episodes, EVALUATION_SEED, self.setup.threads)
        return float(found.mean())


def joined(rows: list[dict]) -> dict[str, Any]:
    """The rows of several seeds about one task as one."""
    scores, curve, before = ([value for row in rows for value in row[name]] for name in ("scores", "curve", "before"))
    return {
        "stage": rows[0]["stage"], "scores": scores, "curve": curve, "before": before, "steps": rows[0]["steps"],
        "bytes": int(np.mean([row["bytes"] for row in rows])), "wall_s": sum(row["wall_s"] for row in rows),
    }  # fmt: skip


def merged_facts(parts: list[tuple[list[dict], dict]]) -> dict[str, Any]:
    """Alarms and contexts of each seed; contexts are no tasks, so they are kept apart from `routes`."""
    return {"alarms": [facts["alarms"] for _, facts in parts], "contexts": [facts["routes"] for _, facts in parts]}
