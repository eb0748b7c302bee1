"""From a robot's signals to the policy's observation, and the check that every name, unit and limit agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from robot_cl.deploy.contract import Contract, ObservationTerm
from robot_cl.deploy.names import near
from robot_cl.deploy.robot import CommandChannel, RobotSpec, Term

QUATERNION = ("x", "y", "z", "w")
QUATERNION_FUNCTIONS = ("roll", "pitch", "yaw", "up.x", "up.y", "up.z")


@dataclass(frozen=True)
class Finding:
    """One result of comparing a contract with a robot: a sentence, and whether it forbids driving."""

    blocks: bool
    text: str


def quaternion_part(name: str, q: np.ndarray) -> float:
    """One number of a unit quaternion (x, y, z, w): Tait-Bryan angles z-y-x [rad], or the world's up in the body."""
    x, y, z, w = q
    if name == "roll":
        return math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    if name == "pitch":
        return math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    if name == "yaw":
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return {"up.x": 2 * (x * z - w * y), "up.y": 2 * (y * z + w * x), "up.z": 1 - 2 * (x * x + y * y)}[name]


def term_of(contract_term: ObservationTerm, spec: RobotSpec) -> Term | None:
    """How this robot measures a contract term: its own entry, else the signal of the same name; None if neither."""
    if contract_term.name in spec.terms:
        return spec.terms[contract_term.name]
    unit = spec.signals.get(contract_term.name)
    return None if unit is None else Term(unit=unit, signal=contract_term.name)


def signals_of(term: Term) -> tuple[str, ...]:
    if term.function in QUATERNION_FUNCTIONS:
        return tuple(f"{term.signal}.{a}" for a in QUATERNION)
    return (term.signal,) if term.signal else ()


def channel_order(contract: Contract, spec: RobotSpec) -> list[int]:
    """For each robot channel, which contract action drives it. Raises LookupError if they are not one to one."""
    names = [spec.actions.get(t.name, t.name) for t in contract.action]
    channels = [c.name for c in spec.channels]
    if sorted(names) != sorted(channels):
        missing, extra = sorted(set(channels) - set(names)), sorted(set(names) - set(channels))
        raise LookupError(
            f"the policy commands {', '.join(names)}; the robot obeys {', '.join(channels)}"
            f" (robot only: {', '.join(missing) or 'none'}; policy only: {', '.join(extra) or 'none'})"
        )
    return [names.index(c) for c in channels]


def compare(contract: Contract, spec: RobotSpec) -> list[Finding]:
    """Everything that differs between what the policy was trained with and what the robot is. Empty: all agrees."""
    found = [f for term in contract.observation for f in _compare_term(term, spec)]
    unknown = sorted(set(spec.terms) - {t.name for t in contract.observation})
    if not math.isclose(contract.control_dt, spec.control_dt, rel_tol=1e-6):
        periods = f"{contract.control_dt * 1e3:g} ms, the robot file says {spec.control_dt * 1e3:g} ms"
        found.append(Finding(True, f"the policy acts every {periods}"))
    if unknown:
        found.append(Finding(False, f"the robot file explains {', '.join(unknown)}, which this policy does not read"))
    strange = sorted(set(spec.actions) - {t.name for t in contract.action})
    if strange:
        found.append(Finding(True, f"the robot file maps {', '.join(strange)}, which this policy does not command"))
    try:
        order = channel_order(contract, spec)
    except LookupError as problem:
        return [*found, Finding(True, str(problem))]
    for channel, k in zip(spec.channels, order, strict=True):
        found += _compare_channel(contract, k, channel)
    return found


def _compare_term(term: ObservationTerm, spec: RobotSpec) -> list[Finding]:
    source = term_of(term, spec)
    if source is None:
        text = f"the robot does not measure {term.name!r} [{term.unit}], {near(term.name, spec.signals)}"
        return [Finding(True, text)]
    missing = [s for s in signals_of(source) if s not in spec.signals]
    if missing:
        return [Finding(True, f"{term.name!r} is to come from {missing[0]!r}, {near(missing[0], spec.signals)}")]
    if source.unit != term.unit:
        return [Finding(True, f"{term.name!r} is in {source.unit} on the robot and in {term.unit} in the policy")]
    if source.signal and not source.function and source.scale == 1.0 and spec.signals[source.signal] != term.unit:
        have = spec.signals[source.signal]
        return [Finding(True, f"{term.name!r} reads {source.signal!r} in {have} without a scale to {term.unit}")]
    return []


def _compare_channel(contract: Contract, k: int, channel: CommandChannel) -> list[Finding]:
    term, found = contract.action[k], []
    if term.unit != channel.unit:
        found.append(Finding(True, f"command {channel.name!r} is in {channel.unit}, the policy gives {term.unit}"))
    for gain in ("kp", "kd"):
        mine, theirs = getattr(term, gain), getattr(channel, gain)
        if mine is not None and theirs is not None and not math.isclose(mine, theirs, rel_tol=0.01):
            text = f"{gain} of {channel.name!r} is {theirs:g}, the policy was trained with {mine:g}"
            found.append(Finding(True, text))
    if term.low < channel.low - 1e-9 or term.high > channel.high + 1e-9:
        text = (
            f"the policy may ask {channel.name!r} for [{term.low:g}, {term.high:g}] {term.unit}, "
            f"the robot is held in [{channel.low:g}, {channel.high:g}]"
        )
        found.append(Finding(False, text))
    return found


class ObservationBuilder:
    """Builds the policy's observation from a state. Remembers goals and, for terms with history, past samples.

    Raises LookupError if a term cannot be measured on this robot.
    """

    def __init__(self, contract: Contract, spec: RobotSpec):
        self.contract = contract
        terms: list[Term] = []
        for wanted in contract.observation:
            term = term_of(wanted, spec)
            if term is None or any(s not in spec.signals for s in signals_of(term)):
                raise LookupError(f"the robot does not measure {wanted.name!r}, {near(wanted.name, spec.signals)}")
            terms.append(term)
        names = [t.name for t in contract.observation]
        self.signals = {s for t in terms for s in signals_of(t)}
        self.goals = {n: float(t.goal) for n, t in zip(names, terms, strict=True) if t.goal is not None}
        self.goal_range = {n: (t.low, t.high) for n, t in zip(names, terms, strict=True) if t.goal is not None}
        self._goal_at = {n: names.index(n) for n in self.goals}
        self._direct, self._source, self._derived = _sources(terms, spec)
        shared = contract.observation
        # Raw measurement -> contract unit -> the policy's scale and clip.
        self._scale = np.array([t.scale for t in terms])
        self._offset = np.array([t.offset for t in terms])
        self._term_scale = np.array([t.scale for t in shared])
        self._clip = np.array([t.clip for t in shared])
        self._depth = max(t.history for t in shared)
        self._rows, self._columns = _history_index(shared, self._depth)
        self.reset()

    def reset(self) -> None:
        """Forget past samples; the next one fills the history."""
        self._past: np.ndarray | None = None

    def set_goal(self, name: str, value: float) -> None:
        """Raises LookupError for an unknown goal, ValueError outside its range."""
        if name not in self.goals:
            raise LookupError(f"there is no goal {name!r}, {near(name, self.goals)}")
        low, high = self.goal_range[name]
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"goal {name!r} must lie in [{low:g}, {high:g}], got {value}")
        self.goals[name] = value

    def build(self, values: np.ndarray) -> np.ndarray:
        """values (n_signals,) -> obs (1, obs_dim) float32, NaN where a signal is NaN."""
        raw = np.zeros(len(self._scale))
        raw[self._direct] = values[self._source]
        for at, compute in self._derived:
            raw[at] = compute(values)
        raw = raw * self._scale + self._offset
        for name, at in self._goal_at.items():
            raw[at] = self.goals[name]
        terms = np.clip(raw * self._term_scale, -self._clip, self._clip)
        if self._depth == 1:
            return terms[None].astype(np.float32)
        if self._past is None:
            self._past = np.tile(terms, (self._depth, 1))
        else:
            self._past = np.concatenate([self._past[1:], terms[None]])
        return self._past[self._rows, self._columns][None].astype(np.float32)


Derived = list[tuple[int, Callable[[np.ndarray], float]]]


def _sources(terms: list[Term], spec: RobotSpec) -> tuple[np.ndarray, np.ndarray, Derived]:
    """Terms copied from a signal (their places, the signals' places), and those computed by a function."""
    direct, source, derived = [], [], []
    for at, term in enumerate(terms):
        places = [spec.signal_index[s] for s in signals_of(term)]
        if term.function:
            derived.append((at, _function(term.function, places)))
        elif places:
            direct.append(at)
            source.append(places[0])
    return np.array(direct, dtype=np.intp), np.array(source, dtype=np.intp), derived


def _function(name: str, places: list[int]) -> Callable[[np.ndarray], float]:
    if name in QUATERNION_FUNCTIONS:
        return lambda values: quaternion_part(name, values[places]) if np.isfinite(values[places]).all() else math.nan
    plain: Mapping[str, Callable[[float], float]] = {"cos": np.cos, "sin": np.sin}
    return lambda values: float(plain[name](values[places[0]]))


def _history_index(terms: tuple[ObservationTerm, ...], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the past (depth, n_terms) that make the observation: per term, oldest first."""
    pairs = [(depth - t.history + h, k) for k, t in enumerate(terms) for h in range(t.history)]
    return np.array([r for r, _ in pairs], dtype=np.intp), np.array([c for _, c in pairs], dtype=np.intp)
