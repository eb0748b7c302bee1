"""Ant-v5 of Gymnasium: run forward on four legs, contact forces observed and paid for."""

from __future__ import annotations

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace
from sim.tasks.gymnasium_v5 import ASSETS, control_cost, noisy_start

FRAME_SKIP, DT = 5, 0.01 * 5
CONTROL_COST, CONTACT_COST, START_NOISE, ALIVE = 0.5, 5e-4, 0.1, 1.0
MIN_HEIGHT, MAX_HEIGHT, MAX_FORCE = 0.2, 1.0, 1.0


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """The torso's x comes from the simulator, where it lags qpos by a substep, because the original's speed does."""
    return {"qpos": data.qpos, "qvel": data.qvel, "torso_x": data.xpos[1, :1], "contact": data.cfrc_ext.reshape(-1)}


def observe(state: State) -> np.ndarray:
    """qpos without x and y, qvel, contact torque and force of each body clipped to ±1. (N, 105)"""
    xp = namespace(state["qpos"])
    force = xp.clip(state["contact"][:, 6:], -MAX_FORCE, MAX_FORCE)
    return xp.concat([state["qpos"][:, 2:], state["qvel"], force], axis=1)


def terminated(state: State) -> np.ndarray:
    """Torso out of [0.2, 1] m, or a state that is not finite. (N,)"""
    qpos, qvel = state["qpos"], state["qvel"]
    xp = namespace(qpos)
    finite = xp.all(xp.isfinite(qpos), axis=1) & xp.all(xp.isfinite(qvel), axis=1)
    return ~(finite & (qpos[:, 2] >= MIN_HEIGHT) & (qpos[:, 2] <= MAX_HEIGHT))


def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Forward speed + 1 while healthy − 0.5 · Σ action² − 0.0005 · Σ clipped contact². (N,)"""
    speed = (after["torso_x"][:, 0] - before["torso_x"][:, 0]) / DT
    xp = namespace(speed)
    force = xp.clip(after["contact"], -MAX_FORCE, MAX_FORCE)
    costs = control_cost(action, CONTROL_COST) + CONTACT_COST * xp.sum(force * force, axis=1)
    return speed + ALIVE * ~terminated(after) - costs


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (
        *channels.positions(model)[2:], *channels.velocities(model), *channels.contact_forces(model, MAX_FORCE),
    )


TASK = Task(
    name="ant",
    original="Ant-v5",
    model_file=("gymnasium", ASSETS + "ant.xml"),
    frame_skip=FRAME_SKIP,
    control_dt=DT,
    gather=gather,
    observe=observe,
    reward=reward,
    terminated=terminated,
    reset_state=noisy_start(START_NOISE, normal_velocity=True),
    describe=describe,
    contact_forces=True,
)
