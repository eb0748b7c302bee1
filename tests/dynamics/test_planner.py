import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.planner import (
    MPPI,
    ModelRollout,
    PlannerConfig,
    adapt_temperature,
    effective_share,
    softmax_weights,
)
from policies.networks import generators
from policies.policy import Policy


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reach(obs: Tensor, actions: Tensor) -> Tensor:
    """A point moved by 0.3 · action per step earns minus its squared distance from the origin."""
    where, total = obs.unsqueeze(1).expand(-1, actions.shape[1], -1), torch.zeros(actions.shape[:2])
    for h in range(actions.shape[2]):
        where = where + 0.3 * actions[:, :, h]
        total = total - where.square().sum(-1)
    return total


def planner(evaluate: object = reach, **options: object) -> MPPI:
    return MPPI(evaluate, 2, 2, PlannerConfig(**options), rng())  # type: ignore[arg-type]


def drive(policy: MPPI, obs: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        obs = obs + 0.3 * policy.act(obs)
    return obs


def test_planning_brings_every_row_to_its_goal() -> None:
    end = drive(planner(), np.array([[1.0, -1.0], [-0.5, 0.7], [0.0, 0.0]], dtype=np.float32), 12)
    assert np.linalg.norm(end, axis=1).max() < 0.15


def test_a_planner_is_a_policy() -> None:
    assert isinstance(planner(), Policy)


def test_weights_are_the_softmax_of_return_over_temperature() -> None:
    weights = softmax_weights(torch.tensor([[0.0, 2.0]]), torch.tensor([0.5]))
    torch.testing.assert_close(weights[0, 1] / weights[0, 0], torch.tensor(2.0 / 0.5).exp())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_temperature_adapts_until_ten_to_thirty_percent_of_samples_count(scale: float) -> None:
    returns = scale * torch.randn(5, 256, generator=rng())
    weights, temperature = adapt_temperature(returns, torch.full((5,), 1.0), (0.1, 0.3))
    share = effective_share(weights)
    assert ((share >= 0.1) & (share <= 0.3)).all()
    torch.testing.assert_close(weights, softmax_weights(returns, temperature))


def test_equal_returns_get_equal_weights() -> None:
    weights, temperature = adapt_temperature(torch.zeros(1, 8), torch.ones(1), (0.1, 0.3))
    torch.testing.assert_close(weights, torch.full((1, 8), 0.125))
    assert temperature.isfinite().all() and (temperature > 0).all()


def test_candidates_and_plans_stay_within_bounds() -> None:
    seen: list[Tensor] = []

    def spy(obs: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions)
        return 100.0 * actions.sum((-1, -2))

    plan = planner(spy, sigma=3.0).plan(torch.zeros(2, 2))
    assert seen[0].abs().max() == 1.0
    assert plan.abs().max() <= 1.0


def test_sigma_is_applied_to_the_noise() -> None:
    def spread(sigma: float) -> float:
        seen: list[Tensor] = []
        planner(lambda o, a: seen.append(a) or reach(o, a), sigma=sigma, samples=2000).plan(torch.zeros(1, 2))  # type: ignore[func-returns-value]
        return float(seen[0].std())

    assert abs(spread(0.1) - 0.1) < 0.01
    assert abs(spread(0.2) - 0.2) < 0.01


def test_the_next_decision_starts_from_the_plan_shifted_by_one_step() -> None:
    seen: list[Tensor] = []
    policy = planner(lambda o, a: seen.append(a) or reach(o, a))  # type: ignore[func-returns-value]
    first = policy.plan(torch.tensor([[1.0, -1.0]]))
    policy.plan(torch.tensor([[0.9, -0.9]]))
    torch.testing.assert_close(seen[1][:, 0], torch.cat([first[:, 1:], first[:, -1:]], 1))


def test_reset_forgets_the_plans_of_these_rows_only() -> None:
    seen: list[Tensor] = []
    policy = planner(lambda o, a: seen.append(a) or reach(o, a))  # type: ignore[func-returns-value]
    obs = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    policy.plan(obs)
    policy.reset(np.array([True, False]))
    policy.plan(obs)
    assert (seen[1][0, 0] == 0).all() and (seen[1][1, 0] != 0).any()


def test_smoothness_correlates_a_perturbation_with_the_one_before() -> None:
    seen: list[Tensor] = []
    planner(lambda o, a: seen.append(a) or reach(o, a), smoothness=0.9, sigma=0.1, samples=4000).plan(torch.zeros(1, 2))  # type: ignore[func-returns-value]
    a = seen[0][0, 1:, :, 0]
    assert abs(float(torch.corrcoef(a[:, 3:5].T)[0, 1]) - 0.9) < 0.03
    assert abs(float(a[:, 4].std()) - 0.1) < 0.01


def test_a_candidate_that_is_not_finite_has_no_say() -> None:
    def evaluate(obs: Tensor, actions: Tensor) -> Tensor:
        returns = reach(obs, actions)
        returns[:, 1::2] = torch.nan
        returns[:, 2::4] = -torch.inf
        return returns

    policy = planner(evaluate)
    assert np.isfinite(policy.act(np.ones((3, 2)))).all()
    end = drive(policy, np.array([[1.0, -1.0]] * 3, dtype=np.float32), 12)
    assert np.linalg.norm(end, axis=1).max() < 0.25
    nothing = planner(lambda o, a: torch.full(a.shape[:2], torch.nan))
    assert np.isfinite(nothing.act(np.ones((1, 2)))).all()


def test_a_share_of_candidates_is_the_policys() -> None:
    seen: list[Tensor] = []
    config = PlannerConfig(samples=100, policy_share=0.25)
    policy = MPPI(
        lambda o, a: seen.append(a) or reach(o, a),  # type: ignore[func-returns-value]
        2, 2, config, rng(), lambda obs, n: torch.full((len(obs), n, 5, 2), 0.77),
    )
    policy.plan(torch.zeros(1, 2))
    assert int((seen[0] == 0.77).all(-1).all(-1).sum()) == 25


# -- rollouts through an ensemble -------------------------------------------------------------------------------------


def ensemble(members: int = 3, elites: int = 3) -> Ensemble:
    config = EnsembleConfig(members=members, elites=elites, hidden=(8,), reward_hidden=(8,))
    return Ensemble(2, 2, config, generators(0, members))


def test_every_candidate_is_rolled_through_one_member() -> None:
    model = ensemble()
    obs, actions = torch.randn(2, 2, generator=rng()), torch.rand(2, 7, 4, 2, generator=rng()) * 2 - 1
    got = ModelRollout(model, discount=0.9)(obs, actions)
    for b in range(2):
        for k in range(7):
            member, state, total = torch.tensor([(b * 7 + k) % 3]), obs[b : b + 1], 0.0
            for h in range(4):
                state, reward = model.predict(state, actions[b : b + 1, k, h], member)
                total += 0.9**h * reward.item()
            assert got[b, k].item() == pytest.approx(total, abs=1e-4)


def test_only_rows_that_are_awake_are_evaluated() -> None:
    model, asked = ensemble(), []

    def reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        asked.append(len(obs))
        return -next_obs.square().sum(-1)

    mppi = MPPI(ModelRollout(model, reward), 2, 2, PlannerConfig(samples=30, horizon=2), rng())
    mppi.awake = torch.tensor([True, False, True])
    plan = mppi.plan(torch.randn(3, 2, generator=rng()))
    assert asked == [60, 60] and plan.isfinite().all() and plan[0].abs().max() > 0
    mppi.awake = torch.zeros(3, dtype=torch.bool)
    assert mppi.plan(torch.zeros(3, 2)).isfinite().all() and len(asked) == 2


def test_half_precision_ranks_candidates_as_full_precision_does() -> None:
    model = ensemble()
    obs, actions = torch.randn(1, 2, generator=rng()), torch.rand(1, 60, 4, 2, generator=rng()) * 2 - 1
    full, half = ModelRollout(model), ModelRollout(model, half=True)
    exact, near = full(obs, actions)[0], half(obs, actions)[0]
    assert not torch.equal(exact, near) and (exact - near).abs().max() < 0.05 * exact.std()
    with torch.no_grad():
        model.state_net.layers[-1].bias += 1.0  # type: ignore[operator,union-attr]
    full.refresh()
    half.refresh()
    assert (full(obs, actions)[0] - half(obs, actions)[0]).abs().max() < 0.05 * exact.std()
    assert (full(obs, actions)[0] - exact).abs().max() > 0.2 * exact.std()


def test_only_elites_are_asked_and_refresh_follows_the_model() -> None:
    model = ensemble(members=4, elites=2)
    obs, actions = torch.zeros(1, 2), torch.zeros(1, 6, 3, 2)
    rollout = ModelRollout(model)
    before = rollout(obs, actions)
    torch.testing.assert_close(before[0, :2].repeat(3), before[0])
    assert before[0, 0] != before[0, 1]
    model.elites.copy_(torch.tensor([2, 3]))
    torch.testing.assert_close(rollout(obs, actions), before)
    rollout.refresh()
    assert not torch.isin(rollout(obs, actions), before).any()


def test_a_known_reward_and_a_last_value_replace_and_extend_the_learned_one() -> None:
    model, calls = ensemble(), []

    def reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        calls.append((obs, action, next_obs))
        return torch.ones(len(obs))

    rollout = ModelRollout(model, reward, lambda s: torch.full((len(s),), 10.0), discount=0.5)
    got = rollout(torch.zeros(1, 2), torch.zeros(1, 5, 3, 2))
    torch.testing.assert_close(got, torch.full((1, 5), 1.75 + 1.25))
    torch.testing.assert_close(calls[1][0], calls[0][2])


def test_proposals_follow_the_actor_through_the_model() -> None:
    model = ensemble()
    propose = ModelRollout(model).proposals(lambda s: torch.tanh(s), 3, rng(), 0.0)
    obs = torch.randn(2, 2, generator=rng(1))
    got = propose(obs, 4)
    assert got.shape == (2, 4, 3, 2)
    torch.testing.assert_close(got[:, :, 0], torch.tanh(obs).unsqueeze(1).expand(2, 4, 2))
    state, _ = model.predict(obs[1:], torch.tanh(obs[1:]), torch.tensor([4 % 3]))
    torch.testing.assert_close(got[1, 0, 1], torch.tanh(state[0]))


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"samples": 1}, {"sigma": 0.0}, {"effective": (0.3, 0.1)}, {"policy_share": 1.0}]
)
def test_an_impossible_planner_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        PlannerConfig(**options)


def test_a_policy_that_proposes_nearly_all_leaves_the_plan_among_the_candidates() -> None:
    def nothing(obs: Tensor, count: int) -> Tensor:
        return torch.zeros(len(obs), count, 5, 2)

    greedy = MPPI(reach, 2, 2, PlannerConfig(samples=8, policy_share=0.96), rng(), nothing)
    assert np.isfinite(greedy.act(np.ones((3, 2), dtype=np.float32))).all()
