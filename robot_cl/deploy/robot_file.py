"""Robot files: YAML read as plain data, every mistake named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from robot_cl.deploy.names import near
from robot_cl.deploy.robot import ActionMap, CommandChannel, CommandTopic, Goal, RobotSpec, StateTopic, Term

MAX_FILE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Plain data, and no key twice: of two, YAML would quietly take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for k, key in enumerate(keys):
            if key in keys[:k]:
                line = node.value[k][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"line {line} gives {key!r} a second time")
        return super().construct_mapping(node, deep)


def load_robot(path: Path | str) -> RobotSpec:
    """A robot from its YAML file. Raises OSError, ValueError or LookupError with one sentence."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"robot file {path} is larger than {MAX_FILE_BYTES} bytes")
        data = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        here = sorted(p.as_posix() for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise OSError(f"there is no robot file {path}; in that folder: {', '.join(here) or 'none'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"robot file {path} is not proper YAML: {str(problem).splitlines()[0]}") from None
    try:
        return robot_from_dict(data)
    except (ValueError, LookupError) as problem:
        raise type(problem)(f"robot file {path}: {problem}") from None


def robot_from_dict(data: Any) -> RobotSpec:
    """A robot from plain data. Raises ValueError or LookupError naming the entry that is wrong."""
    if not isinstance(data, dict):
        raise ValueError("expected a mapping with name, control_dt, state and command")
    data = dict(data)
    state, command = data.pop("state", None) or {}, data.pop("command", None) or []
    if not isinstance(state, dict) or not isinstance(command, list):
        raise ValueError("`state` must be a mapping by name, `command` a list of topics")
    topics = tuple(_make(StateTopic, row, key=str(key)) for key, row in state.items())
    commands = []
    for row in command:
        if not isinstance(row, dict) or not isinstance(row.get("channels"), list):
            raise ValueError(f"a command topic must be a mapping with topic, type and a list of channels, got {row!r}")
        channels = tuple(_make(CommandChannel, c) for c in row["channels"])
        commands.append(_make(CommandTopic, {k: v for k, v in row.items() if k != "channels"}, channels=channels))
    maps = {"terms": Term, "actions": ActionMap, "goals": Goal}
    made = {}
    for key, kind in maps.items():
        rows = data.pop(key, None) or {}
        if not isinstance(rows, dict):
            raise ValueError(f"`{key}` must be a mapping by name")
        made[key] = {str(n): _make(kind, {"channel": row} if isinstance(row, str) else row) for n, row in rows.items()}
    return _make(RobotSpec, data, state=topics, command=tuple(commands), **made)


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
    raise ValueError(f"{what} is {value!r}, expected {wanted.replace('tuple[str, ...]', 'a list of names')}")
