"""Model-predictive path integral control: time per decision and what the plans are worth.

Speed: 256 candidates, horizon 5, 5 members, 17 state and 6 action dimensions, one thread, for members of three sizes.
Compared with sending every candidate through all members, and with the library pytorch-mppi on the same routed model.
Worth: swing-up of a pendulum, planning on a learned model, on the true dynamics (the upper bound), and by the library
on the learned model with the same samples and horizon.

The library is optional:
    pip install --no-deps --target .bench-venv/peers pytorch-mppi==0.9.1 arm-pytorch-utilities==0.5.0 pytorch-seed
Times are given as wall clock and as processor time of the one thread; on a busy machine the second is the honest one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import ROOT, Claim, arguments, report, table
from pendulum import DT, SPEED, TORQUE, Distractors, TrueValue, World, collect
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from dynamics.planner import MPPI, ModelRollout, PlannerConfig
from policies.networks import generators

OBS, ACT = 17, 6
SIZES = {"4×200": (200,) * 4, "3×128": (128,) * 3, "2×64": (64, 64)}
SWING = PlannerConfig(samples=256, horizon=25, sigma=0.6, smoothness=0.7)


def peer() -> Any | None:
    """The library's planner class, or None where it is not installed."""
    sys.path.append(str(ROOT / ".bench-venv" / "peers"))
    try:
        import pytorch_mppi
    except ImportError:
        return None
    return pytorch_mppi.MPPI


def timed(decide: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall and processor milliseconds of a call."""
    wall, cpu = [], []
    for _ in range(repeats + 10):
        start, begin = time.perf_counter(), time.thread_time()
        decide()
        wall.append(time.perf_counter() - start)
        cpu.append(time.thread_time() - begin)
    return 1e3 * float(np.median(wall[10:])), 1e3 * float(np.median(cpu[10:]))


def random_model(hidden: tuple[int, ...]) -> Ensemble:
    """Weights do not matter for the time."""
    config = EnsembleConfig(5, 5, hidden, (min(100, hidden[0]),) * 2)
    model = Ensemble(OBS, ACT, config, generators(0, 5))
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(500, OBS, generator=rng)
    step, action = 0.1 * torch.randn(500, OBS, generator=rng), torch.rand(500, ACT, generator=rng) * 2 - 1
    model.measure(obs, action, torch.randn(500, generator=rng), obs + step)
    return model


def averaged(model: Ensemble) -> Callable[[Tensor, Tensor], Tensor]:
    """Every candidate through every member, rewards and states averaged: what routing replaces."""

    @torch.no_grad()
    def evaluate(obs: Tensor, actions: Tensor) -> Tensor:
        b, k, horizon, _ = actions.shape
        rows, total = obs.unsqueeze(1).expand(b, k, -1).reshape(b * k, -1), torch.zeros(b * k)
        for h in range(horizon):
            delta, reward = model.means(rows, actions[:, :, h].flatten(0, 1))
            rows, total = rows + delta.mean(0), total + reward.mean(0)  # type: ignore[union-attr]
        return total.reshape(b, k)

    return evaluate


def routed_step(model: Ensemble) -> Callable[[Tensor, Tensor], Tensor]:
    """One step of the same routed model as the library wants it: state with its last reward, (K, obs_dim + 1)."""
    members = model.config.members

    def step(state: Tensor, action: Tensor) -> Tensor:
        rows, short = torch.cat([state[:, :-1], action], -1), -len(state) % members
        rows = torch.cat([rows, rows.new_zeros(short, rows.shape[-1])]).reshape(-1, members, rows.shape[-1])
        rows = rows.transpose(0, 1)
        delta, reward = model.means(rows[..., : model.obs_dim], rows[..., model.obs_dim :])
        after = torch.cat([rows[..., : model.obs_dim] + delta, reward.unsqueeze(-1)], -1)  # type: ignore[union-attr]
        return after.transpose(0, 1).flatten(0, 1)[: len(state)]

    return step


def library(kind: Any, model: Ensemble, config: PlannerConfig, lambda_: float) -> Any:
    act_dim = model.act_dim
    return kind(
        routed_step(model), lambda state, action: -state[:, -1], model.obs_dim + 1,
        config.sigma**2 * torch.eye(act_dim), num_samples=config.samples, horizon=config.horizon, lambda_=lambda_,
        u_min=-torch.ones(act_dim), u_max=torch.ones(act_dim), U_init=torch.zeros(config.horizon, act_dim),
    )


def speed(repeats: int, kind: Any | None) -> dict[str, tuple[float, float]]:
    model, config, rng = random_model(SIZES["4×200"]), PlannerConfig(), torch.Generator().manual_seed(0)
    obs = np.zeros((1, OBS), dtype=np.float32)
    everyone = MPPI(averaged(model), OBS, ACT, config, rng)
    known = MPPI(ModelRollout(model, reward_fn=lambda o, a, n: n[:, 0]), OBS, ACT, config, rng)
    rows = {}
    for name, hidden in SIZES.items():
        routed = MPPI(ModelRollout(random_model(hidden)), OBS, ACT, config, rng)
        rows[f"routed, {name}"] = timed(partial(routed.act, obs), repeats)
        halved = MPPI(ModelRollout(random_model(hidden), half=True), OBS, ACT, config, rng)
        rows[f"routed, {name}, in bfloat16"] = timed(partial(halved.act, obs), repeats)
    rows["routed, 4×200, task's own reward"] = timed(lambda: known.act(obs), repeats)
    rows["all members averaged, 4×200"] = timed(lambda: everyone.act(obs), max(20, repeats // 5))
    if kind is not None:
        theirs, state = library(kind, model, config, 1.0), torch.zeros(OBS + 1)
        with torch.no_grad():
            rows["pytorch-mppi, same routed 4×200"] = timed(lambda: theirs.command(state), repeats)
    return rows


# -- what the plans are worth ------------------------------------------------------------------------------------


def swing_model(data: SimpleNamespace) -> Ensemble:
    model = Ensemble(3, 1, EnsembleConfig(5, 5, (64, 64), (64, 64)), generators(0, 5))
    fit(model, data, nll, FitConfig(lr=3e-3, max_steps=3000, patience=1000), torch.Generator().manual_seed(0))
    return model


def true_returns(obs: Tensor, actions: Tensor) -> Tensor:
    """Return of candidates under the true pendulum; obs (B, 3), actions (B, K, H, 1) -> (B, K)."""
    theta = torch.atan2(obs[:, 1], obs[:, 0]).unsqueeze(1).expand(actions.shape[:2])
    speed, total = obs[:, 2:].expand(actions.shape[:2]), torch.zeros(actions.shape[:2])
    for h in range(actions.shape[2]):
        torque = TORQUE * actions[:, :, h, 0]
        angle = torch.remainder(theta + torch.pi, 2 * torch.pi) - torch.pi
        total = total - (angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
        speed = (speed + (15.0 * torch.sin(theta) + 3.0 * torque) * DT).clamp(-SPEED, SPEED)
        theta = theta + speed * DT
    return total


def mean_return(act: Callable[[np.ndarray], np.ndarray], episodes: int, steps: int = 150) -> float:
    """Return per episode from the same starts for everyone; act maps (N, 3) to (N, 1)."""
    rng = np.random.default_rng(7)
    world = World(episodes, Distractors.draw(0, rng), rng)
    obs, total = world.obs(), np.zeros(episodes)
    for _ in range(steps):
        obs, reward = world.step(act(obs)[:, 0])
        total += reward
    return float(total.mean())


def row_by_row(planners: list[Any]) -> Callable[[np.ndarray], np.ndarray]:
    def act(obs: np.ndarray) -> np.ndarray:
        states = [torch.cat([torch.tensor(row, dtype=torch.float32), torch.zeros(1)]) for row in obs]
        with torch.no_grad():
            return np.stack([p.command(s).numpy() for p, s in zip(planners, states, strict=True)])

    return act


def worth(episodes: int, kind: Any | None) -> dict[str, float]:
    true, rng = TrueValue(), np.random.default_rng(0)
    data = collect(Distractors.draw(0, rng), 10_000, true, rng)
    model = swing_model(data)
    generator = torch.Generator().manual_seed(0)
    rows = {
        "random actions": mean_return(lambda o: rng.uniform(-1, 1, (len(o), 1)), episodes),
        "plan on the learned model": mean_return(MPPI(ModelRollout(model), 3, 1, SWING, generator).act, episodes),
        "the same in bfloat16": mean_return(
            MPPI(ModelRollout(model, half=True), 3, 1, SWING, generator).act, episodes
        ),
        "plan on the true dynamics": mean_return(MPPI(true_returns, 3, 1, SWING, generator).act, episodes),
        "optimal (value iteration)": mean_return(lambda o: true.act(o)[:, None], episodes),
    }
    if kind is not None:
        for lambda_ in (1.0, 10.0):
            theirs = row_by_row([library(kind, model, SWING, lambda_) for _ in range(episodes)])
            rows[f"pytorch-mppi on the learned model, λ = {lambda_:g}"] = mean_return(theirs, episodes)
    return rows


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)
    kind = peer()
    times = speed(60 if args.quick else 300, kind)
    print(table(("decision", "wall ms, p50", "processor ms, p50"), [(k, *v) for k, v in times.items()]), flush=True)
    returns = worth(4 if args.quick else 10, kind)
    print("\n" + table(("pendulum swing-up", "return"), list(returns.items())))
    small = times["routed, 3×128"][1]
    ours, everyone = times["routed, 4×200"][1], times["all members averaged, 4×200"][1]
    claims = [
        Claim("ms per decision, p50, processor time of one core, 3×128", small, 5.0, at_least=False),
        Claim("ms per decision, p50, processor time of one core, 4×200", ours, 5.0, at_least=False),
        Claim("ms per decision, p50, processor time of one core, 4×200 in bfloat16",
              times["routed, 4×200, in bfloat16"][1], 5.0, at_least=False),
        Claim("all members averaged / routed, processor time, 4×200", everyone / ours, 2.0),
    ]
    random, best = returns["random actions"], returns["plan on the true dynamics"]
    for name, what in (("plan on the learned model", ""), ("the same in bfloat16", " in bfloat16")):
        share = (returns[name] - random) / (best - random)
        claims.append(Claim(f"learned model's share of the true dynamics' gain over random{what}", share, 0.9))
    if kind is None:
        print("pytorch-mppi is not installed and was left out; this file's head says how to install it")
    else:
        theirs = times["pytorch-mppi, same routed 4×200"][1]
        claims.append(Claim("pytorch-mppi / ours, processor time on the same model", theirs / ours, 0.9))
    report("planner", claims, args.json, {"times": times, "returns": returns})


if __name__ == "__main__":
    main()
