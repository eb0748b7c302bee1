"""Actors: log-probabilities against torch.distributions, members against lone actors, JSON and back."""

import json

import numpy as np
import pytest
import torch
from torch import distributions as td

from policies.actor import ActorConfig, ActorPolicy, Distribution, Sigma, StackedGaussianActor
from policies.networks import generators
from policies.normalizer import Normalizer

UNI_O4 = ActorConfig(hidden=(16,), sigma=Sigma.head, log_std_min=-5.0, log_std_max=0.0, init="orthogonal")
IQL = ActorConfig(hidden=(16,))
SAC = ActorConfig(hidden=(16,), distribution=Distribution.tanh_gaussian, sigma=Sigma.head)
SB3 = ActorConfig(hidden=(16,), squash_mean=False, sigma=Sigma.clamped_head, activation="tanh")
CONFIGS = {"uni_o4": UNI_O4, "iql": IQL, "sac": SAC, "sb3": SB3}


def make(config: ActorConfig, population: int = 2, seed: int = 3) -> StackedGaussianActor:
    normalizer = Normalizer(5).fit(torch.randn(50, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1)
    return StackedGaussianActor(5, 2, generators(seed, population), config, normalizer)


@pytest.mark.parametrize("name", CONFIGS)
def test_log_prob_is_that_of_the_distribution(name):
    actor = make(CONFIGS[name])
    mean, log_std = actor(torch.randn(2, 40, 5))
    noise = torch.randn(2, 40, 2)
    action, log_prob = actor.sample(mean, log_std, noise)
    base = td.Normal(mean, log_std.exp())
    if name == "sac":
        base = td.TransformedDistribution(base, td.TanhTransform(cache_size=1))
    inside = action if name != "sac" else action.clamp(-0.999, 0.999)
    expected = base.log_prob(inside).sum(-1)
    torch.testing.assert_close(actor.log_prob(mean, log_std, inside), expected, rtol=1e-4, atol=1e-4)
    moderate = (action.abs() < 0.999).all(-1) | torch.tensor(name != "sac")
    torch.testing.assert_close(
        log_prob[moderate], actor.log_prob(mean, log_std, action)[moderate], rtol=1e-3, atol=1e-3
    )


def test_the_density_of_a_tanh_gaussian_integrates_to_one():
    config = ActorConfig(hidden=(8,), distribution=Distribution.tanh_gaussian, log_std_init=-0.5)
    actor = StackedGaussianActor(3, 1, generators(0, 1), config)
    mean, log_std = actor(torch.randn(1, 1, 3))
    grid = torch.linspace(-0.9999, 0.9999, 20001).view(1, -1, 1)
    density = actor.log_prob(mean.expand(1, 20001, 1), log_std.expand(1, 20001, 1), grid).exp()
    assert torch.trapezoid(density[0], grid[0, :, 0]).item() == pytest.approx(1.0, abs=2e-3)


def test_actions_at_the_limits_have_a_finite_log_prob_and_gradient():
    actor = make(SAC, 1)
    mean, log_std = actor(torch.randn(1, 4, 5))
    actor.log_prob(mean, log_std, torch.tensor([[1.0, -1.0]]).expand(1, 4, 2)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in actor.parameters())


def test_uni_o4_sigma_stays_in_its_range():
    actor = make(UNI_O4)
    with torch.no_grad():
        actor.net.layers[-1].weight.mul_(1e4)
    log_std = actor(torch.randn(2, 100, 5))[1]
    assert log_std.min() >= -5.0 and log_std.max() <= 0.0 and log_std.max() > -1e-3 and log_std.min() < -4.99


@pytest.mark.parametrize("name", CONFIGS)
def test_a_member_is_the_lone_actor_seeded_like_it(name):
    stack, obs = make(CONFIGS[name], 3), torch.randn(10, 5)
    for p in range(3):
        alone = make(CONFIGS[name], 1, seed=3 + p)
        torch.testing.assert_close(stack.mode(obs)[p], alone.mode(obs)[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stack.member(p).mode(obs)[0], alone.mode(obs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_actor_returns_from_json_and_weights_bit_for_bit(name):
    actor, obs = make(CONFIGS[name]), torch.randn(10, 5)
    again = StackedGaussianActor.from_spec(json.loads(json.dumps(actor.spec())))
    again.load_state_dict(actor.state_dict())
    assert torch.equal(actor.mode(obs), again.mode(obs))
    assert again.spec() == actor.spec()


def test_a_policy_normalises_raw_observations_and_stays_in_bounds():
    actor = make(SB3)
    policy = ActorPolicy(actor, member=1)
    obs = np.random.default_rng(0).normal(size=(20, 5)) * 100
    action = policy.act(obs)
    assert action.dtype == np.float32 and action.shape == (20, 2) and np.abs(action).max() <= 1.0
    z = actor.normalizer(torch.from_numpy(obs.astype(np.float32)))
    expected = actor.heads(z)[0][1].clamp(-1, 1)
    np.testing.assert_allclose(action, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_rows_of_a_policy_do_not_influence_each_other():
    policy, obs = ActorPolicy(make(IQL)), np.random.default_rng(0).normal(size=(6, 5))
    whole = policy.act(obs)
    np.testing.assert_allclose(np.concatenate([policy.act(row[None]) for row in obs]), whole, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one positive width"):
        ActorConfig(hidden=())
    with pytest.raises(ValueError, match="relu, tanh"):
        ActorConfig(activation="rleu")
    with pytest.raises(LookupError, match="members 0 to 1"):
        make(IQL).member(2)
    with pytest.raises(ValueError, match=r"reads \(B, 5\)"):
        ActorPolicy(make(IQL)).act(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="does not describe"):
        StackedGaussianActor.from_spec({"config": {}})
