"""Files of runs that nobody trained, with numbers chosen by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASKS = ("level", "hill", "ice")


def planted_continual(folder: Path) -> dict[str, Any]:
    """A continual run of three tasks, two seeds: `library` keeps everything, `finetune` forgets half. Its numbers."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("kind: continual\nstream: planted\nmethods: [library, finetune]\n")
    (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "simulator": "planted 1"}))
    untrained = [[0.0, 0.1, 0.0], [0.0, 0.1, 0.2]]
    keeps = [[1.0, 0.2, 0.1], [1.0, 0.8, 0.3], [1.0, 0.8, 0.6]]
    loses = [[1.0, 0.2, 0.1], [0.5, 0.8, 0.1], [0.4, 0.4, 0.6]]
    data = {
        "format": 1,
        "stream": {"name": "planted", "about": "a walker on three grounds", "announced": True},
        "base": {"name": "base", "task": "hopper"},
        "tasks": [{"name": name, "task": "hopper", "curve_steps": [0, 500, 1000]} for name in TASKS],
        "seeds": [0, 1],
        "references": {"base": untrained},
        "methods": {"library": _entry(keeps, untrained, 0.8, 0.0), "finetune": _entry(loses, untrained, 0.47, 0.33)},
        "simulator": "planted 1",
    }
    both = {"a": 0.5, "b": 0.5}
    data["methods"]["library"]["coefficients"] = [[{"a": 1.0}, {"a": 1.0}], [{"b": 1.0}, both], [{}, {}]]
    (folder / "continual.json").write_text(json.dumps(data))
    return data


def _entry(R: list[list[float]], untrained: list[list[float]], acc: float, forgetting: float) -> dict[str, Any]:
    def number(value: float) -> dict[str, Any]:
        return {"estimate": value, "low": value - 0.05, "high": value + 0.05, "per_seed": [value - 0.03, value + 0.03]}

    return {
        "R": [[untrained[seed], *R] for seed in range(2)],
        "R_interval": [[[v - 0.1, v + 0.1] for v in row] for row in R],
        "curves": [[[0.1, 0.5 + 0.1 * seed, R[k][k]] for k in range(3)] for seed in range(2)],
        "metrics": {
            "acc": number(acc), "forgetting": number(forgetting), "bwt": number(-forgetting),
            "forward_transfer": number(0.2 - forgetting), "jump_start": number(0.1),
        },
        "bytes_per_task": 4000.0 + 1000 * acc,
        "steps": [1000] * 3,
        "wall_s": 90.0,
        "finished_tasks": 3,
        "knows_task": False,
        "routes": [],
        "coefficients": [],
    }  # fmt: skip


def planted_composition(folder: Path) -> None:
    """A composed run: without `hop` it is half as bad again, without `kick` a tenth better."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task: hopper\nlearner:\n  name: compose\n")
    route = {"name": "composition", "made_of": "hop, kick", "loss": 0.4, "relative": 0.8, "returns": [10.0, 20.0]}
    other = {"name": "zero_shot", "made_of": "hop", "loss": 0.5, "relative": 1.0, "returns": []}
    data = {
        "chosen": "composition", "why": "composition: the lowest held-out loss", "measure": "error of actions",
        "routes": [other, route], "refused": {"fresh": "too few demonstrations"},
        "left_out": {"hop": 0.6, "kick": 0.36}, "library": str(folder / "nowhere"), "skills": {"hop": "1", "kick": "2"},
        "coefficients": {"hop": {"mean": 0.7, "min": 0.5, "max": 0.9, "std": 0.1},
                         "kick": {"mean": -0.1, "min": -0.2, "max": 0.0, "std": 0.1}},
    }  # fmt: skip
    (folder / "composition.json").write_text(json.dumps(data))


def planted_transfer(folder: Path) -> None:
    """Two skills for hopper on ice: the gate comes to 80, a fresh adapter to 50, and without `hop` the gate to 60."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("kind: transfer\ntask: hopper\n")

    def row(name: str, mean: float, count: int) -> dict[str, Any]:
        return {"name": name, "what": f"what {name} is", "demonstrations": count, "returns": [[mean - 2, mean + 2]] * 2,
                "mean": mean, "interval": [mean - 2, mean + 2], "share": mean / 100}  # fmt: skip

    def cell(value: float) -> dict[str, float]:
        return {"estimate": value, "low": value - 5, "high": value + 5}

    data = {
        "task": "hopper", "shift": "friction0.2", "expert": 100.0, "demonstrations": 10, "draws": 2,
        "rows": [row("base", 20.0, 0), row("fresh adapter", 50.0, 10), row("learned α(s)", 80.0, 10)],
        "by_demonstrations": {
            "fresh adapter": {"mean": {"1": 22.0, "10": 50.0}, "to_80": None, "area": 0.36},
            "learned α(s)": {"mean": {"1": 60.0, "10": 80.0}, "to_80": 10, "area": 0.7},
        },
        "left_out": {"": [80.0, 80.0], "hop": [60.0, 60.0], "kick": [82.0, 80.0]},
        "matrix": {"": {"hopper": cell(50), "ice": cell(20)}, "hop": {"hopper": cell(100), "ice": cell(10)}},
        "coverage": ["friction 0.2: OUTSIDE the trained range 0.5 to 1"],
    }  # fmt: skip
    (folder / "transfer.json").write_text(json.dumps(data))
