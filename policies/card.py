"""A skill's card: where it comes from, what it fits, what it scored. Plain JSON, checked field by field."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeAlias

from policies.adapter import Header

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")  # no dots: a folder cannot then be mistaken for a file
LATEST = 2.5e11  # seconds since 1970; calendars end soon after


@dataclass(frozen=True)
class Parent:
    """A skill below a residual one: its name and content digest then, and the coefficient it was frozen at."""

    skill: str
    content: str
    coefficient: float


@dataclass(frozen=True)
class SkillCard:
    """Everything about a skill but its weights. `header`, `content`, `functional_hash` and `ranks` are filled in when
    it is published; the rest comes from whoever trained it."""

    name: str
    header: Header = field(default_factory=Header)
    content: str = ""  # sha256 of the factors as stored
    functional_hash: str = ""  # what the skill does, whatever factors it is written in
    ranks: dict[str, int] = field(default_factory=dict)  # layer -> rank
    description: str = ""
    learner: str = ""
    seed: int = 0
    licence: str = "Apache-2.0"
    interface: dict[str, Any] = field(default_factory=dict)  # channels with units and limits (sim.Interface.to_dict)
    control_dt: float = 0.0  # seconds; 0: not stated
    datasets: dict[str, str] = field(default_factory=dict)  # dataset id -> hash
    scores: dict[str, float] = field(default_factory=dict)  # task -> mean return
    fingerprint: str = ""  # simulator the scores were measured in
    parents: tuple[Parent, ...] = ()
    spread: float = 0.0  # deviation of the skill's sketch over its training seeds; 0: it has only one
    created: float = 0.0  # seconds since 1970

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> SkillCard:
        """Inverse of `to_json`. Raises ValueError naming the field that is missing, unknown or of a wrong type."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("the skill's card is not JSON; publish the skill again") from None
        if not isinstance(data, dict):
            raise ValueError("the skill's card is not a JSON object; publish the skill again")
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        if unknown or "name" not in data:
            problem = f"has the unknown field {unknown[0]!r}" if unknown else "names no skill"
            raise ValueError(f"the skill's card {problem}; fields: {', '.join(known)}")
        for name, value in data.items():
            _check_type(name, value, _KINDS.get(name, str))
            for held in value.values() if name in _HELD else ():
                _check_type(name, held, _HELD[name])
        for side in ("obs", "action"):
            _check_type("interface", data.get("interface", {}).get(side, []), list)
        if not 0.0 <= data.get("created", 0.0) <= LATEST:
            raise ValueError(f"the skill's card has created = {data['created']}; expected seconds since 1970")
        data["header"] = _record(Header, "header", data.get("header", {}))
        data["parents"] = tuple(_record(Parent, "parents", p) for p in data.get("parents", []))
        card = cls(**data)
        check_name(card.name)
        return card

    def filled(self, **known: Any) -> SkillCard:
        return replace(self, **known)


Kind: TypeAlias = type | tuple[type, ...]
_KINDS: dict[str, Kind] = {
    "header": dict, "ranks": dict, "interface": dict, "datasets": dict, "scores": dict, "parents": list,
    "seed": int, "control_dt": (int, float), "created": (int, float),
    "spread": (int, float),
}  # every other field is text
_HELD: dict[str, Kind] = {"ranks": int, "datasets": str, "scores": (int, float)}  # what is kept by name in a field


def _check_type(name: str, value: Any, kind: Kind) -> None:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, kind) or isinstance(value, bool) or not finite:
        expected = kind.__name__ if isinstance(kind, type) else "number"
        raise ValueError(f"the skill's card has {name} = {str(value)[:40]!r}; expected {expected}")


def _record(cls: type, name: str, value: Any) -> Any:
    wanted = {f.name for f in fields(cls)}
    if not isinstance(value, dict) or set(value) - wanted:
        raise ValueError(f"the skill's card has a wrong {name}; expected {', '.join(sorted(wanted))}")
    for key, held in value.items():
        _check_type(f"{key} of {name}", held, (int, float) if key == "coefficient" else str)
    try:
        return cls(**value)
    except TypeError:
        raise ValueError(f"the skill's card has an incomplete {name}; expected {', '.join(sorted(wanted))}") from None


def check_name(name: str) -> str:
    """The name, if it is safe as a folder's. Raises ValueError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{str(name)[:80]!r} cannot name a skill; use 1 to 64 of a-z, 0-9, '-' and '_', "
            "starting and ending with a letter or digit"
        )
    return name
