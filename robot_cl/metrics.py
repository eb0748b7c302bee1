"""What happened during training, as rows of metrics.csv and as TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FILE = "metrics.csv"
FIXED = ("step", "phase", "member", "time_s")


class DivergedError(ValueError):
    """A metric became NaN or infinite."""


class MetricLog:
    """Collects the metrics of updates without looking at them, so that nothing waits for the device.

    Remembers what was added since the last `flush`.
    """

    def __init__(self, learner: str):
        self.learner = learner
        self._values: dict[str, list[tuple[int, Tensor]]] = {}

    def add(self, update: int, metrics: dict[str, Tensor]) -> None:
        """Metrics (P,) of one update."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append((update, value))

    def flush(self) -> dict[str, np.ndarray]:
        """Means (P,) since the last flush. Raises DivergedError naming learner, metric, update and member."""
        import torch  # here, because whoever only reads metrics needs none of it

        means = {}
        for name, values in self._values.items():
            table = torch.stack([value for _, value in values]).double().cpu()  # (updates, P)
            bad = ~torch.isfinite(table)
            if bad.any():
                row, member = (int(i) for i in bad.nonzero()[0])
                value, update = table[row, member].item(), values[row][0]
                raise DivergedError(
                    f"{self.learner}: {name} became {value} at update {update} (member {member}); "
                    "lower the learning rate, or look for what is wrong in the data: robot-cl data check"
                )
            means[name] = table.mean(0).numpy()
        self._values = {}
        return means


class MetricWriter:
    """Writes <run>/metrics.csv (a row per step and member) and, where wanted, TensorBoard events and W&B.

    Remembers the columns and the number of rows; a metric seen for the first time adds a column to the whole file.
    """

    def __init__(self, run: Path, rows: int = 0, tensorboard: bool = True, wandb: bool = False):
        """Keeps the first `rows` rows of an existing file, which are those a checkpoint knows about."""
        self.run, self.path, self.tensorboard = run, run / FILE, tensorboard
        self._events: Any = None
        self._wandb = _start_wandb(run) if wandb else None
        self._columns, self._rows = _read(self.path)
        del self._rows[rows:]
        self._rewrite()

    @property
    def rows(self) -> int:
        return len(self._rows)

    def write(self, step: int, phase: str, time_s: float, values: dict[str, np.ndarray]) -> None:
        """Values (P,) at a step; NaN leaves a cell empty."""
        fresh = [name for name in values if name not in self._columns]
        members = len(next(iter(values.values()))) if values else 0
        added = []
        for p in range(members):
            cells = {name: _cell(float(value[p])) for name, value in values.items()}
            added.append({"step": str(step), "phase": phase, "member": str(p), "time_s": f"{time_s:.3f}"} | cells)
        self._rows += added
        if fresh:
            self._columns += fresh
            self._rewrite()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines(added))
        self._mirror(step, values)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _lines(self, rows: Sequence[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([row.get(name, "") for name in self._columns] for row in rows)
        return text.getvalue()

    def _rewrite(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(",".join(self._columns) + "\n" + self._lines(self._rows), encoding="utf-8")
        part.replace(self.path)

    def _mirror(self, step: int, values: dict[str, np.ndarray]) -> None:
        several = any(len(value) > 1 for value in values.values())
        named = {
            f"{name}/member{p}" if several else name: float(x)
            for name, value in values.items()
            for p, x in enumerate(value)
            if math.isfinite(x)
        }
        if self.tensorboard:
            if self._events is None:
                from torch.utils.tensorboard import SummaryWriter  # here, because it takes a second to import

                self._events = SummaryWriter(str(self.run), purge_step=step)
            for name, x in named.items():
                self._events.add_scalar(name, x, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)


def read_metrics(run: Path | str) -> dict[str, np.ndarray]:
    """Column name -> array over rows: `phase` as text, all others as float64 with NaN where a cell is empty.

    Raises FileNotFoundError if the run has no metrics, ValueError if they are damaged.
    """
    path = Path(run) / FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {run} is not a run folder, or nothing was logged yet")
    columns, rows = _read(path)
    out = {}
    try:
        for name in columns:
            cells = [row.get(name) or "" for row in rows]
            out[name] = np.array(cells) if name == "phase" else np.array([float(c) if c else np.nan for c in cells])
        if not all(np.isfinite(out[name]).all() and (out[name] >= 0).all() for name in ("step", "member")):
            raise ValueError("a row has no step or no member")
    except ValueError as problem:
        raise _damaged(path, problem) from None
    return out


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.exists():
        return list(FIXED), []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values()]  # a killed writer may leave half a line
            columns = list(reader.fieldnames or FIXED)
        if not set(FIXED) <= set(columns):
            raise csv.Error(f"its first line is not {','.join(FIXED)},...")
        return columns, rows
    except (UnicodeDecodeError, csv.Error) as problem:
        raise _damaged(path, problem) from None


def _damaged(path: Path, problem: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({problem}); copy it again from where it was whole")


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"


def import_wandb() -> Any:
    """Raises ValueError if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise ValueError("wandb=true, but wandb is not installed; pip install wandb, or leave it out") from None
    return wandb


def _start_wandb(run: Path) -> Any:
    return import_wandb().init(project="robot-cl", name=run.name, dir=str(run))
