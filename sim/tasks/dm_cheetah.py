"""The cheetah of dm_control: run at 10 m/s."""

from __future__ import annotations

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace, no_termination
from sim.tasks.dm_control_suite import SUITE, at_least, limited_joints, sensor

DT, RUN_SPEED, SETTLE_STEPS = 0.01, 10.0, 200


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    speed = sensor(model, data, "torso_subtreelinvel")[:1]
    return {"qpos": data.qpos, "qvel": data.qvel, "speed": speed}


def observe(state: State) -> np.ndarray:
    """qpos without x, qvel. (N, 17)"""
    return namespace(state["qpos"]).concat([state["qpos"][:, 1:], state["qvel"]], axis=1)


def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Speed of the centre of mass / 10 m/s, within [0, 1]. (N,)"""
    return at_least(after["speed"][:, 0], RUN_SPEED, RUN_SPEED, "linear", 0.0)


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (*channels.positions(model)[1:], *channels.velocities(model))


TASK = Task(
    name="cheetah-run",
    original="dm_control/cheetah-run",
    model_file=("dm_control", SUITE + "cheetah.xml"),
    frame_skip=1,
    control_dt=DT,
    gather=gather,
    observe=observe,
    reward=reward,
    terminated=no_termination,
    reset_state=limited_joints,
    describe=describe,
    stepping="dm_control",
    settle_steps=SETTLE_STEPS,
)
