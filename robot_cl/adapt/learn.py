"""Prepare a robot for changes: explore it and its changed kin, fit the nominal model, the flow, the model in context.

The flow is fitted twice. First to exploration at random; then the robots of the family are explored again by the
planner under that first flow, so that evidence and queries are of the kind that a robot meets which has adapted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dynamics.action_flow import ActionFlow, Coder, FlowConfig, RegimePool, fit_flow
from dynamics.context import ContextModel
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from dynamics.planner import PlannerConfig
from dynamics.reshaped import Online, ReshapeConfig, ReshapedPolicy
from policies.networks import generators
from policies.policy import Policy
from robot_cl.adapt.chase import chase
from robot_cl.adapt.explore import Act, Exploration, explore, pool_of, runs_of
from robot_cl.adapt.robots import Prepared, prepared
from robot_cl.plain_files import read_json
from sim.robots.regimes import UNCHANGED, Regime

Log = Callable[[str], None]


@dataclass
class LearnConfig:
    """How much is explored and fitted."""

    nominal: int = 120  # explorations of the unchanged robot
    regimes: int = 600  # drawn from the family of changes
    model_steps: int = 4000  # gradient steps of the nominal model
    first_updates: int = 2500  # of the first flow
    flow_updates: int = 8000  # of the flow and of the model in context
    evidence: int = 8  # transitions, K
    rounds: int = 1  # explorations by planner and flow

    def __post_init__(self) -> None:
        if min(self.nominal, self.regimes, self.model_steps, self.first_updates, self.flow_updates, self.evidence) < 1:
            raise ValueError("all counts must be at least 1")
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {self.rounds}")


@dataclass
class Learned:
    """What is learned once per robot."""

    name: str
    robot: Prepared
    model: Ensemble
    coder: Coder
    flow: ActionFlow
    context: ContextModel
    card: dict[str, object]

    def around(self, planner: Policy, learner: Online | None = None) -> ReshapedPolicy:
        """The planner with the flow; `learner` is what the planner plans with while the robot is changed."""
        return ReshapedPolicy(planner, self.model, self.flow, self.coder, self.robot.reshape, learner=learner)

    def save(self, folder: Path) -> None:
        """model, flow and context as safetensors, and card.json, into an existing folder."""
        self.model.save(folder / "model.safetensors")
        self.flow.save(folder / "flow.safetensors")
        self.context.save(folder / "context.safetensors")
        (folder / "card.json").write_text(json.dumps(self.card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Learned:
        """Inverse of `save`. Raises OSError or ValueError with what is missing."""
        folder = Path(folder)
        if not (folder / "card.json").is_file():
            raise FileNotFoundError(f"{folder} holds no card.json; robot-cl adapt robot=NAME writes such a folder")
        card = read_json(folder / "card.json")
        robot = prepared(str(card["robot"]))
        model = Ensemble.load(folder / "model.safetensors")
        coder = robot.coder(model)
        flow = ActionFlow.load(folder / "flow.safetensors")
        context = ContextModel.load(folder / "context.safetensors", model, coder)
        return cls(str(card["robot"]), robot, model, coder, flow, context, card)


def fit_model(p: Prepared, runs: Exploration, steps: int, seed: int) -> Ensemble:
    """A small ensemble fitted to all living transitions."""
    config = EnsembleConfig(3, 3, (64, 64), (4,), angles=p.angles, unseen=p.unseen)
    model = Ensemble(p.obs_dim, p.act_dim, config, generators(seed, 3))
    fit(model, runs.data(), nll, FitConfig(lr=2e-3, max_steps=steps, patience=30), torch.Generator().manual_seed(seed))
    return model


def new_flow(pool: RegimePool, config: FlowConfig, seed: int) -> ActionFlow:
    """An unfitted flow of the pool's shapes."""
    features, act_dim = pool.features.shape[-1], pool.planned.shape[-1]
    residual = pool.evidence.shape[-1] - features - act_dim
    return ActionFlow(features, residual, act_dim, config, torch.Generator().manual_seed(seed))


def adapted(p: Prepared, model: Ensemble, coder: Coder, flow: ActionFlow, seed: int) -> Act:
    """Planner and flow as an explorer; the planner draws few candidates, because exploring asks for no best plan."""
    few = PlannerConfig(**{**asdict(p.planner), "samples": 48})
    planner = chase(p, model, torch.Generator().manual_seed(seed), config=few)
    policy = ReshapedPolicy(planner, model, flow, coder, ReshapeConfig(quiet=1000))

    def act(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
        planner.goal = goal.astype(np.float32)
        return policy.act(pose.astype(np.float32))

    return act


def learn(name: str, config: LearnConfig | None = None, seed: int = 0, log: Log = print) -> Learned:
    """Everything for one robot. Deterministic given the seed."""
    p, c = prepared(name), config or LearnConfig()
    rng = np.random.default_rng(seed)
    model = fit_model(p, explore(p, [UNCHANGED] * c.nominal, seed + 1), c.model_steps, seed)
    log(f"{name}: nominal model fitted")
    drawn = [p.draw(rng) for _ in range(c.regimes)]
    coder, runs = p.coder(model), explore(p, drawn, seed + 2, model=model)
    flow, pool, loss = _fit(runs, model, coder, c, c.first_updates if c.rounds else c.flow_updates, seed)
    for k in range(c.rounds):
        log(f"{name}: flow of round {k} fitted to {len(pool.planned)} regimes, loss {loss:.3f}")
        act = adapted(p, model, coder, flow, seed)
        again = explore(p, drawn, seed + 10 + k, act=act, scales=(0.02, 0.3), model=model)
        runs, last = runs.then(again), k == c.rounds - 1
        flow, pool, loss = _fit(runs, model, coder, c, c.flow_updates if last else c.first_updates, seed + k)
    log(f"{name}: flow fitted to {len(pool.planned)} of {c.regimes} regimes, loss {loss:.3f}")
    context = ContextModel(model, coder, pool.evidence.shape[-1], flow.config, torch.Generator().manual_seed(seed + 2))
    context.fit(runs_of(runs, model, coder), torch.Generator().manual_seed(seed + 3))
    log(f"{name}: model in context fitted")
    card = {"robot": name, "seed": seed, "learned_with": asdict(c), "regimes_used": len(pool.planned),
            "flow_loss": loss, "interface": _digest(p)}  # fmt: skip
    return Learned(name, p, model, coder, flow, context, card)


def _fit(
    runs: Exploration, model: Ensemble, coder: Coder, c: LearnConfig, updates: int, seed: int
) -> tuple[ActionFlow, RegimePool, float]:
    pool = pool_of(runs, model, coder)
    flow = new_flow(pool, FlowConfig(c.evidence, 64, (64, 64), (128, 128), batch=256, updates=updates), seed)
    losses = fit_flow(flow, pool, torch.Generator().manual_seed(seed + 1))
    return flow, pool, float(np.mean(losses[-200:]))


def _digest(p: Prepared) -> str:
    """Of the robot's interface: commands with their limits, and control period."""
    from sim.robots.fleet import Fleet

    return Fleet(p.robot, "yard", [UNCHANGED]).interface.digest


def family(p: Prepared, count: int, seed: int) -> Sequence[Regime]:
    """`count` regimes of the family that were not trained on, for whoever wants to measure."""
    rng = np.random.default_rng([seed, 1])
    return [p.draw(rng) for _ in range(count)]
