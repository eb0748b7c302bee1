"""A stream, a base and a setup small enough for a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.actor import ActorConfig, StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.continual.method import MethodConfig, Setup, learner_values
from robot_cl.learners.ppo import PPO, PPOConfig
from sim.stream import Stream, get_stream

sys.path.insert(0, str(Path(__file__).parent))  # for small_methods
TINY = PPOConfig(
    actor=ActorConfig(hidden=(8, 8), activation="tanh", squash_mean=False, init="orthogonal"),
    critic=CriticConfig(hidden=(8,), activation="tanh"),
    horizon=8,
    minibatch=32,
    epochs=1,
    rank=2,
)
SMALL = MethodConfig(trial_worlds=1, trial_steps=4, trial_share=0.5, memory=32, skill_lr=3e-2)


@pytest.fixture
def stream() -> Stream:
    """Three regimes of the vehicle, eight rollouts of four worlds each."""
    return get_stream("vehicle_regimes").scaled(steps=240, base_steps=32, tasks=3)


@pytest.fixture
def make_setup(tmp_path: Path, stream: Stream) -> Callable[..., Setup]:
    """make_setup(name, seeds=2, tasks=3): a setup whose folder is tmp_path/name."""

    def make(name: str = "run", seeds: int = 2, tasks: int = 3, **options: object) -> Setup:
        import sim

        interface = sim.make("vehicle-waypoint", 1, threads=1).interface
        statistics = Normalizer(4, population=seeds)
        actor = StackedGaussianActor(4, 2, generators(0, seeds), TINY.actor, statistics)
        actor.normalizer.freeze()
        values = learner_values(PPO(TINY, 4, 2, seeds, 5))
        given = {"config": SMALL, **options}
        some = stream.scaled(tasks=tasks)
        return Setup(some, actor, values, TINY, "ppo", tmp_path / name, 0, 4, 1, interface=interface, **given)

    return make
