"""What improves cloned policies offline: advantages of the data's trajectories, of imagination, and of neither.

    python benchmarks/uni_o4_advantages.py --datasets halfcheetah-ars --sizes narrow
    python benchmarks/uni_o4_advantages.py --datasets halfcheetah-ars,hopper-pair --sizes gpu --device cuda --workers 2

On each dataset values, clones and models are fitted once (several seeds in one stacked pass) and kept; every row then
improves the same clones in its own way. Rows that are called ungated keep each step, so that they show what the
advantages are worth: permuted ones must gain nothing, negated ones must harm, and models that were fitted to shuffled
actions must give nothing. No episode of the world selects anything. Each row is kept as JSON under
runs/benchmarks/offline_online/SIZES/advantages.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import offline_cells as cells
import torch
from common import Claim, arguments, report, table
from offline_data import DATASETS, DEVELOPMENT, dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.actor import ActorPolicy
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.evaluate import evaluate
from robot_cl.learners.graph import Updates
from robot_cl.learners.improvement import FromImagination
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import Advantage, UniO4Config

BATCH = 256


class Permuted(UniO4):
    """Advantages of other actions."""

    def credited(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return super().credited(log_ratio, advantage.roll(17, -1))


class Negated(UniO4):
    def credited(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return super().credited(log_ratio, -advantage)


def _same(config: UniO4Config) -> UniO4Config:
    return config


def imagined(
    reach: float = 1.0, steps: float = 1.0, fits: float = 1.0, **options: Any
) -> Callable[[UniO4Config], UniO4Config]:
    """`steps` and `fits`: times as many steps of improvement and of the models' fits."""

    def changed(c: UniO4Config) -> UniO4Config:
        fit = replace(c.fit, max_steps=round(fits * c.fit.max_steps))
        many = round(steps * (c.improve_steps or 0))
        return replace(c, improve_steps=many, fit=fit, imagined=replace(c.imagined, reach=reach, **options))

    return changed


def evaluated(reach: float, steps: float = 1.0) -> Callable[[UniO4Config], UniO4Config]:
    """`reach` of the gate; `steps` as above."""

    def changed(c: UniO4Config) -> UniO4Config:
        gate, many = replace(c.gate, reach=reach), round(steps * (c.improve_steps or 0))
        return replace(c, advantage=Advantage.evaluated, gate=gate, improve_steps=many)

    return changed


@dataclass(frozen=True)
class Row:
    """`options` of the learner `kind`; `gated`: only what the gate lets through is kept; `refit`: with models of its
    own; `shuffled`: and these fitted to other transitions' actions."""

    options: Callable[[UniO4Config], UniO4Config] = _same
    kind: type[UniO4] = UniO4
    gated: bool = True
    refit: bool = False
    shuffled: bool = False


ROWS = {
    "clones": Row(lambda c: replace(c, improve_steps=0)),
    "trajectories": Row(lambda c: replace(c, advantage=Advantage.trajectories)),
    "evaluated": Row(evaluated(0.5)),
    "evaluated, farther": Row(evaluated(1.0)),
    "evaluated, far": Row(evaluated(2.0, 2.0)),
    "imagined": Row(imagined()),
    "imagined, nearer": Row(imagined(0.6)),
    "imagined, careful": Row(imagined(sure=(0.8, 0.95))),
    "imagined, everywhere": Row(imagined(0.6, sure=(0.9999, 1.0))),
    "imagined, long": Row(imagined(steps=2.5)),
    "imagined, doubting": Row(imagined(doubt=1.0)),
    "imagined, longer fits": Row(imagined(fits=4.0), refit=True),
    "ungated": Row(imagined(), gated=False),
    "ungated, permuted": Row(imagined(), Permuted, gated=False),
    "ungated, negated": Row(imagined(), Negated, gated=False),
    "ungated, shuffled actions": Row(imagined(), gated=False, refit=True, shuffled=True),
}


# -- measuring --------------------------------------------------------------------------------------------------------


def config_of(plan: cells.Plan) -> UniO4Config:
    """Learners of the plan's size; models at their own defaults, which small learners need as much, but when quick."""
    whole = UniO4Config(advantage=Advantage.imagined)
    found = cells.scaled(cells.sized(whole, plan.size), plan.size)
    assert isinstance(found, UniO4Config)
    return found if plan.sizes == "quick" else replace(found, dynamics=whole.dynamics, fit=whole.fit)


def learner_of(kind: type[UniO4], config: UniO4Config, data: Transitions, plan: cells.Plan) -> UniO4:
    learner = kind(config, data.obs_dim, data.act_dim, plan.seeds, device=plan.device)
    learner.attach_data(data)
    learner.prepare(data)
    return learner


def folder_of(plan: cells.Plan, name: str) -> Path:
    folder = plan.kept / "advantages" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fitted(plan: cells.Plan, name: str, data: Transitions) -> dict[str, Tensor]:
    """The state of a learner whose values, clones and models are there."""
    path = folder_of(plan, name) / "fitted.safetensors"
    if not path.exists():
        learner = learner_of(UniO4, config_of(plan), data, plan)
        updates = Updates(learner, Sampler.over(data, learner.rng, plan.device), None, BATCH)
        while learner.step < learner.config.fit_steps:
            updates.offline()
        learner.begin_improvement()
        state = {k: v.cpu().clone().contiguous() for k, v in learner.state_dict().items() if k != "extra.imagined"}
        save_file(state, str(path))
    return load_file(str(path))


def improved(row: Row, plan: cells.Plan, data: Transitions, state: dict[str, Tensor]) -> UniO4:
    """A learner that goes on from `state` in its own way."""
    learner = learner_of(row.kind, row.options(config_of(plan)), data, plan)
    own = learner.state_dict()
    learner.load_state_dict(own | {k: v for k, v in state.items() if k in own})
    if isinstance(learner.source, FromImagination):
        learner.source.imagination.measure(data)
    else:
        learner.gate.trust.copy_(learner.source.begin(data))
    if row.refit:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.action.device)
        learner.data = replace(data, action=data.action[order]) if row.shuffled else data
        learner.begin_improvement()
        learner.data = data
    sampler = Sampler.over(data, learner.rng, plan.device)

    def work() -> dict[str, Tensor]:
        return learner.improve(sampler.take(learner.draws.rows(sampler, BATCH)))

    for done in range(learner.config.improve_steps or 0):
        learner.schedule()
        learner.captured(None if learner.source.eager(done) else "improve", work)
        learner.step += 1
        if row.gated and (done + 1) % learner.config.gate.every == 0:
            learner.pass_gate()
    if not row.gated:
        learner.policies.accept(torch.ones_like(learner.gate.made, dtype=torch.bool))
    learner.select()
    return learner


def measure(plan: cells.Plan, name: str, row: str, threads: int = 1) -> dict[str, Any]:
    """One row on one dataset: from its JSON, or improved, evaluated and written."""
    path = folder_of(plan, name) / f"{cells.slug(row)}.json"
    if not path.exists():
        data, task = dataset(name, plan.steps).transitions().to(plan.device), (DATASETS | DEVELOPMENT)[name].task
        state, began = fitted(plan, name, data), time.monotonic()
        learner = improved(ROWS[row], plan, data, state)
        minutes, actor = (time.monotonic() - began) / 60, copy.deepcopy(learner.actor).cpu()
        played = [evaluate(ActorPolicy(actor, p), task, plan.episodes, threads=threads) for p in range(plan.seeds)]
        gate, made = learner.gate, learner.gate.made.sum().clamp(min=1.0)
        away = learner.judge(learner.accepted, watch=True).away
        record = {
            "dataset": name,
            "row": row,
            "scores": [cells.score(task, e.mean) for e in played],
            "lowest": [cells.score(task, min(e.returns)) for e in played],
            "accepted": float(gate.passed.sum() / made),
            "away": away.mean(1).tolist(),
            "gate": gate.scores.mean(-1).amax(1).tolist(),
            "minutes": minutes,
            "device": cells.device_name(plan.device),
        }
        path.write_text(json.dumps(record, indent=1))
        print(f"{name}  {row}: {record['scores']}  accepted {record['accepted']:.2f}  {minutes:.1f} min", flush=True)
    return json.loads(path.read_text())


def claims(found: dict[str, dict[str, dict[str, Any]]]) -> list[Claim]:
    made = []
    for name, rows in found.items():
        mean = {row: float(np.mean(r["scores"])) for row, r in rows.items()}
        ours = [row for row in mean if row.startswith(("imagined", "evaluated")) and "clones" in mean]
        made += [Claim(f"{name}: {row} over clones, points", mean[row] - mean["clones"], -2.0) for row in ours]
        controls = [row for row in mean if row.startswith("ungated,") and "ungated" in mean]
        made += [Claim(f"{name}: ungated over {row}, points", mean["ungated"] - mean[row], 0.0) for row in controls]
    return made


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--datasets", {"default": "halfcheetah-ars"}),
            ("--rows", {"default": ";".join(ROWS), "help": "separated by semicolons"}),
            ("--sizes", {"default": "narrow", "choices": list(cells.SIZES)}),
            ("--seeds", {"type": int, "default": cells.SEEDS}),
            ("--episodes", {"type": int, "default": cells.EPISODES}),
            ("--device", {"default": "cpu", "choices": ["cpu", "cuda"]}),
            ("--threads", {"type": int, "default": 1, "help": "that play episodes"}),
            ("--workers", {"type": int, "default": 1, "help": "datasets at once, a process each"}),
        ],
    )
    torch.set_num_threads(1)
    plan = cells.Plan(args.sizes, args.seeds, episodes=args.episodes, device=args.device)
    if args.quick:
        plan = replace(cells.QUICK, device=args.device)
    names, rows = args.datasets.split(","), args.rows.split(";")
    if args.workers > 1:
        again = [sys.executable, __file__, *(a for a in sys.argv[1:] if a != "--json"), "--workers", "1", "--datasets"]
        running = [subprocess.Popen([*again, name]) for name in names]
        for process in running:
            process.wait()
    found = {name: {row: measure(plan, name, row, args.threads) for row in rows} for name in names}
    head = ("dataset", "row", "score", "each seed", "lowest episode", "accepted", "away")
    lines = [
        (name, row, float(np.mean(r["scores"])), *(" ".join(f"{x:.1f}" for x in r[k]) for k in ("scores", "lowest")),
         r["accepted"], float(np.mean(r["away"])))
        for name, each in found.items() for row, r in each.items()
    ]  # fmt: skip
    print(table(head, lines))
    report("uni_o4_advantages", claims(found), args.json, found)


if __name__ == "__main__":
    main()
