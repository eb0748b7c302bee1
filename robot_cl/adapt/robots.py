"""The robots that can be prepared for changes: how each explores, plans, is seen by its models, and may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dynamics.action_flow import Coder, body_frame, plain_coder
from dynamics.effectiveness import EffectivenessConfig
from dynamics.ensemble import Ensemble
from dynamics.planner import PlannerConfig
from dynamics.reshaped import ReshapeConfig
from sim.robots.fleet import Robot, quadrotor_robot, vehicle_robot
from sim.robots.regimes import UNCHANGED, Regime

Steer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pose (N, D), goal (N, 2 or 3) -> action (N, A)


@dataclass(frozen=True)
class Prepared:
    """One robot with everything that differs from robot to robot; states are its poses."""

    robot: Robot
    obs_dim: int
    act_dim: int
    goal_dim: int  # the first dimensions of a pose are its place
    angles: tuple[int, ...]  # dimensions in radians
    unseen: tuple[int, ...]  # dimensions that its dynamics do not depend on
    draw: Callable[[np.random.Generator], Regime]  # a regime of the family that is trained on
    coder: Callable[[Ensemble], Coder]
    planner: PlannerConfig
    steer: Steer | None = None  # explores, and proposes to the planner; None: actions at random
    explore_steps: int = 60
    scales: tuple[float, float] = (0.3, 0.6)  # least and largest noise of an explorer
    limits: dict[str, int] = field(default_factory=dict)  # steps allowed per map, two and a half times what it needs
    reshape: ReshapeConfig = field(default_factory=ReshapeConfig)  # of planner and flow together
    aside: float = 0.0  # m: standard deviation of the places around the goal to which proposals steer


def vehicle_regime(rng: np.random.Generator) -> Regime:
    """Half of the family are gains alone, half have slip and coupling as well; one in eight is unchanged."""
    if rng.random() < 0.125:
        return UNCHANGED
    gain = tuple(float(g) for g in rng.uniform(-2.5, 2.5, 2))
    if rng.random() < 0.5:
        return Regime("drawn", gain=gain)
    gain = tuple(float(g) for g in rng.choice([-1.0, 1.0], 2) * rng.uniform(0.6, 1.4, 2))
    return Regime("drawn", gain=gain, slip=rng.uniform(0, 0.8), cross=rng.uniform(-1.3, 1.3))


def quadrotor_regime(rng: np.random.Generator) -> Regime:
    """Gains of thrust and rates, or a weak rotor, wind, a payload and their combinations; one in eight is unchanged."""
    if rng.random() < 0.125:
        return UNCHANGED
    yaw = rng.choice([-1.0, 1.0])
    gain = (rng.uniform(0.75, 1.25), *rng.uniform(0.35, 2.2, 2), yaw * rng.uniform(0.4, 2.2))
    kind = rng.random()
    if kind < 0.4:
        return Regime("drawn", gain=tuple(map(float, gain)))
    weak = (int(rng.integers(4)), float(rng.uniform(0.5, 1.0))) if kind < 0.8 else None
    wind = (*rng.uniform(-1.0, 1.0, 2), 0.0) if kind > 0.55 else (0.0, 0.0, 0.0)
    payload, at = (rng.uniform(0, 0.15), (*rng.uniform(-0.04, 0.04, 2), -0.05)) if kind > 0.7 else (0.0, (0.0,) * 3)
    return Regime("drawn", weak_rotor=weak, wind=wind, payload=payload, payload_at=at)


def fly(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Proportional-derivative flight to a goal at heading zero, for the unchanged quadrotor."""
    push = 2.0 * (np.clip(1.5 * (goal - pose[:, :3]), -1.5, 1.5) - pose[:, 3:6])
    roll, pitch, yaw = pose[:, 6:9].T
    c, s = np.cos(yaw), np.sin(yaw)
    ahead, left = c * push[:, 0] + s * push[:, 1], c * push[:, 1] - s * push[:, 0]
    thrust = (1 + push[:, 2] / 9.81) / np.clip(np.cos(roll) * np.cos(pitch), 0.3, 1.0) * 0.61 / 0.6 - 1
    rates = (2 * (-left / 9.81 - roll), 2 * (ahead / 9.81 - pitch), -yaw)
    return np.clip(np.stack([thrust, *rates], axis=1), -1, 1)


def vehicle() -> Prepared:
    """Ground vehicle: speed and turn rate, gains of both, slip that grows with speed, turning coupled to speed"""
    return Prepared(
        vehicle_robot(), 5, 2, 2, (2,), (0, 1), vehicle_regime,
        lambda model: body_frame(2, 0, 1, model.delta_scale, (3, 4)), PlannerConfig(128, 8, 0.5, 0.3),
        limits={"yard": 400, "field": 700}, reshape=ReshapeConfig(effectiveness=EffectivenessConfig()),
    )  # fmt: skip


def quadrotor() -> Prepared:
    """Quadrotor: thrust and body rates, gains of all four, one weak rotor, payload, wind"""
    return Prepared(
        quadrotor_robot(), 12, 4, 3, (6, 7, 8), (0, 1, 2), quadrotor_regime, plain_coder,
        PlannerConfig(128, 16, 0.3, 0.6, policy_share=0.25), fly, 80, (0.05, 0.3),
        {"yard": 1000, "field": 1800}, aside=0.7,
    )  # fmt: skip


ROBOTS: dict[str, Callable[[], Prepared]] = {"vehicle": vehicle, "quadrotor": quadrotor}


def prepared(name: str) -> Prepared:
    """Raises LookupError for an unknown name."""
    if name not in ROBOTS:
        raise LookupError(f"no robot {name!r} that can be prepared for changes; robots: {', '.join(ROBOTS)}")
    return ROBOTS[name]()
