"""Rewards and ends of tasks whose observation tells them: for data that was not recorded in a simulator.

Each maps obs, action in [-1, 1] and next_obs (N, ...) to reward (N,) and terminated (N,), as the task would have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.tasks.arm import REACHED as ARM_REACHED
from sim.tasks.quadrotor import ASTRAY, TILTED
from sim.tasks.quadrotor import REACHED as QUADROTOR_REACHED
from sim.tasks.vehicle import REACHED as VEHICLE_REACHED

Judged = tuple[np.ndarray, np.ndarray]


def arm_reach(obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> Judged:
    """The last three numbers are the way from tip to goal."""
    away = np.linalg.norm(next_obs[:, -3:], axis=1)
    return 1.0 / (1.0 + 5.0 * away) + (away < ARM_REACHED), np.zeros(len(obs), dtype=bool)


def vehicle_waypoint(obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> Judged:
    """The first two numbers are the goal in the vehicle's axes."""
    before, after = np.linalg.norm(obs[:, :2], axis=1), np.linalg.norm(next_obs[:, :2], axis=1)
    arrived = after < VEHICLE_REACHED
    return before - after - 0.02 + arrived, arrived


def _flight(next_obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the goal, and who is lost. How high it is a quadrotor does not see, so it is never on the ground."""
    away = np.linalg.norm(next_obs[:, :3], axis=1)
    return away, (next_obs[:, 14] < TILTED) | (away > ASTRAY)


def quadrotor_hover(obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> Judged:
    away, lost = _flight(next_obs)
    rates = np.square(next_obs[:, 15:18]).sum(1)
    return ~lost / (1.0 + away**2 + 0.05 * rates), lost


def quadrotor_waypoint(obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> Judged:
    away, lost = _flight(next_obs)
    arrived = away < QUADROTOR_REACHED
    return np.linalg.norm(obs[:, :3], axis=1) - away - 0.01 + arrived - 1.0 * lost, lost | arrived


REWARDS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Judged]] = {
    "arm-reach": arm_reach,
    "vehicle-waypoint": vehicle_waypoint,
    "quadrotor-hover": quadrotor_hover,
    "quadrotor-waypoint": quadrotor_waypoint,
}
