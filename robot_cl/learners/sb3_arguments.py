"""What the constructors of Stable-Baselines3 take, read off their signatures: they notice many a wrong value only in
the midst of training."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any

from torch import nn

from robot_cl.data.naming import not_found

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
TAKEN = ("self", "policy", "env", "seed", "device", "_init_setup_model")  # by the run
TAKEN_POLICY = ("self", "observation_space", "action_space", "lr_schedule")  # by the algorithm
KINDS: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str, NoneType: NoneType}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def arguments(algorithm: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an algorithm's constructor, in its types; policy_kwargs.activation_fn is given by name.

    Raises LookupError for one that it does not have, ValueError for a value of a wrong type.
    """
    checked = _checked(algorithm.__init__, TAKEN, "", given)
    policy = checked.get("policy_kwargs")
    if policy is not None:
        activation = {"activation_fn": _activation(policy["activation_fn"])} if "activation_fn" in policy else {}
        plain = {name: value for name, value in policy.items() if name not in activation}
        constructor = algorithm.policy_aliases["MlpPolicy"].__init__
        checked["policy_kwargs"] = _checked(constructor, TAKEN_POLICY, "policy_kwargs.", plain) | activation
    return checked


def _activation(name: Any) -> type[nn.Module]:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"policy_kwargs.activation_fn is {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _checked(
    constructor: Callable[..., Any], taken: tuple[str, ...], prefix: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(constructor).parameters
    wanted = {name: p.annotation for name, p in parameters.items() if name not in taken}
    for name in given:
        if name not in wanted:
            raise not_found("argument", f"{prefix}{name}", [f"{prefix}{known}" for known in wanted])
    return {name: _converted(f"{prefix}{name}", value, wanted[name]) for name, value in given.items()}


def _converted(name: str, value: Any, wanted: Any) -> Any:
    """The value in the type that is wanted: 2e5 where a whole number is, a list where a tuple is."""
    either = typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, UnionType) else (wanted,)
    for one in either:
        if fits(value, one):
            return tuple(value) if typing.get_origin(one) is tuple else value
    if isinstance(value, float) and value.is_integer() and int in either:
        return int(value)
    words = [text for one in either if (text := _words(one)) and text != "null"]
    if not words:
        raise ValueError(f"{name} is an object of Python's, which no option can name; leave it out")
    raise ValueError(f"{name} expects {' or '.join(words)}, got {value!r}")


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value as YAML has them is of an annotated type: a whole number is a number too, `true` is not."""
    if wanted is Any:
        return True
    if wanted in KINDS:
        return isinstance(value, KINDS[wanted]) and (wanted is bool or not isinstance(value, bool))
    kind, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if kind is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if kind is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    return kind is dict and isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())


def _words(wanted: Any) -> str:
    """What may be typed, or nothing where it is no plain data."""
    kind, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if kind is list:
        return f"a list (each {_words(inner[0])})"
    if kind is tuple:
        return f"[{', '.join(map(_words, inner))}]"
    return "a map" if kind is dict else WORDS.get(wanted, "")
