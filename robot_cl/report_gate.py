"""The part of a report about the release gate: whether this run may take another's place, task by task."""

from __future__ import annotations

from typing import Any

from robot_cl import svg, svg_maps
from robot_cl.plain_files import read_json
from robot_cl.run_folder import RunFolder

FILE = "gate.json"


def gate_section(run: RunFolder) -> dict[str, Any] | None:
    """Everything the template shows about a judged run; None for one that never stood before the gate."""
    path = run.path / FILE
    if not path.exists():
        return None
    data = read_json(path)
    return {
        "against": str(data["against"]),
        "promoted": bool(data["promoted"]),
        "rows": [_row(task) for task in data["tasks"]],
        "chart": _chart(data["tasks"]),
    }


def _row(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": task["task"],
        "passed": task["passed"],
        "says": task["says"],
        "old": task["old"],
        "new": task["new"],
        "lower": task["lower"],
        "tolerated": -task["tolerated"],
        "percentiles": [f"{q} %: {old:,.4g} → {new:,.4g}" for q, (old, new) in task["percentiles"].items()],
    }


def _chart(tasks: list[dict[str, Any]]) -> Any:
    """Change of each task's mean in percent of the old mean, and how far down it may really be."""
    rows = []
    for task in tasks:
        scale = 100.0 / max(abs(task["old"]), 1e-9)
        change = scale * (task["new"] - task["old"])
        rows.append(svg.Row(task["task"], change, scale * task["lower"], change))
    from markupsafe import Markup

    return Markup(svg_maps.bars(rows, "change of the mean, % of the old; the line reaches its lower bound"))
