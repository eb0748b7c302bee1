"""Learning one task within its budget, measured on the way, and taken up again after any kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions
from robot_cl.checkpoint import load_tensors, save_tensors
from robot_cl.continual.stage_worlds import can_pause, score
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.learners.base import Learner
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.rollout import Collector
from robot_cl.seeding import EVALUATION_SEED
from sim.stream import Stage

BATCH = 256  # transitions per update of a learner with a replay buffer


class StageTraining:
    """A learner in the worlds of one task. Remembers the learner, the worlds, the steps taken and the scores so far.

    `curve` holds a row (seeds,) of deterministic scores for each of `points` + 1 equally spaced steps from 0 to the
    budget, the base's first; those passed while nothing was learned yet repeat the one before.
    """

    def __init__(
        self, learner: Learner | None, world: Any, stage: Stage, seed: int, spent: int = 0, points: int = 6,
        episodes: int = 4, threads: int | None = 1, kept_back: int = 0,
    ):  # fmt: skip
        self.learner, self.stage, self.steps, self.points = learner, stage, spent, points
        self.last_step = stage.steps - kept_back  # the rest is needed for something else
        self.episodes, self.threads = episodes, threads
        self.began, self.earlier = time.monotonic(), 0.0  # seconds spent by processes that were killed
        self.curve: list[np.ndarray] = []
        self.last: Transitions | None = None
        self.buffer: ReplayBuffer | None = None
        self.collector: Collector | None = None
        if learner is not None:
            self.collector = Collector(world, learner.seeds, seed)
            plan = learner.plan()
            if not plan.on_policy:
                face = world.interface
                self.buffer = ReplayBuffer(plan.capacity, learner.seeds, face.obs_dim, face.act_dim, learner.device)

    @property
    def over(self) -> bool:
        return self.learner is None or self.steps >= self.last_step

    def round(self) -> Transitions:
        """Collect and update once."""
        assert self.learner is not None and self.collector is not None
        plan = self.learner.plan()
        fresh = self.collector.collect(self.learner, plan.horizon)
        if self.buffer is None:
            self.learner.update_online(fresh, None)
        else:
            before = max(self.buffer.total, plan.warmup)
            self.buffer.add(fresh)
            for _ in range(int(self.buffer.total * plan.updates) - int(before * plan.updates)):
                self.learner.update_online(self.buffer.sample(BATCH, self.learner.rng), None)
        self.steps += plan.horizon * self.collector.worlds
        self.last = fresh
        return fresh

    def measure(self, actor: Callable[[], StackedGaussianActor]) -> None:
        """Score what would be played now, for every point of the curve that has been reached."""
        due = self.points + 1 if self.over else 1 + int(self.points * min(1.0, self.steps / self.stage.steps))
        if len(self.curve) < due:
            now = score([actor()], [self.stage], self.episodes, EVALUATION_SEED, self.threads)[:, 0].mean(-1)
            self.curve += [now] * (due - len(self.curve))

    # To disk and back. With a replay buffer a task begins anew: its transitions are not kept

    @property
    def can_pause(self) -> bool:
        return self.collector is not None and self.buffer is None and can_pause(self.collector.world)

    def save(self, root: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Everything, with the method's own state beside it, as root/<steps>; older ones go."""
        assert self.learner is not None and self.collector is not None
        with whole_folder(root, root / str(self.steps), overwrite=True) as part:
            save_tensors(part / "learner.safetensors", self.learner.state_dict())
            save_tensors(part / "method.safetensors", tensors)
            np.savez(part / "worlds.npz", **self.collector.state())  # type: ignore[arg-type]
            write_facts(part, facts)
            write_json(part / "curve.json", [row.tolist() for row in self.curve])
            write_json(part / "spent.json", {"wall_s": self.earlier + time.monotonic() - self.began})
        for old in saved(root)[:-1]:
            shutil.rmtree(old)

    def load(self, folder: Path) -> None:
        """Go on where `save` left this task's learner, worlds and curve."""
        assert self.learner is not None and self.collector is not None
        self.learner.load_state_dict(load_tensors(folder / "learner.safetensors"))
        with np.load(folder / "worlds.npz", allow_pickle=False) as stored:
            self.collector.restore({name: stored[name] for name in stored.files})
        curve = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
        self.steps, self.curve = int(folder.name), [np.array(row) for row in curve]
        spent = folder / "spent.json"
        self.earlier = float(json.loads(spent.read_text(encoding="utf-8"))["wall_s"]) if spent.exists() else 0.0


def saved(root: Path) -> list[Path]:
    """What `save` left under `root`, oldest first."""
    return sorted((p for p in root.glob("[0-9]*") if p.is_dir()), key=lambda p: int(p.name))


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """facts.json, names in their order: of two skills that count the same in a mix the first one did better."""
    write_json(folder / "facts.json", facts, sort_keys=False)
