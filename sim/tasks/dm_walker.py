"""The planar walker of dm_control: stand, walk at 1 m/s, run at 8 m/s; and, our own addition, walk backward."""

from __future__ import annotations

from functools import partial

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace, no_termination
from sim.tasks.dm_control_suite import SUITE, at_least, random_joints, sensor

FRAME_SKIP, DT = 10, 0.025
STAND_HEIGHT, WALK_SPEED, RUN_SPEED = 1.2, 1.0, 8.0


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    torso = model.body("torso").id
    return {
        "qpos": data.qpos,
        "qvel": data.qvel,
        "orientation": data.xmat[1:, 0:3:2],
        "height": data.xpos[torso, 2:],
        "upright": data.xmat[torso, 8:],
        "speed": sensor(model, data, "torso_subtreelinvel")[:1],
    }


def observe(state: State) -> np.ndarray:
    """xx and xz of each body's rotation (14), torso height (1), qvel (9). (N, 24)"""
    return namespace(state["qvel"]).concat([state["orientation"], state["height"], state["qvel"]], axis=1)


def reward(before: State, after: State, action: np.ndarray, speed: float) -> np.ndarray:
    """In [0, 1]: standing tall and upright, times moving at `speed` m/s (below 0: backward) unless that is 0. (N,)"""
    standing = at_least(after["height"][:, 0], STAND_HEIGHT, STAND_HEIGHT / 2, "gaussian", 0.1)
    upright = (1 + after["upright"][:, 0]) / 2
    stand = (3 * standing + upright) / 4
    if speed == 0:
        return stand
    along = after["speed"][:, 0] if speed > 0 else -after["speed"][:, 0]
    moving = at_least(along, abs(speed), abs(speed) / 2, "linear", 0.5)
    return stand * (5 * moving + 1) / 6


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    bodies = [channels.body_name(model, b) for b in range(1, model.nbody)]
    return (
        *(Channel(f"{body}.orientation_{axis}", "1", -1.0, 1.0) for body in bodies for axis in ("xx", "xz")),
        Channel("torso.height", "m"),
        *channels.velocities(model),
    )


def walker(name: str, speed: float, suite: str = "dm_control") -> Task:
    return Task(
        name=f"walker-{name}",
        original=f"{suite}/walker-{name}",
        model_file=("dm_control", SUITE + "walker.xml"),
        frame_skip=FRAME_SKIP,
        control_dt=DT,
        gather=gather,
        observe=observe,
        reward=partial(reward, speed=speed),
        terminated=no_termination,
        reset_state=random_joints,
        describe=describe,
        stepping="dm_control",
    )


STAND, WALK, RUN = walker("stand", 0.0), walker("walk", WALK_SPEED), walker("run", RUN_SPEED)
BACKWARD = walker("backward", -WALK_SPEED, "robot_cl")
