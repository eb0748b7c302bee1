"""Worlds: robots, tasks, shifts and suites, stepped many at a time. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.spec import Channel, Interface
    from sim.tasks import TASKS, get_task
    from sim.world import World, make

_HOME = {
    "Channel": "sim.spec",
    "Interface": "sim.spec",
    "TASKS": "sim.tasks",
    "get_task": "sim.tasks",
    "World": "sim.world",
    "make": "sim.world",
}
__all__ = ["Channel", "Interface", "TASKS", "World", "get_task", "make"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
