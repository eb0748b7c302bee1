"""Exploration of a robot and of its changed kin in simulation: what models, flows and models in context learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dynamics.action_flow import Coder, RegimePool
from dynamics.context import Runs
from dynamics.ensemble import Ensemble
from dynamics.pairs import hindsight
from robot_cl.adapt.robots import Prepared
from sim.robots.fleet import Fleet
from sim.robots.regimes import Regime

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pose (N, D), goal (N, 2 or 3) -> action (N, A)
BLOCK = 10  # steps: evidence and queries come from alternating blocks of this length


@dataclass
class Exploration:
    """One robot per regime: obs, next_obs (N, T, obs_dim), action (N, T, act_dim) float32, alive (N, T) bool."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    alive: Tensor

    def then(self, other: Exploration) -> Exploration:
        """The same robots' steps of both, one after the other."""
        pairs = [(getattr(self, f), getattr(other, f)) for f in ("obs", "action", "next_obs", "alive")]
        return Exploration(*(torch.cat(pair, 1) for pair in pairs))

    def data(self) -> SimpleNamespace:
        """The living transitions as a data set for `dynamics.fit.fit`, without reward."""
        a, zero = self.alive, torch.zeros(int(self.alive.sum()))
        return SimpleNamespace(
            obs=self.obs[a], action=self.action[a], next_obs=self.next_obs[a], reward=zero, terminated=zero
        )


def explore(
    p: Prepared, regimes: Sequence[Regime], seed: int, steps: int | None = None, act: Act | None = None,
    scales: tuple[float, float] | None = None,
) -> Exploration:  # fmt: skip
    """Every robot under its regime from start to end, after goals that move, with noise of its own size on actions.

    `act` decides (by default the robot's `steer`, or nothing but noise).
    """
    rng, robot, count = np.random.default_rng(seed), replace(p.robot, reached=-1.0), len(regimes)
    fleet = Fleet(robot, "yard", regimes, seed, holds=(0.0, 2.0))
    act = act or p.steer or (lambda pose, goal: np.zeros((count, p.act_dim)))
    scale = rng.uniform(*(scales or p.scales), (count, 1))
    noise, columns = np.zeros((count, p.act_dim)), []
    goal = fleet.goal + rng.uniform(-2, 2, fleet.goal.shape) * (0.3 if p.robot.flies else 1.0)
    for t in range(steps or p.explore_steps):
        pose, alive = fleet.pose(), ~fleet.over
        if t % 25 == 24:
            goal = pose[:, : p.goal_dim] + rng.uniform(-1, 1, goal.shape) * (1.0 if p.robot.flies else 2.0)
            goal[:, 2:] = rng.uniform(1.0, 2.0, goal[:, 2:].shape)
        noise = 0.6 * noise + 0.8 * scale * rng.normal(size=noise.shape)
        action = np.clip(act(pose, goal) + noise, -1, 1)
        columns.append((pose, action, fleet.step(action), alive & ~fleet.over))
    fields = [np.stack(c, 1) for c in zip(*columns, strict=True)]
    obs, action, after = (torch.tensor(f, dtype=torch.float32) for f in fields[:3])
    return Exploration(obs, action, after, torch.tensor(fields[3]))


def pool_of(
    runs: Exploration, model: Ensemble, coder: Coder, rng: torch.Generator, farthest: float = 1.3
) -> RegimePool:
    """Evidence and, by hindsight, answers of every regime, from alternating blocks of steps.

    Evidence stays in the order of time, so that consecutive transitions are as alike as they will be in use. Steps
    whose effect the nominal robot would need an action beyond ±`farthest` for are left out, and regimes with hardly
    a step.
    """
    obs, action, after = (t.flatten(0, 1) for t in (runs.obs, runs.action, runs.next_obs))
    told = evidence_of(obs, action, after, model, coder).unflatten(0, runs.alive.shape)
    with torch.no_grad():
        wanted, rest = hindsight(
            lambda o, a: model.belief(o, a)[0], obs, action, after, model.delta_scale, model.wrap_angles
        )
        features = coder.features(obs).unflatten(0, runs.alive.shape)
    usable = ((wanted.abs() <= farthest).all(-1) & (rest < 1.0)).unflatten(0, runs.alive.shape) & runs.alive
    planned, count, rows = wanted.unflatten(0, runs.alive.shape), runs.alive.shape[1] // 2, []
    for k, alive in enumerate(runs.alive):
        turn = torch.arange(len(alive)) // BLOCK % 2 == k % 2
        seen, asked = torch.nonzero(alive & turn)[:, 0], torch.nonzero(usable[k] & ~turn)[:, 0]
        if min(len(seen), len(asked)) < 6:
            continue
        e, q = seen[torch.arange(count) % len(seen)], asked[torch.randint(len(asked), (count,), generator=rng)]
        rows.append((told[k, e], features[k, q], planned[k, q], runs.action[k, q]))
    if not rows:
        raise ValueError("no regime left enough living steps to learn from; explore longer or milder regimes")
    return RegimePool(*(torch.stack(c) for c in zip(*rows, strict=True)))


@torch.no_grad()
def evidence_of(obs: Tensor, action: Tensor, after: Tensor, model: Ensemble, coder: Coder) -> Tensor:
    """What transitions (N, ...) tell, (N, W)."""
    return coder.evidence(obs, action, model.wrap_angles(after - model.belief(obs, action)[0]))


def runs_of(runs: Exploration, model: Ensemble, coder: Coder) -> Runs:
    """All transitions of every regime that lived to the end."""
    keep = runs.alive.all(1)
    obs, action, after = runs.obs[keep], runs.action[keep], runs.next_obs[keep]
    flat = [t.flatten(0, 1) for t in (obs, action, after)]
    evidence = evidence_of(flat[0], flat[1], flat[2], model, coder)
    return Runs(obs, action, after, evidence.unflatten(0, obs.shape[:2]))
