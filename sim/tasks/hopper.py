"""Hopper-v5 of Gymnasium: hop forward without falling."""

from __future__ import annotations

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace
from sim.tasks.gymnasium_v5 import ASSETS, control_cost, noisy_start

FRAME_SKIP, DT = 4, 0.002 * 4
CONTROL_COST, START_NOISE, ALIVE, MAX_VELOCITY = 1e-3, 5e-3, 1.0, 10.0
MIN_HEIGHT, MAX_ANGLE, MAX_STATE = 0.7, 0.2, 100.0


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    return {"qpos": data.qpos, "qvel": data.qvel}


def observe(state: State) -> np.ndarray:
    """qpos without x, qvel clipped to ±10. (N, 11)"""
    xp = namespace(state["qpos"])
    return xp.concat([state["qpos"][:, 1:], xp.clip(state["qvel"], -MAX_VELOCITY, MAX_VELOCITY)], axis=1)


def terminated(state: State) -> np.ndarray:
    """Too low, too tilted, or any position or velocity out of ±100. (N,)"""
    qpos, qvel = state["qpos"], state["qvel"]
    xp = namespace(qpos)
    bounded = xp.all(xp.abs(qpos[:, 2:]) < MAX_STATE, axis=1) & xp.all(xp.abs(qvel) < MAX_STATE, axis=1)
    return ~(bounded & (qpos[:, 1] > MIN_HEIGHT) & (xp.abs(qpos[:, 2]) < MAX_ANGLE))


def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Forward speed + 1 while healthy − 0.001 · Σ action². (N,)"""
    speed = (after["qpos"][:, 0] - before["qpos"][:, 0]) / DT
    return speed + ALIVE * ~terminated(after) - control_cost(action, CONTROL_COST)


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (*channels.positions(model)[1:], *channels.velocities(model, MAX_VELOCITY))


TASK = Task(
    name="hopper",
    original="Hopper-v5",
    model_file=("gymnasium", ASSETS + "hopper.xml"),
    frame_skip=FRAME_SKIP,
    control_dt=DT,
    gather=gather,
    observe=observe,
    reward=reward,
    terminated=terminated,
    reset_state=noisy_start(START_NOISE, normal_velocity=False),
    describe=describe,
)
