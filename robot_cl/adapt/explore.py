"""Exploration of a robot and of its changed kin in simulation: what models, flows and models in context learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dynamics.action_flow import Coder, RegimePool
from dynamics.context import Runs
from dynamics.ensemble import Ensemble
from dynamics.pairs import best_response, beyond
from robot_cl.adapt.robots import Prepared
from sim.robots.fleet import Fleet
from sim.robots.regimes import Regime

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pose (N, D), goal (N, 2 or 3) -> action (N, A)
ASK, FEWEST = 5, 12  # a question every so many steps; steps to live for a robot to count


@dataclass
class Exploration:
    """One robot per regime: obs, next_obs (N, T, obs_dim), action (N, T, act_dim) float32, alive (N, T) bool.

    `asked` (N, Q, obs_dim), `planned` and `answer` (N, Q, act_dim), none unless a model was given: states on the way,
    actions that the nominal robot might have taken there, and those whose effect comes closest to what the model
    expects of them; `counts` (N, Q) bool where the robot was alive.
    """

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    alive: Tensor
    asked: Tensor
    planned: Tensor
    answer: Tensor
    counts: Tensor

    def then(self, other: Exploration) -> Exploration:
        """The same robots' steps of both, one after the other."""
        return Exploration(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)))

    def data(self) -> SimpleNamespace:
        """The living transitions as a data set for `dynamics.fit.fit`, without reward."""
        a, zero = self.alive, torch.zeros(int(self.alive.sum()))
        return SimpleNamespace(
            obs=self.obs[a], action=self.action[a], next_obs=self.next_obs[a], reward=zero, terminated=zero
        )


def explore(
    p: Prepared, regimes: Sequence[Regime], seed: int, steps: int | None = None, act: Act | None = None,
    scales: tuple[float, float] | None = None, model: Ensemble | None = None,
) -> Exploration:  # fmt: skip
    """Every robot under its regime from start to end, after goals that move, with noise of its own size on actions.

    `act` decides (by default the robot's `steer`, or nothing but noise). With `model` every few steps a question is
    asked of the simulation: which action has the effect that the model expects of this one?
    """
    rng, robot, count = np.random.default_rng(seed), replace(p.robot, reached=-1.0), len(regimes)
    fleet = Fleet(robot, "yard", regimes, seed, holds=(0.0, 2.0))
    act = act or p.steer or (lambda pose, goal: np.zeros((count, p.act_dim)))
    scale = rng.uniform(*(scales or p.scales), (count, 1))
    noise, columns, questions = np.zeros((count, p.act_dim)), [], []
    goal = fleet.goal + rng.uniform(-2, 2, fleet.goal.shape) * (0.3 if p.robot.flies else 1.0)
    for t in range(steps or p.explore_steps):
        pose, alive = fleet.pose(), ~fleet.over
        if t % 25 == 24:
            goal = pose[:, : p.goal_dim] + rng.uniform(-1, 1, goal.shape) * (1.0 if p.robot.flies else 2.0)
            goal[:, 2:] = rng.uniform(1.0, 2.0, goal[:, 2:].shape)
        if model is not None and t % ASK == ASK - 1:
            questions.append((*ask(fleet, model, rng), torch.tensor(alive)))
        noise = 0.6 * noise + 0.8 * scale * rng.normal(size=noise.shape)
        action = np.clip(act(pose, goal) + noise, -1, 1)
        columns.append((pose, action, fleet.step(action), alive & ~fleet.over))
    obs, action, after, lived = (np.stack(c, 1) for c in zip(*columns, strict=True))
    told = [torch.tensor(f, dtype=torch.float32) for f in (obs, action, after)]
    living = torch.tensor(lived)
    asked = [torch.stack(c, 1) for c in zip(*questions, strict=True)]
    none = [t[:, :0] for t in (told[0], told[1], told[1], living)]
    return Exploration(*[*told, living, *(asked or none)])


def ask(fleet: Fleet, model: Ensemble, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (N, obs_dim), planned actions drawn with a preference for the bounds, and their answers (N, act_dim), those
    at a bound as far beyond it as they would go."""
    pose = torch.tensor(fleet.pose(), dtype=torch.float32)
    planned = torch.tensor(np.clip(rng.uniform(-1.3, 1.3, (fleet.count, model.act_dim)), -1, 1), dtype=torch.float32)
    with torch.no_grad():
        target = model.belief(pose, planned)[0]

    def reach(action: Tensor) -> Tensor:
        return torch.tensor(fleet.peek(action.numpy(), fleet.regimes), dtype=torch.float32)

    starts = (planned, 0.4 * planned, -planned)
    answer, miss = best_response(reach, target, starts, model.delta_scale, model.wrap_angles, rounds=2)
    for width in (0.4, 0.2, 0.1, 0.05):  # where the effect turns round before the bound, a gradient leads astray
        trial = (answer + width * torch.tensor(rng.normal(size=answer.shape), dtype=torch.float32)).clamp(-1, 1)
        error = (model.wrap_angles(reach(trial) - target) / model.delta_scale).norm(dim=-1)
        answer = torch.where((error < miss).unsqueeze(-1), trial, answer)
        miss = torch.minimum(error, miss)
    return pose, planned, beyond(reach, target, answer, model.delta_scale, model.wrap_angles)


def pool_of(runs: Exploration, model: Ensemble, coder: Coder) -> RegimePool:
    """Evidence of every regime, in the order of time so that what is consecutive is as alike as in use, and questions.

    A robot that did not live to the end repeats what it has; one that hardly lived is left out.
    """
    told = evidence_of(runs.obs, runs.action, runs.next_obs, model, coder)
    enough = (runs.alive.sum(1) >= FEWEST) & runs.counts.any(1)
    rows, steps, questions = [], torch.arange(runs.alive.shape[1]), torch.arange(runs.asked.shape[1])
    for k in torch.nonzero(enough)[:, 0].tolist():
        seen, asked = torch.nonzero(runs.alive[k])[:, 0], torch.nonzero(runs.counts[k])[:, 0]
        e, q = seen[steps % len(seen)], asked[questions % len(asked)]
        rows.append((told[k, e], coder.features(runs.asked[k, q]), runs.planned[k, q], runs.answer[k, q]))
    if not rows:
        raise ValueError("no robot lived long enough to learn from; explore milder regimes")
    return RegimePool(*(torch.stack(c) for c in zip(*rows, strict=True)))


@torch.no_grad()
def evidence_of(obs: Tensor, action: Tensor, after: Tensor, model: Ensemble, coder: Coder) -> Tensor:
    """What transitions (N, T, ...) tell, (N, T, W)."""
    said = model.belief(obs.flatten(0, 1), action.flatten(0, 1))[0].reshape(obs.shape)
    return coder.evidence(obs, action, model.wrap_angles(after - said))


def runs_of(runs: Exploration, model: Ensemble, coder: Coder) -> Runs:
    """Every regime's transitions, in the order of time; as in `pool_of`, a robot that died repeats what it has."""
    rows, steps = torch.nonzero(runs.alive.sum(1) >= FEWEST)[:, 0], torch.arange(runs.alive.shape[1])
    seen = [torch.nonzero(runs.alive[k])[:, 0] for k in rows]
    at = rows.unsqueeze(1), torch.stack([s[steps % len(s)] for s in seen])
    obs, action, after = runs.obs[at], runs.action[at], runs.next_obs[at]
    return Runs(obs, action, after, evidence_of(obs, action, after, model, coder))
