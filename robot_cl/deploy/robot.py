"""A robot as one YAML file: what it measures and obeys, by name, with units, limits, topics and what "stop" means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from robot_cl.deploy.messages import (
    COMMAND_PATHS,
    COMMAND_TYPES,
    JOINT_FIELDS,
    SENSOR_PATHS,
    SENSOR_UNITS,
    STATE_TYPES,
    joint_of,
)
from robot_cl.deploy.names import near

STRATEGIES = ("freeze", "pd", "damping")
POSITION_UNITS = ("rad", "deg", "m")
FUNCTIONS = (
    "cos", "sin", "roll", "pitch", "yaw", *(f"up.{a}" for a in "xyz"), *(f"body.{a}" for a in "xyz"),
    *(f"matrix.{a}{b}" for a in "xyz" for b in "xyz"),
)  # fmt: skip


@dataclass(frozen=True)
class StateTopic:
    """One topic the robot publishes. Signals are "<joint>.<field>" for JointState, "<key>.<part>" otherwise.

    `joints` must be exactly those published (in any order), except those in `ignore`; `fields` of position, velocity
    and effort are read. `names` are the entries of a Float64MultiArray in order, `units` their units. `body` is the
    body or site whose pose it is in the world of a rehearsal.
    """

    key: str
    topic: str
    type: str
    joints: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("position", "velocity")
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    joint_unit: str = "rad"
    effort_unit: str = "N m"
    body: str = ""

    def __post_init__(self) -> None:
        _known("state topic type", self.type, STATE_TYPES)
        for name in self.fields:
            _known("joint field", name, JOINT_FIELDS)
        if self.type.endswith("JointState") and not self.joints:
            raise ValueError(f"state topic {self.key!r} is a JointState and needs the list `joints`")
        if self.type.endswith("MultiArray") and (not self.names or len(self.units) != len(self.names)):
            raise ValueError(f"state topic {self.key!r} is a Float64MultiArray and needs `names` and as many `units`")
        _unique(f"joints of state topic {self.key!r}", self.joints)

    @cached_property
    def signals(self) -> dict[str, str]:
        """Signal name -> unit, in the order of this topic's values."""
        if self.type.endswith("JointState"):
            unit = {"position": self.joint_unit, "velocity": f"{self.joint_unit}/s", "effort": self.effort_unit}
            return {f"{j}.{f}": unit[f] for f in self.fields for j in self.joints}
        if self.names:
            return {f"{self.key}.{n}": u for n, u in zip(self.names, self.units, strict=True)}
        return {f"{self.key}.{part}": SENSOR_UNITS[part.partition(".")[0]] for part in SENSOR_PATHS[self.type]}


@dataclass(frozen=True)
class CommandChannel:
    """One number the robot obeys, in `unit`, with its box and what to send when the policy may not drive.

    low, high bound the command; `rate` its change per second; `lead` its distance from the measured signal; `velocity`
    the measured speed beyond which an effort may only brake; lowest, highest the positions between which a velocity
    command may move the joint. `hold`, `damp` and `stop` are each a number or "freeze" (keep the last command; of
    positions alone, for whoever keeps a speed or an effort drives on), "pd" (effort kp (q₀ − q) − kd q̇ around the
    position at the time) or "damping" (−kd q̇).
    `field` is the place in a Twist. `measured` and `speed` name signals; by default "<name>.position" for a position
    command and "<name>.velocity".
    """

    name: str
    unit: str
    low: float
    high: float
    rate: float = math.inf
    lead: float = math.inf
    velocity: float = math.inf
    lowest: float = -math.inf
    highest: float = math.inf
    hold: str | float = "freeze"
    damp: str | float = "freeze"
    stop: str | float = "freeze"
    kp: float | None = None
    kd: float | None = None
    measured: str = ""
    speed: str = ""
    field: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"command {self.name!r} needs finite limits low < high, got [{self.low}, {self.high}]")
        if not (self.rate > 0 and self.lead > 0 and self.velocity > 0):
            raise ValueError(f"command {self.name!r} needs positive rate, lead and velocity limits")
        if not self.lowest < self.highest:
            raise ValueError(f"command {self.name!r} needs lowest < highest, got [{self.lowest}, {self.highest}]")
        for gain in (self.kp, self.kd):
            if gain is not None and not 0 <= gain < math.inf:
                raise ValueError(f"command {self.name!r} has the gain {gain}; one below zero would push where it pulls")
        for what in ("hold", "damp", "stop"):
            value = getattr(self, what)
            if isinstance(value, str):
                _known(f"{what} of command {self.name!r}", value, STRATEGIES)
                if value == "freeze" and not self.is_position:
                    why = "only positions may freeze: NAME.position, or in rad, deg or m"
                    raise ValueError(f"{what} of command {self.name!r} [{self.unit}] must be a number; {why}")
            elif not self.low <= value <= self.high:
                raise ValueError(f"{what} {value} of command {self.name!r} is outside [{self.low}, {self.high}]")
            if (value in ("pd", "damping") and self.kd is None) or (value == "pd" and self.kp is None):
                raise ValueError(f"command {self.name!r} needs the gains kp and kd for {what}: {value}")

    @property
    def is_position(self) -> bool:
        return self.name.endswith(".position") or self.unit in POSITION_UNITS

    @property
    def is_speed(self) -> bool:
        return self.unit.endswith("/s")


@dataclass(frozen=True)
class CommandTopic:
    """One topic the robot obeys: channels in the receiver's order (arrays) or by `field` (Twist)."""

    topic: str
    type: str
    channels: tuple[CommandChannel, ...]

    def __post_init__(self) -> None:
        _known("command topic type", self.type, COMMAND_TYPES)
        paths = COMMAND_PATHS.get(self.type)
        for channel in self.channels if paths else ():
            _known(f"field of command {channel.name!r}", channel.field, tuple(paths or ()))
        if self.type.endswith("JointTrajectory") and not all(c.is_position for c in self.channels):
            raise ValueError(f"command topic {self.topic} is a trajectory, which carries positions alone")
        if paths:
            _unique(f"fields of command topic {self.topic}", [c.field for c in self.channels])
        if not self.channels:
            raise ValueError(f"command topic {self.topic} has no channels")


@dataclass(frozen=True)
class Term:
    """How a contract's observation term comes about on this robot, in `unit`: scale · x + offset, where x is

    a signal or goal ("elbow.position", "goal.x"), less the one named `minus`; or `function` of what `signal` names:
    cos or sin of an angle; roll, pitch, yaw (rad), up.x|y|z (the world's up in the body) or matrix.xx … matrix.zz (row,
    column of the rotation from body to world) of a quaternion; body.x|y|z of a position (its .x, .y and, if there is
    one, .z), less `minus`, in the axes of the body whose quaternion `frame` names.
    """

    unit: str
    signal: str
    minus: str = ""
    function: str = ""
    frame: str = ""
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.function:
            _known("function of a term", self.function, FUNCTIONS)
        if bool(self.frame) != self.function.startswith("body."):
            raise ValueError(f"the term of {self.signal!r} needs `frame`, and only if its function is body.x, .y or .z")


@dataclass(frozen=True)
class Goal:
    """A number the operator sets: unit, value at start, range. Terms read it as the signal goal.<name>."""

    unit: str
    start: float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.start <= self.high:
            raise ValueError(f"goal {self.start} is outside [{self.low}, {self.high}]")


@dataclass(frozen=True)
class ActionMap:
    """Which channel a contract's action drives. `unit`, where given, is the contract's name for the channel's unit:
    a simulator that calls its motor inputs "1" means the unit of whatever it drives.
    """

    channel: str
    unit: str = ""


@dataclass(frozen=True)
class RobotSpec:
    """Everything about one robot. `terms` and `actions` translate a contract's names where the robot's differ.

    `control_dt` is the period of the control loop in seconds: the policy's, or a whole fraction of it, so that safety
    and commands may run faster than the policy thinks. `task` names the world to rehearse in.
    """

    name: str
    control_dt: float
    state: tuple[StateTopic, ...]
    command: tuple[CommandTopic, ...]
    terms: Mapping[str, Term] = field(default_factory=dict)
    actions: Mapping[str, ActionMap] = field(default_factory=dict)
    goals: Mapping[str, Goal] = field(default_factory=dict)
    namespace: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.control_dt < math.inf:
            raise ValueError(f"robot {self.name!r}: control_dt must be positive seconds, got {self.control_dt}")
        _unique("signals", [s for t in self.state for s in t.signals])
        _unique("commands", [c.name for c in self.channels])
        _unique("command topics", [t.topic for t in self.command])
        if not self.state or not self.channels:
            raise ValueError(f"robot {self.name!r} needs at least one state topic and one command")
        for channel in self.channels:
            for signal in filter(None, (channel.measured, channel.speed)):
                if signal not in self.signals:
                    raise LookupError(f"command {channel.name!r} names {signal!r}, {near(signal, self.signals)}")
        self._check_limits()

    @cached_property
    def signals(self) -> dict[str, str]:
        """Signal name -> unit, in the order of a state's values."""
        return {name: unit for topic in self.state for name, unit in topic.signals.items()}

    @cached_property
    def signal_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.signals)}

    @cached_property
    def channels(self) -> tuple[CommandChannel, ...]:
        """Command channels in the order of a command's values."""
        return tuple(c for topic in self.command for c in topic.channels)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """State topic key -> where its signals lie in a state's values."""
        at, found = 0, {}
        for topic in self.state:
            found[topic.key] = slice(at, at + len(topic.signals))
            at += len(topic.signals)
        return found

    def _check_limits(self) -> None:
        """A limit that nothing can keep is refused: whoever wrote it relies on it."""
        units = list(self.signals.values())
        rows = zip(self.channels, self.commands_positions(), self.position_index(), self.speed_index(), strict=True)
        for channel, same, at, speed_at in rows:
            name = f"command {channel.name!r}"
            if math.isfinite(channel.lead) and not same:
                raise ValueError(f"{name} has a lead, but its position is not measured in {channel.unit}")
            if math.isfinite(channel.velocity) and (channel.is_position or speed_at < 0):
                why = "commands a position: give it a rate" if channel.is_position else "has no measured speed"
                raise ValueError(f"{name} has a velocity limit, but {why}")
            if (channel.lowest, channel.highest) == (-math.inf, math.inf):
                continue
            if not channel.is_speed:
                raise ValueError(f"{name} is in {channel.unit}; lowest and highest bound velocity commands alone")
            if at >= 0 and f"{units[at]}/s" != channel.unit:
                raise ValueError(f"{name} is in {channel.unit}, its position in {units[at]}: give both one unit")

    def position_index(self) -> np.ndarray:
        """(n_commands,) index among the signals of each channel's measured position, −1 where there is none."""
        names = (c.measured or f"{joint_of(c.name)}.position" for c in self.channels)
        return np.array([self.signal_index.get(n, -1) for n in names], dtype=np.intp)

    def speed_index(self) -> np.ndarray:
        """(n_commands,) index among the signals of each channel's measured speed, −1 where there is none."""
        names = (c.speed or f"{joint_of(c.name)}.velocity" for c in self.channels)
        return np.array([self.signal_index.get(n, -1) for n in names], dtype=np.intp)

    def commands_positions(self) -> np.ndarray:
        """(n_commands,) whether a channel commands the very quantity that is measured as its position."""
        units = list(self.signals.values())
        pairs = zip(self.channels, self.position_index(), strict=True)
        return np.array([at >= 0 and units[at] == c.unit for c, at in pairs])


def _known(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise LookupError(f"{what} is {value!r}; one of {', '.join(allowed)}")


def _unique(what: str, names: Any) -> None:
    names = list(names)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{what} must be unique, {', '.join(twice)} appears more than once")
