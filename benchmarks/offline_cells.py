"""Cells of offline_online: methods with their options, and how one cell is measured."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import processor
from offline_data import KEPT, dataset

from policies.critics import CriticConfig
from robot_cl.data.reference import find_reference
from robot_cl.evaluate import evaluate
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.cal_ql import CalQLConfig
from robot_cl.learners.incumbent import IncumbentConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.lcb import LCBConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.percent_bc import PercentBCConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.rebrac import ReBRACConfig
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.sac import CloningConfig, SACConfig
from robot_cl.learners.uni_o4_config import Advantage, UniO4Config
from robot_cl.learners.wsrl import WSRLConfig
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

    @property
    def cloning(self) -> float:
        return self.scale if self.clones is None else self.clones


SIZES = {
    "quick": Sizes(128, 0.25, 0.02),
    "tiny": Sizes(64, 0.25, 0.3),
    "narrow": Sizes(64, 1.0, 0.3, clones=1.0),
    "narrow-sweep": Sizes(64, 0.25, 0.2, clones=0.5),
    "small": Sizes(128, 0.25, 0.5),
    "full": Sizes(256, 0.25),
    "gpu": Sizes(256, 1.0, 0.5, clones=1.0),
    "gpu-half": Sizes(256, 0.5, 0.5, clones=1.0),
    "gpu-brisk": Sizes(256, 2.0, 0.5, clones=1.0),
    "gpu-eager": Sizes(256, 4.0, 0.5, clones=1.0),
    "sweep": Sizes(256, 0.25, 0.5),
    "small-sweep": Sizes(128, 0.25, 0.3),
}
ROUND = 50


@dataclass(frozen=True)
class Method:
    """`config` of the learner; `steps` updates offline, `clones` of them of a policy alone; `start`: the offline cell
    that it goes on from.

    `cost` orders the cells, in minutes at the `gpu-half` size where one GPU is shared by all of them.
    """

    config: Callable[[], LearnerConfig]
    steps: int = 0
    clones: int = 0
    online: bool = False
    start: str | None = None
    uses_data: bool = True
    episodes_for_selection: int = 0
    cost: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def from_scratch(self) -> bool:
        """Whether it knows nothing of a dataset: the same on all of a task."""
        return not self.uses_data and self.start is None


NEAR_A_CLONE = ("max_kl", "least_log_std", "average", "incumbent")
ONLINE_OPTIONS = ("horizon", "minibatch", "epochs", "clip", "entropy", "lr", "critic_lr", *NEAR_A_CLONE)


def _ppo_from_bc() -> PPOConfig:
    """Uni-O4's online part without what its offline phases give: its values are its own, learned from the start."""
    like = UniO4Config()
    shared = {name: getattr(like, name) for name in ONLINE_OPTIONS}
    return PPOConfig(critic=CriticConfig(), value_warmup=5, **shared)


OFFLINE, CLONING = 50_000, 20_000  # updates; Uni-O4 clones for as long and at the same rate
BRISK: dict[str, Any] = {"lr": 1e-3, "temperature": 0.1}  # soft actor-critics that have few updates
METHODS = {
    "bc": Method(lambda: BCConfig(lr=1e-3, decay=CLONING), clones=CLONING, cost=0.5),
    "10 % bc": Method(lambda: PercentBCConfig(lr=1e-3, decay=CLONING, share=0.1), clones=CLONING, cost=0.5),
    "near-best bc": Method(lambda: PercentBCConfig(lr=1e-3, decay=CLONING), clones=CLONING, cost=0.7),
    "iql": Method(lambda: IQLConfig(lr=1e-3, decay=OFFLINE), OFFLINE, cost=3),
    "rebrac": Method(lambda: ReBRACConfig(lr=1e-3, decay=OFFLINE), OFFLINE, cost=3),
    "lcb": Method(lambda: LCBConfig(cloning=CLONING), 20_000, CLONING, cost=3),
    "uni_o4": Method(UniO4Config, UniO4Config().offline_steps, cost=3),
    "uni_o4, advantage of values": Method(
        lambda: UniO4Config(advantage=Advantage.values), UniO4Config().offline_steps, cost=1
    ),
    "uni_o4, mean values": Method(lambda: UniO4Config(expectile=0.5), UniO4Config().offline_steps, cost=1),
    "cal_ql": Method(lambda: CalQLConfig(cloning=CLONING), 20_000, CLONING, cost=2),
    "uni_o4 online": Method(UniO4Config, online=True, start="uni_o4", cost=1.2, options={"num_worlds": 16}),
    "ppo from bc": Method(_ppo_from_bc, online=True, start="bc", uses_data=False, cost=1.2, options={"num_worlds": 16}),
    "sac": Method(lambda: SACConfig(**BRISK), online=True, uses_data=False, cost=4),
    "rlpd": Method(lambda: RLPDConfig(critics=5, **BRISK), online=True, cost=4.5),
    "moorl": Method(lambda: MOORLConfig(meta=1.0, whole_batches=True, **BRISK), online=True, cost=5.5),
    "moorl, shared batches": Method(lambda: MOORLConfig(meta=1.0, **BRISK), online=True, cost=5.3),
    "sac + lookahead": Method(lambda: MOORLConfig(tasks=Tasks.joined, **BRISK), online=True, cost=4.7),
    "rlpd, two critics": Method(lambda: RLPDConfig(critics=2, critic=CriticConfig(), **BRISK), online=True, cost=4.2),
    "cal_ql online": Method(CalQLConfig, online=True, start="cal_ql", cost=6),
    "wsrl": Method(WSRLConfig, online=True, start="near-best bc", cost=5.3),
}


def _in_turn(inner: int, meta: float, offline_share: float = 0.5) -> MOORLConfig:
    """MOORL as published: one fast learner, one buffer per meta step, batches as large as Lookahead's."""
    how = {"inner": inner, "meta": meta, "offline_share": offline_share, "whole_batches": True}
    return MOORLConfig(tasks=Tasks.alternate, **how, **BRISK)


def _seldom_tried(**options: Any) -> WSRLConfig:
    """WSRL with an update of the policy every two of the critics, and eight episodes that explore between trials."""
    return WSRLConfig(actor_every=2, incumbent=IncumbentConfig(trials=3, rest=8, lost=0.2), **options)


# Other options of some, from which those of METHODS are chosen on development data.
STAYS = IncumbentConfig(trials=3)  # and learning goes on from wherever it has come to
TRIALS = {
    "wsrl, tight": Method(
        lambda: WSRLConfig(kl_per_action=0.05, anchor_tau=3e-4, incumbent=STAYS),
        online=True, start="near-best bc", cost=5.3,
    ),
    "wsrl, tight, comes back": Method(
        lambda: WSRLConfig(kl_per_action=0.05, anchor_tau=3e-4), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, doubts": Method(lambda: WSRLConfig(doubt=1.0), online=True, start="near-best bc", cost=5.3),
    "wsrl, patient": Method(lambda: WSRLConfig(actor_every=4), online=True, start="near-best bc", cost=5.3),
    "wsrl, patient, doubts": Method(
        lambda: WSRLConfig(actor_every=4, doubt=1.0), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, old data": Method(
        lambda: WSRLConfig(actor_every=4, offline_share=0.5), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, doubts, old data": Method(
        lambda: WSRLConfig(actor_every=4, doubt=1.0, offline_share=0.5), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, quick": Method(
        lambda: WSRLConfig(actor_every=4, lr=1e-3), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, old data": Method(lambda: _seldom_tried(offline_share=0.5), online=True, start="near-best bc", cost=5.3),
    "wsrl, old data, doubts": Method(
        lambda: _seldom_tried(offline_share=0.5, doubt=1.0), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, old data, tight": Method(
        lambda: _seldom_tried(offline_share=0.5, kl_per_action=0.05, anchor_tau=3e-4),
        online=True, start="near-best bc", cost=5.3,
    ),
    "wsrl, new data": Method(lambda: _seldom_tried(offline_share=0.0), online=True, start="near-best bc", cost=5.3),
    "moorl, each update": Method(lambda: MOORLConfig(inner=1, meta=1.0, **BRISK), online=True, cost=5.5),
    "moorl, each update, whole batches": Method(
        lambda: MOORLConfig(inner=1, meta=1.0, whole_batches=True, **BRISK), online=True, cost=5.5
    ),
    "moorl, half steps": Method(lambda: MOORLConfig(whole_batches=True, **BRISK), online=True, cost=5.5),
    "moorl, in turn, each update": Method(lambda: _in_turn(1, 1.0), online=True, cost=4.7),
    "moorl, in turn, two updates": Method(lambda: _in_turn(2, 1.0), online=True, cost=4.7),
    "moorl, in turn, two updates, half steps": Method(lambda: _in_turn(2, 0.5), online=True, cost=4.7),
    "moorl, in turn, five updates, half steps": Method(lambda: _in_turn(5, 0.5), online=True, cost=4.7),
    "moorl, in turn, mostly new": Method(lambda: _in_turn(5, 0.5, 0.3), online=True, cost=4.7),
    "moorl, in turn, mostly old": Method(lambda: _in_turn(5, 0.5, 0.7), online=True, cost=4.7),
    "sac, half and half": Method(
        lambda: MOORLConfig(tasks=Tasks.joined, inner=1, meta=1.0, **BRISK), online=True, cost=4.7
    ),
}  # fmt: skip
ALL = METHODS | TRIALS


def slug(method: str) -> str:
    """A method's name as a file's."""
    return "".join(c if c.isalnum() else "_" for c in method).strip("_")


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What one call measures: how large, how many seeds, and on what."""

    sizes: str = "small"
    seeds: int = SEEDS
    steps: int | None = None  # of the datasets
    online: int = ONLINE
    episodes: int = EPISODES
    device: str = "cpu"
    checkpoint: int = 500  # steps between checkpoints
    captured: bool = True  # on a GPU, updates as graphs

    @property
    def kept(self) -> Path:
        return KEPT / self.sizes

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
