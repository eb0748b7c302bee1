"""A vehicle on a plane as a pure function, its model fitted to it, and a flow trained on changed gains."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow, FlowConfig, RegimePool, body_frame, fit_flow
from dynamics.ensemble import Ensemble, EnsembleConfig, wrap
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from dynamics.pairs import Family, simulate
from policies.networks import generators

sys.path.insert(0, str(Path(__file__).parent))  # for loss_cases

LIMITS, DT = torch.tensor([1.0, math.pi / 2]), 0.2
FAMILY = [(v, w) for v in (-1.0, 1.0, 2.0) for w in (-1.0, 1.0, 2.0)]
GAINS = ((-1.0, 2.0), (1.0, -1.0), (2.0, 2.0), (-1.0, -1.0))  # of the family, the ones judged by


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drive(obs: Tensor, action: Tensor) -> Tensor:
    """x, y [m], heading [rad]; action in [-1, 1] is speed up to 1 m/s and turn up to π/2 rad/s, for 0.2 s."""
    v, w = (action * LIMITS).unbind(-1)
    middle = obs[:, 2] + 0.5 * w * DT
    return torch.stack(
        [obs[:, 0] + v * torch.cos(middle) * DT, obs[:, 1] + v * torch.sin(middle) * DT, wrap(obs[:, 2] + w * DT)], -1
    )


def with_gains(v: float, w: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda obs, action: drive(obs, action * torch.tensor([v, w]))


def wrapped(difference: Tensor) -> Tensor:
    return torch.cat([difference[..., :2], wrap(difference[..., 2:])], -1)


def poses(count: int, seed: int) -> Tensor:
    place = 5 * torch.rand(count, 3, generator=rng(seed))
    return torch.cat([place[:, :2], wrap(place[:, 2:] * 2 * math.pi)], -1)


def actions(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, generator=rng(seed)) * 2 - 1


def family(gains: list[tuple[float, float]], nominal: Callable[[Tensor, Tensor], Tensor] = drive) -> Family:
    return Family(nominal, [with_gains(*g) for g in gains], torch.ones(3), wrapped)


@pytest.fixture(scope="session")
def vehicle() -> SimpleNamespace:
    """The functions above, `model` (an ensemble fitted to the nominal vehicle) and its `coder`."""
    torch.set_num_threads(1)
    obs, action = poses(3000, 0), actions(3000, 1)
    zero = torch.zeros(3000)
    data = SimpleNamespace(obs=obs, action=action, next_obs=drive(obs, action), reward=zero, terminated=zero)
    config = EnsembleConfig(2, 2, (32, 32), (4,), angles=(2,), unseen=(0, 1))
    model = Ensemble(3, 2, config, generators(0, 2))
    fit(model, data, nll, FitConfig(lr=5e-3, max_steps=600, patience=100), rng())
    coder = body_frame(2, 0, 1, model.delta_scale)
    return SimpleNamespace(
        model=model, coder=coder, drive=drive, with_gains=with_gains, wrapped=wrapped, poses=poses, actions=actions,
        rng=rng, family=family, gains=GAINS, regimes=FAMILY,
    )


@pytest.fixture(scope="session")
def pool(vehicle: SimpleNamespace) -> RegimePool:
    return simulate(family(FAMILY), poses(2000, 4), vehicle.coder, 256, 256, rng(5), 2)


def train(pool: RegimePool, evidence: int = 8, check_leak: bool = True, updates: int = 800) -> ActionFlow:
    config = FlowConfig(evidence, 16, (32,), (32, 32), updates=updates, batch=128, lr=1e-2)
    flow = ActionFlow(1, 3, 2, config, rng(6))
    flow.losses = fit_flow(flow, pool, rng(7), check_leak)  # type: ignore[assignment]
    return flow


@pytest.fixture(scope="session")
def flow(pool: RegimePool) -> ActionFlow:
    return train(pool)


@pytest.fixture(scope="session")
def trainer() -> Callable[..., ActionFlow]:
    return train
