"""What a job of a sweep may be. Each kind takes the job's own folder and its data, goes on with what a killed process
left there, and returns plain data for the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Do = Callable[[Path, dict[str, Any]], dict[str, Any]]

KINDS = {
    "train": "robot_cl.scale.training:train_job",
    "skill": "robot_cl.scale.training:skill_job",
    "shard": "robot_cl.scale.shards:shard_job",
}


def kind_of_job(name: str) -> Do:
    """Raises LookupError for an unknown kind."""
    if name not in KINDS:
        raise LookupError(f"no kind of job {name!r}; there are: {', '.join(KINDS)}")
    module, function = KINDS[name].split(":")
    return getattr(importlib.import_module(module), function)
