"""Methods after tasks of a few steps, and what their policies do."""

from __future__ import annotations

import numpy as np
import torch

from policies.actor import StackedGaussianActor
from robot_cl.continual.method import Method, Setup
from robot_cl.continual.methods import method_class
from robot_cl.continual.stage_training import StageTraining


def learned(name: str, setup: Setup, tasks: int = 2):
    """A method after its first tasks, without scoring anything."""
    method = method_class(name)(setup)
    for k in range(tasks):
        learn_one(method, k)
    return method


def learn_one(method: Method, k: int) -> None:
    learner, spent = method.begin(k)
    training = StageTraining(learner, method.world(k) if learner else None, method.stage(k), k, spent)
    while not training.over:
        fresh = training.round()
        training.steps += method.during(k, training.learner, fresh, training.steps / training.stage.steps)
    method.end(k, learner, training.last)


def mode(actor: StackedGaussianActor) -> np.ndarray:
    """Actions (members, 3, 2) at the same three observations."""
    obs = torch.linspace(-1, 1, 12).view(3, 4)
    return actor.mode(obs.expand(actor.population, 3, 4)).detach().numpy()
