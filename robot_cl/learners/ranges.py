"""Which numbers an option may have. Each raises ValueError naming the first option that has another; None passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def positive(config: Any, *names: str) -> None:
    _check(config, names, lambda x: 0.0 < x < math.inf, "a positive number")


def not_negative(config: Any, *names: str) -> None:
    _check(config, names, lambda x: 0.0 <= x < math.inf, "0 or more")


def share(config: Any, *names: str) -> None:
    """Of a batch of which something must be left."""
    _check(config, names, lambda x: 0.0 <= x < 1.0, "0 to below 1")


def _check(config: Any, names: tuple[str, ...], fits: Callable[[float], bool], expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise ValueError(f"{name} is {value}; expected {expected}")
