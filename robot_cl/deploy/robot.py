"""A robot as one YAML file: what it measures and obeys, by name, with units, limits, topics and what "stop" means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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

MAX_FILE_BYTES = 1 << 20
STRATEGIES = ("freeze", "pd", "damping")
FUNCTIONS = ("cos", "sin", "roll", "pitch", "yaw", "up.x", "up.y", "up.z")


@dataclass(frozen=True)
class StateTopic:
    """One topic the robot publishes. Signals are "<joint>.<field>" for JointState, "<key>.<part>" otherwise.

    `joints` must be exactly those published (in any order), except those in `ignore`; `fields` of position, velocity
    and effort are read. `names` are the entries of a Float64MultiArray in order, `units` their units.
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
    the measured speed beyond which an effort may only brake. `hold`, `damp` and `stop` are each a number or "freeze"
    (keep the last command), "pd" (effort kp (q₀ − q) − kd q̇ around the position at the time) or "damping" (−kd q̇).
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
        for what in ("hold", "damp", "stop"):
            value = getattr(self, what)
            if isinstance(value, str):
                _known(f"{what} of command {self.name!r}", value, STRATEGIES)
            elif not self.low <= value <= self.high:
                raise ValueError(f"{what} {value} of command {self.name!r} is outside [{self.low}, {self.high}]")
            if (value in ("pd", "damping") and self.kd is None) or (value == "pd" and self.kp is None):
                raise ValueError(f"command {self.name!r} needs the gains kp and kd for {what}: {value}")


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
        if not self.channels:
            raise ValueError(f"command topic {self.topic} has no channels")


@dataclass(frozen=True)
class Term:
    """How a contract's observation term is measured: scale · f(signal) + offset, or a goal the operator sets.

    `function` is one of cos, sin (of one angle), roll, pitch, yaw (radians) or up.x, up.y, up.z (the world's up axis in
    the body frame), the latter of the quaternion whose signals start with `signal`. For a goal, `signal` is empty and
    `goal` its value at start, in [low, high]. `unit` must be the contract's.
    """

    unit: str
    signal: str = ""
    function: str = ""
    scale: float = 1.0
    offset: float = 0.0
    goal: float | None = None
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if bool(self.signal) == (self.goal is not None):
            raise ValueError("a term is either measured (signal: NAME) or set by the operator (goal: NUMBER)")
        if self.function:
            _known("function of a term", self.function, FUNCTIONS)
        if self.goal is not None and not self.low <= self.goal <= self.high:
            raise ValueError(f"goal {self.goal} is outside [{self.low}, {self.high}]")


@dataclass(frozen=True)
class RobotSpec:
    """Everything about one robot. `terms` and `actions` translate a contract's names where the robot's differ."""

    name: str
    control_dt: float
    state: tuple[StateTopic, ...]
    command: tuple[CommandTopic, ...]
    terms: Mapping[str, Term] = field(default_factory=dict)
    actions: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        if not self.control_dt > 0:
            raise ValueError(f"robot {self.name!r}: control_dt must be positive seconds, got {self.control_dt}")
        _unique("signals", [s for t in self.state for s in t.signals])
        _unique("commands", [c.name for c in self.channels])
        if not self.state or not self.channels:
            raise ValueError(f"robot {self.name!r} needs at least one state topic and one command")
        for channel in self.channels:
            for signal in filter(None, (channel.measured, channel.speed)):
                if signal not in self.signals:
                    raise LookupError(f"command {channel.name!r} names {signal!r}, {near(signal, self.signals)}")

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


def load_robot(path: Path | str) -> RobotSpec:
    """A robot from its YAML file. Raises OSError, ValueError or LookupError with one sentence."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"robot file {path} is larger than {MAX_FILE_BYTES} bytes")
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        here = sorted(p.as_posix() for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise OSError(f"there is no robot file {path}; in that folder: {', '.join(here) or 'none'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"robot file {path} is not YAML: {str(problem).splitlines()[0]}") from None
    try:
        return robot_from_dict(data)
    except (ValueError, LookupError) as problem:
        raise type(problem)(f"robot file {path}: {problem}") from None


def robot_from_dict(data: Any) -> RobotSpec:
    """A robot from plain data. Raises ValueError or LookupError naming the entry that is wrong."""
    if not isinstance(data, dict):
        raise ValueError("expected a mapping with name, control_dt, state and command")
    data = dict(data)
    state, command, terms = (data.pop(k, None) or {} for k in ("state", "command", "terms"))
    if not isinstance(state, dict) or not isinstance(command, list) or not isinstance(terms, dict):
        raise ValueError("`state` and `terms` must be mappings by name, `command` a list of topics")
    topics = tuple(_make(StateTopic, row, key=str(key)) for key, row in state.items())
    commands = []
    for row in command:
        row = dict(row)
        channels = tuple(_make(CommandChannel, c) for c in row.pop("channels", ()))
        commands.append(_make(CommandTopic, row, channels=channels))
    made = {str(name): _make(Term, row) for name, row in terms.items()}
    return _make(RobotSpec, data, state=topics, command=tuple(commands), terms=made)


def _make(kind: type, row: Any, **more: Any) -> Any:
    """A dataclass from a YAML mapping: unknown keys refused by name, numbers and lists converted."""
    if not isinstance(row, dict):
        raise ValueError(f"a {kind.__name__} must be a mapping, got {row!r}")
    known = {f.name: str(f.type) for f in fields(kind)}
    values = dict(more)
    for key, value in row.items():
        if key not in known or key in more:
            raise LookupError(f"{kind.__name__} has no entry {key!r}, {near(str(key), known)}")
        values[key] = _convert(f"{kind.__name__}.{key}", known[key], value)
    try:
        return kind(**values)
    except TypeError as problem:
        raise ValueError(f"{kind.__name__} is incomplete: {str(problem).partition(') ')[2] or problem}") from None


def _convert(what: str, wanted: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if "float" in wanted and number:
        return float(value)
    if wanted.startswith("tuple") and isinstance(value, list):
        return tuple(str(v) for v in value)
    if "str" in wanted and isinstance(value, str):
        return value
    if wanted.startswith("Mapping") and isinstance(value, dict):
        return {str(k): str(v) for k, v in value.items()}
    raise ValueError(f"{what} is {value!r}, expected {wanted.replace('tuple[str, ...]', 'a list of names')}")


def _known(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise LookupError(f"{what} is {value!r}; one of {', '.join(allowed)}")


def _unique(what: str, names: Any) -> None:
    names = list(names)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{what} must be unique, {', '.join(twice)} appears more than once")
