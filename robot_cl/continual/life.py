"""A stream whose borders nobody announces, lived through by one robot per seed.

Seeds notice a change at different moments, so each runs alone. Run folder: methods/library_hidden/{seed-<p>/, what was
measured and the facts of a finished seed; libraries-<p>/, its skills; progress/<p>/<steps>/, the life in progress}. A
process killed at any moment is followed by one that comes to the same, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robot_cl.checkpoint import load_arrays, load_tensors, save_tensors
from robot_cl.continual.actors import State, copied
from robot_cl.continual.change import ChangeWatch
from robot_cl.continual.hidden import HiddenLibrary, Playing
from robot_cl.continual.loop import Measuring, Progress, restore
from robot_cl.continual.method import SEEDS_PER_STAGE, Setup
from robot_cl.continual.stage_training import saved, write_facts
from robot_cl.continual.stage_worlds import can_pause, score, stage_world
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.learners.base import Learner
from robot_cl.learners.rollout import Collector
from robot_cl.seeding import EVALUATION_SEED
from sim.stream import Stage


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
        folder, progressed = setup.folder / f"seed-{p}", setup.folder / "progress" / str(p)
        if not (folder / "rows.json").exists():
            rows, facts = run_seed(member_setup(setup, p), measuring, progress, progressed)
            with whole_folder(setup.folder, folder) as part:
                write_json(part / "rows.json", rows)
                write_json(part / "facts.json", facts)
        shutil.rmtree(progressed, ignore_errors=True)
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


def run_seed(setup: Setup, measuring: Measuring, progress: Progress | None, root: Path) -> tuple[list[dict], dict]:
    """One seed through the stream, from what `root` holds of it; the world changes under it at the end of each task's
    budget."""
    life, stages = Life(setup, measuring, root), setup.stream.stages
    life.resume()
    for k, stage in enumerate(stages[len(life.rows) :], len(life.rows)):
        curve = life.live(k, stage, progress)
        policies = [life.method.policy(j) for j in range(len(stages))]
        scores = score(policies, stages, measuring.episodes, EVALUATION_SEED, setup.threads)
        life.rows.append({
            "stage": stage.name, "scores": scores.tolist(), "curve": [curve], "before": [curve[0]],
            "steps": stage.steps, "bytes": life.method.kept_bytes(), "wall_s": round(life.spent(), 2),
        })  # fmt: skip
        life.leave(stage)
    return life.rows, life.method.facts() | {"alarms": [asdict(alarm) for alarm in life.alarms]}


class Life:
    """One robot's life. Remembers the method, the context in progress, the watch, the alarms, what was measured after
    each task, how far the one in progress has come, and whether the world repeats itself: of one with noise of its own
    only an alarm can tell that it has changed. `root` is where it is kept."""

    def __init__(self, setup: Setup, measuring: Measuring, root: Path):
        self.setup, self.measuring, self.root, self.method = setup, measuring, root, HiddenLibrary(setup)
        self.watch: ChangeWatch | None = None
        self.alarms: list[Alarm] = []
        self.learner: Learner | None = None
        self.trained = 0  # steps in this context
        self.total = 0  # steps of the tasks before this one
        self.steps = 0  # in this task
        self.curve: list[float] = []  # of this task
        self.worlds: dict[str, np.ndarray] = {}  # as they were when this task was left off
        self.rows: list[dict[str, Any]] = []  # of finished tasks
        self.repeats = False
        self.began, self.earlier = time.monotonic(), 0.0  # seconds spent on this task by processes that were killed

    def spent(self) -> float:
        """Seconds on this task."""
        return self.earlier + time.monotonic() - self.began

    def live(self, k: int, stage: Stage, progress: Progress | None) -> list[float]:
        """The rest of true task k's budget -> its learning curve. Nothing here tells the method where it is."""
        seed, points = self.setup.seed + SEEDS_PER_STAGE * (k + 1), self.measuring.points
        world = stage_world([stage] * self.setup.num_worlds, self.setup.threads)
        collector, pausing = Collector(world, 1, seed), can_pause(world)
        self.method.here = stage
        if self.curve:
            collector.restore(self.worlds)
        else:
            if self.watch is None:  # the robot's first moment: it knows that it knows nothing
                self.watch = self._watch()
                self.steps += self._meet()
            self.curve = [self._score(stage)]
        while self.steps < stage.steps:
            before = self.steps // self.measuring.save_every
            self.steps += self._round(collector, stage, k, self.steps)
            while len(self.curve) < 1 + int(points * min(1.0, self.steps / stage.steps)):
                self.curve.append(self._score(stage))
            if progress is not None:
                progress(f"library, hidden: {stage.name}", self.total + self.steps, self.budget)
            if pausing and self.steps < stage.steps and self.steps // self.measuring.save_every > before:
                self.worlds = collector.state()
                self.save()
        # trials may have used up the rest
        return [*self.curve, *[self._score(stage)] * (points + 1 - len(self.curve))]

    def leave(self, stage: Stage) -> None:
        """The task is over, and its row is there."""
        self.total, self.steps, self.curve, self.worlds = self.total + stage.steps, 0, [], {}
        self.began, self.earlier = time.monotonic(), 0.0
        self.save()

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

    def _watch(self) -> ChangeWatch:
        assert self.setup.interface is not None
        return ChangeWatch(self.setup.base.normalizer, self.setup.interface.act_dim, self.setup.seed)

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

    # To disk and back: within a task where the worlds can be stored, else where one begins

    def save(self) -> None:
        """All of it as root/<steps of the whole stream>; older ones go."""
        assert self.watch is not None
        with whole_folder(self.root, self.root / str(self.total + self.steps), overwrite=True) as part:
            save_tensors(part / "method.safetensors", self.method.tensors())
            save_tensors(part / "watch.safetensors", self.watch.state_dict())
            np.savez(part / "worlds.npz", **self.worlds)  # type: ignore[arg-type]
            write_facts(part, self.method.facts())
            write_json(part / "life.json", {
                "alarms": [asdict(alarm) for alarm in self.alarms], "trained": self.trained, "total": self.total,
                "steps": self.steps, "curve": self.curve, "rows": self.rows, "repeats": self.repeats,
                "wall_s": self.spent(),
            })  # fmt: skip
        for old in saved(self.root)[:-1]:
            shutil.rmtree(old)

    def resume(self) -> None:
        """Go on where the newest `save` was; without one the life begins. Skills of later moments are not known yet."""
        if found := saved(self.root):
            folder = found[-1]
            life = json.loads((folder / "life.json").read_text(encoding="utf-8"))
            restore(self.method, folder)
            self.learner = self.method.learning
            self.watch = self._watch()
            self.watch.load_state_dict(load_tensors(folder / "watch.safetensors"))
            self.worlds = load_arrays(folder / "worlds.npz")
            self.alarms = [Alarm(**alarm) for alarm in life["alarms"]]
            self.trained, self.total, self.steps = life["trained"], life["total"], life["steps"]
            self.curve, self.rows, self.repeats = life["curve"], life["rows"], life["repeats"]
            self.earlier = life["wall_s"]
        self.method.drop_unknown()


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
