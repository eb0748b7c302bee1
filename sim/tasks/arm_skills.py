"""Reach, push, and reach around a post with our six-joint arm, all three seen through the same 25 numbers.

One interface for all of them, so that one policy, or adapters on one base, can learn them one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mujoco
import numpy as np

from sim.spec import Channel
from sim.task import State, namespace
from sim.tasks import arm

POST, POST_RADIUS, POST_HEIGHT = np.array([0.32, 0.0]), 0.08, 0.45  # m: a keep-out cylinder before the arm
BUMP = 1.0  # paid per step inside it


def observe(state: State) -> np.ndarray:
    """Joint angles and velocities, tip, tip to goal, tip to puck, puck to goal on the table, puck velocity. (N, 25)"""
    xp, tip = namespace(state["qpos"]), state["tip"]
    joints = [state["qpos"][:, : arm.JOINTS], state["qvel"][:, : arm.JOINTS]]
    to_goal, to_puck = arm.goal(state) - tip, arm.puck(state) - tip
    away = (arm.goal(state) - arm.puck(state))[:, :2]
    return xp.concat([*joints, tip, to_goal, to_puck, away, state["qvel"][:, 6:8]], axis=1)


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    reach, push = arm.describe_reach(model), arm.describe_push(model)
    return (*reach, *push[2 * arm.JOINTS + 3 :])


def inside_post(tip: np.ndarray) -> np.ndarray:
    """Whether the tip (N, 3) is within the keep-out cylinder, (N,)."""
    off = tip[:, :2] - namespace(tip).asarray(POST)
    return (arm.length(off) < POST_RADIUS) & (tip[:, 2] < POST_HEIGHT)


def obstacle_reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """As for reaching, minus 1 for every step with the tip inside the post. (N,)"""
    return arm.reach_reward(before, after, action) - BUMP * inside_post(after["tip"])


def reset_obstacle(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Near the ready pose, turned to one side of the post; the goal low on the other side."""
    qpos, qvel = arm.reset_reach(rngs, model)
    for k, rng in enumerate(rngs):
        side = rng.choice([-1.0, 1.0])
        out, around = rng.uniform(0.35, 0.5), side * rng.uniform(0.5, 0.9)
        qpos[k, 0] = -side * 0.7
        qpos[k, 8:11] = out * np.cos(around), out * np.sin(around), rng.uniform(0.1, 0.3)
    return qpos, qvel


REACH = replace(
    arm.REACH, name="arm-skills-reach", original="robot_cl/arm-skills-reach", observe=observe, describe=describe
)
PUSH = replace(
    arm.PUSH, name="arm-skills-push", original="robot_cl/arm-skills-push", observe=observe, describe=describe
)
OBSTACLE = replace(
    REACH,
    name="arm-skills-obstacle",
    original="robot_cl/arm-skills-obstacle",
    reward=obstacle_reward,
    reset_state=reset_obstacle,
)
