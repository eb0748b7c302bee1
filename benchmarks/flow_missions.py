"""The missions of the action_flow benchmark: every way to adapt as a controller, and what it achieves on a map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flow_learning import Material, which
from torch import Tensor

from dynamics.adaptation import RecursiveGains, RowModels
from dynamics.context import ContextPlanner
from dynamics.fit import OnlineConfig
from dynamics.reshaped import ReshapedPolicy
from robot_cl.adapt.chase import Chase, chase, cost
from robot_cl.adapt.missions import LEARNER, Outcome, fly
from sim.robots.fleet import Fleet
from sim.robots.regimes import Regime

METHODS = {
    "none": "no adaptation",
    "online": "online update",
    "squares": "least squares",
    "randomised": "domain-randomised",
    "context": "in context",
    "flow": "action flow",
    "flow_fixed": "action flow alone",
    "oracle": "oracle",
}
ONLINE = OnlineConfig(capacity=64, batch=32, lr=3e-3, steps=4)

# -- controllers ------------------------------------------------------------------------------------------------------


class Online:
    """Plans with a model of each robot's own that learns on while it runs, and nothing else.

    `changed` (N,) bool, set before each decision: learn and plan with it there alone, with the nominal model elsewhere.
    """

    changed: np.ndarray | None = None

    def __init__(self, rows: RowModels, planner: Chase):
        self.rows, self.planner = rows, planner
        self.obs_dim, self.act_dim = planner.obs_dim, planner.act_dim
        self._before: tuple[Tensor, Tensor, Tensor] | None = None  # state, action and who was to learn from them

    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(obs, dtype=torch.float32)
        learns = torch.ones(len(state), dtype=torch.bool) if self.changed is None else torch.as_tensor(self.changed)
        if self._before is not None:
            before, action, learned = self._before
            self.rows.observe(before, action, state, learned)
        self.rows.leads = learns
        action = self.planner.act(obs)
        self._before = (state, torch.as_tensor(action), learns)
        return action

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.rows.reset(rows)
        self.planner.reset(rows)
        self._before = None


def build(method: str, known: Material, member: np.ndarray, seed: int) -> tuple[Any, Chase, Online | None]:
    """A controller by name, the planner inside it whose goal is to be set, and the oracle to be told of changes."""
    p, model, rng = known.learned.robot, known.learned.model, torch.Generator().manual_seed(seed)
    reward = cost(p)
    if method in ("none", "randomised"):
        planner = chase(p, model if method == "none" else known.randomised, rng)
        return planner, planner, None
    if method == "squares":
        planner = chase(p, model, rng)
        return RecursiveGains(planner, model), planner, None
    if method == "context":
        made: list[Chase] = []

        def make(evaluate: Any) -> Chase:
            made.append(chase(p, model, rng, evaluate))
            return made[0]

        return ContextPlanner(known.learned.context, reward, make), made[0], None
    if method == "oracle":
        own = known.oracle.subset(torch.as_tensor(np.maximum(member, 0)))
        rows = RowModels(model, LEARNER, rng, own)
        oracle = Online(rows, chase(p, model, rng, rows.returns(reward)))
        return oracle, oracle.planner, oracle
    if method == "flow_fixed":
        planner = chase(p, model, rng)  # a fixed model, and answers as the flow gives them
        return ReshapedPolicy(planner, model, known.learned.flow, known.learned.coder), planner, None
    rows = RowModels(model, ONLINE if method == "online" else LEARNER, rng)
    planner = chase(p, model, rng, rows.returns(reward))
    if method == "online":
        return Online(rows, planner), planner, None
    return known.learned.around(planner, rows), planner, None


# -- missions ---------------------------------------------------------------------------------------------------------


def mission(known: Material, method: str, map_name: str, regimes: list[Regime], seed: int) -> Outcome:
    """One robot per regime on one map, all at once."""
    name, p, model = known.learned.name, known.learned.robot, known.learned.model
    member = which(name, regimes)
    controller, planner, oracle = build(method, known, member, seed=3 + seed)

    def tell(changed: np.ndarray) -> None:
        if oracle is not None:
            oracle.changed = changed & (member >= 0)

    fleet = Fleet(p.robot, map_name, regimes, seed=11 + seed)
    return fly(fleet, controller, planner, model, p.limits[map_name], tell)
