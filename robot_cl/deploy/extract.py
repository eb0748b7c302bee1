"""Between messages and named numbers, by name in both directions: what a policy reads, what a robot is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robot_cl.deploy.messages import (
    COMMAND_PATHS,
    SENSOR_PATHS,
    UNKNOWN_PATHS,
    Message,
    blank,
    get_path,
    joint_of,
    set_path,
    set_stamp,
    stamp_of,
)
from robot_cl.deploy.robot import CommandTopic, StateTopic

Path = tuple[str | int, ...]
UNKNOWN = -1.0


def joint_order(topic: StateTopic, names: Sequence[str]) -> list[int]:
    """Where each of the topic's joints stands in a message's names.

    Raises ValueError for a missing, extra or duplicate joint: positions are never guessed.
    """
    listed = [str(n) for n in names]
    twice = sorted({n for n in listed if listed.count(n) > 1})
    missing = sorted(set(topic.joints) - set(listed))
    extra = sorted(set(listed) - set(topic.joints) - set(topic.ignore))
    faults = [
        f"{what} {', '.join(found[:4])}"
        for what, found in (("twice", twice), ("without", missing), ("with the unknown", extra))
        if found
    ]
    if faults:
        wanted = ", ".join(topic.joints)
        raise ValueError(f"{topic.topic} lists joints {' and '.join(faults)}; expected exactly {wanted}")
    return [listed.index(j) for j in topic.joints]


def state_paths(topic: StateTopic, message: Mapping[str, Any]) -> list[Path]:
    """Where each of the topic's signals stands in such a message; () for what the message leaves empty or says it
    cannot tell.

    Raises ValueError where names or counts do not fit.
    """
    if topic.joints:
        order, count = joint_order(topic, message["name"]), len(message["name"])
        for field in topic.fields:
            if len(message[field]) not in (0, count):
                raise ValueError(f"{topic.topic} carries {len(message[field])} values of {field} for {count} joints")
        return [(f, i) if len(message[f]) else () for f in topic.fields for i in order]
    if topic.names:
        if len(message["data"]) != len(topic.names):
            raise ValueError(f"{topic.topic} carries {len(message['data'])} values, expected {len(topic.names)}")
        return [("data", i) for i in range(len(topic.names))]
    telling = UNKNOWN_PATHS.get(topic.type, {})
    unknown = {group for group, path in telling.items() if get_path(message, path) == UNKNOWN}
    return [() if p[0] in unknown else tuple(p) for p in SENSOR_PATHS[topic.type].values()]


def unknown_paths(topic: StateTopic) -> list[Path]:
    """Where a message says of its parts that it cannot tell them, by `UNKNOWN`."""
    return list(UNKNOWN_PATHS.get(topic.type, {}).values())


def read_state(topic: StateTopic, message: Message) -> tuple[float | None, np.ndarray]:
    """(stamp in seconds or None, values of the topic's signals (n,)) of one message; NaN where a field is left empty.

    Raises ValueError with one sentence for a message that is not this topic's.
    """
    try:
        values = [get_path(message, path) if path else np.nan for path in state_paths(topic, message)]
        return stamp_of(message), np.array(values)
    except (LookupError, TypeError, AttributeError, OverflowError) as problem:
        raise ValueError(f"{topic.topic} carries something that is no {topic.type} ({problem!r})") from None


def write_state(topic: StateTopic, values: np.ndarray, stamp: float) -> Message:
    """The message a robot would publish for these signals: what simulated robots send."""
    message = blank(topic.type)
    set_stamp(message, stamp)
    if topic.joints:
        count = len(topic.joints)
        message["name"] = list(topic.joints)
        for k, name in enumerate(topic.fields):
            message[name] = [float(v) for v in values[k * count : (k + 1) * count]]
    elif topic.names:
        message["data"] = [float(v) for v in values]
    else:
        for path, value in zip(SENSOR_PATHS[topic.type].values(), values, strict=True):
            set_path(message, path, value)
    return message


def command_paths(topic: CommandTopic) -> list[Path]:
    """Where each channel's number stands in the topic's message."""
    if topic.type in COMMAND_PATHS:
        return [tuple(COMMAND_PATHS[topic.type][c.field]) for c in topic.channels]
    lead: Path = ("points", 0, "positions") if topic.type.endswith("JointTrajectory") else ("data",)
    return [(*lead, i) for i in range(len(topic.channels))]


def command_template(topic: CommandTopic, control_dt: float) -> Message:
    """The topic's message with every number zero: names and counts are in place."""
    message = blank(topic.type)
    zeros = [0.0] * len(topic.channels)
    if topic.type.endswith("JointTrajectory"):
        point = blank("trajectory_msgs/msg/JointTrajectoryPoint")
        whole = int(control_dt)
        point["time_from_start"] = {"sec": whole, "nanosec": round((control_dt - whole) * 1e9)}
        point["positions"] = zeros
        message["joint_names"], message["points"] = [joint_of(c.name) for c in topic.channels], [point]
    elif topic.type not in COMMAND_PATHS:
        message["data"] = zeros
    return message


def write_command(topic: CommandTopic, values: np.ndarray, control_dt: float, stamp: float = 0.0) -> Message:
    """values (n_channels,) in the channels' units as the topic's message."""
    message = command_template(topic, control_dt)
    set_stamp(message, stamp)
    for path, value in zip(command_paths(topic), values, strict=True):
        set_path(message, path, value)  # type: ignore[arg-type]
    return message


def read_command(topic: CommandTopic, message: Message) -> np.ndarray:
    """values (n_channels,) of a command message: what a simulated robot obeys.

    Raises ValueError with one sentence for a message that is not this topic's.
    """
    try:
        values = [get_path(message, path) for path in command_paths(topic)]
        if len(message.get("data", values)) != len(values):
            raise ValueError(f"{topic.topic} carries {len(message['data'])} values, expected {len(values)}")
    except (LookupError, TypeError, AttributeError) as problem:
        raise ValueError(f"{topic.topic} carries something that is no command of this robot ({problem!r})") from None
    return np.array(values)
