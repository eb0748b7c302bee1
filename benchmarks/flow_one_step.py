"""The one-step part of the action_flow benchmark: a kinematic vehicle, its family of regimes, and who answers how."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import Claim, table
from torch import Tensor

from dynamics import action_flow
from dynamics.action_flow import ActionFlow, Coder, FlowConfig, RegimePool, body_frame, fit_flow
from dynamics.ensemble import wrap
from dynamics.pairs import Family, Step, answers, simulate
from sim.robots.regimes import VEHICLE_COUPLED, VEHICLE_GAINS, Regime

LIMITS, DT = torch.tensor([1.0, math.pi / 2]), 0.2
SCALE = torch.tensor([0.0836, 0.0836, 0.18])  # standard deviation of x, y and heading over one step of random actions


def drive(obs: Tensor, command: Tensor) -> Tensor:
    """x, y, heading after one step at speed and turn rate (N, 2), in m/s and rad/s."""
    v, w = command.unbind(-1)
    middle = obs[:, 2] + 0.5 * w * DT
    x, y = obs[:, 0] + v * torch.cos(middle) * DT, obs[:, 1] + v * torch.sin(middle) * DT
    return torch.stack([x, y, wrap(obs[:, 2] + w * DT)], -1)


def under(gain: tuple[float, float], slip: float = 0.0, cross: float = 0.0) -> Step:
    """The vehicle that loses `slip` of its speed per m/s and turns `cross` rad/s per m/s, then scaled by `gain`."""

    def step(obs: Tensor, action: Tensor) -> Tensor:
        v, w = (action * LIMITS).unbind(-1)
        lost = v * (1.0 - slip * v.abs()).clamp_min(0.0)
        return drive(obs, torch.stack([gain[0] * lost, gain[1] * (w + cross * v)], -1))

    return step


def step_of(regime: Regime) -> Step:
    gain = regime.gain or (1.0, 1.0)
    return under((gain[0], gain[1]), regime.slip, regime.cross)


def wrapped(difference: Tensor) -> Tensor:
    return torch.cat([difference[..., :2], wrap(difference[..., 2:])], -1)


def nominal(obs: Tensor, action: Tensor) -> Tensor:
    return drive(obs, action * LIMITS)


def draw_family(count: int, rng: np.random.Generator) -> Family:
    """Gains up to ±2.5, half of them with slip and coupling; one in eight unchanged."""
    steps: list[Step] = []
    for k in range(count):
        gain = (float(rng.uniform(-2.5, 2.5)), float(rng.uniform(-2.5, 2.5)))
        if k % 8 == 0:
            steps.append(nominal)
        elif k % 2:
            steps.append(under(gain))
        else:
            steps.append(under(gain, rng.uniform(0, 0.8), rng.uniform(-1.3, 1.3)))
    return Family(nominal, steps, torch.ones(3), wrapped)


def poses(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, 3, generator=rng) * torch.tensor([10.0, 10.0, 2 * math.pi]) - torch.tensor([0, 0, math.pi])


def uniform(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, 2, generator=rng) * 2 - 1


def evidence(coder: Coder, step: Step, rows: int, k: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """K transitions per row: codes (rows, K, W), and the actions and true changes they hold for least squares."""
    obs, action = poses(rows * k, rng), uniform(rows * k, rng)
    after = step(obs, action)
    code = coder.evidence(obs, action, wrapped(after - nominal(obs, action)))
    effective = inverse(obs, after)
    return code.unflatten(0, (rows, k)), action.unflatten(0, (rows, k)), effective.unflatten(0, (rows, k))


def inverse(obs: Tensor, after: Tensor) -> Tensor:
    """The action of the nominal vehicle that explains a step, (N, 2); exact for a kinematic vehicle."""
    w = wrap(after[:, 2] - obs[:, 2]) / DT
    middle = obs[:, 2] + 0.5 * w * DT
    move = after[:, :2] - obs[:, :2]
    v = (move[:, 0] * torch.cos(middle) + move[:, 1] * torch.sin(middle)) / DT
    return torch.stack([v, w], -1) / LIMITS


def least_squares(planned: Tensor, action: Tensor, effective: Tensor) -> Tensor:
    """a0 divided by the gains that the K transitions of each row show."""
    gain = (action * effective).sum(1) / action.square().sum(1).clamp_min(1e-6)
    sign = torch.where(gain < 0, -1.0, 1.0)
    return planned / (sign * gain.abs().clamp_min(0.05))


Answer = Callable[[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], Step], Tensor]


def misses(
    answer: Answer, regimes: Sequence[Regime], coder: Coder, k: int, told: int = 0, rows: int = 500
) -> list[float]:
    """Mean one-step miss per regime (norm over m, m and rad); the evidence is from the regime `told` places on."""
    rng, result = torch.Generator().manual_seed(5), []
    for n, regime in enumerate(regimes):
        step, other = step_of(regime), step_of(regimes[(n + told) % len(regimes)])
        seen = evidence(coder, other, rows, k, rng)
        obs, planned = poses(rows, rng), uniform(rows, rng)
        with torch.no_grad():
            action = answer(obs, planned, seen, step).clamp(-1, 1)
        result.append(float(wrapped(step(obs, action) - nominal(obs, planned)).norm(dim=-1).mean()))
    return result


def of_flow(flow: ActionFlow, coder: Coder, steps: int = 1) -> Answer:
    def answer(obs: Tensor, planned: Tensor, seen: tuple[Tensor, Tensor, Tensor], step: Step) -> Tensor:
        mask = torch.ones(seen[0].shape[:2], dtype=torch.bool)
        return flow(planned, coder.features(obs), seen[0], mask, steps)

    return answer


def leaking_draw(pool: RegimePool, rows: int, k: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Every query with its own transition as evidence: what published code does."""
    regime = torch.randint(len(pool.planned), (rows,), generator=rng)
    at = (regime, torch.randint(pool.planned.shape[1], (rows,), generator=rng))
    mask = torch.ones(rows, 1, dtype=torch.bool)
    return pool.evidence[at].unsqueeze(1), mask, pool.features[at], pool.planned[at], pool.answer[at]


def leaking_pool(family: Family, pool: RegimePool, coder: Coder, rng: torch.Generator) -> RegimePool:
    rows = []
    for step, planned in zip(family.regimes, pool.planned, strict=True):
        obs = poses(len(planned), rng)
        rows.append(coder.evidence(obs, planned, wrapped(step(obs, planned) - nominal(obs, planned))))
    return RegimePool(torch.stack(rows), pool.features, pool.planned, pool.answer)


def leaky_flow(family: Family, pool: RegimePool, coder: Coder, updates: int) -> tuple[ActionFlow, float]:
    flow, honest = new_flow(1, updates), action_flow.draw
    action_flow.draw = leaking_draw
    try:
        generator = torch.Generator().manual_seed(3)
        loss = fit_flow(flow, leaking_pool(family, pool, coder, generator), generator, check_leak=False)
    finally:
        action_flow.draw = honest
    return flow, float(np.mean(loss[-100:]))


def new_flow(k: int, updates: int) -> ActionFlow:
    return ActionFlow(1, 3, 2, FlowConfig(k, updates=updates, batch=256), torch.Generator().manual_seed(k))


def untouched(flow: ActionFlow, coder: Coder, k: int) -> float:
    """Mean |a1 − a0| (norm) when the evidence shows no error at all."""
    rng = torch.Generator().manual_seed(6)
    code, *_ = evidence(coder, nominal, 2000, k, rng)
    obs, planned = poses(2000, rng), uniform(2000, rng)
    mask = torch.ones(2000, k, dtype=torch.bool)
    with torch.no_grad():
        return float((flow(planned, coder.features(obs), code, mask) - planned).norm(dim=-1).mean())


def one_step(quick: bool) -> tuple[list[Claim], dict[str, list[float]]]:
    rng = torch.Generator().manual_seed(0)
    coder = body_frame(2, 0, 1, SCALE)
    family = draw_family(500, np.random.default_rng(0))
    pool = simulate(family, poses(4000, rng), coder, 64, 64, rng, 2)
    updates = 3000 if quick else 6000
    groups: dict[str, Sequence[Regime]] = {"gains": VEHICLE_GAINS, "coupled": VEHICLE_COUPLED}
    flows, losses = {}, {}
    for k in (1, 8) if quick else (1, 4, 8, 16):
        flows[k] = new_flow(k, updates)
        losses[k] = float(np.mean(fit_flow(flows[k], pool, torch.Generator().manual_seed(2))[-100:]))
    cheat, cheat_loss = leaky_flow(family, pool, coder, updates)
    ways: dict[str, tuple[Answer, int, int]] = {
        "no adaptation": (lambda o, a, e, s: a, 8, 0),
        "least squares, K = 8": (lambda o, a, e, s: least_squares(a, *e[1:]), 8, 0),
        **{f"flow, K = {k}": (of_flow(f, coder), k, 0) for k, f in flows.items()},
        "flow, K = 8, 10 Euler steps": (of_flow(flows[8], coder, 10), 8, 0),
        "flow, K = 8, evidence of another regime": (of_flow(flows[8], coder), 8, 1),
        "flow with the leak, K = 1": (of_flow(cheat, coder), 1, 0),
        "oracle": (lambda o, a, e, s: answers(family, s, o, a), 8, 0),
    }
    rows = {
        name: [float(np.mean(misses(answer, group, coder, k, told))) for group in groups.values()]
        for name, (answer, k, told) in ways.items()
    }
    print(table(("one-step miss", *groups), [(name, *values) for name, values in rows.items()]))
    still = untouched(flows[8], coder, 8)
    print(f"|Δa| at zero error {still:.3f}; flow loss honest K = 1 {losses[1]:.3f}, with the leak {cheat_loss:.4f}")
    flow, none = rows["flow, K = 8"], rows["no adaptation"]
    strange = rows["flow, K = 8, evidence of another regime"][0] / flow[0]
    leaked = rows["flow with the leak, K = 1"][0] / rows["flow, K = 1"][0]
    claims = [
        Claim("one-step miss on the 11 gains, K = 8", flow[0], 0.10, at_least=False),
        Claim("the same without adaptation, for comparison", none[0], 0.25),
        Claim("|Δa| at zero error", still, 0.1, at_least=False),
        Claim("miss with evidence of another regime / with its own", strange, 2.0),
        Claim("miss with the leak / honest, K = 1", leaked, 1.2),
        Claim("least squares / flow, miss on coupled changes", rows["least squares, K = 8"][1] / flow[1], 1.0),
    ]
    return claims, rows
