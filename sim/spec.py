"""Named channels with units: the one contract between a world, a checkpoint, a skill and a robot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Channel:
    """One number of an observation or a command.

    `name` is unique within its side, e.g. "bthigh.position"; `unit` is SI ("rad", "m/s", "N m", "1");
    `low` and `high` bound it in that unit (infinite where no bound is known).
    """

    name: str
    unit: str
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if not self.name or not self.low < self.high:
            raise ValueError(f"channel {self.name!r}: needs a name and low < high, got [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Interface:
    """What a policy sees and does, by name: observation channels, action channels, control period in seconds.

    An *action* is in [-1, 1]; a *command* is the same thing in the action channels' units. `command` and
    `action_from_command` are the only place where one becomes the other.
    """

    obs: tuple[Channel, ...]
    action: tuple[Channel, ...]
    control_dt: float

    def __post_init__(self) -> None:
        for side, channels in (("observation", self.obs), ("action", self.action)):
            names = [c.name for c in channels]
            twice = sorted({n for n in names if names.count(n) > 1})
            if not names or twice:
                raise ValueError(f"{side} channels must be non-empty and unique; repeated: {twice}")
        for c in self.action:
            if not (np.isfinite(c.low) and np.isfinite(c.high)):
                raise ValueError(f"action channel {c.name!r} needs finite limits, got [{c.low}, {c.high}]")
        if not 0 < self.control_dt < np.inf:
            raise ValueError(f"control_dt must be positive seconds, got {self.control_dt}")

    @property
    def obs_dim(self) -> int:
        return len(self.obs)

    @property
    def act_dim(self) -> int:
        return len(self.action)

    @cached_property
    def _command_low(self) -> np.ndarray:
        return np.array([c.low for c in self.action])

    @cached_property
    def _command_high(self) -> np.ndarray:
        return np.array([c.high for c in self.action])

    @cached_property
    def _identical(self) -> bool:
        return bool((self._command_low == -1.0).all() and (self._command_high == 1.0).all())

    def command(self, action: np.ndarray) -> np.ndarray:
        """action (..., act_dim) in [-1, 1], clipped -> command (..., act_dim) in the channels' units, float64."""
        unit = np.minimum(np.maximum(np.asarray(action, dtype=np.float64), -1.0), 1.0)  # faster than clip when small
        if self._identical:
            return unit
        low, high = self._command_low, self._command_high
        # A symmetric range is scaled without an offset, so that ±1 limits pass a value through bit for bit.
        return np.where(low == -high, high * unit, low + (unit + 1.0) * 0.5 * (high - low))

    def action_from_command(self, command: np.ndarray) -> np.ndarray:
        """command (..., act_dim) in the channels' units -> action (..., act_dim), not clipped, float64."""
        low, high = self._command_low, self._command_high
        return (np.asarray(command, dtype=np.float64) - 0.5 * (low + high)) / (0.5 * (high - low))

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the canonical JSON: equal digests mean the same channels, limits and period."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; infinite limits are null."""

        def row(c: Channel) -> list[Any]:
            return [c.name, c.unit, *(float(v) if np.isfinite(v) else None for v in (c.low, c.high))]

        return {
            "obs": [row(c) for c in self.obs],
            "action": [row(c) for c in self.action],
            "control_dt": float(self.control_dt),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Interface:
        """Inverse of `to_dict`. Raises ValueError naming what is wrong."""
        try:
            obs, action = (tuple(_channel(row) for row in data[side]) for side in ("obs", "action"))
            return cls(obs, action, float(data["control_dt"]))
        except (KeyError, TypeError) as problem:
            raise ValueError(f"not an interface: expected obs, action and control_dt ({problem!r})") from None

    def difference(self, other: Interface) -> str | None:
        """One clause naming the first difference from `other`, or None if equal."""
        for side in ("obs", "action"):
            mine, theirs = getattr(self, side), getattr(other, side)
            if len(mine) != len(theirs):
                return f"{len(mine)} {side} channels against {len(theirs)}"
            for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                if a != b:
                    return f"{side} channel {i} is {a.name} [{a.unit}, {a.low}..{a.high}] against " \
                           f"{b.name} [{b.unit}, {b.low}..{b.high}]"
        if self.control_dt != other.control_dt:
            return f"control period {self.control_dt} s against {other.control_dt} s"
        return None


def _channel(row: Sequence[Any]) -> Channel:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError(f"not an interface: expected channels of name, unit, low and high, got {row!r}")
    name, unit, low, high = row
    try:
        limits = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
    except (TypeError, ValueError):
        raise ValueError(f"not an interface: channel {name!r} is limited by {low!r} and {high!r}") from None
    return Channel(str(name), str(unit), *limits)
