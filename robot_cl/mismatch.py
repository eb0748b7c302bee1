"""Objective mismatch on data: a population of models, what each is worth to a planner in the true world, and which
error would have said so. The measures and correlations are dynamics.mismatch's; here are the data, the models and the
world they meet.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sim
from dynamics import mismatch
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import gradient_step, optimiser
from dynamics.losses import LOSSES, GradientTable, Loss, VaGraM, ValueDifference, value_gradient
from dynamics.planner import MPPI, ModelRollout, PlannerConfig
from policies.networks import StackedMLP
from robot_cl.batch import Transitions
from robot_cl.learners.returns import episode_returns, returns_to_go
from robot_cl.seeding import EVALUATION_SEED

Progress = Callable[[float, float, str], None]
KINDS = (*LOSSES, "vagram", "value_difference")
PIECE = 20  # steps of the pieces of episodes that open-loop errors are measured on
HELD = 4000  # transitions that models are scored on, at most


@dataclass
class StudyConfig:
    """The population, and the planner that every model is given to."""

    widths: tuple[int, ...] = (32, 128)
    steps: tuple[int, ...] = (200, 800, 3200)
    losses: tuple[str, ...] = ("nll", "normalised_mse", "vagram")
    rows: int = 50_000
    discount: float = 0.99
    episodes: int = 4
    length: int = 150
    planner: PlannerConfig = field(default_factory=lambda: PlannerConfig(samples=96, horizon=8, policy_share=0.5))
    attack: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        self.widths, self.steps, self.losses = tuple(self.widths), tuple(sorted(self.steps)), tuple(self.losses)
        unknown = [name for name in self.losses if name not in KINDS]
        if unknown or not self.losses:
            raise ValueError(f"losses are some of {', '.join(KINDS)}; got {', '.join(unknown) or 'none'}")
        if not self.widths or not self.steps or min(*self.widths, *self.steps) < 1:
            raise ValueError("widths and steps need at least one number each, all at least 1")
        if min(self.rows, self.episodes, self.length) < 1 or self.attack < 0 or not 0.0 <= self.discount < 1.0:
            raise ValueError("rows, episodes and length must be at least 1, attack 0 or more and discount in [0, 1)")


@dataclass(frozen=True)
class Member:
    """One model of the population: where it comes from, its scores by metric, its return, and expected − realised."""

    slice: str
    width: int
    loss: str
    steps: int
    metrics: dict[str, float]
    ret: float
    gap: float


@dataclass
class Study:
    """The population and what follows from it."""

    members: list[Member]
    correlations: list[mismatch.Correlation]
    best: dict[str, str]  # slice -> the metric that ranks its models best
    epochs: list[dict[str, Any]]  # per training: best length by likelihood and by return, and the return between them
    exploitation: float
    attack: mismatch.Gap | None = None


# -- data -------------------------------------------------------------------------------------------------------------


def episodes_of(data: Transitions) -> Tensor:
    """Number of the piece of unbroken experience that each row (N,) belongs to; rows must be in the order of time."""
    broken = (data.next_obs[:-1] != data.obs[1:]).any(-1) | ((data.terminated + data.truncated)[:-1] > 0)
    return torch.cat([torch.zeros(1, dtype=torch.int64), broken.long().cumsum(0)])


def halves(data: Transitions) -> dict[str, Transitions]:
    """All of the data, and the half of its episodes with the lower returns: two slices of one dataset."""
    returns, owner = episode_returns(data)
    low = returns[owner] <= returns.median()
    return {"all episodes": data} | ({"poor episodes": data[low]} if 0.2 < float(low.float().mean()) < 0.8 else {})


def split(data: Transitions) -> tuple[Transitions, Transitions]:
    """Rows to train on and rows held out, a fifth: whole episodes where there are five, else the end of the data."""
    owner = episodes_of(data)
    held = owner % 5 == 4 if int(owner[-1]) >= 4 else torch.arange(len(data)) >= len(data) * 4 // 5
    return data[~held], data[held]


def pieces(data: Transitions, steps: int, limit: int = 200) -> tuple[Tensor, Tensor]:
    """obs (N, steps + 1, ·) and action (N, steps, ·) of unbroken experience. Raises ValueError if there is none."""
    owner = episodes_of(data)
    starts = torch.arange(0, len(data) - steps + 1)
    whole = starts[owner[starts] == owner[starts + steps - 1]]
    if not len(whole):
        raise ValueError(f"no episode of the held-out data has {steps} steps; open-loop errors need longer ones")
    starts = whole[torch.linspace(0, len(whole) - 1, min(limit, len(whole))).long()]
    index = starts.unsqueeze(1) + torch.arange(steps)
    return torch.cat([data.obs[index], data.next_obs[index[:, -1:]]], 1), data.action[index]


class Regression(nn.Module):
    """Least squares on raw observations: (rows, obs_dim) -> (rows, outputs). Remembers the statistics of both."""

    def __init__(self, obs: Tensor, target: Tensor, seed: int):
        """obs (N, obs_dim), target (N, outputs). About fifty passes over few rows, 2000 batches of many."""
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.mean, self.std = obs.mean(0), obs.std(0) + 1e-6
        self.shift, self.scale = target.mean(0), target.std(0) + 1e-6
        self.net = StackedMLP(obs.shape[1], (64, 64), target.shape[1], [rng], "tanh")
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        for _ in range(max(300, min(2000, len(obs) // 5))):
            rows = torch.randint(len(obs), (256,), generator=rng)
            opt.zero_grad(set_to_none=True)
            ((self(obs[rows]) - target[rows]) / self.scale).square().mean().backward()
            opt.step()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)[0] * self.scale + self.shift


# -- the study --------------------------------------------------------------------------------------------------------


class Bench:
    """Data, values and the true world that all models of a study share.

    Raises ValueError for data that do not fit, or fewer than 12 models.
    """

    def __init__(
        self, sources: dict[str, Transitions], task: str, config: StudyConfig, act: Callable[[Tensor], Tensor] | None
    ):
        """Every source is a slice of the population; a single one gives two, see `halves`.

        `act` proposes plans; without it the data's behaviour does, cloned, so that plans stay where the models know.
        """
        self.task, self.config = task, config
        parts = {name: split(data) for name, data in sources.items()}
        train = {name: train for name, (train, _) in parts.items()}
        slices = train if len(train) > 1 else halves(next(iter(train.values())))
        self.train = {name: _at_most(data, config.rows) for name, data in slices.items()}
        self.trainings = [(n, width, kind) for n in self.train for width in config.widths for kind in config.losses]
        self.size = len(self.trainings) * len(config.steps)
        if self.size < 12:
            raise ValueError(f"{self.size} models are too few to correlate; add widths, steps, losses or data")
        self.worlds = sim.make(task, num_worlds=config.episodes, threads=1)
        self.aside = sim.make(task, num_worlds=config.episodes, threads=1)
        widths = (self.worlds.interface.obs_dim, self.worlds.interface.act_dim)
        for name, data in sources.items():
            if (data.obs_dim, data.act_dim) != widths:
                raise ValueError(f"{name} has {data.obs_dim} observations and {data.act_dim} actions, {task} {widths}")
        held = Transitions.cat([held for _, held in parts.values()])
        self.pieces, self.held = pieces(held, PIECE), _at_most(held, HELD)
        whole = Transitions.cat(list(train.values()))
        self._value = Regression(whole.obs, returns_to_go(whole, config.discount).unsqueeze(1), config.seed)
        behaviour = Regression(whole.obs, whole.action, config.seed)
        self.act = act or (lambda obs: behaviour(obs).clamp(-1.0, 1.0))

    def value(self, obs: Tensor) -> Tensor:
        """Value of the data's behaviour, (rows, obs_dim) -> (rows,): a regression on discounted returns-to-go."""
        return self._value(obs)[:, 0]

    def loss(self, kind: str, data: Transitions) -> Loss:
        if kind == "vagram":
            return VaGraM(GradientTable(value_gradient(self.value, data.next_obs)[1].unsqueeze(0)))
        return ValueDifference([self.value]) if kind == "value_difference" else LOSSES[kind]

    def models(self, name: str, width: int, kind: str) -> Any:
        """(steps, model) at every length of one training; first weights and batches are the same for all losses."""
        c, data = self.config, self.train[name]
        rng = torch.Generator().manual_seed(c.seed)
        shape = EnsembleConfig(1, 1, (width, width), (width, width), gaussian=kind == "nll")
        model = Ensemble(data.obs_dim, data.act_dim, shape, [torch.Generator().manual_seed(c.seed)])
        model.measure(data.obs, data.action, data.reward, data.next_obs)
        opt, loss = optimiser(model, 1e-3, (0.0,)), self.loss(kind, data)
        for step in range(1, c.steps[-1] + 1):
            gradient_step(model, opt, loss, data, torch.randint(len(data), (1, 256), generator=rng))
            if step in c.steps:
                yield step, model

    def scores(self, model: Ensemble) -> dict[str, float]:
        found = mismatch.scores(model, self.held, self.pieces, self.value)
        return {name: float(value) for name, value in found.items()}

    def worth(self, model: Ensemble, length: int | None = None) -> tuple[float, float]:
        """(mean return, expected − realised return of the chosen plans) of planning with the model, truly executed."""
        c = self.config
        rollout = ModelRollout(model, value_fn=self.value, discount=c.discount)
        rng = torch.Generator().manual_seed(c.seed)
        proposals = rollout.proposals(self.act, c.planner.horizon, rng, 0.2)
        planner = MPPI(rollout, model.obs_dim, model.act_dim, c.planner, rng, proposals)
        obs, total = self.worlds.reset(seed=EVALUATION_SEED), np.zeros(c.episodes)
        going, gaps = np.ones(c.episodes, dtype=bool), []
        for t in range(length or c.length):
            state = torch.as_tensor(obs, dtype=torch.float32)
            plan = planner.plan(state)
            if t % 25 == 0:
                expected = rollout(state, plan.unsqueeze(1))[:, 0].numpy()
                gaps.append(mismatch.exploitation_gap(expected[going], self.realised(plan)[going]))
            obs, reward, terminated, truncated, _ = self.worlds.step(plan[:, 0].numpy())
            total += going * reward
            going &= ~(terminated | truncated)
            if not going.any():
                break
        return float(total.mean()), float(np.mean(gaps))

    def realised(self, plan: Tensor) -> np.ndarray:
        """What a plan (B, H, act_dim) truly earns from where the worlds are now, last state's value included, (B,)."""
        self.aside.restore(self.worlds.get_state())
        total, alive, weight = np.zeros(len(plan)), np.ones(len(plan)), 1.0
        for h in range(plan.shape[1]):
            _, reward, terminated, _, info = self.aside.step(plan[:, h].numpy())
            total, weight = total + weight * alive * reward, weight * self.config.discount
            alive = alive * ~terminated
        last = torch.as_tensor(info["final_obs"], dtype=torch.float32)
        return total + weight * alive * self.value(last).numpy()


def run_study(bench: Bench, progress: Progress | None = None) -> Study:
    """Train, score and try every model, and say what goes with the return."""
    c, total = bench.config, bench.size
    members: list[Member] = []
    likeliest: tuple[float, Ensemble] | None = None
    for name, width, kind in bench.trainings:
        for steps, model in bench.models(name, width, kind):
            metrics, (ret, gap) = bench.scores(model), bench.worth(model)
            members.append(Member(name, width, kind, steps, metrics, ret, gap))
            if kind == "nll" and metrics["nll"] < (likeliest[0] if likeliest else math.inf):
                likeliest = metrics["nll"], copy.deepcopy(model)
            if progress is not None:
                progress(len(members), total + 1, f"{kind}, width {width}, {steps} steps: return {ret:,.0f}")
    study = _correlate(members, np.random.default_rng(c.seed))
    if c.attack and likeliest is not None:
        study.attack = attack(bench, likeliest[1])
    return study


def _correlate(members: Sequence[Member], rng: np.random.Generator) -> Study:
    columns = {metric: np.array([m.metrics[metric] for m in members]) for metric in mismatch.METRICS}
    returns, names = np.array([m.ret for m in members]), [m.slice for m in members]
    masks = {"all": np.ones(len(members), dtype=bool)}
    masks |= {name: np.array([n == name for n in names]) for name in dict.fromkeys(names) if len(set(names)) > 1}
    rows = mismatch.report(columns, returns, masks, rng)
    best = {name: mismatch.best_metric(rows, name) for name in masks if np.ptp(returns[masks[name]]) > 0.0}
    gap = mismatch.exploitation_gap(np.array([m.gap for m in members]), np.zeros(len(members)))
    return Study(list(members), rows, best, _epochs(members), gap)


def _epochs(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Per training: after how many steps the likelihood and the return were best, and the return between the two."""
    rows = []
    for key in dict.fromkeys((m.slice, m.width, m.loss) for m in members):
        own = [m for m in members if (m.slice, m.width, m.loss) == key]
        nll, ret = np.array([m.metrics["nll"] for m in own]), np.array([m.ret for m in own])
        by_nll, by_return, lost = mismatch.epoch_regret(nll, ret)
        told = {"best_by_nll": own[by_nll].steps, "best_by_return": own[by_return].steps, "return_lost": lost}
        rows.append(dict(zip(("slice", "width", "loss"), key, strict=True)) | told)
    return rows


def attack(bench: Bench, model: Ensemble) -> mismatch.Gap:
    """The lowest return that changes of the model's last weights can bring about while its likelihood holds."""
    c, short = bench.config, max(1, bench.config.length // 2)

    def likelihood(m: Ensemble) -> float:
        return float(mismatch.one_step_errors(m, bench.held)["nll"].mean())

    rng = np.random.default_rng(c.seed)
    return mismatch.adversarial_gap(model, likelihood, lambda m: bench.worth(m, short)[0], rng, c.attack, sigma=0.05)


def _at_most(data: Transitions, rows: int) -> Transitions:
    """Evenly spaced rows, at most so many."""
    return data if len(data) <= rows else data[torch.linspace(0, len(data) - 1, rows).long()]
