from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.action_flow import FlowConfig, pooled
from dynamics.context import ContextModel, ContextPlanner, Runs
from dynamics.planner import MPPI, PlannerConfig

GOAL = np.array([3.0, 3.0])


@pytest.fixture(scope="module")
def context(vehicle: SimpleNamespace) -> ContextModel:
    config = FlowConfig(8, 16, (32,), (32, 32), lr=1e-2, batch=128, updates=400)
    family = vehicle.family(vehicle.regimes)
    runs = Runs.simulate(family, vehicle.poses(1000, 1), 2, 200, vehicle.coder, vehicle.rng(2))
    model = ContextModel(vehicle.model, vehicle.coder, 6, config, vehicle.rng(3))
    model.fit(runs, vehicle.rng(4))
    return model


def test_a_model_with_context_predicts_a_changed_robot_from_its_last_steps(
    vehicle: SimpleNamespace, context: ContextModel
) -> None:
    obs, action, change = vehicle.poses(100, 5), vehicle.actions(100, 6), vehicle.with_gains(-1.0, 2.0)
    seen_obs, seen_action = vehicle.poses(800, 7), vehicle.actions(800, 8)
    difference = vehicle.wrapped(change(seen_obs, seen_action) - vehicle.drive(seen_obs, seen_action))
    evidence = vehicle.coder.evidence(seen_obs, seen_action, difference).unflatten(0, (100, 8))
    latent = pooled(context.encoder, evidence, torch.ones(100, 8, dtype=torch.bool))
    miss = vehicle.wrapped(obs + context(obs, action, latent).detach() - change(obs, action)).norm(dim=-1).mean()
    blind = vehicle.wrapped(vehicle.drive(obs, action) - change(obs, action)).norm(dim=-1).mean()
    assert miss < 0.3 * blind


def test_planning_in_context_reaches_the_goal_with_a_changed_robot(
    vehicle: SimpleNamespace, context: ContextModel
) -> None:

    def nearer(obs: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return -(after[:, :2] - torch.as_tensor(GOAL, dtype=torch.float32)).norm(dim=-1)

    def mppi(evaluate: Callable[[Tensor, Tensor], Tensor]) -> MPPI:
        return MPPI(evaluate, 3, 2, PlannerConfig(samples=128, horizon=8), vehicle.rng(5))

    planner, obs = ContextPlanner(context, nearer, mppi), vehicle.poses(2, 50)
    change = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    for _ in range(60):
        obs = vehicle.drive(obs, torch.as_tensor(planner.act(obs.numpy())) * change)
    assert np.linalg.norm(obs[:, :2].numpy() - GOAL, axis=1).max() < 0.5


def test_a_regime_too_short_to_keep_the_query_out_of_its_evidence_is_refused(
    vehicle: SimpleNamespace, context: ContextModel
) -> None:
    runs = Runs.simulate(vehicle.family(vehicle.regimes[:1]), vehicle.poses(10, 1), 2, 8, vehicle.coder, vehicle.rng(2))
    with pytest.raises(ValueError, match="8 steps hold no evidence of 8 beside"):
        context.fit(runs, vehicle.rng(4))


def test_a_saved_model_in_context_comes_back_and_a_damaged_one_is_refused(
    vehicle: SimpleNamespace, context: ContextModel, tmp_path: Path
) -> None:
    path = tmp_path / "context.safetensors"
    context.save(path)
    back = ContextModel.load(path, vehicle.model, vehicle.coder)
    given = vehicle.poses(5, 1), vehicle.actions(5, 2), torch.rand(5, 16)
    assert torch.equal(back(*given), context(*given))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is damaged"):
        ContextModel.load(path, vehicle.model, vehicle.coder)
