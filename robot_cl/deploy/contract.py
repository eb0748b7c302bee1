"""The contract beside an exported policy: every number that goes in or out, by name, with its unit and limits.

Most failures on a robot are a joint order, a scale, an offset or an observation the robot cannot measure. So names
decide and positions never do: a robot is matched to these terms by name, and what does not match refuses to enable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from sim.spec import Channel, Interface

FORMAT = 1
MODEL_FILE, CONTRACT_FILE, FLOW_FILE = "policy.onnx", "contract.json", "flow.onnx"


@dataclass(frozen=True)
class ObservationTerm:
    """One named measurement: the policy reads clip(scale · value) of its last `history` samples, oldest first.

    `unit` is that of the raw measurement. `mean` and `std` (after scaling) are what training saw; the normaliser that
    uses them is inside the graph, they are here for readers and for the novelty guard.
    """

    name: str
    unit: str
    low: float = -math.inf
    high: float = math.inf
    scale: float = 1.0
    clip: float = math.inf
    history: int = 1
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.history < 1 or not self.clip > 0 or not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"observation term {self.name!r} needs history ≥ 1, clip > 0 and a finite non-zero scale")


@dataclass(frozen=True)
class ActionTerm:
    """One named command: command = offset + scale · action, then held in [low, high], all in `unit`.

    `velocity` bounds how fast the command may move (unit per second), `effort` the force behind it (N or N m), `kp` and
    `kd` are the gains of the joint controller that training assumed. None: unknown.
    """

    name: str
    unit: str
    low: float
    high: float
    scale: float
    offset: float
    velocity: float | None = None
    effort: float | None = None
    kp: float | None = None
    kd: float | None = None


@dataclass(frozen=True)
class SkillEntry:
    """One skill whose weight is an input of the graph: its rank, the hash of its adapter, its weight at start."""

    name: str
    rank: int
    digest: str
    weight: float = 0.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low <= self.weight <= self.high:
            raise ValueError(f"skill {self.name!r}: weight {self.weight} is outside [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Contract:
    """Everything a robot must know about one policy.onnx. Plain data; `sha256` ties it to the exact file.

    Where actions are realigned by a flow, `flow_sha256` and `flow_size` tie it to flow.onnx, whose memory has
    `flow_memory` numbers.
    """

    sha256: str
    size: int
    kind: str
    control_dt: float
    interface_digest: str
    observation: tuple[ObservationTerm, ...]
    action: tuple[ActionTerm, ...]
    skills: tuple[SkillEntry, ...] = ()
    parity: float = math.nan
    simulator: Mapping[str, str] = field(default_factory=dict)
    licence: str = "unknown"
    commit: str = "unknown"
    source: str = ""
    task: str = ""
    flow_sha256: str = ""
    flow_size: int = 0
    flow_memory: int = 0

    def __post_init__(self) -> None:
        if self.interface.digest != self.interface_digest:
            raise ValueError("the contract's terms do not give its interface digest; export the policy again")
        for term in self.action:
            gain, shift = 0.5 * (term.high - term.low), 0.5 * (term.high + term.low)
            if not np.allclose([term.scale, term.offset], [gain, shift], rtol=1e-9, atol=1e-12):
                raise ValueError(
                    f"action term {term.name!r} has scale {term.scale} and offset {term.offset}, "
                    f"but its limits [{term.low}, {term.high}] need {gain} and {shift}"
                )

    @cached_property
    def interface(self) -> Interface:
        """The interface of the world the policy was trained in. Raises ValueError if the terms form none."""
        return Interface(
            tuple(Channel(t.name, t.unit, t.low, t.high) for t in self.observation),
            tuple(Channel(t.name, t.unit, t.low, t.high) for t in self.action),
            self.control_dt,
        )

    @property
    def obs_dim(self) -> int:
        """Width of the graph's observation input, history included."""
        return sum(term.history for term in self.observation)

    @property
    def act_dim(self) -> int:
        return len(self.action)

    def to_json(self) -> str:
        """Indented JSON; infinite and unknown numbers are null."""
        return json.dumps({"format": FORMAT, **_plain(asdict(self))}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Inverse of `to_json`. Raises ValueError with one sentence on anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"the contract is not JSON ({problem}); export the policy again") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"the contract has another format than {FORMAT}; export the policy with this version")
        parts = {"observation": ObservationTerm, "action": ActionTerm, "skills": SkillEntry}
        try:
            for key, kind in parts.items():
                data[key] = tuple(_build(kind, row) for row in data[key])
            return _build(cls, data)
        except (KeyError, TypeError, AttributeError, OverflowError) as problem:
            raise ValueError(f"the contract is incomplete or malformed ({problem}); export the policy again") from None


def terms_from_interface(
    interface: Interface,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    gains: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[tuple[ObservationTerm, ...], tuple[ActionTerm, ...]]:
    """The terms of a world's interface. `gains` maps an action name to any of velocity, effort, kp, kd.

    Raises LookupError if `gains` names an action the interface does not have.
    """
    gains = dict(gains or {})
    strange = sorted(set(gains) - {c.name for c in interface.action})
    if strange:
        names = ", ".join(c.name for c in interface.action)
        raise LookupError(f"gains name {', '.join(strange)}, which this interface does not command; it has {names}")
    mean = np.zeros(interface.obs_dim) if mean is None else np.asarray(mean, dtype=np.float64)
    std = np.ones(interface.obs_dim) if std is None else np.asarray(std, dtype=np.float64)
    observation = tuple(
        ObservationTerm(c.name, c.unit, c.low, c.high, mean=float(m), std=float(s))
        for c, m, s in zip(interface.obs, mean, std, strict=True)
    )
    action = tuple(
        ActionTerm(
            c.name, c.unit, c.low, c.high, 0.5 * (c.high - c.low), 0.5 * (c.high + c.low), **gains.get(c.name, {})
        )
        for c in interface.action
    )
    return observation, action


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _build(kind: type, row: dict[str, Any]) -> Any:
    """A dataclass from plain data: types checked, null read as the field's default. Raises TypeError, ValueError."""
    known = {f.name: f for f in fields(kind)}
    if set(row) - set(known):
        raise TypeError(f"unknown entries {sorted(set(row) - set(known))}")
    values = {}
    for name, value in row.items():
        wanted = str(known[name].type)
        if value is None:
            continue
        if wanted.startswith("float"):
            value = _number(name, value)
        elif wanted in ("int", "str") and (not isinstance(value, int | str) or wanted != type(value).__name__):
            raise TypeError(f"{name} is {value!r}, expected {wanted}")
        values[name] = value
    return kind(**values)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}, expected a finite number or null")
    return float(value)
