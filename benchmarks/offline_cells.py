"""Cells of the offline benchmarks: how large one is, and how it is measured."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import processor
from offline_data import KEPT, dataset
from offline_methods import ALL, slug

from robot_cl.data.reference import find_reference
from robot_cl.evaluate import evaluate
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.rebrac import ReBRACConfig
from robot_cl.learners.sac import CloningConfig, SACConfig
from robot_cl.learners.uni_o4_config import UniO4Config
from robot_cl.run import Run
from robot_cl.run_config import TrainConfig
from robot_cl.train import begin, take_up

SEEDS = 3
EPISODES = 20  # per seed, of the last policy
ONLINE = 100_000  # environment steps per seed
Cell = tuple[str, str]  # dataset, method


@dataclass(frozen=True)
class Sizes:
    """What every method gets alike: `width` of every hidden layer, `updates` per environment step off-policy (published
    ratios are 1 to 20), made after every ROUND steps."""

    width: int
    updates: float
    scale: float = 1.0  # of all numbers of offline updates but those of Uni-O4's improvement
    clones: float | None = None  # the same of clones alone, where these have another one
    compiled: bool = False  # online, on a CPU: updates as compiled code

    @property
    def cloning(self) -> float:
        return self.scale if self.clones is None else self.clones


SIZES = {
    "quick": Sizes(128, 0.25, 0.02),
    "tiny": Sizes(64, 0.25, 0.3),
    "narrow": Sizes(64, 1.0, 0.3, clones=1.0),
    "narrow-sweep": Sizes(64, 0.25, 0.2, clones=0.5),
    "small": Sizes(128, 0.25, 0.5),
    "many": Sizes(128, 8.0, 0.5, clones=1.0),
    "many-compiled": Sizes(128, 8.0, 0.5, clones=1.0, compiled=True),
    "full": Sizes(256, 0.25),
    "gpu": Sizes(256, 1.0, 0.5, clones=1.0),
    "gpu-half": Sizes(256, 0.5, 0.5, clones=1.0),
    "gpu-brisk": Sizes(256, 2.0, 0.5, clones=1.0),
    "gpu-eager": Sizes(256, 4.0, 0.5, clones=1.0),
    "sweep": Sizes(256, 0.25, 0.5),
    "small-sweep": Sizes(128, 0.25, 0.3),
}
ROUND = 50


@dataclass
class Plan:
    """What one call measures: how large, how many seeds, and on what."""

    sizes: str = "small"
    seeds: int = SEEDS
    first_seed: int = 0
    steps: int | None = None  # of the datasets
    online: int = ONLINE
    episodes: int = EPISODES
    device: str = "cpu"
    checkpoint: int = 500  # steps between checkpoints
    captured: bool = True  # on a GPU, updates as graphs

    @property
    def kept(self) -> Path:
        return KEPT / (f"{self.sizes}-from-{self.first_seed}" if self.first_seed else self.sizes)

    @property
    def size(self) -> Sizes:
        return SIZES[self.sizes]


QUICK = Plan("quick", seeds=2, steps=20_000, online=8192, episodes=4)


def measure(plan: Plan, data_name: str, method_name: str) -> dict[str, Any]:
    """One cell: from its JSON, or trained, evaluated and written."""
    measure_together(plan, [(data_name, method_name)])
    return json.loads(cell_path(plan, data_name, method_name).read_text())


def measure_together(plan: Plan, cells: Sequence[Cell], deadline: float = math.inf) -> None:
    """Cells in one process, turn by turn; on a GPU each on a stream of its own, so that their updates run side by side.

    Those that have their JSON are left out. At the deadline (of time.monotonic) all stop, and are recorded as cut.
    """
    todo = [cell for cell in cells if not cell_path(plan, *cell).exists()]
    begun = {cell: _begin(plan, *cell) for cell in todo}
    cuda = plan.device == "cuda"
    for run, _ in begun.values():
        run.learner.captured.fixed &= plan.captured
    streams = {cell: torch.cuda.stream(torch.cuda.Stream()) if cuda else nullcontext() for cell in todo}
    turns = {cell: run.turns() for cell, (run, _) in begun.items()}
    if cuda:
        torch.cuda.synchronize()
    while turns:
        late = time.monotonic() > deadline
        for cell in list(turns):
            with streams[cell]:
                over = late or next(turns[cell], cell) is cell
            if over:
                turns.pop(cell).close()
                if late:
                    begun[cell][0].save()
                _record(plan, cell, *begun[cell], beside=len(todo) - 1)


def cell_path(plan: Plan, data_name: str, method_name: str) -> Path:
    return plan.kept / data_name / f"{slug(method_name)}.json"


def _record(plan: Plan, cell: Cell, run: Run, folder: Path, beside: int) -> None:
    """Evaluate the last policy and write the JSON; `beside` cells shared the process, so minutes are not its own."""
    data_name, method_name = cell
    method, task, incumbent = ALL[method_name], str(run.config.task), run.learner.incumbent
    last = [evaluate(folder, task, plan.episodes, member=p, threads=1).mean for p in range(plan.seeds)]
    record: dict[str, Any] = {
        "dataset": dataset(data_name, plan.steps).name,
        "method": method_name,
        "returns": last,
        "scores": [score(task, r) for r in last],
        "minutes": run.seconds / 60,
        "beside": beside,
        "cut_at": run.step if run.step < run.total else None,
        "episodes_for_selection": method.episodes_for_selection + _mean(incumbent.played if incumbent else None),
        "taken_over": _mean(incumbent.taken_over if incumbent else None),
        "device": device_name(plan.device),
        **asdict(plan.size),
        "run": str(folder.relative_to(plan.kept)),
    }
    if method.online:
        record |= _curve(folder, task, plan.seeds)
    path = cell_path(plan, *cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))


def _mean(counts: torch.Tensor | None) -> float:
    return 0.0 if counts is None else float(counts.double().mean())


def _begin(plan: Plan, data_name: str, method_name: str) -> tuple[Run, Path]:
    """A cell's run and folder; one that was interrupted is taken up."""
    method, out = ALL[method_name], plan.kept / "runs" / data_name
    begun = sorted(out.glob(f"*-{slug(method_name)}"))
    if begun:
        return take_up(begun[-1], _progress)
    data = dataset(data_name, plan.steps)
    start = measure(plan, data_name, method.start)["run"] if method.start else None
    learner = scaled(sized(method.config(), plan.size), plan.size)
    updates = round(method.steps * plan.size.scale) + round(method.clones * plan.size.cloning)
    config = TrainConfig(
        task=str(data.meta.task),
        data=str(data.path) if method.uses_data else None,
        init_from=str(plan.kept / start) if start else None,
        seeds=plan.seeds,
        seed=plan.first_seed,
        offline_steps=min(updates, 1) * getattr(learner, "offline_steps", updates),
        online_steps=plan.online if method.online else 0,
        threads=1,
        torch_threads=1,
        eval_every=10_000 if method.online else 0,
        eval_episodes=10,
        checkpoint_every=plan.checkpoint,
        out=str(out),
        name=slug(method_name),
        device=plan.device,
        compile=plan.size.compiled and method.online and plan.device == "cpu",
        tensorboard=False,
        **method.options,
    )
    return begin(config, learner, _progress)


def sized(config: LearnerConfig, size: Sizes) -> LearnerConfig:
    """The same widths, and off-policy the same updates per step, for every method."""
    layers = (size.width, size.width)
    changes: dict[str, Any] = {"actor": replace(config.actor, hidden=layers)}
    if hasattr(config, "critic"):
        changes["critic"] = replace(config.critic, hidden=layers)
    if hasattr(config, "updates"):
        changes["updates"] = size.updates
    if isinstance(config, SACConfig):
        changes["horizon"] = ROUND
    if isinstance(config, UniO4Config):
        changes["dynamics"] = replace(config.dynamics, hidden=(min(size.width, 200),) * 3)
    return replace(config, **changes)


def scaled(config: LearnerConfig, size: Sizes) -> LearnerConfig:
    """Phase lengths of a learner that has several, for quick runs."""
    scale = size.scale
    if isinstance(config, UniO4Config):
        short = min(1.0, 5.0 * scale)  # few updates of the values, but enough tests of the gate
        names = ("critic_steps", "returns_steps", *(("advantage_steps",) if scale < 0.1 else ()))
        lengths = {name: round(getattr(config, name) * scale) for name in names}
        lengths["behaviour_steps"] = round((config.behaviour_steps or 0) * size.cloning)
        lengths["improve_steps"] = round((config.improve_steps or 0) * short)
        gate = replace(config.gate, every=round(config.gate.every * short), horizon=round(config.gate.horizon * short))
        fit = replace(config.fit, max_steps=round(config.fit.max_steps * scale))
        return replace(config, **lengths, fit=fit, gate=gate)
    if isinstance(config, BCConfig):
        return replace(config, decay=round(config.decay * size.cloning))
    if isinstance(config, IQLConfig | ReBRACConfig):
        return replace(config, decay=round(config.decay * scale))
    if isinstance(config, CloningConfig):
        return replace(config, cloning=round(config.cloning * size.cloning))
    return config


def _progress(phase: str, step: int, total: int, metrics: dict[str, float]) -> None:
    if metrics:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{time.strftime('%H:%M:%S')} {phase} {step}/{total}  {shown}", flush=True)


def score(task: str, ret: float) -> float:
    reference = find_reference(task)
    assert reference is not None
    return reference.score(ret)


def _curve(run: Path, task: str, seeds: int) -> dict[str, Any]:
    """Scores along the online part: start and area; one number per seed."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval_return")]
    by_seed = [
        [(int(r["step"]), score(task, float(r["eval_return"]))) for r in rows if int(r["member"]) == p]
        for p in range(seeds)
    ]
    first = by_seed[0][0][0]
    return {
        "steps": [step - first for step, _ in by_seed[0]],
        "curves": [[score for _, score in curve] for curve in by_seed],
        "start": [curve[0][1] for curve in by_seed],
        "area": [float(np.mean([s for _, s in curve])) for curve in by_seed],
        "wall_minutes": _minutes(rows),
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def _minutes(rows: list[dict[str, str]]) -> float:
    return (float(rows[-1]["time_s"]) - float(rows[0]["time_s"])) / 60
