"""What the action_flow benchmark learns once per robot and seed, kept as safetensors and used by all of its cells.

The robot's own preparation (`robot_cl.adapt`) and, for the baselines, a model of the whole family at once
(domain-randomised) and one model per test regime, fitted to that regime's own exploration (the oracle's).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from common import ROOT

from dynamics.ensemble import Ensemble
from dynamics.fit import gradient_step, optimiser
from dynamics.losses import normalised_mse
from robot_cl.adapt.explore import Exploration, explore
from robot_cl.adapt.learn import LearnConfig, Learned, adapted, fit_model, learn
from robot_cl.adapt.robots import Prepared
from sim.robots.regimes import QUADROTOR_COUPLED, QUADROTOR_GAINS, VEHICLE_COUPLED, VEHICLE_GAINS, Regime

KEPT = ROOT / "runs" / "benchmarks" / "action_flow"
TESTS: dict[str, dict[str, tuple[Regime, ...]]] = {
    "vehicle": {"gains": VEHICLE_GAINS, "coupled": VEHICLE_COUPLED},
    "quadrotor": {"gains": QUADROTOR_GAINS, "coupled": QUADROTOR_COUPLED},
}
# A third of what `robot-cl adapt` learns from by default: three seeds of two robots on two cores within an hour.
FULL = LearnConfig(nominal=60, regimes=200, model_steps=2500, first_updates=1000, flow_updates=3000, evidence=8)
SMALL = LearnConfig(nominal=40, regimes=80, model_steps=1500, first_updates=500, flow_updates=1500, evidence=8)

EXPLORED = 3  # explorations of each test regime by planner and flow, for the oracle's models


@dataclass
class Material:
    """What the missions of one robot and seed need; `oracle` has one member per test regime, in order."""

    learned: Learned
    randomised: Ensemble
    oracle: Ensemble


def tests_of(robot: str) -> list[Regime]:
    return [r for group in TESTS[robot].values() for r in group]


def material(robot: str, seed: int, quick: bool) -> Material:
    """Learned now, or read back where an earlier cell has learned it."""
    folder = KEPT / ("quick" if quick else "full") / "learned" / f"{robot}-{seed}"
    if not (folder / "done.json").exists():
        _learn(robot, seed, quick, folder)
    names = ("randomised", "oracle")
    return Material(Learned.load(folder), *(Ensemble.load(folder / f"{n}.safetensors") for n in names))


def _learn(robot: str, seed: int, quick: bool, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = SMALL if quick else FULL
    learned = learn(robot, config, seed)
    learned.save(folder)
    p, rng = learned.robot, np.random.default_rng(seed)
    drawn = [p.draw(rng) for _ in range(config.regimes)]
    fit_model(p, explore(p, drawn, seed + 2), config.model_steps, seed + 4).save(folder / "randomised.safetensors")
    own = explore(p, tests_of(robot), seed + 5, 200)
    for k in range(EXPLORED):  # a weak quadrotor crashes early: several lives for its own model to be right
        helped = adapted(p, learned.model, learned.coder, learned.flow, seed + k)
        own = own.then(explore(p, tests_of(robot), seed + 6 + k, 200, helped, (0.05, 0.4)))
    regime_models(p, learned.model, own, 1500).save(folder / "oracle.safetensors")
    (folder / "done.json").write_text(json.dumps({"robot": robot, "seed": seed, "quick": quick}))


def regime_models(p: Prepared, nominal: Ensemble, runs: Exploration, steps: int) -> Ensemble:
    """One model per regime, started from the nominal one and fitted to that regime's own exploration."""
    count, length = runs.alive.shape
    models = nominal.subset(torch.zeros(count, dtype=torch.int64))
    zero = torch.zeros(count * length)
    data = SimpleNamespace(
        obs=runs.obs.flatten(0, 1), action=runs.action.flatten(0, 1), next_obs=runs.next_obs.flatten(0, 1),
        reward=zero, terminated=zero,
    )  # fmt: skip
    rows = [torch.nonzero(a)[:, 0] + k * length for k, a in enumerate(runs.alive)]
    opt, rng = optimiser(models, 2e-3, (0.0,)), torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.stack([r[torch.randint(len(r), (64,), generator=rng)] for r in rows])
        gradient_step(models, opt, normalised_mse, data, index)
    return models


def which(robot: str, regimes: Sequence[Regime]) -> np.ndarray:
    """Member of the oracle for each regime, −1 for the unchanged robot."""
    tests = tests_of(robot)
    return np.array([tests.index(r) if r in tests else -1 for r in regimes])
