"""The gate: it ranks policies as the world does, compares like with like, and sees raw states."""

import pytest
import torch

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.learners.ends import EndModel
from robot_cl.learners.gate import (
    Earning,
    Gate,
    GateConfig,
    Scores,
    accepts,
    disagreement,
    lower_bound,
    scores,
    spearman,
)

OFFSET = 50.0  # the state's mean: a model fed with normalised states (around 0) is far outside its data


def world(obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """A point that drifts away from OFFSET unless it is pushed back: (..., 2), (..., 1) -> (..., 2)."""
    x, v = obs.unbind(-1)
    v = 0.9 * v + 0.1 * (x - OFFSET) + 0.4 * action[..., 0]
    return torch.stack([x + 0.3 * v, v], -1)


def value(obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return -(obs[..., 0] - OFFSET).square()


def gains(count: int) -> torch.Tensor:
    """Feedback gains from pushing away to pushing back, (count, 1, 1)."""
    return torch.linspace(-1.0, 2.0, count).view(-1, 1, 1)


def act(gain: torch.Tensor, obs: torch.Tensor) -> torch.Tensor:
    return (-gain * (obs[..., :1] - OFFSET) - 0.3 * gain * obs[..., 1:]).clamp(-1.0, 1.0)


@pytest.fixture(scope="module")
def data() -> Transitions:
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(3000, 2, generator=rng) + torch.tensor([OFFSET, 0.0])
    action = torch.rand(3000, 1, generator=rng) * 2 - 1
    after = world(obs, action) + 0.01 * torch.randn(3000, 2, generator=rng)
    ended = (after[:, 0] > OFFSET + 2.0).float()
    return Transitions(obs, action, value(obs, action), after, ended, torch.zeros(3000))


@pytest.fixture(scope="module")
def model(data: Transitions) -> Ensemble:
    config = EnsembleConfig(3, 2, (32, 32), (8,))
    ensemble = Ensemble(2, 1, config, generators(0, 3))
    fit(ensemble, data, nll, FitConfig(lr=3e-3, max_steps=300), torch.Generator().manual_seed(1))
    return ensemble.subset(ensemble.elites)


def judged(model: Ensemble, data: Transitions, policies: int = 12, **options) -> torch.Tensor:
    """(policies, E) scores of policies of rising quality."""
    config = GateConfig(horizon=12, starts=16, **options)
    starts = data.obs[:16].unsqueeze(0)
    return scores([model], lambda obs: act(gains(policies), obs), value, starts, policies, config, [5]).each[0]


def true_returns(data: Transitions, policies: int = 12) -> torch.Tensor:
    obs, total = data.obs[100:200].expand(policies, -1, -1), torch.zeros(policies)
    for _ in range(12):
        total += value(obs, obs).mean(-1)
        obs = world(obs, act(gains(policies), obs))
    return total


def test_the_gate_ranks_policies_as_the_world_does(model, data):
    assert spearman(judged(model, data).mean(-1), true_returns(data)) > 0.9


def test_a_random_gate_ranks_nothing(data):
    found = true_returns(data)
    chance = [spearman(torch.rand(12, generator=torch.Generator().manual_seed(i)), found) for i in range(50)]
    assert abs(sum(chance) / 50) < 0.15


def test_policy_value_and_model_all_see_raw_states(model, data):
    seen = []

    def watched(obs, action):
        seen.append(obs)
        return value(obs, action)

    starts = data.obs[:8].unsqueeze(0)
    found = scores([model], lambda obs: act(gains(2) + 1.0, obs), watched, starts, 2, GateConfig(horizon=5), [0])
    assert (torch.cat(seen)[..., 0] - OFFSET).abs().max() < 10.0
    assert found.clamped.max() < 0.2
    norm = Normalizer(2).fit(data.obs)
    wrong = scores([model], lambda obs: act(gains(2), obs), value, norm(starts), 2, GateConfig(horizon=5), [0])
    assert wrong.clamped.min() > 0.15  # the first step alone of normalised states leaves the data


def test_a_policy_compared_with_itself_gains_exactly_nothing(model, data):
    first, second = judged(model, data), judged(model, data)
    assert torch.equal(first, second)
    assert not accepts(first, second, 0.0).any()


def test_policies_of_a_seed_meet_the_same_noise(model, data):
    config, starts = GateConfig(horizon=8), data.obs[:8].unsqueeze(0)
    same = torch.full((3, 1, 1), 1.5)
    each = scores([model], lambda obs: act(same, obs), value, starts, 3, config, [5]).each[0]
    torch.testing.assert_close(each[0], each[1], rtol=1e-5, atol=1e-6)
    other = scores([model], lambda obs: act(same, obs), value, starts, 3, config, [6]).each[0]
    assert (other - each).abs().max() > 1e-5


def test_a_gain_smaller_than_the_models_disagreement_is_not_accepted():
    old = torch.zeros(2, 3)
    new = torch.tensor([[1.0, 1.1, 0.9], [3.0, -1.0, 1.0]])  # mean 1 twice; deviation 0.1 and 2
    torch.testing.assert_close(lower_bound(new, 1.0), torch.tensor([0.9, -1.0]))
    assert accepts(new, old, 1.0).tolist() == [True, False]
    assert accepts(new, old, 0.0).tolist() == [True, True]


def test_a_gain_farther_from_the_clone_than_the_data_tells_of_is_not_accepted():
    gate = Gate(3, 1, 1, 4, GateConfig(reach=0.5), EnsembleConfig(2, 2, (4,), (4,)), Normalizer(3))
    gate.trust.copy_(torch.tensor([[1.0, 1.0, 0.2, 1.0]]))
    better, none = torch.ones(1, 4, 2), torch.zeros(1, 4)
    better[0, 3] = -1.0
    passed = gate.test(Scores(better, none, torch.tensor([[0.4, 0.6, 0.2, 0.1]])))
    assert passed.tolist() == [[True, False, False, False]]  # too far, too far for so little trust, and worse
    assert torch.equal(gate.scores[0, :, 0], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert gate.test(Scores(2.0 * better, none, none + 9.0), paired=False).tolist() == [[True, True, True, False]]


def test_nothing_is_earned_after_an_end(model, data):
    starts, one = data.obs[:8].unsqueeze(0), torch.ones(1, 1, 1)

    def paid(obs, action):
        return torch.ones_like(obs[..., 0])

    for horizon, ends, wanted in ((4, None, 1.0), (4, lambda obs: torch.ones_like(obs[..., 0]).bool(), 0.25)):
        config = GateConfig(horizon=horizon)
        each = scores([model], lambda obs: act(one, obs), paid, starts, 1, config, [0], ends).each
        torch.testing.assert_close(each, torch.full((1, 1, 2), wanted))


def test_it_looks_far_enough_to_see_a_fall_after_two_hundred_steps(model, data):
    starts, one, seen = data.obs[:2].unsqueeze(0), torch.ones(1, 1, 1), list[int]()

    def falls(obs):
        seen.append(1)
        return torch.full_like(obs[..., 0], len(seen) >= 200).bool()

    how = ([model], lambda obs: act(one, obs), lambda obs, action: torch.ones_like(obs[..., 0]), starts, 1)
    each = scores(*how, GateConfig(), [0], falls).each
    torch.testing.assert_close(each, torch.full((1, 1, 2), 200 / GateConfig().horizon))
    assert each.max() < 1.0


def test_members_disagree_most_about_what_the_data_does_not_show(model, data):
    near = disagreement(model, data.obs[:200], data.action[:200])
    far = disagreement(model, data.obs[:200] + 8.0, data.action[:200])
    assert near.shape == (200,) and far.median() > 5.0 * near.median()
    apart = model.changes(data.obs[:1].expand(2, -1, -1), data.action[:1].expand(2, -1, -1))[0] / model.delta_scale
    by_hand = (0.5 * (apart[0, 0] - apart[1, 0])).square().mean().sqrt()  # of two each is as far from their mean
    torch.testing.assert_close(near[0], by_hand)


def test_what_models_disagree_about_costs_its_price(model, data):
    starts, gain, price = data.obs[:8].unsqueeze(0), torch.ones(1, 1, 1), torch.tensor([3.0])

    def judge(asked):
        earning = Earning(torch.tensor(0.5), 0.9, lambda obs: obs[..., 0], asked)
        how = ([model], lambda obs: act(gain, obs), value, starts, 1, GateConfig(horizon=1), [0])
        return scores(*how, earning=earning).each[0, 0]

    cost = 0.5 * 3.0 * disagreement(model, starts[0], act(1.0, starts[0])).mean()
    torch.testing.assert_close(judge(None) - judge(price), cost.expand(2), rtol=1e-3, atol=1e-4)


def test_the_price_is_in_deviations_of_the_reward_for_what_is_rare_in_the_data(model, data):
    config = GateConfig(starts=4, doubt=2.0)
    gate = Gate(2, 1, 1, 3, config, EnsembleConfig(3, 2, (32, 32), (8,)), Normalizer(2))
    gate.models[0].load_state_dict(model.state_dict())
    rare = disagreement(model, data.obs, data.action).quantile(0.999)
    torch.testing.assert_close(gate.price(data), (2.0 * model.reward_scale / rare).view(1))
    gate.config = GateConfig(starts=4)
    assert gate.price(data) is None


def test_ends_are_learned_from_the_data_and_none_are_seen_where_it_has_none(data):
    rngs, norm = generators(3, 2), Normalizer(2).fit(data.obs)
    model = EndModel(2, rngs, norm)
    assert not model(data.next_obs).any()
    model.fit(data, rngs, 300)
    truth = data.terminated.bool()
    for said in model(data.next_obs):
        assert (said == truth).float().mean() > 0.97
        assert said[truth].float().mean() > 0.7


def test_rank_correlation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    assert spearman(x, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert spearman(x, torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(0.8944, abs=1e-4)


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        GateConfig(horizon=0)
    with pytest.raises(ValueError, match="negative"):
        GateConfig(confidence=-1.0)
