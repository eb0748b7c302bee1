"""Our ground vehicle drives to a waypoint. Commands: forward speed (m/s) and turn rate (rad/s), five times a second."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from sim.robots.frames import heading, in_body, quaternion
from sim.spec import Channel
from sim.task import State, Task, namespace

FRAME_SKIP, DT, REACHED = 20, 0.2, 0.5
HEIGHT, FIELD = 0.0997, 3.0


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    return {"qpos": data.qpos, "qvel": data.qvel}


def to_goal(state: State) -> np.ndarray:
    """Vector from the vehicle to its goal in the world, (N, 3) with z = 0."""
    qpos = state["qpos"]
    xp = namespace(qpos)
    flat = qpos[:, 9:11] - qpos[:, :2]
    return xp.concat([flat, xp.zeros_like(flat[:, :1])], axis=1)


def distance(state: State) -> np.ndarray:
    """Metres to the goal, (N,)."""
    away = to_goal(state)
    return namespace(away).sqrt((away * away).sum(axis=1))


def observe(state: State) -> np.ndarray:
    """Goal ahead and to the left (m), forward speed (m/s), turn rate (rad/s). (N, 4)"""
    quat, qvel = state["qpos"][:, 3:7], state["qvel"]
    goal, velocity = in_body(quat, to_goal(state)), in_body(quat, qvel[:, :3])
    return namespace(qvel).concat([goal[:, :2], velocity[:, :1], qvel[:, 5:6]], axis=1)


def terminated(state: State) -> np.ndarray:
    """The waypoint is reached, within 0.5 m. (N,)"""
    return distance(state) < REACHED


def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Metres gained − 0.02 per step + 1 on arrival. (N,)"""
    return distance(before) - distance(after) - 0.02 + terminated(after)


def reset_state(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """At the origin, any heading; the goal 1 to 3 m away in any direction."""
    qpos, qvel = np.tile(model.qpos0, (len(rngs), 1)), np.zeros((len(rngs), model.nv))
    for k, rng in enumerate(rngs):
        yaw, direction = rng.uniform(-np.pi, np.pi, 2)
        away = rng.uniform(1.0, FIELD)
        qpos[k, 2] = HEIGHT
        qpos[k, 3:7] = quaternion(np.zeros(1), np.zeros(1), np.array([yaw]))[0]
        qpos[k, 9:11] = away * np.cos(direction), away * np.sin(direction)
    return qpos, qvel


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (
        Channel("goal.ahead", "m"),
        Channel("goal.left", "m"),
        Channel("chassis.speed", "m/s"),
        Channel("chassis.turn_rate", "rad/s"),
    )


def pose(state: State) -> np.ndarray:
    """x, y (m), heading (rad), forward speed (m/s), turn rate (rad/s): what dynamics models of it predict. (N, 5)"""
    quat, qvel = state["qpos"][:, 3:7], state["qvel"]
    xp = namespace(qvel)
    forward = in_body(quat, qvel[:, :3])[:, :1]
    return xp.concat([state["qpos"][:, :2], xp.expand_dims(heading(quat), axis=1), forward, qvel[:, 5:6]], axis=1)


TASK = Task(
    name="vehicle-waypoint",
    original="robot_cl/vehicle-waypoint",
    model_file=("sim", "robots/assets/vehicle.xml"),
    frame_skip=FRAME_SKIP,
    control_dt=DT,
    gather=gather,
    observe=observe,
    reward=reward,
    terminated=terminated,
    reset_state=reset_state,
    describe=describe,
    time_limit=100,
)
