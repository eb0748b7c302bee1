"""Worlds: robots, tasks, shifts and suites, stepped many at a time. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.env import make_env, make_sb3_env, make_vector_env
    from sim.shift import Schedule, Shift
    from sim.spec import Channel, Interface
    from sim.state_guard import SimulationError, StateGuard
    from sim.tasks import TASKS, get_task
    from sim.world import World, make

_HOME = {
    "Channel": "sim.spec",
    "Interface": "sim.spec",
    "TASKS": "sim.tasks",
    "get_task": "sim.tasks",
    "World": "sim.world",
    "make": "sim.world",
    "make_env": "sim.env",
    "make_vector_env": "sim.env",
    "make_sb3_env": "sim.env",
    "Shift": "sim.shift",
    "Schedule": "sim.shift",
    "SimulationError": "sim.state_guard",
    "StateGuard": "sim.state_guard",
}
__all__ = [
    "Channel",
    "Interface",
    "Schedule",
    "Shift",
    "SimulationError",
    "StateGuard",
    "TASKS",
    "World",
    "get_task",
    "make",
    "make_env",
    "make_sb3_env",
    "make_vector_env",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
