"""Offline, then online: learners on generated datasets, several seeds in one stacked pass, the last score of each.

    python benchmarks/offline_online.py --quick                    minutes: one small dataset, few updates
    python benchmarks/offline_online.py --only halfcheetah-ppo/bc  one cell of the table
    python benchmarks/offline_online.py --table                    print what has been measured so far

Every (dataset, method) is kept as JSON under runs/benchmarks/offline_online, so that the table can be measured in
pieces and taken up again after a kill. Behaviours come from ../shared/data/behaviours, or the embedded ones where that
folder is absent. Scores are 100 (return − low)/(high − low) of D4RL's reference returns: a scale, not D4RL's data.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Claim, arguments, report, table

from policies.critics import CriticConfig
from robot_cl import stats
from robot_cl.data.behaviours import list_behaviours, load_behaviour
from robot_cl.data.collect import Part, collect
from robot_cl.data.reference import find_reference
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.evaluate import evaluate
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.cal_ql import CalQLConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.lcb import LCBConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.percent_bc import PercentBCConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.rebrac import ReBRACConfig
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.sac import SACConfig
from robot_cl.learners.uni_o4 import UniO4Config
from robot_cl.learners.wsrl import WSRLConfig
from robot_cl.run_config import TrainConfig
from robot_cl.train import resume, train

SHARED = ROOT.parent / "shared" / "data" / "behaviours"
KEPT = ROOT / "runs" / "benchmarks" / "offline_online"
SEEDS = 3
EPISODES = 20  # per seed, of the last policy
ONLINE = 100_000  # environment steps per seed
WIDTH = 128  # of every hidden layer here (the CPU profile has 256): three seeds and sixteen methods on two cores
UPDATES = 0.25  # per environment step, of every off-policy learner: what two cores can do; published ratios are 1 to 20
EARLY = 20_000  # steps within which the dip is looked for


@dataclass(frozen=True)
class Mixture:
    """Behaviours (file stem, noise; None: its own distribution) of one dataset, in equal shares."""

    task: str
    parts: tuple[tuple[str, float | None], ...]
    steps: int = 200_000


DATASETS = {
    "halfcheetah-ppo": Mixture("halfcheetah", (("halfcheetah-ppo", 0.1),)),
    "halfcheetah-mixture": Mixture(
        "halfcheetah", (("halfcheetah-a2c", None), ("halfcheetah-ppo", None), ("halfcheetah-sac", None))
    ),
    "hopper-mixture": Mixture("hopper", (("hopper-sac", None), ("hopper-tqc", None))),
}


@dataclass(frozen=True)
class Method:
    """`config` of the learner; `steps` updates offline; `start`: the offline cell that it goes on from."""

    config: Callable[[], LearnerConfig]
    steps: int = 0
    online: bool = False
    start: str | None = None
    uses_data: bool = True
    episodes_for_selection: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def _soft(cls: type[SACConfig], **options: Any) -> Callable[[], LearnerConfig]:
    """A learner of soft actor-critic's family at the update ratio that all of them get here."""
    return lambda: cls(updates=UPDATES, **options)


def _ppo_from_bc() -> PPOConfig:
    """Uni-O4's online part without what its offline phases give: its values are its own, learned from the start."""
    like = UniO4Config()
    shared = {name: getattr(like, name) for name in ("horizon", "minibatch", "epochs", "clip", "entropy", "lr")}
    return PPOConfig(critic=CriticConfig(), critic_lr=like.critic_lr, value_warmup=5, **shared)


OFFLINE = 50_000
METHODS = {
    "bc": Method(BCConfig, 10_000),
    "10 % bc": Method(PercentBCConfig, 10_000),
    "iql": Method(IQLConfig, OFFLINE),
    "rebrac": Method(ReBRACConfig, OFFLINE),
    "lcb": Method(LCBConfig, OFFLINE),
    "uni_o4": Method(UniO4Config, UniO4Config().offline_steps),
    "cal_ql": Method(CalQLConfig, 20_000),
    "uni_o4 online": Method(UniO4Config, online=True, start="uni_o4", options={"num_worlds": 8}),
    "ppo from bc": Method(_ppo_from_bc, online=True, start="bc", uses_data=False, options={"num_worlds": 8}),
    "sac": Method(_soft(SACConfig), online=True, uses_data=False),
    "rlpd": Method(_soft(RLPDConfig, critics=5), online=True),
    "moorl": Method(_soft(MOORLConfig), online=True),
    "sac + lookahead": Method(_soft(MOORLConfig, tasks=Tasks.joined), online=True),
    "rlpd, two critics": Method(_soft(RLPDConfig, critics=2, critic=CriticConfig()), online=True),
    "cal_ql online": Method(_soft(CalQLConfig), online=True, start="cal_ql"),
    "wsrl": Method(_soft(WSRLConfig), 20_000, online=True),
}


def dataset(name: str, steps: int | None = None) -> StoredDataset:
    """Opens or makes a dataset; the same arguments give the same transitions, bit for bit."""
    mixture = DATASETS[name]
    root, stored = KEPT / "datasets", f"{name}-{(steps or mixture.steps) // 1000}k-v0"
    if (root / stored / "meta.json").exists():
        return open_dataset(stored, root)
    parts = [_part(stem, noise) for stem, noise in mixture.parts]
    print(f"collecting {stored}", flush=True)
    return collect(mixture.task, parts, steps or mixture.steps, stored, seed=7, root=root)


def slug(method: str) -> str:
    """A method's name as a file's."""
    return "".join(c if c.isalnum() else "_" for c in method).strip("_")


def _part(stem: str, noise: float | None) -> Part:
    if (SHARED / f"{stem}.npz").exists():
        policy = load_behaviour(SHARED / f"{stem}.npz")
    else:
        task = stem.partition("-")[0]
        policy = load_behaviour(next(n for n in list_behaviours() if n.startswith(task)))
    return Part(policy, noise or 0.0, stochastic=noise is None and policy.stochastic)


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What one call measures: where to, and how large."""

    kept: Path
    seeds: int = SEEDS
    steps: int | None = None  # of the datasets
    scale: float = 1.0  # of all update counts
    online: int = ONLINE
    episodes: int = EPISODES


QUICK = Plan(KEPT / "quick", seeds=2, steps=20_000, scale=0.02, online=4096, episodes=4)


def measure(plan: Plan, data_name: str, method_name: str) -> dict[str, Any]:
    """One cell: from its JSON, or trained, evaluated and written."""
    path = plan.kept / data_name / f"{slug(method_name)}.json"
    if path.exists():
        return json.loads(path.read_text())
    method, data = METHODS[method_name], dataset(data_name, plan.steps)
    print(f"== {data_name} {method_name}", flush=True)
    began = time.monotonic()
    run = _run(plan, data, data_name, method_name, method)
    task = str(data.meta.task)
    last = [evaluate(run, task, plan.episodes, member=p, threads=1).mean for p in range(plan.seeds)]
    record: dict[str, Any] = {
        "dataset": data.name,
        "method": method_name,
        "returns": last,
        "scores": [_score(task, r) for r in last],
        "minutes": (time.monotonic() - began) / 60,
        "episodes_for_selection": method.episodes_for_selection,
        "run": str(run.relative_to(plan.kept)),
    }
    if method.online:
        record |= _curve(run, task, plan.seeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    return record


def _run(plan: Plan, data: StoredDataset, data_name: str, method_name: str, method: Method) -> Path:
    """The run folder of a cell, trained to its end; one that was interrupted is resumed."""
    out = plan.kept / "runs" / data_name
    begun = sorted(out.glob(f"*-{slug(method_name)}"))
    if begun:
        return resume(begun[-1], _progress)
    start = measure(plan, data_name, method.start)["run"] if method.start else None
    config = TrainConfig(
        task=str(data.meta.task),
        data=str(data.path) if method.uses_data else None,
        init_from=str(plan.kept / start) if start else None,
        seeds=plan.seeds,
        offline_steps=round(method.steps * plan.scale),
        online_steps=plan.online if method.online else 0,
        threads=1,
        torch_threads=1,
        eval_every=5000 if method.online else 0,
        eval_episodes=5,
        checkpoint_every=10_000,
        out=str(out),
        name=slug(method_name),
        tensorboard=False,
        **method.options,
    )
    return train(config, _scaled(_sized(method.config()), plan.scale), _progress)


def _sized(config: LearnerConfig) -> LearnerConfig:
    """The same widths for every method."""
    changes: dict[str, Any] = {"actor": replace(config.actor, hidden=(WIDTH, WIDTH))}
    if hasattr(config, "critic"):
        changes["critic"] = replace(config.critic, hidden=(WIDTH, WIDTH))
    if isinstance(config, UniO4Config):
        changes["dynamics"] = replace(config.dynamics, hidden=(WIDTH,) * 3)
    return replace(config, **changes)


def _scaled(config: LearnerConfig, scale: float) -> LearnerConfig:
    """Phase lengths of a learner that has several, for quick runs."""
    if isinstance(config, UniO4Config) and scale != 1.0:
        names = ("critic_steps", "behaviour_steps", "improve_steps")
        lengths = {name: round(getattr(config, name) * scale) for name in names}
        fit = replace(config.fit, max_steps=round(config.fit.max_steps * scale))
        return replace(config, **lengths, fit=fit, gate=replace(config.gate, every=20, horizon=50))
    return config


def _progress(phase: str, step: int, total: int, metrics: dict[str, float]) -> None:
    if metrics:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{time.strftime('%H:%M:%S')} {phase} {step}/{total}  {shown}", flush=True)


def _score(task: str, ret: float) -> float:
    reference = find_reference(task)
    assert reference is not None
    return reference.score(ret)


def _curve(run: Path, task: str, seeds: int) -> dict[str, Any]:
    """Scores along the online part: start, deepest point within the first steps, area; one number per seed."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval_return")]
    by_seed = [
        [(int(r["step"]), _score(task, float(r["eval_return"]))) for r in rows if int(r["member"]) == p]
        for p in range(seeds)
    ]
    first = by_seed[0][0][0]
    return {
        "steps": [step - first for step, _ in by_seed[0]],
        "curves": [[score for _, score in curve] for curve in by_seed],
        "start": [curve[0][1] for curve in by_seed],
        "dip": [curve[0][1] - min(s for step, s in curve if step - first <= EARLY) for curve in by_seed],
        "area": [float(np.mean([s for _, s in curve])) for curve in by_seed],
        "wall_minutes": _minutes(rows),
    }


def _minutes(rows: list[dict[str, str]]) -> float:
    return (float(rows[-1]["time_s"]) - float(rows[0]["time_s"])) / 60


# -- printing ---------------------------------------------------------------------------------------------------------


def kept(plan: Plan) -> dict[str, dict[str, dict[str, Any]]]:
    """Dataset -> method -> record, of everything measured so far."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in DATASETS:
        paths = {m: plan.kept / name / f"{slug(m)}.json" for m in METHODS}
        found[name] = {m: json.loads(p.read_text()) for m, p in paths.items() if p.exists()}
    return found


def print_tables(plan: Plan, records: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Offline and online rows of every dataset: mean and bootstrap interval over seeds of the last policy's score."""
    for name, cells in records.items():
        if not cells:
            continue
        meta = dataset(name, plan.steps).meta
        print(f"\n{name}: {meta.steps} transitions, behaviour return {meta.return_mean:.0f} ± {meta.return_std:.0f}")
        offline = [["behaviour", _score(str(meta.task), meta.return_mean), "", "", ""]]
        offline += [_row(m, r) for m, r in cells.items() if not METHODS[m].online]
        print(table(("offline", "score", "95 % interval", "minutes", "episodes used to select"), offline))
        online = [[*_row(m, r), *_online_columns(r)] for m, r in cells.items() if METHODS[m].online]
        if online:
            head = ("online", "last score", "95 % interval", "minutes", "episodes used to select")
            print(table((*head, "start", "deepest dip", "mean over the run"), online))


def _row(name: str, record: dict[str, Any]) -> list[Any]:
    scores = np.array(record["scores"])
    interval = stats.stratified_bootstrap(scores, np.random.default_rng(0), stats.mean)
    bounds = f"{interval.low:.1f} to {interval.high:.1f}"
    return [name, float(scores.mean()), bounds, record["minutes"], record["episodes_for_selection"]]


def _online_columns(record: dict[str, Any]) -> list[float]:
    return [float(np.mean(record["start"])), float(np.median(record["dip"])), float(np.mean(record["area"]))]


def claims(records: dict[str, dict[str, dict[str, Any]]]) -> list[Claim]:
    """Those of the expectations whose cells have been measured."""
    found = []
    for name, cells in records.items():
        mean = {m: float(np.mean(r["scores"])) for m, r in cells.items()}
        if {"bc", "uni_o4"} <= set(cells):
            least = 5.0 if name.startswith("halfcheetah") else -2.0
            found.append(Claim(f"{name}: Uni-O4 offline over BC, points", mean["uni_o4"] - mean["bc"], least))
        if "uni_o4 online" in cells:
            record = cells["uni_o4 online"]
            start = float(np.mean(record["start"]))
            depth = 100.0 * float(np.median(np.array(record["dip"]) / np.array(record["start"])))
            found.append(Claim(f"{name}: Uni-O4 online, deepest dip in % of its start (median)", depth, 15.0, False))
            found.append(Claim(f"{name}: Uni-O4 online, last over start, points", mean["uni_o4 online"] - start, 10.0))
        if {"moorl", "sac + lookahead"} <= set(cells):
            gain = float(np.mean(cells["moorl"]["area"]) - np.mean(cells["sac + lookahead"]["area"]))
            found.append(Claim(f"{name}: MOORL over SAC + Lookahead, mean over the run, points", gain, 0.0))
    return found


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--only", {"help": "cells to measure, e.g. halfcheetah-ppo/bc,hopper-mixture/uni_o4"}),
            ("--table", {"action": "store_true", "help": "measure nothing"}),
        ],
    )
    torch.set_num_threads(1)
    plan = Plan(KEPT)
    if args.quick:
        plan = QUICK
    cells = [(d, m) for d in DATASETS for m in METHODS]
    if args.quick:
        cells = [(d, m) for d, m in cells if d == "halfcheetah-ppo"]
    if args.only:
        cells = [tuple(cell.split("/", 1)) for cell in args.only.split(",")]  # type: ignore[misc]
    for data_name, method_name in [] if args.table else cells:
        if data_name not in DATASETS or method_name not in METHODS:
            sys.exit(f"no cell {data_name}/{method_name}; datasets {', '.join(DATASETS)}; methods {', '.join(METHODS)}")
        measure(plan, data_name, method_name)
    records = kept(plan)
    print_tables(plan, records)
    report("offline_online", claims(records), args.json, records)


if __name__ == "__main__":
    main()
