"""Datasets: collect, import, check, store, sample. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_cl.data.behaviours import list_behaviours, load_behaviour
    from robot_cl.data.doctor import examine
    from robot_cl.data.importers.detect import import_dataset
    from robot_cl.data.sampler import Sampler
    from robot_cl.data.store import list_datasets, open_dataset, write_dataset

_HOME = {
    "Sampler": "robot_cl.data.sampler",
    "examine": "robot_cl.data.doctor",
    "import_dataset": "robot_cl.data.importers.detect",
    "list_behaviours": "robot_cl.data.behaviours",
    "list_datasets": "robot_cl.data.store",
    "load_behaviour": "robot_cl.data.behaviours",
    "open_dataset": "robot_cl.data.store",
    "write_dataset": "robot_cl.data.store",
}
__all__ = [
    "Sampler",
    "examine",
    "import_dataset",
    "list_behaviours",
    "list_datasets",
    "load_behaviour",
    "open_dataset",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'robot_cl.data' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
