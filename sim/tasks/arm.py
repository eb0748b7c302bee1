"""Our six-joint arm reaches a point or pushes a puck. Commands: joint velocities (rad/s), 20 times a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from sim import channels
from sim.spec import Channel
from sim.task import State, Task, namespace, no_termination

FRAME_SKIP, DT, JOINTS = 10, 0.05, 6
READY = np.array([0.0, 0.5, 1.2, 0.9, 0.0, 0.0])  # rad: the tip in front of the arm, above the table
REACHED, PUSHED = 0.05, 0.06  # m
PUCK_X = 0.45  # m: where the puck's joints are zero


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    return {"qpos": data.qpos, "qvel": data.qvel, "tip": data.site_xpos[model.site("tip").id]}


def goal(state: State) -> np.ndarray:
    """Goal in the world (m). (N, 3)"""
    return state["qpos"][:, 8:11]


def puck(state: State) -> np.ndarray:
    """Centre of the puck in the world (m). (N, 3)"""
    xp, place = namespace(state["qpos"]), state["qpos"][:, 6:8]
    return xp.concat([place[:, :1] + PUCK_X, place[:, 1:], xp.full_like(place[:, :1], 0.03)], axis=1)


def length(vector: np.ndarray) -> np.ndarray:
    return namespace(vector).sqrt((vector * vector).sum(axis=1))


def observe_reach(state: State) -> np.ndarray:
    """Joint angles and velocities, tip, tip to goal. (N, 18)"""
    xp = namespace(state["qpos"])
    joints = [state["qpos"][:, :JOINTS], state["qvel"][:, :JOINTS]]
    return xp.concat([*joints, state["tip"], goal(state) - state["tip"]], axis=1)


def observe_push(state: State) -> np.ndarray:
    """Joint angles and velocities, tip, tip to puck, puck to goal on the table, puck velocity. (N, 22)"""
    xp = namespace(state["qpos"])
    joints = [state["qpos"][:, :JOINTS], state["qvel"][:, :JOINTS]]
    away = (goal(state) - puck(state))[:, :2]
    return xp.concat([*joints, state["tip"], puck(state) - state["tip"], away, state["qvel"][:, 6:8]], axis=1)


def reach_reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """In (0, 2]: nearness of the tip to the goal, plus 1 within 5 cm. (N,)"""
    away = length(goal(after) - after["tip"])
    return 1.0 / (1.0 + 5.0 * away) + (away < REACHED)


def push_reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """In (0, 2.25]: nearness of the puck to the goal, a quarter of it of the tip to the puck, plus 1 within 6 cm."""
    away = length((goal(after) - puck(after))[:, :2])
    touch = length(puck(after) - after["tip"])
    return 1.0 / (1.0 + 5.0 * away) + 0.25 / (1.0 + 5.0 * touch) + (away < PUSHED)


def reset_reach(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Near the ready pose, puck out of the way; the goal in a half shell in front of the arm."""
    qpos, qvel = _ready(rngs, model)
    for k, rng in enumerate(rngs):
        out, around, height = rng.uniform(0.3, 0.6), rng.uniform(-1.2, 1.2), rng.uniform(0.1, 0.6)
        qpos[k, 6:8] = -1.2, 0.6
        qpos[k, 8:11] = out * np.cos(around), out * np.sin(around), height
    return qpos, qvel


def reset_push(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Near the ready pose; puck before the arm, the goal 10 to 25 cm further away from it."""
    qpos, qvel = _ready(rngs, model)
    for k, rng in enumerate(rngs):
        at = np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.15, 0.15)])
        way, around = rng.uniform(0.1, 0.25), rng.uniform(-0.6, 0.6)
        qpos[k, 6:8] = at
        qpos[k, 8:11] = PUCK_X + at[0] + way * np.cos(around), at[1] + way * np.sin(around), 0.03
    return qpos, qvel


def _ready(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    qpos, qvel = np.tile(model.qpos0, (len(rngs), 1)), np.zeros((len(rngs), model.nv))
    for k, rng in enumerate(rngs):
        qpos[k, :JOINTS] = READY + rng.uniform(-0.1, 0.1, JOINTS)
    return qpos, qvel


def _arm_channels(model: mujoco.MjModel) -> list[Channel]:
    joints = channels.positions(model)[:JOINTS] + channels.velocities(model)[:JOINTS]
    return [*joints, *(Channel(f"tip.{axis}", "m") for axis in "xyz")]


def describe_reach(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (*_arm_channels(model), *(Channel(f"tip_to_goal.{axis}", "m") for axis in "xyz"))


def describe_push(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (
        *_arm_channels(model),
        *(Channel(f"tip_to_puck.{axis}", "m") for axis in "xyz"),
        *(Channel(f"puck_to_goal.{axis}", "m") for axis in "xy"),
        *(Channel(f"puck.velocity_{axis}", "m/s") for axis in "xy"),
    )


def task(name: str, observe: Callable, reward: Callable, reset_state: Callable, describe: Callable) -> Task:
    return Task(
        name=f"arm-{name}",
        original=f"robot_cl/arm-{name}",
        model_file=("sim", "robots/assets/arm.xml"),
        frame_skip=FRAME_SKIP,
        control_dt=DT,
        gather=gather,
        observe=observe,
        reward=reward,
        terminated=no_termination,
        reset_state=reset_state,
        describe=describe,
        time_limit=200,
    )


REACH = task("reach", observe_reach, reach_reward, reset_reach, describe_reach)
PUSH = task("push", observe_push, push_reward, reset_push, describe_push)
