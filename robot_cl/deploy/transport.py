"""What carries a robot's state here and commands there: one protocol, and the inbox every transport shares."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from robot_cl.deploy.clock import Clock
from robot_cl.deploy.names import near
from robot_cl.deploy.robot import RobotSpec, StateTopic

# name -> "module:class"; imported only when chosen, because each needs its own packages.
TRANSPORTS: dict[str, str] = {
    "loopback": "robot_cl.deploy.loopback:Loopback",
    "dds": "robot_cl.deploy.dds:DdsTransport",
    "rclpy": "robot_cl.deploy.rclpy:RclpyTransport",
    "rosbridge": "robot_cl.deploy.rosbridge:RosbridgeTransport",
}


@dataclass(frozen=True)
class State:
    """The latest of everything heard: values (n_signals,) in the robot's units, NaN where never heard.

    `received` is our monotonic time at which the oldest of the needed topics was last heard; `source` names the
    publishers (a restarted one is another); `stamp` is the newest source stamp in seconds, for logs only.
    """

    values: np.ndarray
    received: float
    source: Hashable
    stamp: float


class Transport(Protocol):
    """The runner's only view of a robot. Nothing here blocks; everything is called from the control thread."""

    spec: RobotSpec

    def read(self) -> State | None:
        """The latest state, or None before every needed topic was heard once."""
        ...

    def write(self, command: np.ndarray) -> None:
        """Send command (n_commands,) in the order of spec.channels and their units."""
        ...

    def age(self) -> float:
        """Seconds since the oldest needed topic was heard; infinite before."""
        ...

    def need(self, signals: set[str]) -> None:
        """Say which signals matter: the topics that carry none of them may be silent."""
        ...

    def messages(self) -> list[str]:
        """Operator texts that came since the last call."""
        ...

    def problem(self) -> str | None:
        """Why the last refused message was refused, or None."""
        ...

    def close(self) -> None: ...


class StampFilter:
    """Lets through only what is newer than what was used. Remembers the newest stamp.

    A stamp older by at most `reorder` seconds is a late message and is dropped. One older by more is either a very late
    message or a clock set back at the source: it is dropped too, but if the next message follows it, that source
    has begun to count anew and is believed from there on. Wall clocks are never compared with ours.
    """

    def __init__(self, reorder: float = 1.0):
        self.reorder, self.last, self.candidate = reorder, -math.inf, math.inf
        self.dropped = 0

    def accept(self, stamp: float | None) -> bool:
        """Whether a message with this source stamp (None: it carries none) may be used."""
        if stamp is None:
            return True
        if not math.isfinite(stamp):
            self.dropped += 1
            return False
        if stamp > self.last:
            self.last, self.candidate = stamp, math.inf
            return True
        if stamp < self.last - self.reorder:
            if stamp > self.candidate:
                self.last, self.candidate = stamp, math.inf
                return True
            self.candidate = stamp
        self.dropped += 1
        return False

    def restart(self) -> None:
        self.last, self.candidate = -math.inf, math.inf


class Inbox:
    """The latest usable message of each state topic. Remembers values, times, sources and what was refused."""

    def __init__(self, spec: RobotSpec, clock: Clock):
        self.spec, self.clock = spec, clock
        self.values = np.full(len(spec.signals), np.nan)
        self.filters = {t.key: StampFilter() for t in spec.state}
        self.received = {t.key: -math.inf for t in spec.state}
        self.sources: dict[str, Hashable] = {t.key: None for t in spec.state}
        self.needed = tuple(self.received)
        self.problem: str | None = None
        self.refused, self.accepted = 0, 0

    def need(self, signals: set[str]) -> None:
        """Age is that of the topics which carry these signals; the others may be silent."""
        self.needed = tuple(t.key for t in self.spec.state if signals & set(t.signals))

    def offer(
        self,
        topic: StateTopic,
        stamp: float | None,
        values: np.ndarray,
        source: Hashable = None,
        when: float | None = None,
    ) -> bool:
        """Take a decoded message heard at `when` (default now). False if its stamp is not newer than the last one's."""
        key = topic.key
        if source != self.sources[key]:
            self.filters[key].restart()
        if not self.filters[key].accept(stamp):
            self.refuse(f"{topic.topic} sent a stamp that is not newer than the one before")
            return False
        self.values[self.spec.slices[key]] = values
        self.received[key] = self.clock.now() if when is None else when
        self.sources[key] = source
        self.accepted += 1
        return True

    def refuse(self, why: str) -> None:
        self.problem, self.refused = why, self.refused + 1

    def read(self) -> State | None:
        oldest = min((self.received[k] for k in self.needed), default=-math.inf)
        if oldest == -math.inf:
            return None
        newest = max(self.filters[k].last for k in self.needed)
        return State(self.values.copy(), oldest, tuple(self.sources[k] for k in self.needed), newest)

    def age(self) -> float:
        return self.clock.now() - min((self.received[k] for k in self.needed), default=-math.inf)


class InboxTransport:
    """What transports share that put every message into an inbox."""

    inbox: Inbox

    def age(self) -> float:
        return self.inbox.age()

    def need(self, signals: set[str]) -> None:
        self.inbox.need(signals)

    def problem(self) -> str | None:
        return self.inbox.problem


def open_transport(name: str, spec: RobotSpec, **options: Any) -> Transport:
    """A transport by name. Raises LookupError for an unknown name, OSError where its packages are missing."""
    if name not in TRANSPORTS:
        raise LookupError(f"there is no transport {name!r}, {near(name, TRANSPORTS)}")
    module, _, kind = TRANSPORTS[name].partition(":")
    try:
        return getattr(import_module(module), kind)(spec, **options)
    except ImportError as problem:
        extra = {"dds": "pip install 'robot-cl[dds]'", "rosbridge": "pip install 'robot-cl[rosbridge]'"}
        fix = extra.get(name, "source the ROS 2 setup file first")
        raise OSError(f"the transport {name!r} needs a package that is not installed ({problem}): {fix}") from None
