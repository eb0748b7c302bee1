"""How a robot may change in the middle of a mission: gains, and changes that depend on its state or couple its axes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import mujoco
import numpy as np

ROTORS = np.array([[0.085, -0.085], [-0.085, -0.085], [-0.085, 0.085], [0.085, 0.085]])  # m, x forward and y left
SPIN = np.array([1.0, -1.0, 1.0, -1.0])
DRAG_ARM = 0.016  # m: yaw torque per thrust of one rotor


@dataclass(frozen=True)
class Regime:
    """One kind of change; every default is none.

    gain, bias: per command, command' = gain · command + bias in the command's unit. slip: share of the first command
    lost per unit of it (grows with speed). cross: second command gained per unit of the first. payload: kg, hung
    `payload_at` (m, body frame) from the centre. weak_rotor: index and efficiency of one rotor of a quadrotor.
    wind: force on the body in N, world frame.
    """

    name: str
    gain: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    slip: float = 0.0
    cross: float = 0.0
    payload: float = 0.0
    payload_at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    weak_rotor: tuple[int, float] | None = None
    wind: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        numbers = [*self.gain, *self.bias, self.slip, self.cross, self.payload, *self.payload_at, *self.wind]
        if not all(map(math.isfinite, numbers)) or self.payload < 0:
            raise ValueError(f"regime {self.name!r}: all numbers must be finite and payload at least 0")
        if self.weak_rotor is not None and not (self.weak_rotor[0] in range(4) and 0 <= self.weak_rotor[1] <= 1):
            raise ValueError(f"regime {self.name!r}: weak_rotor is an index 0..3 and an efficiency 0..1")

    def command(self, command: np.ndarray) -> np.ndarray:
        """What reaches the motors, (act_dim,) -> (act_dim,), in the commands' units."""
        out = command.astype(np.float64)
        if self.slip:
            out[0] *= max(0.0, 1.0 - self.slip * abs(command[0]))
        if self.cross:
            out[1] += self.cross * command[0]
        for k, gain in enumerate(self.gain):
            out[k] *= gain
        for k, bias in enumerate(self.bias):
            out[k] += bias
        return out

    def model(self, base: mujoco.MjModel) -> mujoco.MjModel:
        """The physics of this regime: `base` itself where it does not differ."""
        if self.payload == 0.0 and self.weak_rotor is None:
            return base
        model = copy.copy(base)
        if self.payload:
            _load(model, self.payload, np.array(self.payload_at))
        if self.weak_rotor is not None:
            weaken(model, *self.weak_rotor)
        return model


def _load(model: mujoco.MjModel, mass: float, at: np.ndarray) -> None:
    """A point mass on body 1: its mass, centre and, about the new centre, the inertia of the pair."""
    old, centre = model.body_mass[1], model.body_ipos[1].copy()
    total = old + mass
    shift = (at - centre) * mass / total
    reduced, apart = old * mass / total, at - centre
    model.body_mass[1] = total
    model.body_ipos[1] = centre + shift
    model.body_inertia[1] += reduced * (apart @ apart - apart**2)
    mujoco.mj_setConst(model, mujoco.MjData(model))


def mixer() -> np.ndarray:
    """Columns: wrench (thrust, roll, pitch and yaw torque) of one newton of each rotor, (4, 4)."""
    return np.stack([np.ones(4), ROTORS[:, 1], -ROTORS[:, 0], SPIN * DRAG_ARM])


def weaken(model: mujoco.MjModel, rotor: int, efficiency: float) -> None:
    """Each of the four wrench actuators of the quadrotor loses what this rotor no longer contributes to it."""
    mix = mixer()
    lost = (1.0 - efficiency) * np.outer(mix[:, rotor], np.linalg.inv(mix)[rotor])  # wrench lost per wrench asked
    model.actuator_gear[:, 2:6] = model.actuator_gear[:, 2:6] @ (np.eye(4) - lost).T


UNCHANGED = Regime("unchanged")
_GAINS = (
    (-1, 2), (-2.5, 1), (2.5, 0.05), (1, -1), (1, -0.5), (-1, 1), (-0.5, 1), (2, 2), (-1, -1), (0.1, -1.5), (-0.5, 0.5),
)  # fmt: skip
VEHICLE_GAINS = tuple(Regime(f"gain {v:g}, {w:g}", gain=(v, w)) for v, w in _GAINS)
VEHICLE_COUPLED = (
    Regime("slip", slip=0.7),
    Regime("pulls left", cross=0.9),
    Regime("slips and pulls right", slip=0.5, cross=-1.1),
    Regime("reversed, slips and pulls", gain=(-1.0, 1.0), slip=0.5, cross=0.9),
    Regime("twisted steering", gain=(1.0, -1.0), cross=0.8),
)
QUADROTOR_GAINS = (
    Regime("half rates", gain=(1.0, 0.5, 0.5, 0.5)),
    Regime("double rates", gain=(1.0, 2.0, 2.0, 2.0)),
    Regime("weak thrust", gain=(0.8, 1.0, 1.0, 1.0)),
    Regime("strong thrust, slow roll", gain=(1.2, 0.4, 1.0, 1.0)),
    Regime("yaw reversed", gain=(1.0, 1.0, 1.0, -1.0)),
)
QUADROTOR_COUPLED = (
    Regime("weak rotor", weak_rotor=(0, 0.6)),
    Regime("payload", payload=0.12, payload_at=(0.03, 0.0, -0.05)),
    Regime("wind", wind=(0.8, -0.6, 0.0)),
    Regime("weak rotor in wind", weak_rotor=(2, 0.7), wind=(-0.5, 0.6, 0.0)),
)
