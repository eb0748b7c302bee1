"""What a study of objective mismatch leaves in its folder: tables as CSV and JSON, plots, and one page to read."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.mismatch import METRICS, Correlation, Interval
from robot_cl import svg
from robot_cl.data.atomic import write_json
from robot_cl.mismatch import Member, Study
from robot_cl.report import TEMPLATES

LINEAR = ("nll",)  # metrics that may be negative; the others are shown on a logarithmic axis


def write_study(folder: Path, study: Study, about: dict[str, Any]) -> None:
    """models.csv, correlations.csv, mismatch.json, plots/*.png and mismatch.html."""
    _models(folder / "models.csv", study.members)
    _correlations(folder / "correlations.csv", study.correlations)
    write_json(folder / "mismatch.json", plain(study) | {"about": about})
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    scatter(plots / "metrics.png", study.members)
    lengths(plots / "lengths.png", study.members)
    gaps(plots / "gaps.png", study)
    (folder / "mismatch.html").write_text(page(folder, study, about), encoding="utf-8")


def plain(study: Study) -> dict[str, Any]:
    """The study as JSON data: what is not a finite number is None."""
    data = asdict(study)
    data["members"] = [{**m, "return": m.pop("ret")} for m in data["members"]]

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return finite(data)


def _models(path: Path, members: Sequence[Member]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["slice", "width", "loss", "steps", *METRICS, "return", "exploitation_gap"])
        for m in members:
            rows.writerow([m.slice, m.width, m.loss, m.steps, *(m.metrics[k] for k in METRICS), m.ret, m.gap])


def _correlations(path: Path, found: Sequence[Correlation]) -> None:
    ends = [f"{kind}{end}" for kind in ("pearson", "spearman") for end in ("", "_low", "_high")]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["slice", "metric", *ends, "regret"])
        for c in found:
            both = [v for i in (c.pearson, c.spearman) for v in (i.value, i.low, i.high)]
            rows.writerow([c.slice, c.metric, *both, c.regret])


# -- plots ------------------------------------------------------------------------------------------------------------


def scatter(path: Path, members: Sequence[Member]) -> None:
    """Return against every metric, one colour per loss."""
    pyplot = _pyplot()
    from matplotlib import ticker

    figure, axes = pyplot.subplots(2, 4, figsize=(13, 6), sharey=True)
    for axis, metric in zip(axes.flat, METRICS, strict=False):
        for loss in dict.fromkeys(m.loss for m in members):
            own = [m for m in members if m.loss == loss]
            axis.scatter([m.metrics[metric] for m in own], [m.ret for m in own], s=16, label=loss)
        axis.set_xlabel(metric.replace("_", " "))
        if metric not in LINEAR:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0, 0].set_ylabel("return")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def lengths(path: Path, members: Sequence[Member]) -> None:
    """Likelihood and return over the length of the training, one line per training."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6))
    losses = list(dict.fromkeys(m.loss for m in members))
    for key in dict.fromkeys((m.slice, m.width, m.loss) for m in members):
        own = [m for m in members if (m.slice, m.width, m.loss) == key]
        style = {"color": f"C{losses.index(key[2])}", "alpha": 0.8, "marker": "o", "markersize": 3}
        left.plot([m.steps for m in own], [m.metrics["nll"] for m in own], **style)
        right.plot([m.steps for m in own], [m.ret for m in own], **style)
    for axis, name in ((left, "negative log-likelihood"), (right, "return")):
        axis.set_xscale("log")
        axis.set_xlabel("gradient steps")
        axis.set_ylabel(name)
    handles = [pyplot.Line2D([], [], color=f"C{k}", label=loss) for k, loss in enumerate(losses)]
    right.legend(handles=handles)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def gaps(path: Path, study: Study) -> None:
    """What the planner expects beyond what it gets, model by model, and what the attack did to one of them."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), width_ratios=(2, 1))
    for loss in dict.fromkeys(m.loss for m in study.members):
        own = [m for m in study.members if m.loss == loss]
        left.scatter([m.gap for m in own], [m.ret for m in own], s=16, label=loss)
    left.axvline(0.0, color="grey", linewidth=0.8)
    left.set_xlabel("expected − realised return of a plan")
    left.set_ylabel("return")
    left.legend()
    if study.attack is not None:
        a = study.attack
        names = [f"before\nnll {a.nll_before:.3g}", f"after\nnll {a.nll_after:.3g}"]
        right.bar(names, [a.before, a.after], color=["C0", "C3"], width=0.6)
        right.set_ylabel("return, likelihood kept")
    else:
        right.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# -- the page ---------------------------------------------------------------------------------------------------------


def page(folder: Path, study: Study, about: dict[str, Any]) -> str:
    """One self-contained page; everything but our own SVG and CSS is escaped."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    slices = list(dict.fromkeys(c.slice for c in study.correlations))
    shown = [
        {
            "name": name,
            "best": study.best.get(name, "none"),
            "chart": Markup(ranking([c for c in study.correlations if c.slice == name])),
            "rows": [table_row(c) for c in study.correlations if c.slice == name],
        }
        for name in slices
    ]
    pictures = {name: _embedded(folder / "plots" / f"{name}.png") for name in ("metrics", "lengths", "gaps")}
    css = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    written = datetime.now(UTC).astimezone().strftime("%d %B %Y, %H:%M")
    return environment.get_template("mismatch.html.j2").render(
        css=css,
        about=about,
        headline=headline(study),
        tiles=tiles(study),
        slices=shown,
        pictures=pictures,
        epochs=study.epochs,
        version=version("robot-cl"),
        written=written,
    )


def headline(study: Study) -> str:
    """One sentence: which metric ranked the models best, and how well likelihood did."""
    best = study.best.get("all")
    if best is None:
        return f"All {len(study.members)} models earned the same return: nothing to rank."
    found = {c.metric: c.spearman.value for c in study.correlations if c.slice == "all"}
    return (
        f"Among {len(study.members)} models, {best.replace('_', ' ')} ranked best by return "
        f"(Spearman {found[best]:+.2f}; likelihood {found['nll']:+.2f}; −1 would be perfect)."
    )


def tiles(study: Study) -> list[dict[str, str]]:
    returns = np.array([m.ret for m in study.members])
    lost = [row["return_lost"] for row in study.epochs]
    shown = [
        {"name": "return of the best model", "value": f"{returns.max():,.0f}", "note": f"worst {returns.min():,.0f}"},
        {"name": "exploitation gap", "value": f"{study.exploitation:,.1f}", "note": "expected − realised, per plan"},
        {"name": "lost by stopping at the best likelihood", "value": f"{np.mean(lost):,.0f}", "note": "mean return"},
    ]
    if study.attack is not None:
        a = study.attack
        note = f"nll {a.nll_before:.3g} to {a.nll_after:.3g}"
        shown.append({"name": "return after an attack", "value": f"{a.before:,.0f} → {a.after:,.0f}", "note": note})
    return shown


def ranking(found: Sequence[Correlation]) -> str:
    """Spearman correlation of every metric with the return, with intervals, as SVG."""
    rows = [
        svg.Row(c.metric.replace("_", " "), c.spearman.value, *_ends(c.spearman))
        for c in sorted(found, key=lambda c: c.spearman.value)
        if math.isfinite(c.spearman.value)
    ]
    return svg.intervals(rows, "Spearman correlation with the return") if rows else ""


def _ends(i: Interval) -> tuple[float | None, float | None]:
    return (i.low, i.high) if math.isfinite(i.low) and math.isfinite(i.high) else (None, None)


def table_row(c: Correlation) -> dict[str, str]:
    return {
        "metric": c.metric.replace("_", " "),
        "spearman": interval_text(c.spearman),
        "pearson": interval_text(c.pearson),
        "regret": f"{c.regret:,.1f}",
    }


def interval_text(i: Interval) -> str:
    """+0.42 [+0.10, +0.71]"""
    if not math.isfinite(i.value):
        return "none"
    low, high = _ends(i)
    return f"{i.value:+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
