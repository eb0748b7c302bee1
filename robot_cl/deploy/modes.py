"""The words of the control loop: its modes, how cautious it is, and what may be plugged into it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np


class Mode(StrEnum):
    DISABLED = "disabled"
    HOLD = "hold"
    RAMP = "ramp"
    ACTIVE = "active"
    DAMP = "damp"
    ESTOP = "estop"
    SHADOW = "shadow"


DRIVING = frozenset({Mode.RAMP, Mode.ACTIVE})
SENDING = DRIVING | {Mode.HOLD, Mode.DAMP, Mode.ESTOP}
THINKING = DRIVING | {Mode.HOLD, Mode.SHADOW}


@dataclass
class RunnerConfig:
    """How cautious the loop is. Times in seconds."""

    stale_s: float | None = None  # HOLD at the latest this long after the last state; None: 3 periods, at most 0.1
    damp_s: float = 0.5  # DAMP this long after the last usable state
    ramp_s: float = 1.0  # from holding to the policy's command
    swap_s: float = 0.3  # a skill weight of one, or a swapped policy, takes this long to come in
    deadline: float = 0.8  # share of the period after which an action is late
    late_hold: int = 3  # late actions in a row before HOLD (one is bridged by the last action)
    late_damp: int = 10  # late actions in a row before DAMP
    max_speed: float = 1.0  # share of the robot's speed limits
    remote_start: bool = False  # whether orders over the network may enable and start
    armed: bool = True  # False: nothing is ever sent, because whoever orders it is refused

    def __post_init__(self) -> None:
        positive = {"damp_s": self.damp_s, "deadline": self.deadline, "late_hold": self.late_hold}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.ramp_s < 0 or self.swap_s < 0 or self.late_damp < self.late_hold or self.deadline > 1:
            raise ValueError("ramp_s, swap_s must not be negative, late_damp not below late_hold, deadline at most 1")
        if self.stale_s is not None and not 0 < self.stale_s <= self.damp_s:
            raise ValueError(f"stale_s must lie in (0, damp_s = {self.damp_s}], got {self.stale_s}")


class Guard(Protocol):
    """Says whether what it sees is so unlike its calibration that the policy should not drive. `reset` per episode.

    obs (1, obs_dim), the policy's action (act_dim,) for it, and the action that was really taken before it, if any.
    """

    def alarm(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> bool: ...

    def reset(self) -> None: ...


class Stage(Protocol):
    """Changes actions on the way, as action flow matching does: obs (1, obs_dim), the policy's action (act_dim,) for it
    and the action that was really taken before it, if any -> (act_dim,). `reset` per episode."""

    def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray: ...

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Step:
    """What one tick saw and did. `action` is the policy's, `taken` the one that the command amounts to; `goals` and
    `weights` are the operator's goals and the skills' weights at the time."""

    time: float
    mode: Mode
    reason: str
    values: np.ndarray
    obs: np.ndarray | None
    action: np.ndarray | None
    command: np.ndarray | None
    taken: np.ndarray | None
    age: float
    goals: np.ndarray | None = None
    weights: np.ndarray | None = None
    skills: tuple[str, ...] = ()  # whose weights these are
    refusal: str = ""  # why orders of this tick were not carried out


class Listener(Protocol):
    def step(self, step: Step) -> None: ...
