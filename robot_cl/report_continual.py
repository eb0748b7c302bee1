"""The part of a report about a stream of tasks: what each method keeps and carries over, from continual.json."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import svg, svg_maps
from robot_cl.continual import summary
from robot_cl.curves import curve
from robot_cl.run_folder import RunFolder

HEADINGS = {
    "acc": ("ACC", "score over all tasks at the end; 1 is solved"),
    "forgetting": ("forgetting", "score lost since a task was learned; 0 is none"),
    "forward_transfer": ("forward transfer", "area won over learning each task alone; above 0 earlier tasks helped"),
}
COLUMNS = {"acc": "ACC", "forgetting": "forgetting", "bwt": "BWT", "forward_transfer": "forward transfer",
           "jump_start": "jump-start"}  # fmt: skip


def continual_section(run: RunFolder) -> dict[str, Any] | None:
    """Everything the template shows about a continual run; None for any other."""
    if not (run.path / summary.FILE).exists():
        return None
    data = summary.read(run.path)
    tasks = [task["name"] for task in data["tasks"]]
    methods = data["methods"]
    announced = "borders between tasks announced" if data["stream"]["announced"] else "borders hidden"
    seeds = f"{len(data['seeds'])} training seed{'s' if len(data['seeds']) > 1 else ''}"
    return {
        "about": f"{data['stream']['about'].capitalize()}: {len(tasks)} tasks, {announced}, {seeds}. 0 is untrained, "
        "1 is solved. Intervals are 95 %, seeds redrawn with all their tasks.",
        "tasks": tasks,
        "forests": [forest(name, methods) for name in HEADINGS if any(name in m["metrics"] for m in methods.values())],
        "columns": COLUMNS,
        "rows": [table_row(name, entry) for name, entry in methods.items()],
        "learning": _markup(learning_chart(data)),
        "matrices": [matrix_chart(name, entry, tasks) for name, entry in methods.items()],
        "coefficients": [
            chart for name, entry in methods.items() if (chart := coefficient_chart(name, entry, tasks)) is not None
        ],
        "simulator": data["simulator"],
    }


def continual_headline(run: RunFolder) -> str:
    """One sentence: what came of the stream for the library, else for the method that ends highest."""
    if not (run.path / summary.FILE).exists():
        return "A stream of tasks, not finished yet."
    data = summary.read(run.path)
    done = [(name, m["metrics"]["acc"]) for name, m in data["methods"].items() if "acc" in m["metrics"]]
    if not done:
        return f"{data['stream']['name'].replace('_', ' ')}: no method has finished the stream yet."
    name, acc = max(done, key=lambda pair: (pair[0] == "library", pair[1]["estimate"]))
    between = "" if acc["low"] is None else f" [{_number(acc['low'])}, {_number(acc['high'])}]"
    tasks = f"{len(data['tasks'])} tasks, one after the other"
    return f"{tasks}: {_words(name)} ends at {_number(acc['estimate'])}{between}, where 1 is solved."


def forest(metric: str, methods: dict[str, Any]) -> dict[str, Any]:
    """One number of all methods as intervals, its seeds as dots."""
    title, note = HEADINGS[metric]
    rows = [
        svg.Row(_words(name), m["estimate"], m["low"], m["high"], m["per_seed"])
        for name, entry in methods.items()
        if (m := entry["metrics"].get(metric)) is not None
    ]
    return {"title": title, "note": note, "svg": _markup(svg.intervals(rows, title))}


def table_row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Cells as (value to sort by, text, and for metrics the interval)."""
    cells = {}
    for metric in COLUMNS:
        m = entry["metrics"].get(metric)
        if m is None:
            cells[metric] = ("", "", "")
            continue
        between = "" if m["low"] is None else f"{_number(m['low'])} to {_number(m['high'])}"
        cells[metric] = (m["estimate"], _number(m["estimate"]), between)
    told = "" if not entry["knows_task"] else "told the task"
    size = entry["bytes_per_task"]
    return {
        "name": _words(name),
        "told": told,
        "cells": cells,
        "bytes": (size, f"{size / 1e3:,.1f} kB"),
        "wall": (entry["wall_s"], f"{entry['wall_s'] / 60:,.1f} min"),
    }


def matrix_chart(name: str, entry: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
    """R as a heat map, mean over seeds: a row after each task learned, a column per task scored."""
    mean = np.array(entry["R"]).mean(0)
    rows = ["untrained", *(f"{k + 1} {task}" for k, task in enumerate(tasks[: len(mean) - 1]))]
    intervals = [[None] * len(tasks), *entry["R_interval"]]
    chart = svg_maps.heat(mean, rows, tasks, f"R of {_words(name)}", intervals)
    return {"name": _words(name), "svg": _markup(chart)}


def learning_chart(data: dict[str, Any]) -> str:
    """Score on the task being learned, task after task, one curve with its band per method."""
    starts = np.cumsum([0, *(task["curve_steps"][-1] for task in data["tasks"])])
    drawn = []
    for name, entry in data["methods"].items():
        scores = np.array(entry["curves"])  # (seeds, tasks, points)
        steps = [starts[k] + np.array(data["tasks"][k]["curve_steps"]) for k in range(scores.shape[1])]
        gap = np.full((scores.shape[0], scores.shape[1], 1), np.nan)  # the curve of the next task begins anew
        joined = np.concatenate([scores, gap], axis=2).reshape(len(scores), -1)
        x = np.concatenate([np.append(s, s[-1]) for s in steps])
        drawn.append(_unbinned(_words(name), x, joined))
    marks = [svg.Mark(str(k + 1), float(start), vertical=True) for k, start in enumerate(starts[:-1]) if k]
    return svg.curves(drawn, "environment steps", "score", marks, 340)


def _unbinned(name: str, x: np.ndarray, values: np.ndarray) -> svg.Curve:
    """Mean and range over seeds at every step; values (seeds, T)."""
    if values.shape[1] > 300:
        return curve(name, x, values.T)
    mean = values.mean(0)
    return svg.Curve(name, x, mean, values.min(0), values.max(0)) if len(values) > 1 else svg.Curve(name, x, mean)


def coefficient_chart(name: str, entry: dict[str, Any], tasks: list[str]) -> dict[str, Any] | None:
    """Which skills play which task: mean coefficient over seeds, tasks down, skills across."""
    played = [[seed for seed in task if seed] for task in entry["coefficients"]]
    skills = sorted({skill for task in played for seed in task for skill in seed})
    if not skills:
        return None
    values = np.full((len(played), len(skills)), np.nan)
    for j, task in enumerate(entry["coefficients"]):
        for k, skill in enumerate(skills):
            found = [seed[skill] for seed in task if skill in seed]
            if found:
                values[j, k] = sum(found) / len(task)
    rows = [f"{k + 1} {task}" for k, task in enumerate(tasks[: len(played)])]
    chart = svg_maps.heat(values, rows, skills, f"coefficients of {_words(name)}")
    legend = "" if max(map(len, skills)) < 6 else ", ".join(f"{k + 1} {skill}" for k, skill in enumerate(skills))
    return {"name": _words(name), "svg": _markup(chart), "legend": legend}


# Beside the page: numbers as CSV, figures for papers


def write_numbers(folder: Path) -> list[Path]:
    """continual_metrics.csv and continual_R.csv beside continual.json."""
    data = summary.read(folder)
    metrics, matrix = folder / "continual_metrics.csv", folder / "continual_R.csv"
    with metrics.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "metric", "estimate", "low", "high", *(f"seed_{s}" for s in data["seeds"])])
        for name, entry in data["methods"].items():
            for metric, m in entry["metrics"].items():
                writer.writerow([name, metric, m["estimate"], m["low"], m["high"], *m["per_seed"]])
    with matrix.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seed", "after", *(task["name"] for task in data["tasks"])])
        for name, entry in data["methods"].items():
            for seed, R in zip(data["seeds"], entry["R"], strict=True):
                writer.writerows([name, seed, after, *row] for after, row in enumerate(R))
    return [metrics, matrix]


def write_figures(folder: Path) -> list[Path]:
    """plots/continual.png and .pdf: R of every method, and the three numbers with their intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    data = summary.read(folder)
    methods = data["methods"]
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = pyplot.subplots(rows + 1, max(columns, 3), figsize=(9.5, 2.9 * (rows + 1)), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for k, (name, entry) in enumerate(methods.items()):
        axis = axes[k // columns, k % columns]
        axis.set_visible(True)
        axis.imshow(np.array(entry["R"]).mean(0)[1:], vmin=0, vmax=1, cmap="Blues")
        axis.set_title(_words(name), fontsize=10)
        axis.set_xlabel("task", fontsize=9)
        axis.set_ylabel("after task", fontsize=9)
        ticks = np.arange(len(data["tasks"]))
        axis.set_xticks(ticks, ticks + 1, fontsize=8)
        axis.set_yticks(ticks[: len(entry["R"][0]) - 1], ticks[: len(entry["R"][0]) - 1] + 1, fontsize=8)
    for axis, metric in zip(axes[rows], HEADINGS, strict=False):
        axis.set_visible(True)
        told = [(n, m) for n, e in methods.items() if (m := e["metrics"].get(metric)) is not None]
        for y, (_, m) in enumerate(told):
            axis.plot(m["estimate"], y, "o", markersize=5)
            if m["low"] is not None:
                axis.plot([m["low"], m["high"]], [y, y], linewidth=2, color=axis.lines[-1].get_color())
        axis.axvline(0.0, color="0.8", linewidth=0.8, zorder=0)
        axis.set_yticks(range(len(told)), [_words(n) for n, _ in told], fontsize=8)
        axis.set_title(HEADINGS[metric][0], fontsize=10)
    figure.tight_layout()
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    made = [plots / "continual.png", plots / "continual.pdf"]
    for path in made:
        figure.savefig(path, dpi=200)
    pyplot.close(figure)
    return made


def _number(value: float) -> str:
    """Two digits, with a minus sign that is one, and none before zero."""
    text = f"{value:.2f}"
    return text.replace("-", "" if float(text) == 0.0 else "−")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
