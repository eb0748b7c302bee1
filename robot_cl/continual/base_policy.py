"""The base every method starts from: one policy per seed with its values, trained on the stream's base task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from policies.actor import StackedGaussianActor
from robot_cl.checkpoint import load_actor, load_tensors, save_tensors
from robot_cl.continual.actors import State, copied
from robot_cl.continual.method import learner_values
from robot_cl.continual.stage_training import StageTraining
from robot_cl.continual.stage_worlds import stage_world
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.learners import learner_class
from robot_cl.learners.base import LearnerConfig, Trainable
from sim.stream import Stage

FORMAT = 1


def train_base(
    stage: Stage, learner: LearnerConfig, name: str, seeds: int, seed: int, num_worlds: int, threads: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[StackedGaussianActor, State]:  # fmt: skip
    """All seeds trained side by side on the base task; statistics frozen afterwards."""
    world = stage_world([stage] * (seeds * num_worlds), threads)
    face = world.interface
    made = learner_class(name)(replace(learner, trainable=Trainable.full), face.obs_dim, face.act_dim, seeds, seed)
    training = StageTraining(made, world, stage, seed, threads=threads)
    while not training.over:
        training.round()
        if progress is not None:
            progress(training.steps, stage.steps)
    actor = copied(made.policy())
    actor.normalizer.freeze()
    return actor, learner_values(made)


def save_base(folder: Path, actor: StackedGaussianActor, values: State, task: str, interface: dict) -> None:
    """A checkpoint like any other, with the values beside it in values.safetensors."""
    with whole_folder(folder.parent, folder, overwrite=True) as part:
        save_tensors(part / "policy.safetensors", actor.state_dict())
        save_tensors(part / "values.safetensors", values)
        card = {"format": FORMAT, "kind": "gaussian", "actor": actor.spec(), "step": 0, "task": task}
        write_json(part / "policy.json", card | {"interface": interface})


def load_base(folder: Path) -> tuple[StackedGaussianActor, State]:
    """Raises ValueError, OSError for a damaged or missing folder."""
    values = folder / "values.safetensors"
    actor = load_actor(folder)
    actor.normalizer.freeze()
    return actor, load_tensors(values) if values.exists() else {}
