"""What goes wrong between a robot and its controller, as data: each fault changes messages for a span of time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robot_cl.deploy.extract import state_paths
from robot_cl.deploy.messages import Message, set_path, set_stamp, stamp_of
from robot_cl.deploy.names import near
from robot_cl.deploy.robot import StateTopic


@dataclass(frozen=True)
class Envelope:
    """A state message on its way: from which publisher, arriving when (seconds of the transport's clock)."""

    topic: StateTopic
    message: Message
    source: Hashable
    arrival: float


@dataclass(frozen=True)
class Fault:
    """One entry of FAULTS, of strength `amount`, between `start` and `stop` seconds after the transport began.

    `where` picks a signal (nan, inf, bias), a joint (missing, duplicate) or, for any fault, a state topic's key.
    """

    kind: str
    amount: float = 0.0
    start: float = 0.0
    stop: float = math.inf
    where: str = ""

    def __post_init__(self) -> None:
        if self.kind not in FAULTS and self.kind not in COMMAND_FAULTS:
            raise LookupError(f"there is no fault {self.kind!r}, {near(self.kind, [*FAULTS, *COMMAND_FAULTS])}")
        if self.kind.startswith("drop") and not 0 <= self.amount <= 1:
            raise ValueError(f"{self.kind} is a probability in [0, 1], got {self.amount}")
        if self.kind in ("delay", "jitter", "noise", "delay_command") and self.amount < 0:
            raise ValueError(f"{self.kind} must not be negative, got {self.amount}")

    def active(self, elapsed: float) -> bool:
        return self.start - 1e-9 <= elapsed < self.stop - 1e-9


Change = Callable[[Envelope, Fault, np.random.Generator], "Envelope | None"]


def _drop(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope | None:
    return None if rng.random() < f.amount else e


def _silence(e: Envelope, f: Fault, rng: np.random.Generator) -> None:
    return None


def _delay(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return replace(e, arrival=e.arrival + f.amount)


def _jitter(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    """Up to `amount` seconds later, each message by another time: beyond a period, messages overtake each other."""
    return replace(e, arrival=e.arrival + f.amount * rng.random())


def _set_values(e: Envelope, f: Fault, change: Callable[[float], float]) -> Envelope:
    paths = dict(zip(e.topic.signals, state_paths(e.topic, e.message), strict=True))
    message = copy.deepcopy(e.message)
    chosen = [f.where] if f.where in paths else ([] if "." in f.where else list(paths))
    for name in chosen:
        path: Any = paths[name]
        if path:
            old: Any = e.message
            for key in path:
                old = old[key]
            set_path(message, path, change(old))
    return replace(e, message=message)


def _nan(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _set_values(e, f, lambda value: math.nan)


def _inf(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _set_values(e, f, lambda value: math.inf)


def _noise(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _set_values(e, f, lambda value: value + f.amount * rng.standard_normal())


def _bias(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _set_values(e, f, lambda value: value + f.amount)


def _restamp(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    """The source's clock is off by `amount` seconds."""
    message = copy.deepcopy(e.message)
    set_stamp(message, (stamp_of(message) or 0.0) + f.amount)
    return replace(e, message=message)


def _frozen_stamp(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    message = copy.deepcopy(e.message)
    set_stamp(message, 1.0)
    return replace(e, message=message)


def _restart(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    """Another publisher speaks from here on."""
    return replace(e, source=(e.source, "restarted"))


def _reorder_joints(e: Envelope, order: list[int]) -> Envelope:
    message = copy.deepcopy(e.message)
    for name in ("name", "position", "velocity", "effort"):
        values = e.message.get(name)
        if values:
            message[name] = [values[i] for i in order]
    return replace(e, message=message)


def _permute(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _reorder_joints(e, rng.permutation(len(e.message.get("name", ()))).tolist())


def _missing(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    names = e.message.get("name", [])
    return _reorder_joints(e, [i for i, n in enumerate(names) if n != (f.where or names[0])])


def _duplicate(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    return _reorder_joints(e, [*range(len(e.message.get("name", ()))), 0])


def _extra(e: Envelope, f: Fault, rng: np.random.Generator) -> Envelope:
    doubled = _duplicate(e, f, rng)
    if doubled.message.get("name"):
        doubled.message["name"][-1] = "unknown_joint"
    return doubled


# name -> what it does to each state message while active; the two in COMMAND_FAULTS act on commands.
FAULTS: dict[str, Change] = {
    "drop": _drop, "silence": _silence, "delay": _delay, "jitter": _jitter, "nan": _nan, "inf": _inf, "noise": _noise,
    "bias": _bias, "clock": _restamp, "frozen_stamp": _frozen_stamp, "restart": _restart, "permute": _permute,
    "missing": _missing, "duplicate": _duplicate, "extra": _extra,
}  # fmt: skip
COMMAND_FAULTS = ("drop_command", "delay_command")


def apply(faults: tuple[Fault, ...], envelope: Envelope, elapsed: float, rng: np.random.Generator) -> Envelope | None:
    """The envelope after all faults active at `elapsed` seconds, or None if it is lost."""
    current: Envelope | None = envelope
    for fault in faults:
        here = fault.where in ("", envelope.topic.key) or fault.where in envelope.topic.signals or (
            fault.kind == "missing" and fault.where in envelope.topic.joints
        )
        if current is not None and fault.kind in FAULTS and here and fault.active(elapsed):
            current = FAULTS[fault.kind](current, fault, rng)
    return current
