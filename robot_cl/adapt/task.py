"""Prepare a trained policy for changes of its own task: a model of its observations and a flow, from simulation.

The policy is played with noise in unchanged worlds and in changed ones. What the nominal model expects of an action is
then looked for in each changed world: the same state, another action, the nearest effect. No planner is needed: the
policy goes on deciding as if nothing had happened, and the flow sees to it that what it wants happens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sim
from dynamics.action_flow import ActionFlow, FlowConfig, RegimePool, fit_flow, plain_coder
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from dynamics.pairs import best_response
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy
from policies.networks import generators
from policies.policy import Policy
from robot_cl.adapt.choice import choose, config_of
from robot_cl.adapt.explore import evidence_of
from robot_cl.adapt.learn import new_flow
from robot_cl.data.collect import policy_name
from robot_cl.plain_files import read_json
from sim import channels
from sim.shift import Shift

Progress = Callable[[float, float], None]
KINDS = ("gain", "bias", "payload", "friction", "mass")


@dataclass
class TaskConfig:
    """How much is explored and fitted, and what changes are drawn."""

    changes: tuple[str, ...] = ("gain",)  # of gain, bias, payload, friction, mass
    worlds: int = 256  # changed ones
    nominal: int = 64  # unchanged ones
    steps: int = 100  # control steps in each
    noise: float = 0.3  # largest standard deviation of an explorer's noise
    every: int = 4  # steps between questions; few questions would be learned by heart
    model_steps: int = 3000
    flow_updates: int = 4000
    evidence: int = 8  # transitions, K
    trials: int = 64  # changed worlds, and as many unchanged ones, in which every setting of the flow is played

    def __post_init__(self) -> None:
        self.changes = tuple(self.changes)
        unknown = [c for c in self.changes if c not in KINDS]
        if unknown or not self.changes:
            raise ValueError(f"changes are of {', '.join(KINDS)}, got {list(self.changes)}")
        counts = (self.worlds, self.nominal, self.every, self.model_steps, self.flow_updates, self.evidence)
        if min(counts) < 1 or self.trials < 2 or self.steps < 2 * self.every or self.noise <= 0:
            raise ValueError(
                "all counts must be at least 1, trials 2, noise positive and steps at least twice `every`"
            )


def draw(changes: Sequence[str], joints: Sequence[str], rng: np.random.Generator) -> Shift:
    """A shift of some of these kinds, the motors each on its own; one in eight is none."""
    if rng.random() < 0.125:
        return Shift()
    kinds = [c for c in changes if rng.random() < 0.6] or [str(rng.choice(list(changes)))]
    values: dict[str, Any] = {}
    if "gain" in kinds:
        values["gain"] = {j: float(np.exp(rng.uniform(np.log(0.35), np.log(2.0)))) for j in joints}
    if "bias" in kinds:
        values["bias"] = {j: float(rng.uniform(-0.2, 0.2)) for j in joints}
    if "payload" in kinds:
        values["payload"] = float(rng.uniform(0.0, 0.5))
    for kind in ("friction", "mass"):
        if kind in kinds:
            values[kind] = float(rng.uniform(0.6, 1.6))
    return Shift(**values)


class AdaptedPolicy(ReshapedPolicy):
    """A policy with the flow made for its task; stands for it in tables and evaluation."""

    def __init__(self, policy: Policy, prepared: TaskLearned, config: ReshapeConfig | None = None):
        model, config = prepared.model, config or config_of(prepared.card)
        super().__init__(policy, model, prepared.flow, plain_coder(model), config)
        self.name, self.task = f"{policy_name(policy)} with flow", prepared.card["task"]
        self.interface = getattr(policy, "interface", None)


@dataclass
class TaskLearned:
    """The model of a task's observations and the flow that goes with it."""

    model: Ensemble
    flow: ActionFlow
    card: dict[str, Any]

    def wrap(self, policy: Policy, config: ReshapeConfig | None = None) -> AdaptedPolicy:
        """Raises ValueError if the policy does not fit."""
        if (policy.obs_dim, policy.act_dim) != (self.model.obs_dim, self.model.act_dim):
            raise ValueError(
                f"policy {policy_name(policy)!r} has {policy.obs_dim} observations and {policy.act_dim} actions, this "
                f"flow was made for {self.model.obs_dim} and {self.model.act_dim} of task {self.card['task']!r}; run "
                "robot-cl adapt with the policy's own task"
            )
        return AdaptedPolicy(policy, self, config)

    def save(self, folder: Path) -> None:
        """model.safetensors, flow.safetensors and card.json into an existing folder."""
        self.model.save(folder / "model.safetensors")
        self.flow.save(folder / "flow.safetensors")
        (folder / "card.json").write_text(json.dumps(self.card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> TaskLearned:
        """Inverse of `save`. Raises OSError or ValueError that say what is missing."""
        path = Path(folder) / "card.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no card.json; robot-cl adapt POLICY writes such a folder")
        card = read_json(path)
        if "task" not in card:
            raise ValueError(f"{folder} was made for a robot with its planner, not for a task's policy")
        model = Ensemble.load(Path(folder) / "model.safetensors")
        return cls(model, ActionFlow.load(Path(folder) / "flow.safetensors"), card)


@dataclass
class _Play:
    """Transitions (N, T, ·), and questions with their answers (N, Q, ·), of N worlds."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    asked: Tensor
    planned: Tensor
    answer: Tensor


def play(
    policy: Policy, task: str, shifts: Sequence[Shift], c: TaskConfig, seed: int, model: Ensemble | None = None
) -> _Play:
    """The policy with noise of each world's own size; with `model` questions are asked of the simulation on the way."""
    rng, world = np.random.default_rng(seed), sim.make(task, num_worlds=len(shifts), seed=seed, shift=list(shifts))
    obs, columns, questions = world.reset(seed), [], []
    scale = rng.uniform(0.05, c.noise, (len(shifts), 1))
    noise = np.zeros((len(shifts), world.interface.act_dim))
    policy.reset()
    for t in range(c.steps):
        wanted = np.asarray(policy.act(obs.astype(np.float32)), dtype=np.float64)
        if model is not None and t % c.every == c.every - 1:
            questions.append(ask(world, obs, wanted, model, rng))
        noise = 0.6 * noise + 0.8 * scale * rng.normal(size=noise.shape)
        action = np.clip(wanted + noise, -1, 1)
        after, _, terminated, truncated, info = world.step(action)
        columns.append((obs, action, info["final_obs"]))
        if (terminated | truncated).any():
            policy.reset(terminated | truncated)
        obs = after
    told = [torch.tensor(np.stack(column, 1), dtype=torch.float32) for column in zip(*columns, strict=True)]
    asked = [torch.stack(column, 1) for column in zip(*questions, strict=True)]
    return _Play(*told, *(asked or [told[0][:, :0], told[1][:, :0], told[1][:, :0]]))


def ask(
    world: sim.World, obs: np.ndarray, wanted: np.ndarray, model: Ensemble, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, planned actions, half of them about what the policy wants, and their answers; (N, ·) each."""
    near = rng.random((len(obs), 1)) < 0.5
    drawn = np.where(near, wanted + rng.normal(0, 0.4, wanted.shape), rng.uniform(-1.2, 1.2, wanted.shape))
    planned, state = torch.tensor(np.clip(drawn, -1, 1), dtype=torch.float32), world.get_state()
    seen = torch.tensor(obs, dtype=torch.float32)
    with torch.no_grad():
        target = model.belief(seen, planned)[0]

    def reach(action: Tensor) -> Tensor:
        world.restore(state)
        return torch.tensor(world.step(action.numpy())[4]["final_obs"], dtype=torch.float32)

    answer, _ = best_response(reach, target, (planned, 0.4 * planned), model.delta_scale, rounds=2)
    world.restore(state)
    return seen, planned, answer


def family(task: str, changes: Sequence[str], count: int, rng: np.random.Generator) -> list[Shift]:
    """`count` random shifts of a task."""
    model = sim.make(task).model
    joints = sorted({channels.actuator_joint(model, a) for a in range(model.nu)})
    return [draw(changes, joints, rng) for _ in range(count)]


def learn_for(
    policy: Policy, task: str, config: TaskConfig | None = None, seed: int = 0, progress: Progress | None = None
) -> TaskLearned:
    """Model and flow for a policy on its task, and when it acts. Deterministic given the seed."""
    c, told = config or TaskConfig(), progress or (lambda done, total: None)
    usual = play(policy, task, [Shift()] * c.nominal, c, seed + 1)
    model = _fit_model(usual, c, seed)
    told(0.3, 1.0)
    shifts, coder = family(task, c.changes, c.worlds, np.random.default_rng(seed)), plain_coder(model)
    runs = play(policy, task, shifts, c, seed + 2, model)
    pool = RegimePool(
        evidence_of(runs.obs, runs.action, runs.next_obs, model, coder),
        coder.features(runs.asked), runs.planned, runs.answer,
    )  # fmt: skip
    told(0.7, 1.0)
    flow = new_flow(pool, FlowConfig(c.evidence, 64, (64, 64), (128, 128), batch=256, updates=c.flow_updates), seed)
    losses = fit_flow(flow, pool, torch.Generator().manual_seed(seed + 1))
    card = {"task": task, "policy": policy_name(policy), "interface": sim.make(task).interface.digest, "seed": seed,
            "learned_with": asdict(c), "flow_loss": float(np.mean(losses[-200:]))}  # fmt: skip
    learned = TaskLearned(model, flow, card)
    trials = family(task, c.changes, c.trials, np.random.default_rng([seed, 2]))
    wearing, least = partial(learned.wrap, policy), trigger_of(usual, model)
    chosen = choose(policy, wearing, task, trials, least, seed, lambda done, total: told(0.8 + 0.2 * done / total, 1.0))
    learned.card.update(chosen.card())
    return learned


@torch.no_grad()
def trigger_of(runs: _Play, model: Ensemble, least: float = 3.0) -> float:
    """Surprise that one step in a thousand of the unchanged robot reaches, and at least `least`: contacts are rough."""
    obs, action, after = (t.flatten(0, 1) for t in (runs.obs, runs.action, runs.next_obs))
    said, spread = model.belief(obs, action)
    surprise = ((after - said) / spread).square().mean(-1).sqrt()
    return max(least, float(torch.quantile(surprise, 0.999)))


def _fit_model(runs: _Play, c: TaskConfig, seed: int) -> Ensemble:
    obs, action, after = (t.flatten(0, 1) for t in (runs.obs, runs.action, runs.next_obs))
    zero = torch.zeros(len(obs))
    data = SimpleNamespace(obs=obs, action=action, next_obs=after, reward=zero, terminated=zero)
    model = Ensemble(obs.shape[1], action.shape[1], EnsembleConfig(3, 3, (128, 128), (4,)), generators(seed, 3))
    fit(model, data, nll, FitConfig(lr=1e-3, max_steps=c.model_steps, patience=20), torch.Generator().manual_seed(seed))
    return model
