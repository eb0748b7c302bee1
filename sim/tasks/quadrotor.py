"""Our quadrotor hovers or flies to a waypoint. Commands: thrust (N) and body rates (rad/s), 20 times a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from sim.robots.frames import in_body, quaternion, roll_pitch_yaw, rotation
from sim.spec import Channel
from sim.task import State, Task, namespace

FRAME_SKIP, DT, REACHED = 10, 0.05, 0.3
LOWEST, TILTED, ASTRAY = 0.1, 0.2, 6.0  # m, cosine of the tilt, m


def gather(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    return {"qpos": data.qpos, "qvel": data.qvel}


def to_goal(state: State) -> np.ndarray:
    """Vector from the quadrotor to its goal in the world (m). (N, 3)"""
    return state["qpos"][:, 7:10] - state["qpos"][:, :3]


def distance(state: State) -> np.ndarray:
    away = to_goal(state)
    return namespace(away).sqrt((away * away).sum(axis=1))


def observe(state: State) -> np.ndarray:
    """Goal and velocity in the body frame, rotation matrix by rows, body rates. (N, 18)"""
    quat, qvel = state["qpos"][:, 3:7], state["qvel"]
    turn = rotation(quat).reshape(-1, 9)
    parts = [in_body(quat, to_goal(state)), in_body(quat, qvel[:, :3]), turn, qvel[:, 3:6]]
    return namespace(qvel).concat(parts, axis=1)


def crashed(state: State) -> np.ndarray:
    """On the ground, nearly on its side or more than 6 m from the goal. (N,)"""
    upright = rotation(state["qpos"][:, 3:7])[:, 2, 2]
    return (state["qpos"][:, 2] < LOWEST) | (upright < TILTED) | (distance(state) > ASTRAY)


def arrived(state: State) -> np.ndarray:
    """Within 0.3 m of the goal. (N,)"""
    return distance(state) < REACHED


def hover_reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """In (0, 1]: near the goal and turning little; 0 after a crash. (N,)"""
    rates = (after["qvel"][:, 3:6] ** 2).sum(axis=1)
    return ~crashed(after) / (1.0 + distance(after) ** 2 + 0.05 * rates)


def waypoint_reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
    """Metres gained − 0.01 per step + 1 on arrival − 1 for a crash. (N,)"""
    return distance(before) - distance(after) - 0.01 + arrived(after) - 1.0 * crashed(after)


def ends_at_goal(state: State) -> np.ndarray:
    return crashed(state) | arrived(state)


def starts(nearest: float, furthest: float) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Level at 1.5 m with any heading; the goal between `nearest` and `furthest` metres away, above 0.8 m."""

    def reset_state(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = np.tile(model.qpos0, (len(rngs), 1)), np.zeros((len(rngs), model.nv))
        for k, rng in enumerate(rngs):
            yaw, direction = rng.uniform(-np.pi, np.pi, 2)
            away, height = rng.uniform(nearest, furthest), rng.uniform(0.8, 2.2)
            qpos[k, 2] = 1.5
            qpos[k, 3:7] = quaternion(np.zeros(1), np.zeros(1), np.array([yaw]))[0]
            qpos[k, 7:10] = away * np.cos(direction), away * np.sin(direction), height
        return qpos, qvel

    return reset_state


def describe(model: mujoco.MjModel) -> tuple[Channel, ...]:
    return (
        *(Channel(f"goal.{axis}", "m") for axis in ("ahead", "left", "up")),
        *(Channel(f"frame.velocity_{axis}", "m/s") for axis in ("ahead", "left", "up")),
        *(Channel(f"frame.orientation_{a}{b}", "1", -1.0, 1.0) for a in "xyz" for b in "xyz"),
        *(Channel(f"frame.{axis}_rate", "rad/s") for axis in ("roll", "pitch", "yaw")),
    )


def pose(state: State) -> np.ndarray:
    """Position, velocity (world), roll, pitch, yaw, body rates: what dynamics models of it predict. (N, 12)"""
    qpos, qvel = state["qpos"], state["qvel"]
    return namespace(qpos).concat([qpos[:, :3], qvel[:, :3], roll_pitch_yaw(qpos[:, 3:7]), qvel[:, 3:6]], axis=1)


def task(name: str, reward: Callable, terminated: Callable, nearest: float, furthest: float, time_limit: int) -> Task:
    return Task(
        name=f"quadrotor-{name}",
        original=f"robot_cl/quadrotor-{name}",
        model_file=("sim", "robots/assets/quadrotor.xml"),
        frame_skip=FRAME_SKIP,
        control_dt=DT,
        gather=gather,
        observe=observe,
        reward=reward,
        terminated=terminated,
        reset_state=starts(nearest, furthest),
        describe=describe,
        time_limit=time_limit,
    )


HOVER = task("hover", hover_reward, crashed, 0.0, 1.0, 200)
WAYPOINT = task("waypoint", waypoint_reward, ends_at_goal, 1.0, 3.0, 200)
