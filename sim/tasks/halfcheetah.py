"""HalfCheetah-v5 of Gymnasium: run forward, pay for torque, never fall."""

from __future__ import annotations

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace, no_termination
from sim.tasks.gymnasium_v5 import ASSETS, control_cost, noisy_start

FRAME_SKIP, DT = 5, 0.01 * 5
CONTROL_COST, START_NOISE = 0.1, 0.1


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    return {"qpos": data.qpos, "qvel": data.qvel}


def observe(state: State) -> np.ndarray:
    """qpos without x, qvel. (N, 17)"""
    return namespace(state["qpos"]).concat([state["qpos"][:, 1:], state["qvel"]], axis=1)


def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Forward speed − 0.1 · Σ action². (N,)"""
    speed = (after["qpos"][:, 0] - before["qpos"][:, 0]) / DT
    return speed - control_cost(action, CONTROL_COST)


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (*channels.positions(model)[1:], *channels.velocities(model))


TASK = Task(
    name="halfcheetah",
    original="HalfCheetah-v5",
    model_file=("gymnasium", ASSETS + "half_cheetah.xml"),
    frame_skip=FRAME_SKIP,
    control_dt=DT,
    gather=gather,
    observe=observe,
    reward=reward,
    terminated=no_termination,
    reset_state=noisy_start(START_NOISE, normal_velocity=True),
    describe=describe,
)
