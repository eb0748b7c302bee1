"""The missions of the action_flow benchmark: every way to adapt as a controller, and what it achieves on a map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flow_learning import Learned, Setup
from torch import Tensor

from dynamics.adaptation import RecursiveGains, RowModels
from dynamics.context import ContextPlanner
from dynamics.ensemble import Ensemble
from dynamics.fit import OnlineConfig
from dynamics.planner import MPPI, ModelRollout
from dynamics.reshaped import ReshapedPolicy
from sim.robots.fleet import Fleet
from sim.robots.regimes import Regime

# -- controllers ------------------------------------------------------------------------------------------------------


class Chase:
    """A planner that heads for `goal`: it is shown the state with the goal as origin, and remembers its last action."""

    def __init__(self, planner: Any, goal_dim: int):
        self.planner, self.goal_dim = planner, goal_dim
        self.obs_dim, self.act_dim = planner.obs_dim, planner.act_dim
        self.goal, self.last = np.zeros((0, goal_dim)), np.zeros((0, self.act_dim))

    def act(self, obs: np.ndarray) -> np.ndarray:
        shown = np.array(obs, dtype=np.float32)
        shown[:, : self.goal_dim] -= self.goal
        self.last = self.planner.act(shown)
        return self.last

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.planner.reset(rows)


def cost(s: Setup) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Minus the distance to the origin; something that flies also stays level, slow and facing ahead."""

    def reward(obs: Tensor, action: Tensor, after: Tensor) -> Tensor:
        near = -after[:, : s.goal_dim].norm(dim=-1)
        if not s.robot.flies:
            return near
        calm = 0.15 * after[:, 3:6].norm(dim=-1) + 0.5 * after[:, 6:8].square().sum(-1) + 0.1 * after[:, 8].square()
        return near - calm - 0.02 * after[:, 9:12].square().sum(-1)

    return reward


class Online:
    """Plans with a model of each robot's own that learns on while it runs, and nothing else."""

    def __init__(self, s: Setup, rows: RowModels, chase: Chase):
        self.rows, self.chase = rows, chase
        self.obs_dim, self.act_dim = s.obs_dim, s.act_dim
        self._before: tuple[Tensor, Tensor] | None = None

    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(obs, dtype=torch.float32)
        if self._before is not None:
            self.rows.observe(*self._before, state, torch.ones(len(state), dtype=torch.bool))
        action = self.chase.act(obs)
        self._before = (state, torch.as_tensor(action))
        return action

    def reset(self, rows: np.ndarray | None = None) -> None:
        self._before = None


def build(method: str, known: Learned, rows_regime: np.ndarray, seed: int) -> tuple[Any, Chase]:
    """A controller by name and the `Chase` inside it whose goal is to be set."""
    s, reward = known.setup, cost(known.setup)
    rng = torch.Generator().manual_seed(seed)
    online = OnlineConfig(capacity=64, batch=32, lr=3e-3, steps=4)

    def chase(evaluate: Any) -> Chase:
        nominal = ModelRollout(known.model)
        propose = None
        if s.steer is not None:
            propose = nominal.proposals(steering(s), s.planner.horizon, rng, 0.1)
        return Chase(MPPI(evaluate, s.obs_dim, s.act_dim, s.planner, rng, propose), s.goal_dim)

    def over(model: Ensemble) -> Chase:
        return chase(ModelRollout(model, reward))

    if method == "no adaptation":
        inner = over(known.model)
        return inner, inner
    if method == "domain-randomised":
        inner = over(known.randomised)
        return inner, inner
    if method == "online update":
        rows = RowModels(known.model, online, rng)
        inner = chase(rows.returns(reward))
        return Online(s, rows, inner), inner
    if method == "least squares":
        inner = over(known.model)
        return RecursiveGains(inner, known.model), inner
    if method == "in context":
        made: list[Chase] = []
        planner = ContextPlanner(known.context, reward, lambda evaluate: made.append(chase(evaluate)) or made[0])
        return planner, made[0]
    if method == "oracle":
        models = copy.deepcopy(known.oracle).subset(torch.as_tensor(np.maximum(rows_regime, 0)))
        nominal = known.model.subset(torch.zeros(len(rows_regime), dtype=torch.int64))
        switch = Switch(models, nominal, reward)
        inner = chase(switch)
        inner.switch = switch  # type: ignore[attr-defined]
        return inner, inner
    judge = RowModels(known.model, online, rng) if method == "action flow, judged" else None
    inner = over(known.model)
    return ReshapedPolicy(inner, known.model, known.flow, known.coder, judge=judge), inner


def steering(s: Setup) -> Callable[[Tensor], Tensor]:
    def act(obs: Tensor) -> Tensor:
        assert s.steer is not None
        return torch.as_tensor(s.steer(obs.numpy(), np.zeros((len(obs), s.goal_dim))), dtype=torch.float32)

    return act


class Switch:
    """Evaluates each row's candidates by the model of its regime while that holds, by the nominal one otherwise."""

    def __init__(self, models: Ensemble, nominal: Ensemble, reward: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.models, self.nominal, self.reward = models, nominal, reward
        self.changed = torch.zeros(models.config.members, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, obs: Tensor, actions: Tensor) -> Tensor:
        state, total = obs.unsqueeze(1).expand(-1, actions.shape[1], -1), actions.new_zeros(actions.shape[:2])
        for h in range(actions.shape[2]):
            own, usual = (m.means(state, actions[:, :, h], with_reward=False)[0] for m in (self.models, self.nominal))
            after = self.nominal.advance(state, torch.where(self.changed.view(-1, 1, 1), own, usual))
            rows = (state.flatten(0, 1), actions[:, :, h].flatten(0, 1), after.flatten(0, 1))
            total, state = total + self.reward(*rows).reshape(total.shape), after
        return total


# -- missions ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Per robot: share of waypoints, success, steps taken, early progress, mean one-step miss while changed."""

    fraction: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    early: np.ndarray  # mean over the first 100 steps after the switch of the waypoints reached since then
    miss: np.ndarray  # of the planned effect, in standard deviations of the changes


def mission(known: Learned, method: str, map_name: str, regimes: Sequence[Regime], seeds: int) -> Outcome:
    """Every regime with every seed on one map, all robots at once."""
    s = known.setup
    everyone = [r for r in regimes for _ in range(seeds)]
    which = np.array([s.tests.index(r) if r in s.tests else -1 for r in everyone])  # -1: never changed
    fleet = Fleet(s.robot, map_name, everyone, seed=11)
    controller, chase = build(method, known, which, seed=3)
    n = fleet.count
    steps, since, early, miss, counted = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    first = np.zeros(n)
    for _ in range(s.limits[map_name]):
        if fleet.over.all():
            break
        pose, changed, going = fleet.pose(), fleet.changed, ~fleet.over
        chase.goal = fleet.goal.astype(np.float32)
        if hasattr(chase, "switch"):
            chase.switch.changed = torch.as_tensor(changed & (which >= 0))
        action = controller.act(pose.astype(np.float32))
        wanted = known.model.belief(torch.as_tensor(pose, dtype=torch.float32), torch.as_tensor(chase.last))[0]
        after = torch.as_tensor(fleet.step(action), dtype=torch.float32)
        error = (known.model.wrap_angles(after - wanted.detach()) / known.model.delta_scale).norm(dim=-1).numpy()
        miss += np.where(changed & going, error, 0.0)
        counted += changed & going
        steps += going
        began = (since > 0) | changed
        first = np.where(changed & (since == 0), fleet.reached, first)
        since += began
        early += np.where(began & (since <= 100), fleet.reached - first, 0.0)
    return Outcome(
        fleet.reached / fleet.way.shape[1], fleet.arrived, steps, early / 100.0, miss / np.maximum(counted, 1)
    )
