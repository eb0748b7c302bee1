"""What the action_flow benchmark learns: exploration of our robots, and models, flow and oracle made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow, Coder, FlowConfig, RegimePool, body_frame, fit_flow, plain_coder
from dynamics.context import ContextModel, Runs
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit, gradient_step, optimiser
from dynamics.losses import nll, normalised_mse
from dynamics.pairs import hindsight
from dynamics.planner import PlannerConfig
from policies.networks import generators
from sim.robots.fleet import Fleet, Robot, quadrotor_robot, vehicle_robot
from sim.robots.regimes import (
    QUADROTOR_COUPLED,
    QUADROTOR_GAINS,
    UNCHANGED,
    VEHICLE_COUPLED,
    VEHICLE_GAINS,
    Regime,
)

Steer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pose (N, D), goal (N, 2 or 3) -> action (N, A)


@dataclass
class Setup:
    """One robot with everything that differs between vehicle and quadrotor."""

    robot: Robot
    obs_dim: int
    act_dim: int
    angles: tuple[int, ...]
    unseen: tuple[int, ...]
    planner: PlannerConfig
    tests: tuple[Regime, ...]
    draw: Callable[[np.random.Generator], Regime]
    coder: Callable[[Ensemble], Coder]
    steer: Steer | None  # explores and proposes; None: actions at random
    limits: dict[str, int]  # steps allowed per map
    explore_steps: int
    goal_dim: int


def vehicle_regime(rng: np.random.Generator) -> Regime:
    """Half of the family are gains alone, half have slip and coupling as well; one in eight is unchanged."""
    if rng.random() < 0.125:
        return UNCHANGED
    gain = tuple(float(g) for g in rng.uniform(-2.5, 2.5, 2))
    if rng.random() < 0.5:
        return Regime("drawn", gain=gain)
    gain = tuple(float(g) for g in rng.choice([-1.0, 1.0], 2) * rng.uniform(0.6, 1.4, 2))
    return Regime("drawn", gain=gain, slip=rng.uniform(0, 0.8), cross=rng.uniform(-1.3, 1.3))


def quadrotor_regime(rng: np.random.Generator) -> Regime:
    if rng.random() < 0.125:
        return UNCHANGED
    yaw = rng.choice([-1.0, 1.0])
    gain = (rng.uniform(0.75, 1.25), *rng.uniform(0.35, 2.2, 2), yaw * rng.uniform(0.4, 2.2))
    kind = rng.random()
    if kind < 0.4:
        return Regime("drawn", gain=tuple(map(float, gain)))
    weak = (int(rng.integers(4)), float(rng.uniform(0.5, 1.0))) if kind < 0.8 else None
    wind = (*rng.uniform(-1.0, 1.0, 2), 0.0) if kind > 0.55 else (0.0, 0.0, 0.0)
    payload, at = (rng.uniform(0, 0.15), (*rng.uniform(-0.04, 0.04, 2), -0.05)) if kind > 0.7 else (0.0, (0.0,) * 3)
    return Regime("drawn", weak_rotor=weak, wind=wind, payload=payload, payload_at=at)


def fly(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Proportional-derivative flight to a goal at heading zero, for the unchanged quadrotor."""
    push = 2.0 * (np.clip(1.5 * (goal - pose[:, :3]), -1.5, 1.5) - pose[:, 3:6])
    roll, pitch, yaw = pose[:, 6:9].T
    c, s = np.cos(yaw), np.sin(yaw)
    ahead, left = c * push[:, 0] + s * push[:, 1], c * push[:, 1] - s * push[:, 0]
    thrust = (1 + push[:, 2] / 9.81) / np.clip(np.cos(roll) * np.cos(pitch), 0.3, 1.0) * 0.61 / 0.6 - 1
    rates = (2 * (-left / 9.81 - roll), 2 * (ahead / 9.81 - pitch), -yaw)
    return np.clip(np.stack([thrust, *rates], axis=1), -1, 1)


SETUPS: dict[str, Callable[[], Setup]] = {
    "vehicle": lambda: Setup(
        vehicle_robot(), 5, 2, (2,), (0, 1), PlannerConfig(128, 8, 0.5, 0.3),
        (*VEHICLE_GAINS, *VEHICLE_COUPLED), vehicle_regime,
        lambda m: body_frame(2, 0, 1, m.delta_scale, (3, 4)), None, {"yard": 400, "field": 700}, 60, 2,
    ),
    "quadrotor": lambda: Setup(
        quadrotor_robot(), 12, 4, (6, 7, 8), (0, 1, 2), PlannerConfig(128, 10, 0.25, 0.6, policy_share=0.2),
        (*QUADROTOR_GAINS, *QUADROTOR_COUPLED), quadrotor_regime, plain_coder, fly,
        {"yard": 1000, "field": 1800}, 80, 3,
    ),
}


# -- exploration ------------------------------------------------------------------------------------------------------


def explore(s: Setup, regimes: Sequence[Regime], seed: int, steps: int | None = None) -> SimpleNamespace:
    """One robot per regime, always under it -> obs, action, next_obs (N, T, ·) float32 and alive (N, T)."""
    rng, robot = np.random.default_rng(seed), replace(s.robot, reached=-1.0)
    fleet = Fleet(robot, "yard", regimes, seed, holds=(0.0, 2.0))
    noise, columns = np.zeros((len(regimes), s.act_dim)), []
    goal = fleet.goal + rng.uniform(-2, 2, fleet.goal.shape) * (0.3 if s.robot.flies else 1.0)
    for t in range(steps or s.explore_steps):
        pose, alive = fleet.pose(), ~fleet.over
        if t % 25 == 24:
            goal = pose[:, : s.goal_dim] + rng.uniform(-1, 1, goal.shape)
            goal[:, 2:] = rng.uniform(1.0, 2.0, goal[:, 2:].shape)
        noise = 0.6 * noise + 0.8 * rng.normal(0, 0.6 if s.steer is None else 0.3, noise.shape)
        action = np.clip(noise + (s.steer(pose, goal) if s.steer else 0.0), -1, 1)
        columns.append((pose, action, fleet.step(action), alive & ~fleet.over))
    fields = [np.stack(c, 1) for c in zip(*columns, strict=True)]
    obs, action, after = (torch.tensor(f, dtype=torch.float32) for f in fields[:3])
    return SimpleNamespace(obs=obs, action=action, next_obs=after, alive=torch.tensor(fields[3]))


def flat(runs: SimpleNamespace) -> SimpleNamespace:
    """The living transitions as a data set without reward."""
    a = runs.alive
    zero = torch.zeros(int(a.sum()))
    return SimpleNamespace(
        obs=runs.obs[a], action=runs.action[a], next_obs=runs.next_obs[a], reward=zero, terminated=zero
    )


def fit_model(s: Setup, data: SimpleNamespace, steps: int, seed: int) -> Ensemble:
    config = EnsembleConfig(3, 3, (64, 64), (4,), angles=s.angles, unseen=s.unseen)
    model = Ensemble(s.obs_dim, s.act_dim, config, generators(seed, 3))
    fit(model, data, nll, FitConfig(lr=2e-3, max_steps=steps, patience=30), torch.Generator().manual_seed(seed))
    return model


# -- flow, context, oracle --------------------------------------------------------------------------------------------


def pool_of(s: Setup, runs: SimpleNamespace, model: Ensemble, coder: Coder, count: int, seed: int) -> RegimePool:
    """Evidence and, by hindsight, answers of every regime; evidence from even steps, queries from odd ones."""
    rng, rows = torch.Generator().manual_seed(seed), []

    def nominal(obs: Tensor, action: Tensor) -> Tensor:
        return model.belief(obs, action)[0]

    for k in range(len(runs.obs)):
        even, odd = (runs.alive[k].clone() for _ in range(2))
        even[1::2], odd[::2] = False, False
        obs, action, after = runs.obs[k], runs.action[k], runs.next_obs[k]
        with torch.no_grad():
            seen = coder.evidence(
                obs[even], action[even], model.wrap_angles(after[even] - nominal(obs[even], action[even]))
            )
            planned, rest = hindsight(
                nominal, obs[odd], action[odd], after[odd], model.delta_scale, model.wrap_angles
            )
        usable = (planned.abs() <= 1.3).all(-1) & (rest < 1.0)
        if usable.sum() < 6 or len(seen) < 6:
            continue
        e = torch.randint(len(seen), (count,), generator=rng)
        q = torch.nonzero(usable)[:, 0][torch.randint(int(usable.sum()), (count,), generator=rng)]
        rows.append((seen[e], coder.features(obs[odd][q]), planned[q], action[odd][q]))
    return RegimePool(*(torch.stack(c) for c in zip(*rows, strict=True)))


def runs_of(runs: SimpleNamespace, model: Ensemble, coder: Coder) -> Runs:
    """All transitions of every regime that lived to the end."""
    keep = runs.alive.all(1)
    obs, action, after = runs.obs[keep], runs.action[keep], runs.next_obs[keep]
    with torch.no_grad():
        said = model.belief(obs.flatten(0, 1), action.flatten(0, 1))[0].reshape(after.shape)
        evidence = coder.evidence(obs, action, model.wrap_angles(after - said))
    return Runs(obs, action, after, evidence)


def regime_models(s: Setup, nominal: Ensemble, runs: SimpleNamespace, steps: int) -> Ensemble:
    """One model per regime, started from the nominal one and fitted to that regime's own exploration: the oracle's."""
    count, length = runs.alive.shape
    models = nominal.subset(torch.zeros(count, dtype=torch.int64))
    zero = torch.zeros(count * length)
    data = SimpleNamespace(
        obs=runs.obs.flatten(0, 1), action=runs.action.flatten(0, 1), next_obs=runs.next_obs.flatten(0, 1),
        reward=zero, terminated=zero,
    )
    rows = [torch.nonzero(a)[:, 0] + k * length for k, a in enumerate(runs.alive)]
    opt, rng = optimiser(models, 2e-3, (0.0,)), torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.stack([r[torch.randint(len(r), (64,), generator=rng)] for r in rows])
        gradient_step(models, opt, normalised_mse, data, index)
    return models


@dataclass
class Learned:
    """What is learned once per robot."""

    setup: Setup
    model: Ensemble
    randomised: Ensemble
    coder: Coder
    flow: ActionFlow
    context: ContextModel
    oracle: Ensemble


def learn(name: str, quick: bool, seed: int = 0, log: Callable[[str], None] = print) -> Learned:
    s, share = SETUPS[name](), 0.5 if quick else 1.0
    rng = np.random.default_rng(seed)
    model = fit_model(s, flat(explore(s, [UNCHANGED] * 120, seed + 1)), int(4000 * share), seed)
    drawn = [s.draw(rng) for _ in range(int(600 * share))]
    family = explore(s, drawn, seed + 2)
    coder = s.coder(model)
    pool = pool_of(s, family, model, coder, 32, seed)
    width = pool.features.shape[-1], pool.evidence.shape[-1] - pool.features.shape[-1] - s.act_dim
    config = FlowConfig(8, 64, (64, 64), (128, 128), batch=256, updates=int(8000 * share))
    flow = ActionFlow(width[0], width[1], s.act_dim, config, torch.Generator().manual_seed(seed))
    loss = fit_flow(flow, pool, torch.Generator().manual_seed(seed + 1))
    log(f"{name}: {len(pool.planned)} of {len(drawn)} drawn regimes usable, flow loss {np.mean(loss[-200:]):.3f}")
    context = ContextModel(model, coder, pool.evidence.shape[-1], config, torch.Generator().manual_seed(seed + 2))
    context.fit(runs_of(family, model, coder), torch.Generator().manual_seed(seed + 3))
    randomised = fit_model(s, flat(family), int(4000 * share), seed + 4)
    own = explore(s, [r for r in s.tests for _ in range(1)], seed + 5, 300)
    return Learned(s, model, randomised, coder, flow, context, regime_models(s, model, own, int(1500 * share)))
