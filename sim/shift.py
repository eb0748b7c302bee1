"""Shifts as data: how a world differs from its model, constant or over time. Their names are read here alone.

"gravity0.6" scales gravity, "latency2" delays actions, "gain.bthigh0.5" weakens one motor, "gravity0.6+latency2" is
both, "command.bthigh=-1" reverses a motor's commands, "size.bthigh1.3" is a longer and thicker thigh,
"friction0.25@5000" begins at step 5000 and "mass1.5@1000-4000" grows linearly from step 1000 to 4000.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import mujoco

from sim import channels

EVERY = "*"
NEUTRAL: dict[str, float] = {"friction": 1.0, "gravity": 1.0, "mass": 1.0, "payload": 0.0, "latency": 0, "noise": 0.0}
PER_JOINT: dict[str, float] = {"gain": 1.0, "bias": 0.0, "command": 1.0}
PER_BODY: dict[str, float] = {"size": 1.0}
PER_PART = {**PER_JOINT, **PER_BODY}
SIGNED = ("bias", "command")
GRAMMAR = "write for example gravity0.6, latency2, gain.bthigh=0.5, size.bthigh1.3, gravity0.6+noise0.01@5000"
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:e-\d+)?"
TERM = re.compile(rf"(?P<kind>[a-z]+)(?:\.(?P<part>[^=@]+?))?=?(?P<value>{NUMBER})(?:@(?P<when>.+))?")
WHEN = re.compile(r"(?P<start>\d+)(?:-(?P<end>\d+))?")


@dataclass(frozen=True)
class Shift:
    """One way in which a world differs; every field's default is no difference.

    friction, gravity, mass: factors on all geoms, on gravity, on every body's mass and inertia. payload: kg at the
    centre of mass of the first body (the torso). gain, bias, command: per joint name ("*": every joint), motor force =
    gain · force(command · c + bias), so that bias is in the command's unit and c = −1 is a motor wired the wrong way
    round. size: per body name ("*": every body), a limb scaled in length and thickness, its mass with the cube.
    latency: steps by which actions come late. noise: standard deviation added to each observation channel, in its unit.
    """

    friction: float = 1.0
    gravity: float = 1.0
    mass: float = 1.0
    payload: float = 0.0
    gain: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, float] = field(default_factory=dict)
    latency: int = 0
    noise: float = 0.0
    command: Mapping[str, float] = field(default_factory=dict)
    size: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in PER_PART]
        numbers += [(f"{kind}.{part}", v) for kind in PER_PART for part, v in getattr(self, kind).items()]
        for name, value in numbers:
            if not math.isfinite(value):
                raise ValueError(f"shift {name} must be finite, got {value}")
            kind = name.split(".")[0]
            if kind in ("friction", "mass", "size") and value <= 0:
                raise ValueError(f"shift {name} must be positive, got {value:g}")
            if value < 0 and kind not in SIGNED:
                raise ValueError(f"shift {name} must be at least 0, got {value:g}")
        if self.latency != int(self.latency):
            raise ValueError(f"shift latency is in whole steps, got {self.latency:g}")
        object.__setattr__(self, "latency", int(self.latency))

    def combined(self, other: Shift) -> Shift:
        """Both at once: factors multiply, amounts add, noise adds in quadrature."""

        def parts(kind: str) -> dict[str, float]:
            mine, theirs, none = getattr(self, kind), getattr(other, kind), PER_PART[kind]
            pairs = [(j, mine.get(j, none), theirs.get(j, none)) for j in {**mine, **theirs}]
            return {j: a + b if kind == "bias" else a * b for j, a, b in pairs}

        return Shift(
            self.friction * other.friction,
            self.gravity * other.gravity,
            self.mass * other.mass,
            self.payload + other.payload,
            parts("gain"),
            parts("bias"),
            self.latency + other.latency,
            math.hypot(self.noise, other.noise),
            parts("command"),
            parts("size"),
        )

    def towards(self, other: Shift, share: float) -> Shift:
        """Linear between self (share 0) and other (share 1); latency is rounded."""

        def mix(a: float, b: float) -> float:
            return a + share * (b - a)

        plain = {name: mix(getattr(self, name), getattr(other, name)) for name in NEUTRAL if name != "latency"}
        parts = {
            kind: {
                j: mix(getattr(self, kind).get(j, none), getattr(other, kind).get(j, none))
                for j in {**getattr(self, kind), **getattr(other, kind)}
            }
            for kind, none in PER_PART.items()
        }
        return Shift(**plain, **parts, latency=round(mix(self.latency, other.latency)))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The name `parse` reads back; "none" for no difference."""
        terms = [f"{k}{getattr(self, k):.10g}" for k, neutral in NEUTRAL.items() if getattr(self, k) != neutral]
        terms += [
            f"{kind}{'' if part == EVERY else '.' + part}={value:.10g}"
            for kind, neutral in PER_PART.items()
            for part, value in sorted(getattr(self, kind).items())
            if value != neutral
        ]
        return "+".join(terms) or "none"

    def physics_key(self) -> tuple[Any, ...]:
        """Equal for shifts that need the same model."""
        parts = [tuple(sorted(getattr(self, kind).items())) for kind in PER_PART]
        return (self.friction, self.gravity, self.mass, self.payload, *parts)


NONE = Shift()


@dataclass(frozen=True)
class Schedule:
    """Shifts over a world's steps: `points` are (step, shift), ascending; before the first there is no shift.

    Without `ramp` each holds from its step on; with it, values run linearly from point to point and then hold.
    """

    points: tuple[tuple[int, Shift], ...]
    ramp: bool = False

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.points]
        if not steps or steps[0] < 0 or any(b <= a for a, b in itertools.pairwise(steps)):
            raise ValueError(f"a schedule needs at least one point and ascending steps from 0, got {steps}")

    def at(self, step: int) -> Shift:
        """The shift in force at a step."""
        past = [k for k, (begin, _) in enumerate(self.points) if begin <= step]
        if not past:
            return NONE
        begin, shift = self.points[past[-1]]
        if not self.ramp or past[-1] + 1 == len(self.points):
            return shift
        end, target = self.points[past[-1] + 1]
        return shift.towards(target, (step - begin) / (end - begin))

    def next_change(self, step: int) -> float:
        """The first step after `step` at which `at` may differ; infinite if never."""
        if self.ramp and self.points[0][0] <= step < self.points[-1][0]:
            return step + 1
        return min((begin for begin, _ in self.points if begin > step), default=math.inf)


Plan = tuple[Schedule, ...]
ShiftLike = str | Shift | Schedule | None


def parse(text: str) -> Plan:
    """Schedules of a name such as "gravity0.6+latency2@1000" ("none": no shift). ValueError says what to write."""
    if text.strip() in ("", "none"):
        return ()
    return tuple(_parse_term(term.strip()) for term in text.split("+"))


def _parse_term(term: str) -> Schedule:
    match = TERM.fullmatch(term)
    kinds = [*NEUTRAL, *PER_PART]
    if match is None or match["kind"] not in kinds:
        word = re.match(r"[a-z]*", term)
        near = difflib.get_close_matches(word[0] if word else "", kinds, n=1)
        hint = f"did you mean {near[0]}? " if near and near[0] != (word and word[0]) else ""
        raise ValueError(f"shift {term!r} is not understood; {hint}{GRAMMAR}; kinds: {', '.join(kinds)}")
    kind, part, value = match["kind"], match["part"], float(match["value"])
    if part and kind not in PER_PART:
        per = f"only {' and '.join(PER_JOINT)} are per joint and {' and '.join(PER_BODY)} per body"
        raise ValueError(f"shift {term!r}: {per}; write {kind}{match['value']}")
    setting: dict[str, Any] = {kind: {part or EVERY: value} if kind in PER_PART else value}
    return _timed(Shift(**setting), match["when"], term)


def _timed(shift: Shift, when: str | None, term: str) -> Schedule:
    if when is None:
        return Schedule(((0, shift),))
    match = WHEN.fullmatch(when)
    if match is None:
        raise ValueError(f"shift {term!r}: {when!r} is no time; write @5000 for a step or @1000-4000 for a ramp")
    start = int(match["start"])
    if match["end"] is None:
        return Schedule(((start, shift),))
    return Schedule(((start, NONE), (int(match["end"]), shift)), ramp=True)


def plans(shift: ShiftLike | Sequence[ShiftLike], num_worlds: int) -> list[Plan]:
    """One plan per world from one shift for all or a list with one per world. Raises ValueError for a wrong length."""
    if isinstance(shift, (list, tuple)):
        if len(shift) != num_worlds:
            raise ValueError(f"{len(shift)} shifts for {num_worlds} worlds; give one for all or one per world")
        return [_plan(s) for s in shift]
    return [_plan(shift)] * num_worlds  # type: ignore[arg-type]


def _plan(shift: ShiftLike) -> Plan:
    if shift is None or isinstance(shift, str):
        return parse(shift or "none")
    if isinstance(shift, Schedule):
        return (shift,)
    if isinstance(shift, Shift):
        return (Schedule(((0, shift),)),)
    raise ValueError(f"a shift is a name, a Shift, a Schedule or None, got {type(shift).__name__}")


def combined(shifts: Iterable[Shift]) -> Shift:
    result = NONE
    for shift in shifts:
        result = result.combined(shift)
    return result


def shifted_model(base: mujoco.MjModel, shift: Shift) -> mujoco.MjModel:
    """A copy of the model with the shift's physics. Raises LookupError for an unknown joint or body."""
    model = copy.copy(base)
    model.opt.gravity *= shift.gravity
    model.geom_friction *= shift.friction
    model.pair_friction *= shift.friction
    _shift_motors(model, shift)
    if shift.size:
        _scale_bodies(model, shift)
    if shift.mass != 1.0 or shift.payload != 0.0 or shift.size:
        model.body_mass *= shift.mass
        model.body_inertia *= shift.mass
        model.body_mass[1] += shift.payload
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def check_joints(model: mujoco.MjModel, shift: Shift) -> list[str]:
    """The joint of each motor. Raises LookupError if the shift names another, or a body the model lacks, ValueError for
    a payload where the first body is fixed to the ground."""
    bodies = [channels.body_name(model, b) for b in range(1, model.nbody)]
    strange = sorted(set(shift.size) - {*bodies, EVERY})
    if strange:
        raise LookupError(f"there is no body {strange[0]!r}; bodies: {', '.join(bodies)}")
    if shift.payload and model.body_weldid[1] == 0:
        raise ValueError(f"a payload hangs on the first body, and {bodies[0]!r} does not move here; write mass1.5, say")
    names = [channels.actuator_joint(model, a) for a in range(model.nu)]
    unknown = sorted({*shift.gain, *shift.bias, *shift.command} - {*names, EVERY})
    if unknown:
        raise LookupError(
            f"no motor drives a joint {unknown[0]!r}; joints: {', '.join(names)} "
            "(a name ending in a digit needs an equals sign: gain.hip_1=0.5)"
        )
    return names


def _shift_motors(model: mujoco.MjModel, shift: Shift) -> None:
    names = check_joints(model, shift)
    for a, name in enumerate(names):
        gain = shift.gain.get(EVERY, 1.0) * shift.gain.get(name, 1.0)
        bias = shift.bias.get(EVERY, 0.0) + shift.bias.get(name, 0.0)
        command = shift.command.get(EVERY, 1.0) * shift.command.get(name, 1.0)
        offset = gain * float(model.actuator_gainprm[a, 0]) * bias
        model.actuator_gainprm[a] *= gain * command
        model.actuator_biasprm[a] *= gain
        if bias:
            if model.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_NONE:
                model.actuator_biastype[a] = mujoco.mjtBias.mjBIAS_AFFINE
                model.actuator_biasprm[a] = 0.0
            model.actuator_biasprm[a, 0] += offset


def _scale_bodies(model: mujoco.MjModel, shift: Shift) -> None:
    """Geoms, sites and whatever else hangs on the limb move out with it; mass grows with the volume, inertia with
    size⁵."""
    for b in range(1, model.nbody):
        factor = shift.size.get(EVERY, 1.0) * shift.size.get(channels.body_name(model, b), 1.0)
        own = model.geom_bodyid == b
        for array in (model.geom_size, model.geom_pos, model.geom_rbound, model.geom_aabb):
            array[own] *= factor
        tree = slice(model.body_bvhadr[b], model.body_bvhadr[b] + model.body_bvhnum[b])
        model.bvh_aabb[tree] *= factor
        model.jnt_pos[model.jnt_bodyid == b] *= factor
        model.site_pos[model.site_bodyid == b] *= factor
        model.body_ipos[b] *= factor
        model.body_mass[b] *= factor**3
        model.body_inertia[b] *= factor**5
        model.body_pos[model.body_parentid == b] *= factor
