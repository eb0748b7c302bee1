"""A planner that goes where it is sent: the same for every way to adapt, which differ in what evaluates its plans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble
from dynamics.planner import MPPI, Evaluate, ModelRollout, PlannerConfig, Propose
from robot_cl.adapt.robots import Prepared


class Chase:
    """A policy of poses (N, obs_dim) that heads for `goal` (N, goal_dim), which is set before each decision.

    The planner is shown the pose with the goal as origin. Rows that are not `awake` (N,) bool have nothing to do.
    Remembers what the planner remembers, and its last action.
    """

    remembers = True
    awake: np.ndarray | None = None

    def __init__(self, planner: MPPI, goal_dim: int):
        self.planner, self.goal_dim = planner, goal_dim
        self.obs_dim, self.act_dim = planner.obs_dim, planner.act_dim
        self.goal, self.last = np.zeros((0, goal_dim)), np.zeros((0, self.act_dim))

    def act(self, obs: np.ndarray) -> np.ndarray:
        shown = np.array(obs, dtype=np.float32)
        shown[:, : self.goal_dim] -= self.goal
        self.planner.awake = None if self.awake is None else torch.as_tensor(self.awake)
        self.last = self.planner.act(shown)
        return self.last

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.planner.reset(rows)


def cost(p: Prepared) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Minus the distance to the origin; something that flies also stays level, slow and facing ahead."""

    def reward(obs: Tensor, action: Tensor, after: Tensor) -> Tensor:
        near = -after[:, : p.goal_dim].norm(dim=-1)
        if not p.robot.flies:
            return near
        calm = 0.15 * after[:, 3:6].norm(dim=-1) + 0.5 * after[:, 6:8].square().sum(-1) + 0.1 * after[:, 8].square()
        return near - calm - 0.02 * after[:, 9:12].square().sum(-1)

    return reward


def chase(
    p: Prepared, model: Ensemble, rng: torch.Generator, evaluate: Evaluate | None = None,
    config: PlannerConfig | None = None,
) -> Chase:  # fmt: skip
    """The planner of a robot; `evaluate` says what plans are worth, by default the model. Steered robots propose."""
    nominal, config = ModelRollout(model, cost(p)), config or p.planner
    propose = _aside(p, nominal.proposals(_steering(p), config.horizon, rng, 0.1), rng) if p.steer else None
    return Chase(MPPI(evaluate or nominal, p.obs_dim, p.act_dim, config, rng, propose), p.goal_dim)


def _aside(p: Prepared, propose: Propose, rng: torch.Generator) -> Propose:
    """Proposals that steer beside the goal, each to a place of its own: in wind one must aim upwind to arrive."""

    def around(obs: Tensor, count: int) -> Tensor:
        rows = obs.repeat_interleave(count, 0)
        rows[:, : p.goal_dim] += p.aside * torch.randn(len(rows), p.goal_dim, generator=rng)
        return propose(rows, 1).unflatten(0, (len(obs), count))[:, :, 0]

    return around


def _steering(p: Prepared) -> Callable[[Tensor], Tensor]:
    def act(obs: Tensor) -> Tensor:
        assert p.steer is not None
        return torch.as_tensor(p.steer(obs.numpy(), np.zeros((len(obs), p.goal_dim))), dtype=torch.float32)

    return act
