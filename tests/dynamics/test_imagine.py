import pytest
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.imagine import imagine
from policies.networks import generators


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ensemble(gaussian: bool = True) -> Ensemble:
    config = EnsembleConfig(members=4, elites=2, hidden=(8,), reward_hidden=(8,), gaussian=gaussian)
    model = Ensemble(3, 2, config, generators(0, 4))
    obs = torch.randn(200, 3, generator=rng())
    step = 0.1 * torch.randn(200, 3, generator=rng(1))
    model.measure(obs, torch.randn(200, 2, generator=rng(2)), torch.randn(200, generator=rng(3)), obs + step)
    model.elites.copy_(torch.tensor([1, 3]))
    return model


def act(obs: Tensor) -> Tensor:
    return torch.tanh(obs[:, :2])


START = 0.3 * torch.randn(10, 3, generator=rng(9))


def test_a_rollout_is_the_members_own_step_after_step() -> None:
    model = ensemble(gaussian=False)
    got = imagine(model, act, START, 4, rng(), margin=100.0, new_member_each_step=False)
    member = model.route(10, rng())
    obs = START
    for h in range(4):
        torch.testing.assert_close(got.obs[h], obs)
        obs, reward = model.predict(obs, act(obs), member)
        torch.testing.assert_close(got.next_obs[h], obs)
        torch.testing.assert_close(got.reward[h], reward)
    assert got.clamped == 0.0 and got.alive.all()


def test_only_elites_imagine_and_change_at_each_step() -> None:
    model, asked = ensemble(), []
    predict = model.predict
    model.predict = lambda o, a, member, r=None: asked.append(member) or predict(o, a, member, r)  # type: ignore[method-assign,assignment,func-returns-value]
    imagine(model, act, START, 3, rng())
    assert set(torch.stack(asked).unique().tolist()) == {1, 3}
    assert not torch.equal(asked[0], asked[1])


def test_states_and_rewards_stay_in_the_widened_range_of_the_data_and_the_share_is_told() -> None:
    model = ensemble(gaussian=False)
    with torch.no_grad():
        model.delta_norm.mean.fill_(2.0)  # drifts out of the data
        model.reward_norm.mean.fill_(100.0)
    got = imagine(model, act, START, 6, rng(), margin=0.1)
    width = model.obs_high - model.obs_low
    assert (got.next_obs <= model.obs_high + 0.1 * width + 1e-6).all()
    assert (got.next_obs[-1] == model.obs_high + 0.1 * width).all()
    assert got.reward.max() <= model.reward_range[1] + 0.1 * (model.reward_range[1] - model.reward_range[0])
    assert 0.5 < got.clamped <= 1.0


def test_an_ended_rollout_gives_no_more_rows() -> None:
    model = ensemble()
    got = imagine(model, act, START, 5, rng(), ends=lambda o, a, n: torch.arange(10) < 4)
    assert got.alive[0].all() and got.alive[1:].sum(1).tolist() == [6] * 4
    obs, _, reward, _, terminated = got.rows()
    assert len(obs) == len(reward) == 10 + 4 * 6
    assert terminated.sum() == 4
    torch.testing.assert_close(got.returns(0.5)[:4], got.reward[0, :4])


def test_discounted_return_is_the_sum_along_the_rollout() -> None:
    got = imagine(ensemble(), act, START, 3, rng())
    torch.testing.assert_close(got.returns(0.5), got.reward[0] + 0.5 * got.reward[1] + 0.25 * got.reward[2])


def test_the_same_generator_imagines_the_same() -> None:
    one, two = (imagine(ensemble(), act, START, 3, rng(4)).next_obs for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, imagine(ensemble(), act, START, 3, rng(5)).next_obs)


def test_a_broken_member_never_lets_a_nan_out() -> None:
    model = ensemble()
    with torch.no_grad():
        model.state_net.layers[-1].weight[1] = torch.nan  # type: ignore[index]
        model.reward_net.layers[-1].weight[3] = torch.inf  # type: ignore[index]
    got = imagine(model, act, START, 5, rng())
    assert got.next_obs.isfinite().all() and got.reward.isfinite().all()


def test_an_empty_start_is_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        imagine(ensemble(), act, START[:0], 3, rng())
