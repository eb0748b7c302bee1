"""Stages of existing suites: environments as they are, made into worlds that can be learned in."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from policies.actor import ActorConfig, StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from robot_cl.continual.methods.multitask import JoinedWorlds
from robot_cl.continual.stage_training import StageTraining
from robot_cl.continual.stage_worlds import SuiteStage, play, score, stage_world
from robot_cl.learners.ppo import PPO, PPOConfig
from sim.stream import Stage

PENDULUM = Stage("swing", "gymnasium/Pendulum-v1", 64, untrained=-2000.0, solved=0.0)
ACTOR = ActorConfig(hidden=(8,), squash_mean=False)
SMALL = PPOConfig(ACTOR, critic=CriticConfig(hidden=(8,)), horizon=8, minibatch=16)


def test_an_ended_environment_begins_again_at_once_from_its_next_seed() -> None:
    world = stage_world([PENDULUM] * 2)
    assert isinstance(world, SuiteStage)
    first = world.reset(seed=3)
    for _ in range(199):
        _, _, _, truncated, info = world.step(np.zeros((2, 1)))
        assert not truncated.any()
    obs, _, _, truncated, info = world.step(np.zeros((2, 1)))
    assert truncated.all()
    assert not np.allclose(info["final_obs"], obs) and not np.allclose(obs, first)
    np.testing.assert_allclose(obs, stage_world([PENDULUM] * 2).reset(seed=5))
    assert (info["episode_length"] == 200).all()
    assert (world.step(np.zeros((2, 1)))[4]["episode_length"] == 1).all()


def test_a_suites_task_is_learned_and_scored_like_any_other() -> None:
    learner = PPO(SMALL, 3, 1, 2)
    training = StageTraining(learner, stage_world([PENDULUM] * 8), PENDULUM, 0)
    assert not training.can_pause  # suites cannot be put back into the middle of an episode
    while not training.over:
        training.round()
    assert training.steps == 64
    found = score([learner.actor], [PENDULUM], 2, 7)
    assert found.shape == (2, 1, 2) and (found < 1.0).all() and (found > 0.0).all()


def test_suites_joined_side_by_side_cannot_pause_either() -> None:
    learner = PPO(SMALL, 5, 1, 2)
    joined = JoinedWorlds([stage_world([PENDULUM] * 4), stage_world([PENDULUM] * 4)], 2)
    assert not StageTraining(learner, joined, PENDULUM, 0).can_pause
    own = Stage("drive", "vehicle-waypoint", 64)
    learner = PPO(SMALL, 6, 2, 2)
    joined = JoinedWorlds([stage_world([own] * 4), stage_world([own] * 4)], 2)
    assert StageTraining(learner, joined, own, 0).can_pause


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="the suites extra is not installed")
def test_meta_world_is_scored_by_its_success() -> None:
    stage = Stage("reach", "metaworld/reach-v3", 10, measure="success")
    world = stage_world([stage])
    face = world.interface
    actor = StackedGaussianActor(face.obs_dim, face.act_dim, generators(0, 1), ActorConfig(hidden=(8,)))
    played = play(actor, world, [0], steps=5)
    assert played.success.shape == (1, 1) and played.success[0, 0] in (0, 1)
