"""The missions of the action_flow benchmark: every way to adapt as a controller, and what it achieves on a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flow_learning import Material, which
from torch import Tensor

from dynamics.adaptation import RecursiveGains, RowModels
from dynamics.context import ContextPlanner
from dynamics.ensemble import Ensemble
from dynamics.fit import OnlineConfig
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
    "flow_fixed": "action flow, model fixed",
    "oracle": "oracle",
}
ONLINE = OnlineConfig(capacity=64, batch=32, lr=3e-3, steps=4)

# -- controllers ------------------------------------------------------------------------------------------------------


class Online:
    """Plans with a model of each robot's own that learns on while it runs, and nothing else."""

    def __init__(self, rows: RowModels, planner: Chase):
        self.rows, self.planner = rows, planner
        self.obs_dim, self.act_dim = planner.obs_dim, planner.act_dim
        self._before: tuple[Tensor, Tensor] | None = None

    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(obs, dtype=torch.float32)
        if self._before is not None:
            self.rows.observe(*self._before, state, torch.ones(len(state), dtype=torch.bool))
        action = self.planner.act(obs)
        self._before = (state, torch.as_tensor(action))
        return action

    def reset(self, rows: np.ndarray | None = None) -> None:
        self._before = None


class Oracle:
    """Plans with the model of each robot's regime while that holds, which `changed` (N,) tells, else the nominal."""

    def __init__(self, models: Ensemble, nominal: Ensemble, reward: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.models, self.nominal, self.reward = models, nominal, reward
        self.changed = torch.zeros(models.config.members, dtype=torch.bool)

    def among(self, rows: Tensor) -> Oracle:
        few = Oracle(self.models.subset(rows), self.nominal.subset(rows), self.reward)
        few.changed = self.changed[rows]
        return few

    @torch.no_grad()
    def __call__(self, obs: Tensor, actions: Tensor) -> Tensor:
        state, total = obs.unsqueeze(1).expand(-1, actions.shape[1], -1), actions.new_zeros(actions.shape[:2])
        for h in range(actions.shape[2]):
            own, usual = (m.means(state, actions[:, :, h], with_reward=False)[0] for m in (self.models, self.nominal))
            after = self.nominal.advance(state, torch.where(self.changed.view(-1, 1, 1), own, usual))
            rows = (state.flatten(0, 1), actions[:, :, h].flatten(0, 1), after.flatten(0, 1))
            total, state = total + self.reward(*rows).reshape(total.shape), after
        return total


def build(method: str, known: Material, member: np.ndarray, seed: int) -> tuple[Any, Chase, Oracle | None]:
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
        models = known.oracle.subset(torch.as_tensor(np.maximum(member, 0)))
        nominal = model.subset(torch.zeros(len(member), dtype=torch.int64))
        oracle = Oracle(models, nominal, reward)
        planner = chase(p, model, rng, oracle)
        return planner, planner, oracle
    if method == "flow_fixed":
        planner = chase(p, model, rng)
        return known.learned.around(planner), planner, None
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
            oracle.changed = torch.as_tensor(changed & (member >= 0))

    fleet = Fleet(p.robot, map_name, regimes, seed=11 + seed)
    return fly(fleet, controller, planner, model, p.limits[map_name], tell)
