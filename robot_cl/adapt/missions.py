"""Missions along a map with a change on the way: what a controller achieves, robot by robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynamics.adaptation import RowModels
from dynamics.ensemble import Ensemble
from dynamics.fit import OnlineConfig
from policies.policy import Policy
from robot_cl.adapt.chase import Chase, chase, cost
from robot_cl.adapt.learn import Learned
from sim.robots.fleet import Fleet
from sim.robots.regimes import Regime

EARLY = 100  # steps after the switch
LEARNER = OnlineConfig(capacity=128, batch=32, lr=1e-3, steps=2)  # little is left to learn where a flow acts


@dataclass
class Outcome:
    """Per robot (N,): share of waypoints, success, steps taken, early progress, mean one-step miss while changed."""

    fraction: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    early: np.ndarray  # mean over the first 100 steps after the switch of the waypoints reached since then
    miss: np.ndarray  # of the planned effect, in standard deviations of the model's data


def fly(
    fleet: Fleet, controller: Policy, planner: Chase, model: Ensemble, limit: int,
    tell: Callable[[np.ndarray], None] | None = None,
) -> Outcome:  # fmt: skip
    """Send every robot along its way, for at most `limit` steps. `planner` is the one inside `controller`, `model`
    what it plans with at first; `tell` hears before each step which robots are changed (for an oracle)."""
    n = fleet.count
    steps, since, early, miss, counted, first = (np.zeros(n) for _ in range(6))
    for _ in range(limit):
        if fleet.over.all():
            break
        pose, changed, going = fleet.pose().astype(np.float32), fleet.changed, ~fleet.over
        planner.goal, planner.awake = fleet.goal.astype(np.float32), going
        if tell is not None:
            tell(changed)
        action = controller.act(pose)
        error = _miss(model, pose, planner.last, fleet.step(action))
        miss += np.where(changed & going, error, 0.0)
        counted += changed & going
        steps += going
        began = (since > 0) | changed
        first = np.where(changed & (since == 0), fleet.reached, first)
        since += began
        early += np.where(began & (since <= EARLY), fleet.reached - first, 0.0)
    fraction = fleet.reached / fleet.way.shape[1]
    return Outcome(fraction, fleet.arrived, steps, early / EARLY, miss / np.maximum(counted, 1))


@torch.no_grad()
def _miss(model: Ensemble, pose: np.ndarray, planned: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far from where the model expected the planned action to lead, (N,)."""
    wanted = model.belief(torch.as_tensor(pose), torch.as_tensor(planned))[0]
    difference = model.wrap_angles(torch.as_tensor(after, dtype=torch.float32) - wanted)
    return (difference / model.delta_scale).norm(dim=-1).numpy()


def compare(learned: Learned, regimes: Sequence[Regime], seed: int) -> dict[str, Outcome]:
    """The same robots on the yard map without adaptation, with the flow, and with flow and a planner that learns on."""
    p, model, found = learned.robot, learned.model, dict[str, Outcome]()
    for name in ("no adaptation", "flow", "flow and learning planner"):
        rng = torch.Generator().manual_seed(seed)
        rows = RowModels(model, LEARNER, rng) if "planner" in name else None
        planner = chase(p, model, rng, rows.returns(cost(p)) if rows else None)
        controller = planner if name == "no adaptation" else learned.around(planner, rows)
        found[name] = fly(Fleet(p.robot, "yard", regimes, seed), controller, planner, model, p.limits["yard"])
    return found
