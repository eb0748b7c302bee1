"""Soft actor-critic: losses by hand, the random pair of RLPD, and a temperature that seeks its entropy."""

from dataclasses import replace

import pytest
import torch

from policies.critics import CriticConfig
from policies.networks import StackedMLP, generators
from robot_cl.learners import config_class, learner_class
from robot_cl.learners.draws import Draws
from robot_cl.learners.model_config import Ramp
from robot_cl.learners.rlpd import RLPD, RLPDConfig
from robot_cl.learners.sac import (
    SAC,
    SACConfig,
    bellman_target,
    ensemble_value,
    frozen,
    joined,
    soft_target,
    step_temperature,
    subset_min,
    tanh_actor,
    td_loss,
)

SMALL = {"actor": replace(tanh_actor(), hidden=(16, 16)), "critic": CriticConfig(hidden=(16, 16))}


def test_the_target_and_the_loss_are_those_computed_by_hand():
    reward, terminated = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    target = bellman_target(reward, terminated, torch.tensor([[10.0, 10.0]]), 0.9)
    torch.testing.assert_close(target, torch.tensor([[10.0, 2.0]]))
    q = torch.tensor([[[9.0, 2.0], [10.0, 4.0]]], requires_grad=True)
    loss = td_loss(q, target)
    assert loss.item() == pytest.approx((1 + 0) / 2 + (0 + 4) / 2)
    loss.sum().backward()
    torch.testing.assert_close(q.grad, torch.tensor([[[-1.0, 0.0], [0.0, 2.0]]]))


def test_the_soft_target_is_the_minimum_less_the_weighted_log_probability(transitions):
    learner, batch = SAC(SACConfig(**SMALL, temperature=0.3), 4, 2, seed=5), transitions(1, 32)
    z = learner.actor.normalizer(batch.next_obs)
    state = learner.rng[0].get_state()
    found = soft_target(learner.soft, learner.config, batch, z)
    learner.rng[0].set_state(state)
    noise = torch.randn(32, 2, generator=learner.rng[0]).unsqueeze(0)
    with torch.no_grad():
        mean, log_std = learner.actor.heads(z)
        action = torch.tanh(mean + log_std.exp() * noise)
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise).sum(-1)
        log_prob = log_prob - torch.log1p(-action.square()).sum(-1)
        value = learner.nets["target"](z, action).amin(1) - 0.3 * log_prob
    wanted = batch.reward + 0.99 * (1 - batch.terminated) * value
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_actor_s_step_leaves_no_gradient_on_the_critics(transitions):
    learner, batch = SAC(SACConfig(**SMALL), 4, 2), transitions(1, 32)
    learner.update_online(batch, None)
    assert all(p.grad is None or not p.grad.any() for p in learner.opts["critic"].parameters)
    with torch.no_grad():
        before = [p.clone() for p in learner.nets["critic"].parameters()]
    learner.config = replace(learner.config, lr=1.0)
    learner.opts["critic"].lr = 0.0
    learner.update_online(batch, None)
    for p, old in zip(learner.nets["critic"].parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_the_temperature_falls_above_the_wanted_entropy_and_rises_below():
    learner = SAC(SACConfig(**SMALL), 4, 2, seeds=2)
    for _ in range(10):
        step_temperature(learner.soft, torch.tensor([3.0, -3.0]), -1.0)
    high, low = learner.soft.temperature()[:, 0].tolist()
    assert high < 1.0 < low


def test_a_random_pair_of_critics_is_drawn_per_member_and_its_minimum_taken():
    q = torch.arange(10.0).view(1, 10, 1).expand(2, 10, 3).clone()
    draws = Draws([torch.Generator().manual_seed(seed) for seed in (0, 1)])
    found = torch.stack([subset_min(q, 2, draws) for _ in range(400)])  # (400, 2, 3)
    assert (found == found[..., :1]).all()  # one pair for the whole batch
    expected = torch.full((2,), 8.0 / 3.0)  # of the smaller of two of 0..9, drawn without replacement
    torch.testing.assert_close(found[..., 0].mean(0), expected, rtol=0.15, atol=0.0)
    assert (found[:, 0] != found[:, 1]).any()
    torch.testing.assert_close(subset_min(q, 10, draws), torch.zeros(2, 3))


def test_rlpd_learns_from_half_old_and_half_new(transitions):
    fresh, offline = transitions(1, 8, seed=1), transitions(1, 8, seed=2)
    both = joined(fresh, offline)
    assert torch.equal(both.obs[:, :8], fresh.obs) and torch.equal(both.obs[:, 8:], offline.obs)
    learner = RLPD(RLPDConfig(**SMALL, critics=4), 4, 2)
    assert learner.plan().offline_share == 0.5
    metrics = learner.update_online(fresh, offline)
    again = RLPD(RLPDConfig(**SMALL, critics=4), 4, 2).update_online(offline, fresh)
    assert metrics["critic_loss"].isfinite().all() and not torch.equal(metrics["critic_loss"], again["critic_loss"])


@pytest.mark.parametrize("name", ["sac", "rlpd", "lcb", "cal_ql", "wsrl", "moorl", "mbpo"])
def test_the_actor_moves_only_on_every_kth_update(name, transitions):
    more = {"moorl": {"inner": 1}, "mbpo": {"share": Ramp(0.0, 0.0)}}.get(name, {})
    more |= {"critic_only": 0} if name in ("cal_ql", "wsrl") else {}
    learner = learner_class(name)(config_class(name)(**SMALL, actor_every=3, **more), 4, 2)
    start = [p.clone() for p in learner.actor.parameters()]
    for update in range(1, 4):
        metrics = learner.update_online(transitions(1, 8), transitions(1, 8))
        moved = any(not torch.equal(p, q) for p, q in zip(learner.actor.parameters(), start, strict=True))
        assert moved == (update == 3) == ("actor_loss" in metrics)


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match="subset is 3"):
        SACConfig(subset=3)
    with pytest.raises(ValueError, match="discount"):
        SACConfig(discount=1.0)
    with pytest.raises(ValueError, match="offline_share"):
        RLPDConfig(offline_share=1.0)


def test_a_frozen_net_passes_on_the_same_gradient_and_has_none_of_its_own():
    net, x = StackedMLP(5, (8,), 1, generators(0, 2)), torch.randn(2, 4, 5, requires_grad=True)
    wanted = torch.autograd.grad(net(x).sum(), x)[0]
    with frozen(net):
        value = net(x).sum()
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0], wanted)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(value, [x, *net.parameters()])


def test_doubt_takes_deviations_between_critics_off_the_mean_of_more_than_two() -> None:
    q = torch.tensor([[[1.0], [2.0], [6.0]]])  # mean 3, deviation √7
    torch.testing.assert_close(ensemble_value(q, 0.5), torch.tensor([[3.0 - 0.5 * 7.0**0.5]]))
    torch.testing.assert_close(ensemble_value(q), torch.tensor([[3.0]]))
    torch.testing.assert_close(ensemble_value(q[:, :2], 0.5), torch.tensor([[1.0]]))
