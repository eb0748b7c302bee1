"""From a robot's signals to the policy's observation, and the check that every name, unit and limit agrees."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from robot_cl.deploy.contract import Contract, ObservationTerm
from robot_cl.deploy.names import near
from robot_cl.deploy.robot import CommandChannel, RobotSpec, Term

QUATERNION, AXES = ("x", "y", "z", "w"), ("x", "y", "z")
PLAIN = ("", "cos", "sin")


@dataclass(frozen=True)
class Finding:
    """One result of comparing a contract with a robot: a sentence, and whether it forbids driving."""

    blocks: bool
    text: str


def rotation(x: float, y: float, z: float, w: float) -> list[list[float]]:
    """Rows of the matrix that turns body into world coordinates, of a unit quaternion."""
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def orientation_part(name: str, matrix: list[list[float]]) -> float:
    """roll, pitch, yaw (z-y-x, rad), up.x|y|z or matrix.ab of a rotation from body to world."""
    if name == "roll":
        return math.atan2(matrix[2][1], matrix[2][2])
    if name == "pitch":
        return math.asin(max(-1.0, min(1.0, -matrix[2][0])))
    if name == "yaw":
        return math.atan2(matrix[1][0], matrix[0][0])
    kind, _, place = name.partition(".")
    return matrix[2][AXES.index(place)] if kind == "up" else matrix[AXES.index(place[0])][AXES.index(place[1])]


def sources(spec: RobotSpec) -> dict[str, str]:
    """Name -> unit of everything a term may read: signals, then goals as goal.<name>."""
    return {**spec.signals, **{f"goal.{name}": goal.unit for name, goal in spec.goals.items()}}


def term_of(contract_term: ObservationTerm, spec: RobotSpec) -> Term | None:
    """How this robot makes a contract term: its own entry, else the signal of the same name; None if neither."""
    if contract_term.name in spec.terms:
        return spec.terms[contract_term.name]
    unit = spec.signals.get(contract_term.name)
    return None if unit is None else Term(unit=unit, signal=contract_term.name)


def inputs_of(term: Term, known: Collection[str]) -> tuple[str, ...]:
    """Names of the numbers a term reads."""
    if term.function in PLAIN:
        return tuple(filter(None, (term.signal, term.minus)))
    if term.frame:
        flat = f"{term.signal}.z" not in known
        axes = AXES[:2] if flat else AXES
        places = [f"{part}.{a}" for part in (term.signal, term.minus) if part for a in axes]
        return (*places, *(f"{term.frame}.{a}" for a in QUATERNION))
    return tuple(f"{term.signal}.{a}" for a in QUATERNION)


def unit_of(term: Term, known: Mapping[str, str]) -> str:
    """Unit of what a term's function gives: an angle, a share of one, or what the position it turns is in."""
    if term.frame:
        return known[inputs_of(term, known)[0]]
    return "rad" if term.function in ("roll", "pitch", "yaw") else "1"


def channel_order(contract: Contract, spec: RobotSpec) -> list[int]:
    """For each robot channel, which contract action drives it. Raises LookupError if they are not one to one."""
    names = [spec.actions[t.name].channel if t.name in spec.actions else t.name for t in contract.action]
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
    share = contract.control_dt / spec.control_dt
    if share < 1 - 1e-6 or abs(share - round(share)) > 1e-6:
        periods = f"{contract.control_dt * 1e3:g} ms, the robot file says {spec.control_dt * 1e3:g} ms"
        found.append(Finding(True, f"the policy acts every {periods}, which must be the same or a whole fraction"))
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
        found += _compare_channel(contract, k, channel, spec)
    return found


def _compare_term(term: ObservationTerm, spec: RobotSpec) -> list[Finding]:
    source, known = term_of(term, spec), sources(spec)
    if source is None:
        text = f"the robot does not measure {term.name!r} [{term.unit}], {near(term.name, spec.signals)}"
        return [Finding(True, text)]
    missing = [s for s in inputs_of(source, known) if s not in known]
    if missing:
        return [Finding(True, f"{term.name!r} is to come from {missing[0]!r}, {near(missing[0], known)}")]
    if source.unit != term.unit:
        return [Finding(True, f"{term.name!r} is in {source.unit} on the robot and in {term.unit} in the policy")]
    read = inputs_of(source, known)
    if source.function in ("cos", "sin"):
        wrong = [s for s in read if known[s] != "rad"]
        if wrong:
            text = f"{term.name!r} is the {source.function} of {wrong[0]!r} in {known[wrong[0]]}, not in rad"
            return [Finding(True, text)]
    if source.scale != 1.0:
        return []
    made = {s: known[s] for s in read} if not source.function else {source.function: unit_of(source, known)}
    wrong = [s for s, unit in made.items() if unit != term.unit]
    if wrong:
        text = f"{term.name!r} reads {wrong[0]!r} in {made[wrong[0]]} without a scale to {term.unit}"
        return [Finding(True, text)]
    return []


def _compare_channel(contract: Contract, k: int, channel: CommandChannel, spec: RobotSpec) -> list[Finding]:
    term, found = contract.action[k], []
    renamed = spec.actions.get(term.name)
    expected = renamed.unit if renamed is not None and renamed.unit else channel.unit
    if term.unit != expected:
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

    Raises LookupError if a term cannot be made on this robot.
    """

    def __init__(self, contract: Contract, spec: RobotSpec):
        self.contract, self.spec = contract, spec
        known = sources(spec)
        place = {name: k for k, name in enumerate(known)}
        terms: list[Term] = []
        for wanted in contract.observation:
            term = term_of(wanted, spec)
            if term is None or any(s not in known for s in inputs_of(term, known)):
                raise LookupError(f"the robot does not measure {wanted.name!r}, {near(wanted.name, known)}")
            terms.append(term)
        self.signals = {s for t in terms for s in inputs_of(t, known)} & set(spec.signals)
        self.goals = {name: goal.start for name, goal in spec.goals.items()}
        plain = [(k, t) for k, t in enumerate(terms) if t.function in PLAIN]
        self._direct = np.array([k for k, _ in plain], dtype=np.intp)
        self._source = np.array([place[t.signal] for _, t in plain], dtype=np.intp)
        self._minus = [(k, place[t.minus]) for k, t in plain if t.minus]
        self._angles = [(k, np.cos if t.function == "cos" else np.sin) for k, t in plain if t.function]
        self._frames = _frames(terms, place)
        # Raw measurement -> contract unit -> the policy's scale and clip.
        self._scale, self._offset = np.array([t.scale for t in terms]), np.array([t.offset for t in terms])
        self._term_scale = np.array([t.scale for t in contract.observation])
        self._clip = np.array([t.clip for t in contract.observation])
        self._depth = max(t.history for t in contract.observation)
        self._rows, self._columns = _history_index(contract.observation, self._depth)
        self.reset()

    def reset(self) -> None:
        """Forget past samples; the next one fills the history."""
        self._past: np.ndarray | None = None

    def set_goals(self, values: Mapping[str, float]) -> None:
        """All of them or none: half of a new goal is a place nobody asked for.

        Raises LookupError for an unknown goal, ValueError outside its range.
        """
        for name, value in values.items():
            if name not in self.goals:
                raise LookupError(f"there is no goal {name!r}, {near(name, self.goals)}")
            goal = self.spec.goals[name]
            if not (math.isfinite(value) and goal.low <= value <= goal.high):
                raise ValueError(f"goal {name!r} must lie in [{goal.low:g}, {goal.high:g}], got {value}")
        self.goals.update(values)

    def build(self, values: np.ndarray) -> np.ndarray:
        """values (n_signals,) -> obs (1, obs_dim) float32, NaN where a signal is NaN."""
        known = np.concatenate([values, list(self.goals.values())]) if self.goals else values
        raw = np.empty(len(self._scale))
        raw[self._direct] = known[self._source]
        for at, source in self._minus:
            raw[at] -= known[source]
        for at, function in self._angles:
            raw[at] = function(raw[at])
        for frame in self._frames:
            frame.fill(raw, known)
        raw = raw * self._scale + self._offset
        terms = np.clip(raw * self._term_scale, -self._clip, self._clip)
        if self._depth > 1:
            self._past = np.tile(terms, (self._depth, 1)) if self._past is None else self._past
            self._past = np.concatenate([self._past[1:], terms[None]])
            terms = self._past[self._rows, self._columns]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is judged so
            return terms[None].astype(np.float32)


@dataclass
class _Frame:
    """One quaternion and the terms that come from it: parts of the orientation, and vectors turned into the body."""

    quaternion: list[int]
    parts: list[tuple[int, str]]
    vectors: list[tuple[int, int, list[int], list[int]]]  # term, axis, places of a position, places to subtract

    def fill(self, raw: np.ndarray, known: np.ndarray) -> None:
        q = [float(known[k]) for k in self.quaternion]
        norm = math.sqrt(sum(v * v for v in q))
        if not 0.5 < norm < 2.0:  # NaN, or never set: no orientation
            for at in [*(k for k, _ in self.parts), *(k for k, _, _, _ in self.vectors)]:
                raw[at] = math.nan
            return
        matrix = rotation(*(v / norm for v in q))
        for at, name in self.parts:
            raw[at] = orientation_part(name, matrix)
        for at, axis, position, minus in self.vectors:
            raw[at] = 0.0
            for row, k in enumerate(position):
                part = float(known[k]) - (float(known[minus[row]]) if minus else 0.0)
                raw[at] += matrix[row][axis] * part


def _frames(terms: list[Term], place: Mapping[str, int]) -> list[_Frame]:
    found: dict[str, _Frame] = {}
    for at, term in enumerate(terms):
        if term.function in PLAIN:
            continue
        name = term.frame or term.signal
        frame = found.setdefault(name, _Frame([place[f"{name}.{a}"] for a in QUATERNION], [], []))
        if not term.frame:
            frame.parts.append((at, term.function))
            continue
        axes = [a for a in AXES if f"{term.signal}.{a}" in place]
        position = [place[f"{term.signal}.{a}"] for a in axes]
        minus = [place[f"{term.minus}.{a}"] for a in axes] if term.minus else []
        frame.vectors.append((at, AXES.index(term.function[-1]), position, minus))
    return list(found.values())


def _history_index(terms: tuple[ObservationTerm, ...], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the past (depth, n_terms) that make the observation: per term, oldest first."""
    pairs = [(depth - t.history + h, k) for k, t in enumerate(terms) for h in range(t.history)]
    return np.array([r for r, _ in pairs], dtype=np.intp), np.array([c for _, c in pairs], dtype=np.intp)
