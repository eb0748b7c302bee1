"""A simulated world as a robot: a plant for loopbacks and bridges, and a robot file made from a contract alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.observe import QUATERNION, QUATERNION_FUNCTIONS, term_of
from robot_cl.deploy.robot import CommandChannel, CommandTopic, RobotSpec, StateTopic, Term


def spec_from_contract(contract: Contract) -> RobotSpec:
    """A robot that measures every term by its own name and obeys every action: for rehearsing without a robot file.

    All its channels stop at zero (or the nearest limit), at the speed the contract knows or none.
    """
    names = tuple(t.name for t in contract.observation)
    state = StateTopic(
        "robot", "/robot_cl/robot", "std_msgs/msg/Float64MultiArray", names=names,
        units=tuple(t.unit for t in contract.observation),
    )  # fmt: skip
    channels = []
    for t in contract.action:
        still = min(max(0.0, t.low), t.high)
        rate = t.velocity if t.velocity is not None else math.inf
        channels.append(
            CommandChannel(t.name, t.unit, t.low, t.high, rate, hold=still, damp=still, stop=still, kp=t.kp, kd=t.kd)
        )
    command = CommandTopic("/robot_cl/commands", "std_msgs/msg/Float64MultiArray", tuple(channels))
    terms = {t.name: Term(t.unit, f"robot.{t.name}") for t in contract.observation}
    return RobotSpec("contract", contract.control_dt, (state,), (command,), terms)


class WorldPlant:
    """A simulated world behind a robot's topics: its observation as signals, commands as its actions.

    Remembers the world's last observation, the return so far, and whether an episode ended (`fell`: by termination).
    `goals` are the terms an operator would set, as the world set them. Raises ValueError if the world's interface is
    not the contract's, LookupError if a signal that the policy needs cannot be worked out from the observation.
    """

    def __init__(self, world: Any, contract: Contract, spec: RobotSpec, seed: int = 0):
        difference = world.interface.difference(contract.interface)
        if difference:
            raise ValueError(f"the policy was not made for {world.task.name}: {difference}")
        self.world, self.spec = world, spec
        self._actuation = Actuation(contract, spec)
        self._inverse = _inverse(contract, spec)
        self._goal_at = {
            t.name: k
            for k, t in enumerate(contract.observation)
            if (term := term_of(t, spec)) is not None and term.goal is not None
        }
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        self.obs = self.world.reset(seed)[0]
        self.total, self.steps, self.ended, self.fell = 0.0, 0, False, False

    @property
    def goals(self) -> dict[str, float]:
        return {name: float(self.obs[k]) for name, k in self._goal_at.items()}

    def signals(self) -> np.ndarray:
        values = np.zeros(len(self.spec.signals))
        for at, compute in self._inverse:
            values[at] = compute(self.obs)
        return values

    def step(self, command: np.ndarray) -> None:
        """One control period. A world that ended stays where it is: a fallen robot does not get up by itself."""
        if self.ended:
            return
        obs, reward, terminated, truncated, info = self.world.step(self._actuation.to_action(command)[None])
        self.fell = bool(terminated[0])
        self.ended = self.fell or bool(truncated[0])
        self.obs = info["final_obs"][0] if self.ended else obs[0]
        self.total += float(reward[0])
        self.steps += 1


Compute = Callable[[np.ndarray], float]


def _inverse(contract: Contract, spec: RobotSpec) -> list[tuple[int, Compute]]:
    """For each signal the policy needs, how it follows from the world's observation (obs_dim,)."""
    found: dict[str, Compute] = {}
    angles: dict[str, dict[str, int]] = {}
    for k, wanted in enumerate(contract.observation):
        term = term_of(wanted, spec)
        if term is None or not term.signal:
            continue
        if term.function:
            angles.setdefault(term.signal, {})[term.function] = k
        else:
            found[term.signal] = _affine(k, term)
    for signal, parts in angles.items():
        found |= _angle(signal, parts)
    return [(spec.signal_index[name], compute) for name, compute in found.items()]


def _affine(k: int, term: Term) -> Compute:
    return lambda obs: (float(obs[k]) - term.offset) / term.scale


def _angle(signal: str, parts: dict[str, int]) -> dict[str, Compute]:
    """An angle from its cosine and sine, or a quaternion (x, y, z, w) from roll, pitch, yaw or the up axis."""
    if {"cos", "sin"} <= set(parts):
        return {signal: lambda obs: math.atan2(obs[parts["sin"]], obs[parts["cos"]])}
    if set(parts) <= set(QUATERNION_FUNCTIONS):
        return {f"{signal}.{a}": _quaternion_entry(i, parts) for i, a in enumerate(QUATERNION)}
    raise LookupError(f"{signal!r} cannot be worked out from {', '.join(sorted(parts))} alone; add its cos and sin")


def _quaternion_entry(entry: int, parts: dict[str, int]) -> Compute:
    def compute(obs: np.ndarray) -> float:
        read = {name: float(obs[k]) for name, k in parts.items()}
        if "up.z" in read:
            up = (read.get("up.x", 0.0), read.get("up.y", 0.0), read["up.z"])
            read = {"roll": math.atan2(up[1], up[2]), "pitch": math.asin(max(-1.0, min(1.0, -up[0]))), **read}
        return quaternion(read.get("roll", 0.0), read.get("pitch", 0.0), read.get("yaw", 0.0))[entry]

    return compute


def quaternion(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w) of Tait-Bryan angles z-y-x in radians."""
    cr, sr = math.cos(roll / 2), math.sin(roll / 2)
    cp, sp = math.cos(pitch / 2), math.sin(pitch / 2)
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    return (
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    )
