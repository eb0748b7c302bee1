"""The lines of --help that come from an options dataclass. Needs no Hydra, so that help is quick."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

REQUIRED = "???"  # the default of a mandatory option: what OmegaConf calls MISSING


@dataclass(frozen=True)
class OptionHelp:
    """One line of --help: `default` is text, empty where the option is mandatory."""

    name: str
    kind: str
    default: str
    meaning: str


def describe(schema: type) -> list[OptionHelp]:
    """The options of a dataclass in order, those of dataclasses in it below them.

    The meaning is the comment behind, or the text below, each field.
    """
    return list(_walk(schema, {f.name: _default(f) for f in fields(schema) if f.init}, ""))


def _walk(schema: type, values: Mapping[str, Any], prefix: str) -> Iterator[OptionHelp]:
    meanings, hints = _meanings(schema), typing.get_type_hints(schema)
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            yield from _walk(type(value), {f.name: getattr(value, f.name) for f in fields(value)}, f"{prefix}{name}.")
        else:
            yield OptionHelp(prefix + name, _kind(hints[name]), _text(value), meanings.get(name, ""))


def _default(f: Field[Any]) -> Any:
    made = f.default_factory() if f.default_factory is not NO_DEFAULT else f.default
    return REQUIRED if made is NO_DEFAULT else made


def _text(value: Any) -> str:
    """A value as one would type it after the equals sign, nothing where one has to be given."""
    if isinstance(value, str) and value == REQUIRED:
        return ""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(str(member.value) for member in hint)
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    origin = typing.get_origin(hint)
    if origin in (tuple, list):
        return f"[{_kind(args[0])},...]"
    if origin is dict:
        return "map"
    if args:
        return "|".join(_kind(arg) for arg in args)
    return {"str": "text", "float": "number", "int": "int", "bool": "true|false"}.get(getattr(hint, "__name__", ""), "")


def _meanings(schema: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        try:
            source = inspect.getsource(owner) if is_dataclass(owner) else ""
        except (OSError, TypeError):
            continue
        for match in re.finditer(r"^\s+(\w+): [^#\n]*#[ ]*(.+)$", source, re.MULTILINE):
            found[match[1]] = match[2].strip()
        for match in re.finditer(r'^\s+(\w+): [^#\n]*\n\s+"""(.+?)"""', source, re.MULTILINE):
            found.setdefault(match[1], match[2].strip())
    return found


def option_lines(schema: type, indent: str = "  ", prefix: str = "") -> str:
    """One line per option: name=default, what it takes, what it means."""
    rows = [(f"{prefix}{o.name}={o.default or '...'}", o) for o in describe(schema)]
    width = min(max((len(left) for left, _ in rows), default=0), 34)
    return "\n".join(f"{indent}{left:<{width}}  {_explain(o)}".rstrip() for left, o in rows)


def _explain(option: OptionHelp) -> str:
    needed = "" if option.default else "needed; "
    return f"{needed}{option.meaning}" if option.meaning else f"{needed}{option.kind}"
