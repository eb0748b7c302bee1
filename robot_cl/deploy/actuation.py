"""From the policy's action to a command this robot may be sent, and what to send when the policy may not drive."""

from __future__ import annotations

import math

import numpy as np

from robot_cl.deploy.contract import Contract
from robot_cl.deploy.observe import channel_order
from robot_cl.deploy.robot import CommandChannel, RobotSpec
from robot_cl.deploy.safety import all_finite, brake_overspeed, limit_box, limit_command, limit_travel, pd_effort

FALLBACKS = ("hold", "damp", "stop")


class Actuation:
    """Remembers the last command sent, and command and position when the present mode was entered.

    All arrays are (n_commands,) in spec.channels order.
    `max_speed` in (0, 1] scales how fast anything may move: the step of positions, the range of velocities, the speed
    above which efforts only brake. Raises LookupError if policy and robot do not command the same names, ValueError
    where a fallback needs a measurement the robot lacks.
    """

    def __init__(self, contract: Contract, spec: RobotSpec, max_speed: float = 1.0):
        if not 0.0 < max_speed <= 1.0:
            raise ValueError(f"max_speed is a share of the robot's limits in (0, 1], got {max_speed}")
        self.spec, self._order = spec, np.array(channel_order(contract, spec), dtype=np.intp)
        self._interface = contract.interface
        channels = spec.channels
        speedy = np.array([c.is_speed for c in channels])
        scale = np.where(speedy, max_speed, 1.0)
        self.low = np.array([c.low for c in channels]) * scale
        self.high = np.array([c.high for c in channels]) * scale
        rate = np.array([c.rate for c in channels])
        self.max_step = rate * np.where(speedy, 1.0, max_speed) * spec.control_dt
        self.lead = np.array([c.lead for c in channels])
        self.lowest, self.highest = (np.array([getattr(c, k) for c in channels]) for k in ("lowest", "highest"))
        self._travels = speedy & (np.isfinite(self.lowest) | np.isfinite(self.highest))
        self.top_speed = np.array([c.velocity for c in channels]) * max_speed
        self.position_at, self.speed_at = spec.position_index(), spec.speed_index()
        self.same_at = np.where(spec.commands_positions(), self.position_at, -1)
        self.kp, self.kd = (np.array([getattr(c, g) or 0.0 for c in channels]) for g in ("kp", "kd"))
        self._plans = {kind: [_plan(c, kind) for c in channels] for kind in FALLBACKS}
        self._check_measurements()
        free = [c.name for c in channels if c.is_position and not math.isfinite(c.rate)]
        if max_speed < 1.0 and free:
            raise ValueError(f"max_speed has nothing to scale: {', '.join(free)} needs a rate in the robot file")
        self.previous: np.ndarray | None = None
        self.anchor = np.full(len(channels), np.nan)
        self.frozen = np.zeros(len(channels))

    @property
    def needed(self) -> set[str]:
        """Signals without which commands cannot be made: what freeze and pd measure."""
        names = list(self.spec.signals)
        return {names[at] for at in (*self.position_at, *self.speed_at) if at >= 0}

    def measured(self, values: np.ndarray) -> np.ndarray:
        """The measured value of what each channel commands (positions), NaN where there is none."""
        return _pick(values, self.same_at)

    def start(self, values: np.ndarray) -> None:
        """Take the present as the last command, because nothing was sent yet.

        Raises ValueError naming a joint that stands outside its box: the first command would be a jump.
        """
        measured = self.measured(values)
        for channel, low, high, at in zip(self.spec.channels, self.low, self.high, measured, strict=True):
            if at < low - 1e-6 or at > high + 1e-6:
                raise ValueError(
                    f"{channel.name} stands at {at:.4g} {channel.unit}, outside its box [{low:.4g}, {high:.4g}]; "
                    "move it inside before enabling"
                )
        still = np.array([p if isinstance(p, float) else 0.0 for p in self._plans["stop"]])
        self.previous = limit_box(np.where(np.isfinite(measured), measured, still), self.low, self.high)
        self.enter(values)

    def enter(self, values: np.ndarray) -> None:
        """A mode begins: remember the last command, for "freeze", and where the robot stands, for "pd"."""
        if self.previous is not None:
            self.frozen = self.previous.copy()
        measured = _pick(values, self.position_at)
        self.anchor = np.where(np.isfinite(measured), measured, self.anchor)

    def from_action(self, action: np.ndarray) -> np.ndarray:
        """The policy's action (act_dim,) in [-1, 1] as a command in channel order and units, before limits."""
        return self._interface.command(action)[self._order]

    def to_action(self, command: np.ndarray) -> np.ndarray:
        """The action (act_dim,) that would have asked for this command: what a log stores as taken."""
        by_action = np.empty(len(self._order))
        by_action[self._order] = command
        return np.clip(self._interface.action_from_command(by_action), -1.0, 1.0)

    def fallback(self, kind: str, values: np.ndarray) -> np.ndarray:
        """The command of "hold", "damp" or "stop" given the latest signals (NaN where unknown)."""
        position, speed = _pick(values, self.position_at), _pick(values, self.speed_at)
        choices = {
            "freeze": self.frozen,
            "pd": pd_effort(self.kp, self.kd, self.anchor, position, speed),
            "damping": pd_effort(np.zeros_like(self.kd), self.kd, np.zeros_like(self.kd), np.zeros_like(speed), speed),
        }
        plans = self._plans[kind]
        return np.array([choices[p][i] if isinstance(p, str) else p for i, p in enumerate(plans)])

    def limit(self, command: np.ndarray, values: np.ndarray) -> np.ndarray:
        """What may be sent of `command`, remembered as the last one. A non-finite entry keeps its last value."""
        assert self.previous is not None
        command = np.where(np.isfinite(command), command, self.previous)
        command = brake_overspeed(command, _pick(values, self.speed_at), self.top_speed)
        command = limit_travel(command, self._travelled(values), self.lowest, self.highest)
        safe = limit_command(
            command, self.previous, self.measured(values), self.low, self.high, self.max_step, self.lead
        )
        assert all_finite(safe)
        self.previous = safe
        return safe

    def stop(self, values: np.ndarray) -> np.ndarray:
        """The stop command: inside the box and sent at once. The one command that may step further than `rate`."""
        command = self.fallback("stop", values)
        assert self.previous is not None
        self.previous = limit_box(np.where(np.isfinite(command), command, self.previous), self.low, self.high)
        return self.previous

    def _travelled(self, values: np.ndarray) -> np.ndarray:
        """Measured positions of the channels that have limits of travel, NaN for the others."""
        return np.where(self._travels, _pick(values, self.position_at), np.nan)

    def _check_measurements(self) -> None:
        for i, channel in enumerate(self.spec.channels):
            if self._travels[i] and self.position_at[i] < 0:
                raise ValueError(f"command {channel.name!r} has limits of travel but no measured position")
            for kind in FALLBACKS:
                plan = self._plans[kind][i]
                if (plan in ("pd", "damping") and self.speed_at[i] < 0) or (plan == "pd" and self.position_at[i] < 0):
                    raise ValueError(f"{kind}: {plan} of command {channel.name!r} needs a measured position and speed")
                if plan == "freeze" and kind == "stop" and self.same_at[i] < 0:
                    raise ValueError(f"command {channel.name!r} has no measured position, so `stop` must be a number")


def _plan(channel: CommandChannel, kind: str) -> str | float:
    value = getattr(channel, kind)
    return value if isinstance(value, str) else float(value)


def _pick(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """values at `places`, NaN where the place is −1."""
    return np.where(places >= 0, values[places], math.nan)
