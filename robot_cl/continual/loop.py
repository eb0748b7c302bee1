"""Methods on one stream: each learns its tasks one after another, and after each task is scored on all of them.

Run folder: config.yaml, provenance.json, base/, methods/<method>/{library/, <stage>/row.json and state, progress/},
continual.json (robot_cl/continual/summary.py). A stage is finished when its folder exists; within a stage the learner's
own state is kept, so that a run killed at any moment goes on to the same matrix, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.checkpoint import load_tensors, save_tensors
from robot_cl.continual.method import Method, Setup
from robot_cl.continual.methods import method_class
from robot_cl.continual.stage_training import StageTraining, saved, write_facts
from robot_cl.continual.stage_worlds import score
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.seeding import EVALUATION_SEED

Progress = Callable[[str, float, float], None]  # method and task, steps done, steps in all


@dataclass
class Measuring:
    """How much is measured, and how often state is put to disk."""

    episodes: int = 5  # per seed and entry of R
    points: int = 6  # of each learning curve, besides its start
    curve_episodes: int = 4  # per seed and point
    save_every: int = 50_000  # steps between states within a task

    def __post_init__(self) -> None:
        if min(self.episodes, self.points, self.curve_episodes, self.save_every) < 1:
            raise ValueError("episodes, points, curve_episodes and save_every must be at least 1")


def run_method(name: str, setup: Setup, measuring: Measuring, progress: Progress | None = None) -> list[dict[str, Any]]:
    """One method through the whole stream -> what was measured after each task, oldest first. Resumes by itself."""
    method, rows = method_class(name)(setup), list[dict[str, Any]]()
    for k in range(len(setup.stream.stages)):
        folder = setup.folder / f"{k:02d}"
        if (folder / "row.json").exists():
            rows.append(read_row(folder))
            if not (setup.folder / f"{k + 1:02d}" / "row.json").exists():
                restore(method, folder)
            continue
        rows.append(learn_stage(name, method, k, setup, measuring, progress))
        with whole_folder(setup.folder, folder) as part:
            write_json(part / "row.json", rows[-1])
            write_facts(part, method.facts())
            save_tensors(part / "method.safetensors", method.tensors())
        shutil.rmtree(setup.folder / "progress", ignore_errors=True)
    return rows


def learn_stage(
    name: str, method: Method, k: int, setup: Setup, measuring: Measuring, progress: Progress | None
) -> dict[str, Any]:
    """Learn task k and score everything."""
    began, stages = time.monotonic(), setup.stream.stages
    before = score([method.policy(k)], [stages[k]], measuring.episodes, EVALUATION_SEED, setup.threads)[:, 0]
    learner, spent = method.begin(k)
    after = method.afterwards(k) if learner is not None else 0
    training = StageTraining(
        learner, method.world(k) if learner is not None else None, stages[k], setup.seed + 1000 * (k + 1), spent,
        measuring.points, measuring.curve_episodes, setup.threads, after,
    )  # fmt: skip
    root = setup.folder / "progress" / f"{k:02d}"
    if training.can_pause and saved(root):
        restore(method, saved(root)[-1])
        training.load(saved(root)[-1])
    train(name, method, k, training, root, measuring, progress)
    method.end(k, learner, training.last)
    scores = score([method.policy(j) for j in range(len(stages))], stages, measuring.episodes, EVALUATION_SEED,
                   setup.threads)  # fmt: skip
    return {
        "stage": stages[k].name,
        "scores": scores.tolist(),
        "before": before.mean(-1).tolist(),
        "curve": np.stack(training.curve, axis=1).tolist(),
        "steps": training.steps + after,
        "bytes": method.kept_bytes(),
        "wall_s": round(training.earlier + time.monotonic() - began, 2),
    }


def train(
    name: str, method: Method, k: int, training: StageTraining, root: Path, measuring: Measuring,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Rounds until the budget is spent, measuring and saving on the way."""
    budget = training.stage.steps
    training.measure(lambda: method.current(k, training.learner))
    while not training.over:
        before = training.steps // measuring.save_every
        fresh = training.round()
        assert training.learner is not None
        training.steps += method.during(k, training.learner, fresh, training.steps / budget)
        training.measure(lambda: method.current(k, training.learner))
        if progress is not None:
            whole = budget * len(method.setup.stream.stages)
            progress(f"{name}: {training.stage.name}", k * budget + training.steps, whole)
        if training.can_pause and not training.over and training.steps // measuring.save_every > before:
            training.save(root, method.tensors(), method.facts())


def restore(method: Method, folder: Path) -> None:
    """Take up the method's state of a finished task or of one in progress."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    method.restore(load_tensors(folder / "method.safetensors"), facts)


def read_row(folder: Path) -> dict[str, Any]:
    """What was measured after a finished task."""
    return json.loads((folder / "row.json").read_text(encoding="utf-8"))
