"""What executed actions amount to, read by least squares, and answers corrected by it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow
from dynamics.reading import Reading, ReadingConfig, effective
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy

PULLS = torch.tensor([[1.0, 0.0], [0.6, -1.0]])  # the steering is reversed, and driving turns the vehicle


def test_the_effective_action_is_the_one_that_explains_the_step(vehicle: SimpleNamespace) -> None:
    obs, action = vehicle.poses(50, 0), 0.6 * vehicle.actions(50, 1)
    amounted = action @ PULLS.T
    torch.testing.assert_close(
        effective(vehicle.model, obs, action, vehicle.drive(obs, amounted)), amounted, atol=0.15, rtol=0.0
    )


def observed(matrix: Tensor, steps: int, config: ReadingConfig | None = None) -> Reading:
    reading, rng = Reading(3, 2, config or ReadingConfig(memory=1.0)), torch.Generator().manual_seed(0)
    for _ in range(steps):
        executed = torch.rand(3, 2, generator=rng) * 2 - 1
        reading.observe(executed, executed @ matrix.T, torch.tensor([True, True, False]))
    return reading


def test_a_full_matrix_is_read_from_the_rows_that_are_fresh_alone() -> None:
    found = observed(PULLS, 40).matrix()
    torch.testing.assert_close(found[:2], PULLS.expand(2, 2, 2), atol=0.02, rtol=0.0)
    assert torch.equal(found[2], torch.eye(2))


def test_what_is_not_finite_is_not_observed_and_forgetting_concerns_one_row() -> None:
    reading = observed(PULLS, 40)
    before = reading.matrix()
    reading.observe(torch.ones(3, 2), torch.tensor([[torch.nan, 0.0]]).expand(3, 2), torch.ones(3, dtype=torch.bool))
    assert torch.equal(reading.matrix(), before)
    reading.forget(torch.tensor([True, False, False]))
    assert torch.equal(reading.matrix()[0], torch.eye(2)) and torch.equal(reading.matrix()[1:], before[1:])


def test_a_correction_is_the_best_compromise_within_the_bounds() -> None:
    reading, rng = observed(PULLS, 40), torch.Generator().manual_seed(1)
    planned, answer = (torch.rand(3, 2, generator=rng) * 2 - 1 for _ in range(2))
    low, high = torch.full((3, 2), -0.7), torch.full((3, 2), 0.5)
    action, matrix = reading.corrected(planned, answer, low, high), reading.matrix()
    grid = torch.cartesian_prod(torch.linspace(-0.7, 0.5, 121), torch.linspace(-0.7, 0.5, 121))

    def cost(a: Tensor, row: int) -> Tensor:
        miss = (a @ matrix[row].T - planned[row]).square().sum(-1)
        return miss + reading.config.pull * (a - answer[row]).square().sum(-1)

    for row in range(3):
        assert ((action[row] >= low[row]) & (action[row] <= high[row])).all()
        assert cost(action[row], row) <= cost(grid, row).min() + 1e-4


def test_a_coupling_that_the_flow_never_saw_is_made_up_for(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    """The flow of the tests has learned gains, and none of its regimes pulls to a side."""

    def miss(reading: ReadingConfig | None) -> float:
        class Wander:
            obs_dim, act_dim = 3, 2

            def act(self, obs: np.ndarray) -> np.ndarray:
                return plans.pop()

            def reset(self, rows: np.ndarray | None = None) -> None:
                pass

        plans = [(0.5 * vehicle.actions(20, 50 + t) + torch.tensor([0.4, 0.0])).numpy() for t in range(20)]
        policy = ReshapedPolicy(Wander(), vehicle.model, flow, vehicle.coder, ReshapeConfig(reading=reading))
        obs, missed = vehicle.poses(20, 3), []
        for _ in range(20):
            planned = torch.as_tensor(plans[-1])
            after = vehicle.drive(obs, torch.as_tensor(policy.act(obs.numpy())) @ PULLS.T)
            missed.append(vehicle.wrapped(after - vehicle.drive(obs, planned)).norm(dim=-1))
            obs = after
        return float(torch.stack(missed[8:]).mean())

    assert miss(ReadingConfig()) < 0.5 * miss(None)


@pytest.mark.parametrize("options", [{"memory": 0.0}, {"memory": 1.1}, {"prior": 0.0}, {"pull": 0.0}, {"sweeps": 0}])
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="memory must be in"):
        ReadingConfig(**options)
