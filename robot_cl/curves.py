"""metrics.csv as one table per metric, for the report and for papers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robot_cl.metrics import FIXED, read_metrics
from robot_cl.svg import Curve

MAX_POINTS = 300


@dataclass(frozen=True)
class Metrics:
    """A run's metrics; `columns` as `read_metrics` gives them, a row per step and member."""

    columns: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        return [name for name in self.columns if name not in FIXED]

    @cached_property
    def members(self) -> int:
        member = self.columns.get("member", np.zeros(0))
        return int(member.max()) + 1 if member.size else 0

    @cached_property
    def online_from(self) -> float | None:
        """The last step of the offline part, None if there is no online part after it."""
        phase, step = self.columns.get("phase", np.zeros(0)), self.columns.get("step", np.zeros(0))
        offline = step[phase == "offline"]
        return float(offline.max()) if offline.size and (phase == "online").any() else None

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """step (T,) and values (T, members) of a metric, where any member has one; NaN where a member has none."""
        known = np.isfinite(self.columns[name])
        steps = np.unique(self.columns["step"][known])
        values = np.full((len(steps), self.members), np.nan)
        rows = np.searchsorted(steps, self.columns["step"][known])
        values[rows, self.columns["member"][known].astype(int)] = self.columns[name][known]
        return steps, values

    def x_label(self, name: str) -> str:
        """What a step is where this metric was recorded: an update offline, an environment step online."""
        phases = set(self.columns["phase"][np.isfinite(self.columns[name])].tolist())
        if phases == {"online"} and self.online_from is None:
            return "environment steps"
        return "updates" if phases == {"offline"} else "updates, then environment steps"


def load_metrics(run: Path) -> Metrics:
    """The metrics of a run folder, empty if it has none yet."""
    try:
        return Metrics(read_metrics(run))
    except FileNotFoundError:
        return Metrics({})


def curve(name: str, step: np.ndarray, values: np.ndarray) -> Curve:
    """Mean and, for several members, the band from the worst to the best, as at most `MAX_POINTS` points.

    step (T,), values (T, P). Neighbouring points are averaged where there are more.
    """
    groups = np.array_split(np.arange(len(step)), min(MAX_POINTS, len(step)))
    x = np.array([step[g].mean() for g in groups])
    binned = np.stack([_mean(values[g]) for g in groups])  # (points, P)
    mean = _mean(binned.T)
    if values.shape[1] == 1:
        return Curve(name, x, mean)
    known = np.isfinite(binned)
    low = np.where(known, binned, np.inf).min(1)
    high = np.where(known, binned, -np.inf).max(1)
    return Curve(name, x, mean, np.where(known.any(1), low, np.nan), np.where(known.any(1), high, np.nan))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, of the finite entries only: (n, m) -> (m,), NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def write_csv(run: Path, path: Path) -> None:
    """One row per step: mean, smallest and largest member of every metric, for plotting elsewhere."""
    metrics = load_metrics(run)
    tables = {name: metrics.series(name) for name in metrics.names}
    steps = np.unique(np.concatenate([step for step, _ in tables.values()])) if tables else np.zeros(0)
    header, columns = ["step"], [steps]
    for name, (step, values) in tables.items():
        rows = np.full((len(steps), 3), np.nan)
        found = np.where(np.isfinite(values), values, np.nan)
        rows[np.searchsorted(steps, step)] = np.stack([_mean(found.T), *_ends(found)], axis=1)
        header += [f"{name}_mean", f"{name}_min", f"{name}_max"]
        columns += list(rows.T)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if np.isnan(v) else f"{v:.9g}" for v in row] for row in np.stack(columns, axis=1))


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.nanmin(values, axis=1), np.nanmax(values, axis=1)


def write_png(run: Path, path: Path, names: list[str] | None = None) -> None:
    """The curves of a run as one figure for a paper, through matplotlib. Raises LookupError for an unknown metric."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    metrics = load_metrics(run)
    wanted = names or metrics.names
    for name in wanted:
        if name not in metrics.names:
            from robot_cl.data.naming import not_found

            raise not_found("metric", name, metrics.names)
    if not wanted:
        raise LookupError(f"{run} has no metrics to draw yet")
    rows = -(-len(wanted) // 2)
    figure, axes = pyplot.subplots(rows, min(2, len(wanted)), figsize=(8, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, wanted, strict=False):
        drawn = curve(name, *metrics.series(name))
        axis.plot(drawn.x, drawn.y, linewidth=1.5)
        if drawn.low is not None and drawn.high is not None:
            axis.fill_between(drawn.x, drawn.low, drawn.high, alpha=0.2, linewidth=0)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axis.set_xlabel(metrics.x_label(name), fontsize=9)
    for axis in list(axes.flat)[len(wanted) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=200)
    pyplot.close(figure)
