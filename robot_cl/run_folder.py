"""A finished or interrupted run as it lies on disk, for whoever reports about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robot_cl.curves import Metrics, load_metrics
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.learners import LEARNERS
from robot_cl.plain_files import read_json, read_yaml
from robot_cl.scores import Entry, read_scores


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds, read on demand. Raises OSError or ValueError naming the file that is not right."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def label(self) -> str:
        """The name without its date."""
        return re.sub(r"^\d{4}-\d\d-\d\d-(\d{6}-)?", "", self.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_yaml(self.path / "config.yaml")

    @property
    def trained(self) -> bool:
        """Whether a learner made it, so that its first updates can be made again: no composition, no many tasks."""
        learner = self.config.get("learner")
        name = learner.get("name") if isinstance(learner, dict) else None
        return "kind" not in self.config and name in LEARNERS and name != "sb3"  # which keeps its own randomness

    @cached_property
    def provenance(self) -> dict[str, Any]:
        path = self.path / "provenance.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def metrics(self) -> Metrics:
        return load_metrics(self.path)

    @cached_property
    def dataset(self) -> StoredDataset | None:
        """The dataset it learned from, if that is still on this machine and unchanged."""
        said = self.provenance.get("dataset")
        if not said:
            return None
        for name in (self.config.get("data") or "", said["id"]):
            try:
                found = open_dataset(str(name))
            except (LookupError, ValueError, OSError):
                continue
            if found.meta.hash == said["hash"]:
                return found
        return None

    @cached_property
    def scores(self) -> list[Entry]:
        return read_scores(self.path)


def open_run(path: Path) -> RunFolder:
    """Raises LookupError if `path` is not a run folder."""
    if not (path / "config.yaml").exists():
        raise LookupError(f"{path} is not a run: it has no config.yaml; runs lie under runs/")
    return RunFolder(path)
