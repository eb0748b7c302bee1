"""The part of a report about what skills are worth for a new task: rows, controls, skills left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_cl import svg, svg_maps
from robot_cl.plain_files import read_json
from robot_cl.run_folder import RunFolder
from robot_cl.scores import interval_text

FILE = "transfer.json"


def transfer_section(run: RunFolder) -> dict[str, Any] | None:
    """Everything the template shows about a transfer study; None for any other folder."""
    path = run.path / FILE
    if not path.exists():
        return None
    data = read_json(path)
    shift = f" under {data['shift']}" if data["shift"] else ""
    given = f"{data['draws']} disjoint draws of {data['demonstrations']} demonstrations"
    return {
        "about": f"{data['task']}{shift}: {given}, whose own mean return is {data['expert']:,.0f}. Every row gets the "
        "same demonstrations and updates; intervals are 95 %, over draws and episodes.",
        "chart": _markup(svg.intervals([_row(row) for row in data["rows"]], "return")),
        "rows": [_line(row) for row in data["rows"]],
        "curves": _curves(data["by_demonstrations"]),
        "reached": [_reached(name, of) for name, of in data["by_demonstrations"].items() if of["area"] is not None],
        "left_out": _left_out(data["left_out"]),
        "matrix": _matrix(data["matrix"]),
        "coverage": data["coverage"],
    }


def _row(row: dict[str, Any]) -> svg.Row:
    low, high = row["interval"] or (None, None)
    points = [value for draw in row["returns"] for value in draw]
    return svg.Row(row["name"], row["mean"], low, high, points)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "what": row["what"],
        "demonstrations": row["demonstrations"],
        "mean": row["mean"],
        "text": interval_text(row["mean"], row["interval"]),
        "share": "" if row["share"] is None else f"{100 * row['share']:.0f} %",
    }


def _curves(found: dict[str, Any]) -> Any:
    """Return over the number of demonstrations; None where there is only one number."""
    drawn = []
    for name, of in found.items():
        counts = sorted(of["mean"], key=int)
        drawn.append(svg.Curve(name, np.array(counts, dtype=float), np.array([of["mean"][c] for c in counts])))
    if not drawn or len(drawn[0].x) < 2:
        return None
    return _markup(svg.curves(drawn, "demonstrations", "return"))


def _reached(name: str, of: dict[str, Any]) -> str:
    if of["to_80"]:
        count = f"{of['to_80']:g} demonstration{'s' if of['to_80'] > 1 else ''}"
        return f"{name} reaches 80 % of the demonstrations' return with {count}."
    return f"{name} does not reach 80 % of the demonstrations' return."


def _left_out(found: dict[str, list[float]]) -> Any:
    """Return lost when α(s) is learned again without each skill; None with a single skill."""
    whole = found.get("", [])
    without = {name: returns for name, returns in found.items() if name}
    if not whole or not without:
        return None
    rows = [svg.Row(f"without {name}", float(np.mean(r) - np.mean(whole))) for name, r in without.items()]
    return _markup(svg_maps.bars(sorted(rows, key=lambda row: row.estimate), "change of return"))


def _matrix(found: dict[str, Any]) -> dict[str, Any] | None:
    """Base and skills (down) on tasks (across): share of the best return on that task, with the return when pointed at.

    None where no tasks were named.
    """
    if not found:
        return None
    names, tasks = list(found), list(next(iter(found.values())))
    values = np.array([[found[name][task]["estimate"] for task in tasks] for name in names])
    best = np.maximum(np.abs(values).max(0), 1e-9)
    ends = [
        [(found[n][t]["low"] / best[j], found[n][t]["high"] / best[j]) for j, t in enumerate(tasks)] for n in names
    ]
    rows = [name or "base" for name in names]
    return {
        "svg": _markup(svg_maps.heat(values / best, rows, tasks, "skills on tasks", ends, 720)),
        "tasks": tasks,
        "rows": [
            (name, [interval_text(o["estimate"], (o["low"], o["high"])) for o in found[key].values()])
            for name, key in zip(rows, names, strict=True)
        ],
    }


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
