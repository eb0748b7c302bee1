"""YAML files and key=value overrides become dataclasses here, once; the only module that knows Hydra and OmegaConf.

Every verb has an options dataclass; `read_options` fills it. Training also has config groups (folders of YAML under
configs/, and the learners' own dataclasses): `read_groups` composes them. YAML holds data only: no class is ever named
in it, nothing in it runs.
"""

from __future__ import annotations

import difflib
import itertools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, make_dataclass, replace
from typing import Any, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from robot_cl.commands.helptext import describe
from robot_cl.data.naming import not_found
from robot_cl.paths import config_dir

T = TypeVar("T")
_KINDS = {"Integer": "a whole number", "Float": "a number", "String": "text"}


def read_options(schema: type[T], overrides: Sequence[str]) -> T:
    """`schema` filled from `key=value` words. Raises ValueError or LookupError in one sentence."""
    config = OmegaConf.structured(schema)
    _apply(config, [_single(_parse(word)) for word in overrides])
    return cast(T, _to_object(config))


def read_groups(
    schema: type[T], groups: Mapping[str, Mapping[str, type]], name: str, overrides: Sequence[str]
) -> tuple[T, dict[str, tuple[str, Any]]]:
    """Compose configs/<name>.yaml: `schema` at the root and one member of each group beside it.

    `groups` maps a group to its table of dataclasses, e.g. {"learner": {"iql": IQLConfig, ...}}; YAML files in
    configs/<group>/ are further choices, based on one of these. Returns the filled schema and, for each group, the
    name of the table's member and its filled dataclass.
    """
    root = make_dataclass("Root", [(group, Any, MISSING) for group in groups], bases=(schema,), kw_only=True)
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=root)
    for group, table in groups.items():
        for member, node in table.items():
            store.store(group=group, name=member, node=node)
    words = [_single(_parse(word)) for word in overrides]
    choosers = {*groups, "experiment"}
    config = _compose(name, [word for word in words if word.key_or_group in choosers])
    _apply(config, [word for word in words if word.key_or_group not in choosers])
    filled = _to_object(config)
    chosen = {group: _member(table, getattr(filled, group)) for group, table in groups.items()}
    return schema(**{f.name: getattr(filled, f.name) for f in fields(cast(Any, schema)) if f.init}), chosen


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of values given with commas: learner=bc,iql seeds=3 -> two lists of overrides."""
    columns = []
    for word, override in zip(overrides, map(_parse, overrides), strict=True):
        key = override.get_key_element()
        columns.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [word]
        )
    return [list(row) for row in itertools.product(*columns)]


def choices(group: str, table: Iterable[str] = ()) -> list[str]:
    """What may stand after `group=`: the table's members and the YAML files of configs/<group>/."""
    return sorted({*table, *(path.stem for path in (config_dir() / group).glob("*.yaml"))})


def to_yaml(config: Any) -> str:
    """A dataclass, or a dict of plain values, as YAML text in the order of its fields."""
    return OmegaConf.to_yaml(OmegaConf.structured(config) if is_dataclass(config) else OmegaConf.create(config))


# Reading one word


def _parse(word: str) -> Override:
    """One override; a value that only needs quotes (blanks, ~, parentheses) gets them."""
    if word.startswith(("+", "~")):
        raise ValueError(f"{word!r}: options are written key=value, without + or ~")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(word)
    except HydraException:
        key, _, value = word.partition("=")
        if not re.search(r"[\[\]{},'\"\\]", value):
            try:
                return parser.parse_override(f'{key}="{value}"')
            except HydraException:
                pass
    raise ValueError(f"cannot read {word!r}: expected key=value, lists as key=[a,b] and maps as 'key={{a: 1}}'")


def _single(override: Override) -> Override:
    if override.is_sweep_override():
        key = override.key_or_group
        raise ValueError(f"{key} takes one value here; write a list as {key}=[a,b], or quote text that has commas")
    return override


# Applying them


def _compose(name: str, choosers: Sequence[Override]) -> Any:
    words = [cast(str, override.input_line) for override in choosers]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(name, words)
    except MissingConfigException as problem:
        group, _, wrong = str(problem.missing_cfg_file).rpartition("/")
        raise not_found(group or "config", wrong, problem.options or []) from None
    except HydraException as problem:
        where = re.match(r"In '([^']+)'", str(problem))
        cause = problem.__context__ or problem
        file = config_dir() / f"{where[1] if where else name}.yaml"
        raise ValueError(f"{file} does not fit: {' '.join(str(cause).split())}") from None
    except YAMLError as problem:
        raise ValueError(f"a file in {config_dir()} is not YAML: {' '.join(str(problem).split())}") from None
    OmegaConf.set_struct(config, False)
    return config


def _apply(config: Any, overrides: Sequence[Override]) -> None:
    known = _keys(config)
    for override in overrides:
        key, said = override.key_or_group, override.value()
        value = None if said == "none" and _may_be_none(config, key) else _plain(said)
        parents = {".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 1)}
        if key not in known and not any(known.get(parent) for parent in parents):
            raise not_found("option", key, known)
        try:
            _update(config, key, value)
        except OmegaConfBaseException as problem:
            raise ValueError(_mismatch(key, value, str(problem).splitlines()[0])) from None


def _may_be_none(config: Any, key: str) -> bool:
    """Whether a key has a value that --help writes as none; null means the same."""
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(holder) and name in holder and holder._get_node(name)._is_optional()


def _update(config: Any, key: str, value: Any) -> None:
    """Set one key; 2e5 is a whole number where one is expected, and one value a list of one."""
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as problem:
        if isinstance(value, float) and value.is_integer() and "converted to Integer" in str(problem):
            OmegaConf.update(config, key, int(value), merge=False)
        elif isinstance(value, (str, int, float)) and "is not a ListConfig" in str(problem):
            OmegaConf.update(config, key, [value], merge=False)
        else:
            raise


def _keys(config: Any, prefix: str = "") -> dict[str, bool]:
    """Every key an override may name -> whether it is a free map, whose own keys are not fixed."""
    found: dict[str, bool] = {}
    for key in config:
        path = f"{prefix}{key}"
        node: Any = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if node is not None and OmegaConf.is_dict(node) and not node._is_none():
            structured = isinstance(node._metadata.object_type, type) and is_dataclass(node._metadata.object_type)
            found[path] = not structured
            found |= _keys(node, path + ".")
        else:
            found[path] = False
    return found


def _plain(value: Any) -> Any:
    """Hydra's quoted strings inside lists and maps as plain strings."""
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return getattr(value, "text", value)


def _mismatch(key: str, value: Any, problem: str) -> str:
    wanted = re.search(r"could not be converted to (\w+)", problem)
    allowed = re.search(r"expected one of \[(.*)\]", problem)
    if allowed:
        near = difflib.get_close_matches(str(value), allowed[1].split(", "), 1)
        return f"{key} is one of {allowed[1]}, got {value!r}" + (f"; did you mean {near[0]}?" if near else "")
    if "is not a valid bool" in problem:
        return f"{key} expects true or false, got {value!r}"
    if wanted:
        return f"{key} expects {_KINDS.get(wanted[1], wanted[1])}, got {value!r}"
    return f"{key} does not take {value!r} ({problem})"


def _to_object(config: Any) -> Any:
    try:
        return _tuples(OmegaConf.to_object(config))
    except MissingMandatoryValue as problem:
        key = str(problem.full_key or problem.key)
        raise ValueError(f"{key}=... is needed{_meaning(config, key)}; see --help for all options") from None
    except OmegaConfBaseException as problem:
        raise ValueError(f"the configuration does not fit: {str(problem).splitlines()[0]}") from None


def _meaning(config: Any, key: str) -> str:
    """What --help says about a key, if it does."""
    schema = OmegaConf.get_type(config)
    lines = describe(schema) if is_dataclass(schema) else []
    return next((f": {line.meaning}" for line in lines if line.name == key and line.meaning), "")


def _tuples(filled: Any) -> Any:
    """OmegaConf makes a list of every tuple; fields declared as tuples get theirs back."""
    if not is_dataclass(filled) or isinstance(filled, type):
        return filled
    hints, changed = typing.get_type_hints(type(filled)), {}
    for f in fields(filled):
        value = getattr(filled, f.name)
        if isinstance(value, list) and typing.get_origin(hints[f.name]) is tuple:
            changed[f.name] = tuple(value)
        elif is_dataclass(value):
            changed[f.name] = _tuples(value)
    return replace(filled, **changed) if changed else filled


def _member(table: Mapping[str, type], filled: Any) -> tuple[str, Any]:
    for name, schema in table.items():
        if type(filled) is schema:
            return name, filled
    raise ValueError(f"{type(filled).__name__} is not one of {', '.join(table)}")
