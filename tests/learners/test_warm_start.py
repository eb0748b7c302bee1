"""Going on online from a policy: the critics first, then near an anchor, and what is published meanwhile."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from policies.actor import ActorConfig, Sigma, StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.learners.cal_ql import CalQL, CalQLConfig
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.warm_start import gaussian_kl
from robot_cl.learners.wsrl import WSRL, WSRLConfig

SHAPE = ActorConfig(hidden=(16, 16))
SMALL = {"actor": SHAPE, "critic": CriticConfig(hidden=(16, 16)), "critics": 3, "lr": 3e-3}
LEARNERS = {
    "wsrl": (WSRL, lambda **options: WSRLConfig(**SMALL, **options)),
    "cal_ql": (CalQL, lambda **options: CalQLConfig(**SMALL, drawn=2, **options)),
}


def warm(name, transitions, **options):
    """A learner that has come online with a loaded policy."""
    cls, config = LEARNERS[name]
    policy = StackedGaussianActor(4, 2, generators(5, 1), SHAPE, Normalizer(4).fit(transitions(300).obs))
    learner = cls(config(**options), 4, 2, actor=policy)
    learner.prepare(transitions(300))
    return learner, policy


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_divergence_is_torch_s_own_and_the_same_after_a_tanh():
    mean, log_std, other_mean, other_log_std = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    one, other = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), (other_mean, other_log_std)))
    wanted = torch.distributions.kl_divergence(one, other).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, log_std, other_mean, other_log_std), wanted)
    assert (gaussian_kl(mean, log_std, mean, log_std) == 0.0).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_critics_learn_alone_until_the_policy_may_move(name, transitions):
    learner, _ = warm(name, transitions, critic_only=3)
    for step in range(4):
        policy, values = weights(learner.actor), weights(learner.soft.critic)
        learner.update_online(transitions(1, 32, seed=step), None)
        assert not torch.equal(values, weights(learner.soft.critic))
        assert torch.equal(policy, weights(learner.actor)) == (step < 3)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_stays_near_an_anchor_and_goes_on_where_the_anchor_follows(name, transitions):
    apart = {}
    for weight, tau in ((1e-9, 0.0), (100.0, 0.0), (100.0, 0.1)):
        learner, policy = warm(name, transitions, critic_only=0, anchor=weight, anchor_tau=tau, anchor_lr=0.0)
        for step in range(60):
            learner.update_online(transitions(1, 64, seed=step), None)
        obs = transitions(200, seed=99).obs
        apart[weight, tau] = gaussian_kl(*learner.actor(obs), *policy(obs)).mean().item()
    assert 3.0 * apart[100.0, 0.0] < apart[100.0, 0.1] < apart[1e-9, 0.0]


def test_the_weight_of_the_anchor_adapts_until_the_policy_is_as_far_away_as_wanted(transitions):
    found = []
    for wanted in (0.02, 0.2):
        learner, _ = warm("wsrl", transitions, critic_only=0, kl_per_action=wanted, anchor_tau=0.0, anchor_lr=0.03)
        for step in range(400):
            metrics = learner.update_online(transitions(1, 64, seed=step % 50), None)
        found.append((metrics["apart"].item(), metrics["anchor_weight"].item()))
    (near, firm), (far, loose) = found
    assert 0.5 < near / (2 * 0.02) < 2.0 and 0.5 < far / (2 * 0.2) < 2.0
    assert firm > 2.0 * loose


@pytest.mark.parametrize("name", LEARNERS)
def test_an_anchor_that_follows_is_the_average_of_the_policies_and_published(name, transitions):
    learner, policy = warm(name, transitions, critic_only=2, anchor_tau=0.25)
    average = weights(policy)
    for step in range(5):
        learner.update_online(transitions(1, 32, seed=step), None)
        average = 0.75 * average + 0.25 * weights(learner.actor)
    torch.testing.assert_close(weights(learner.policy()), average)
    assert not torch.equal(weights(learner.actor), average)  # which acts and learns
    still, _ = warm(name, transitions, critic_only=0, anchor_tau=0.0)
    still.update_online(transitions(1, 32), None)
    assert torch.equal(weights(still.policy()), weights(still.actor))


@pytest.mark.parametrize("name", LEARNERS)
def test_offline_too_the_critics_follow_the_clone_before_it_moves_and_online_begins_with_them(name, transitions):
    cls, config = LEARNERS[name]
    learner = cls(config(cloning=4, critic_only=3), 4, 2)
    learner.prepare(transitions(300))
    moved = []
    for step in range(14):
        policy, values = weights(learner.actor), weights(learner.soft.critic)
        if step < 9:
            learner.update_offline(transitions(1, 32, seed=step))
        else:
            learner.update_online(transitions(1, 32, seed=step), None)
        after = weights(learner.actor), weights(learner.soft.critic)
        moved.append((not torch.equal(policy, after[0]), not torch.equal(values, after[1])))
    policy, both, critics = (True, False), (True, True), (False, True)
    assert moved == [policy] * 4 + [critics] * 3 + [both] * 2 + [critics] * 3 + [both] * 2


def test_a_run_that_continues_an_online_one_waits_and_anchors_anew(transitions):
    first, _ = warm("wsrl", transitions, critic_only=2)
    for step in range(6):
        first.update_online(transitions(1, 32, seed=step), None)
    second = WSRL(first.config, 4, 2, actor=first.policy())
    second.adopt(first.state_dict())
    stood = weights(second.actor)
    assert second.warm.weight().item() == pytest.approx(second.config.anchor)
    second.update_online(transitions(1, 32, seed=9), None)
    assert torch.equal(stood, weights(second.actor)) and torch.equal(stood, weights(second.warm.policy))


def test_the_published_average_is_that_of_the_policies_that_acted(transitions):
    options = {"actor": replace(SHAPE, hidden=(16,)), "critic": CriticConfig(hidden=(16,)), "minibatch": 16}
    learner = PPO(PPOConfig(average=0.75, epochs=2, **options), 4, 2)
    average = weights(learner.actor)
    for step in range(3):
        learner.update_online(transitions(1, 8, 4, seed=step))
        average = 0.75 * average + 0.25 * weights(learner.actor)
    torch.testing.assert_close(weights(learner.policy()), average)
    obs = torch.randn(1, 5, 4)
    torch.testing.assert_close(learner.policy().normalizer(obs), learner.actor.normalizer(obs))
    assert not torch.equal(weights(learner.actor), average)  # which still acts

    again = PPO(learner.config, 4, 2, seed=9, actor=copy.deepcopy(learner.policy()))  # as a run is taken up
    again.load_state_dict(learner.state_dict())
    assert torch.equal(weights(again.policy()), weights(learner.policy()))
    assert torch.equal(weights(again.actor), weights(learner.actor))


SENSELESS = [
    {"critic_only": -1},
    {"anchor": 0.0},
    {"anchor_tau": 1.5},
    {"kl_per_action": 0.0},
    {"anchor_lr": -1.0},
]


@pytest.mark.parametrize("options", SENSELESS)
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        WSRLConfig(**options)


def entropy(learner, obs):
    return (learner.actor(obs)[1] + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1).mean().item()


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("sigma", [Sigma.clamped_head, Sigma.parameter])
@pytest.mark.parametrize("shift", [1.0, -2.0])
def test_what_comes_online_is_as_narrow_as_its_target_and_what_was_narrower_stays(name, sigma, shift, transitions):
    cls, config = LEARNERS[name]
    data = transitions(300)
    shape = replace(SHAPE, sigma=sigma, log_std_min=-9.0)
    policy = StackedGaussianActor(4, 2, generators(5, 1), shape, Normalizer(4).fit(data.obs))
    with torch.no_grad():
        (policy.log_std if sigma is Sigma.parameter else policy.net.layers[-1].bias[:, :, 2:]).add_(shift - 1.4)
    learner = cls(replace(config(critic_only=100), actor=shape), 4, 2, actor=policy)
    learner.attach_data(data), learner.prepare(data)
    before, mean, usual = entropy(learner, data.obs), learner.actor(data.obs)[0], -2.0
    assert (before > usual) == (shift > 0.0)
    learner.update_online(transitions(1, 32), None)
    torch.testing.assert_close(learner.actor(data.obs)[0], mean)
    assert entropy(learner, data.obs) == pytest.approx(min(before, usual), abs=1e-4)
    assert learner.warm.wanted.item() == pytest.approx(min(before, usual), abs=1e-4)
    assert torch.equal(weights(learner.warm.policy), weights(learner.actor))


def test_wsrl_fills_its_buffer_with_the_narrow_policy_that_learns(transitions):
    data = transitions(300)
    shape = replace(SHAPE, sigma=Sigma.clamped_head, log_std_min=-9.0)
    policy = StackedGaussianActor(4, 2, generators(5, 1), shape, Normalizer(4).fit(data.obs))
    learner = WSRL(WSRLConfig(**SMALL | {"actor": shape}, critic_only=1), 4, 2, actor=policy)
    learner.attach_data(data), learner.prepare(data)
    mean, wide = learner.actor(data.obs)[0], entropy(learner, data.obs)
    learner.explore(torch.ones(1, 1, 4), torch.ones(1, 1, 2))
    assert entropy(learner, data.obs) == pytest.approx(-2.0, abs=1e-4) != pytest.approx(wide, abs=0.5)
    assert torch.equal(learner.incumbent.published.mode(data.obs), learner.actor.mode(data.obs))
    learner.update_online(transitions(1, 32), None)
    torch.testing.assert_close(learner.actor(data.obs)[0], mean)  # and waits as long as it did
    assert entropy(learner, data.obs) == pytest.approx(-2.0, abs=1e-4)


def test_the_entropy_s_weight_does_not_rise_for_a_clone_that_keeps_its_width(transitions):
    """Cal-QL's had risen from 0.1 to 278 nats per nat, because the anchor held a narrow policy where it was."""
    data = transitions(300)
    shape = replace(SHAPE, sigma=Sigma.clamped_head, log_std_min=-9.0)
    policy = StackedGaussianActor(4, 2, generators(5, 1), shape, Normalizer(4).fit(data.obs))
    with torch.no_grad():
        policy.net.layers[-1].bias[:, :, 2:] -= 4.0
    found = []
    for attached in (True, False):
        config = WSRLConfig(**SMALL | {"actor": shape}, critic_only=0, anchor=100.0, anchor_lr=0.0)
        learner = WSRL(config, 4, 2, actor=policy)
        if attached:
            learner.attach_data(data)
        learner.prepare(data)
        for step in range(30):
            metrics = learner.update_online(transitions(1, 16, seed=step), None)
        found.append(metrics["alpha"].item())
    assert found[0] < 0.1 + 1e-3 < 0.105 < found[1]
