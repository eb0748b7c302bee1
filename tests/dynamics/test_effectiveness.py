"""What executed actions amount to, read by least squares, and answers corrected by it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow
from dynamics.effectiveness import Effectiveness, EffectivenessConfig, effective_action
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy
from policies.networks import generators

PULLS = torch.tensor([[1.0, 0.0], [0.6, -1.0]])  # the steering is reversed, and driving turns the vehicle


def test_the_effective_action_is_the_one_that_explains_the_step(vehicle: SimpleNamespace) -> None:
    obs, action = vehicle.poses(50, 0), 0.6 * vehicle.actions(50, 1)
    amounted = action @ PULLS.T
    torch.testing.assert_close(
        effective_action(vehicle.model, obs, action, vehicle.drive(obs, amounted)), amounted, atol=0.15, rtol=0.0
    )


def test_a_step_that_the_model_foretells_of_another_action_is_that_action(vehicle: SimpleNamespace) -> None:
    """No robot in between, and so close by that it is linear. Headings end on both sides of ±π."""
    obs, action = vehicle.poses(200, 2), 0.6 * vehicle.actions(200, 3)
    other = action + 0.02 * vehicle.actions(200, 4)
    obs[:, 2] += torch.pi - vehicle.model.belief(obs, action)[0][:, 2]
    obs = vehicle.wrapped(obs)
    after, expected = (vehicle.model.belief(obs, a)[0] for a in (other, action))
    assert (after[:, 2] - expected[:, 2]).abs().max() > 6.0
    found = effective_action(vehicle.model, obs, action, after)
    torch.testing.assert_close(found, other, atol=3e-4, rtol=0.0)
    far = effective_action(vehicle.model, obs, action, obs + 100.0)
    assert float((far - action).abs().max()) == pytest.approx(5.0)  # a linearisation is no evidence that far away


def test_a_command_without_effect_counts_as_what_was_executed() -> None:
    model = Ensemble(2, 2, EnsembleConfig(1, 1, (8,), (4,)), generators(0, 1))
    with torch.no_grad():
        model.state_net.layers[0].weight[:, :, 3] = 0.0  # (members, 8, obs and action)
    obs, executed = torch.zeros(4, 2), torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    amounted = effective_action(model, obs, executed, obs + 0.1)
    assert torch.equal(amounted[:, 1], executed[:, 1]) and not torch.equal(amounted[:, 0], executed[:, 0])


def test_commands_that_the_model_cannot_tell_apart_stop_no_robot() -> None:
    """Two wheels on one axle: large, equal columns leave float32 nothing of the ridge between them."""
    model = Ensemble(2, 2, EnsembleConfig(1, 1, (8,), (4,)), generators(0, 1))
    with torch.no_grad():
        first, *_, last = (layer.weight for layer in model.state_net.layers)
        first[:, :, 3] = first[:, :, 2]  # (members, 8, obs and action)
        last *= 1e4
    obs, executed = torch.zeros(4, 2), torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    amounted = effective_action(model, obs, executed, obs + 1.0)
    estimate = Effectiveness(4, 2, EffectivenessConfig())
    estimate.observe(executed, amounted, torch.ones(4, dtype=torch.bool))
    lost = amounted.isnan().any(-1)
    assert lost.any() and torch.equal(estimate.matrix()[lost], torch.eye(2).expand(int(lost.sum()), 2, 2))
    assert estimate.matrix().isfinite().all()


def test_the_matrix_is_the_regularised_least_squares_of_all_steps_the_latest_counting_most() -> None:
    """Equal to what numpy makes of the stacked rows √weight (executed, amounted) below √prior (I, I)."""
    config, rng = EffectivenessConfig(forgetting=0.7, prior=0.3), np.random.default_rng(0)
    executed, amounted = rng.uniform(-1, 1, (9, 3)), rng.uniform(-1, 1, (9, 3))
    estimate = Effectiveness(1, 3, config)
    for a, b in zip(executed, amounted, strict=True):
        row = (torch.tensor(x, dtype=torch.float32).unsqueeze(0) for x in (a, b))
        estimate.observe(*row, torch.ones(1, dtype=torch.bool))
    weights = np.sqrt(0.7 ** np.arange(8, -1, -1))[:, None]
    known = np.vstack([weights * executed, np.sqrt(0.3) * np.eye(3)])
    wanted = np.vstack([weights * amounted, np.sqrt(0.3) * np.eye(3)])
    found = np.linalg.lstsq(known, wanted, rcond=None)[0].T
    np.testing.assert_allclose(estimate.matrix()[0].numpy(), found, atol=1e-5)


def observed(matrix: Tensor, steps: int, config: EffectivenessConfig | None = None) -> Effectiveness:
    estimate, rng = Effectiveness(3, 2, config or EffectivenessConfig(forgetting=1.0)), torch.Generator().manual_seed(0)
    for _ in range(steps):
        executed = torch.rand(3, 2, generator=rng) * 2 - 1
        estimate.observe(executed, executed @ matrix.T, torch.tensor([True, True, False]))
    return estimate


def test_a_full_matrix_is_read_from_the_rows_that_are_fresh_alone() -> None:
    found = observed(PULLS, 40).matrix()
    torch.testing.assert_close(found[:2], PULLS.expand(2, 2, 2), atol=0.02, rtol=0.0)
    assert torch.equal(found[2], torch.eye(2))


def test_what_is_not_finite_is_not_observed_and_forgetting_concerns_one_row() -> None:
    estimate = observed(PULLS, 40)
    before = estimate.matrix()
    estimate.observe(torch.ones(3, 2), torch.tensor([[torch.nan, 0.0]]).expand(3, 2), torch.ones(3, dtype=torch.bool))
    assert torch.equal(estimate.matrix(), before)
    estimate.forget(torch.tensor([True, False, False]))
    assert torch.equal(estimate.matrix()[0], torch.eye(2)) and torch.equal(estimate.matrix()[1:], before[1:])
    new = Effectiveness(3, 2, estimate.config)
    for each in (estimate, new):
        each.observe(torch.ones(3, 2), torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
    assert torch.equal(estimate.matrix()[0], new.matrix()[0])  # nor does it weigh on what comes


def test_a_correction_is_the_best_compromise_within_the_bounds() -> None:
    estimate, rng = observed(PULLS, 40), torch.Generator().manual_seed(1)
    planned, answer = (torch.rand(3, 2, generator=rng) * 2 - 1 for _ in range(2))
    low, high = torch.full((3, 2), -0.7), torch.full((3, 2), 0.5)
    action, matrix = estimate.corrected(planned, answer, low, high), estimate.matrix()
    grid = torch.cartesian_prod(torch.linspace(-0.7, 0.5, 121), torch.linspace(-0.7, 0.5, 121))

    def cost(a: Tensor, row: int) -> Tensor:
        miss = (a @ matrix[row].T - planned[row]).square().sum(-1)
        return miss + estimate.config.pull * (a - answer[row]).square().sum(-1)

    for row in range(3):
        assert ((action[row] >= low[row]) & (action[row] <= high[row])).all()
        assert cost(action[row], row) <= cost(grid, row).min() + 1e-4


class Wander:
    """Plans of its own, whatever it sees: ahead, and to either side."""

    obs_dim, act_dim = 3, 2

    def __init__(self, vehicle: SimpleNamespace):
        self.plans = [(0.5 * vehicle.actions(20, 50 + t) + torch.tensor([0.4, 0.0])).numpy() for t in range(40)]

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.plans.pop()

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def wanderer(vehicle: SimpleNamespace, flow: ActionFlow, **options: object) -> ReshapedPolicy:
    return ReshapedPolicy(Wander(vehicle), vehicle.model, flow, vehicle.coder, ReshapeConfig(**options))  # type: ignore


def driven(vehicle: SimpleNamespace, policy: ReshapedPolicy, obs: Tensor, steps: int, pull: Tensor) -> Tensor:
    """Where these steps lead, commands turned by `pull`; bounds of every action are looked at."""
    for _ in range(steps):
        action = torch.as_tensor(policy.act(obs.numpy()))
        assert action.abs().max() <= 1.0 and policy.last.moved.max() <= policy.config.trust + 1e-6
        obs = vehicle.drive(obs, action @ pull.T)
    return obs


def test_a_coupling_that_the_flow_never_saw_is_made_up_for(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    """The flow of the tests has learned gains, and none of its regimes pulls to a side."""

    def miss(effectiveness: EffectivenessConfig | None) -> float:
        policy = wanderer(vehicle, flow, effectiveness=effectiveness)
        obs, missed = vehicle.poses(20, 3), []
        for _ in range(20):
            planned = torch.as_tensor(policy.policy.plans[-1])  # type: ignore[attr-defined]
            after = driven(vehicle, policy, obs, 1, PULLS)
            missed.append(vehicle.wrapped(after - vehicle.drive(obs, planned)).norm(dim=-1))
            obs = after
        return float(torch.stack(missed[8:]).mean())

    assert miss(EffectivenessConfig()) < 0.5 * miss(None)


def test_the_matrix_is_of_the_present_change_alone(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    policy, one = wanderer(vehicle, flow, effectiveness=EffectivenessConfig()), torch.eye(2)

    def found() -> Tensor:
        assert policy._effectiveness is not None
        return policy._effectiveness.matrix()

    obs = driven(vehicle, policy, vehicle.poses(20, 3), 6, one)
    assert torch.equal(found(), one.expand(20, 2, 2))  # nothing has changed
    obs = driven(vehicle, policy, obs, 12, PULLS)
    torch.testing.assert_close(found().mean(0), PULLS, atol=0.25, rtol=0.0)
    policy.reset(np.array([True] + [False] * 19))
    assert torch.equal(found()[0], one) and not torch.equal(found()[1], one)
    driven(vehicle, policy, obs, 8, one)
    over = ~torch.as_tensor(policy.last.active)
    assert over.any() and torch.equal(found()[over], one.expand(int(over.sum()), 2, 2))


def test_a_correction_stays_within_the_trust_region(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    policy = wanderer(vehicle, flow, effectiveness=EffectivenessConfig(), trust=0.2)
    driven(vehicle, policy, vehicle.poses(20, 3), 12, PULLS)
    assert policy.last.moved.max() > 0.19


@pytest.mark.parametrize(
    "options", [{"forgetting": 0.0}, {"forgetting": 1.1}, {"prior": 0.0}, {"pull": 0.0}, {"sweeps": 0}]
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="forgetting must be in"):
        EffectivenessConfig(**options)
