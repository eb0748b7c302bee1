"""IQL: equations 5 to 7 by hand, a chain with a closed form, and what may never happen at a terminal."""

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.learners.iql import IQL, IQLConfig, reward_scale

SMALL = {"actor": ActorConfig(hidden=(16,)), "critic": CriticConfig(hidden=(16,)), "reward_scale": 0.5}


def by_hand(learner: IQL, batch: Transitions) -> dict[str, np.ndarray]:
    """Losses and the gradients of the last biases from the values of the networks, in float64."""
    c = learner.config
    with torch.no_grad():
        z, zn = (learner.actor.normalizer(x) for x in (batch.obs, batch.next_obs))
        values = learner.target_q(z, batch.action), learner.q(z, batch.action), learner.v(z), learner.v(zn)
        target_q, q, v, next_v = (x[0].double().numpy() for x in values)
        mean, log_std = (x[0].double().numpy() for x in learner.actor(batch.obs))
    action, reward, terminated = (x[0].double().numpy() for x in (batch.action, batch.reward, batch.terminated))
    gap = target_q.min(0) - v
    asymmetry = np.abs(c.expectile - (gap < 0))
    target = 0.5 * reward + c.discount * (1 - terminated) * next_v
    weight = np.minimum(np.exp(c.beta * gap), 100.0)
    scaled = (action - mean) / np.exp(log_std)
    log_prob = -(0.5 * scaled**2 + log_std + 0.5 * np.log(2 * np.pi)).sum(1)
    return {
        "value_loss": (asymmetry * gap**2).mean(),
        "q_loss": ((q - target) ** 2).mean(),
        "actor_loss": -(weight * log_prob).mean(),
        "d_v": (-2 * asymmetry * gap).mean(),
        "d_q": (q - target).mean(1),  # 2 (q − y) / 2 twins
        "d_actor": -(weight[:, None] * scaled / np.exp(log_std) * (1 - mean**2)).mean(0),
    }


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_losses_and_gradients_are_those_computed_by_hand(expectile, transitions):
    learner, batch = IQL(IQLConfig(expectile=expectile, **SMALL), 4, 2, seed=1), transitions(1, 64)
    losses, wanted = learner.losses(batch), by_hand(learner, batch)
    sum(losses.values()).sum().backward()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(wanted[name], abs=1e-5)
    for name, net in (("d_v", learner.v.net), ("d_q", learner.q.net), ("d_actor", learner.actor.net)):
        grad = net.layers[-1].bias.grad.numpy()
        np.testing.assert_allclose(grad.reshape(np.shape(wanted[name])), wanted[name], atol=1e-5)


def test_no_action_weighs_more_than_a_hundred():
    learner = IQL(IQLConfig(beta=3.0, **SMALL), 4, 2)
    loss = learner.actor_loss(torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[0.0, 1.0, 50.0]]))
    assert loss.item() == pytest.approx((1.0 + np.exp(3.0) + 100.0) / 3)


def test_targets_get_no_gradient_and_move_by_tau(transitions):
    learner = IQL(IQLConfig(tau=0.1, **SMALL), 4, 2)
    before = [p.clone() for p in learner.target_q.parameters()]
    learner.update_offline(transitions(1, 32))
    for now, old, source in zip(learner.target_q.parameters(), before, learner.q.parameters(), strict=True):
        assert now.grad is None
        torch.testing.assert_close(now, 0.9 * old + 0.1 * source)


def test_what_follows_a_terminal_does_not_matter_and_what_follows_a_time_limit_does(transitions):
    batch = transitions(1, 64)
    for flag, matters in (("terminated", False), ("truncated", True)):
        hit = getattr(batch, flag) > 0
        assert hit.any()
        other = Transitions(**{**vars(batch), "next_obs": torch.where(hit.unsqueeze(-1), 100.0, batch.next_obs)})
        losses = [IQL(IQLConfig(**SMALL), 4, 2).losses(b)["q_loss"].item() for b in (batch, other)]
        assert (losses[0] != losses[1]) == matters


def chain(length: int = 3, copies: int = 50) -> Transitions:
    """s0 -> s1 -> ... -> end; in each state action 1 pays 1, action -1 pays nothing, equally often in the data.

    The end's stored next state is s0, so that a bootstrap across it would be seen.
    """
    state = torch.arange(length).repeat(2 * copies)
    action = torch.tensor([1.0, -1.0]).repeat_interleave(length).repeat(copies)
    obs, nxt = (torch.nn.functional.one_hot(s % length, length).float() for s in (state, state + 1))
    end = (state == length - 1).float()
    return Transitions(obs, action.unsqueeze(-1), (action > 0).float(), nxt, end, torch.zeros_like(end))


@pytest.mark.parametrize("expectile", [0.7, 0.9, 0.99])
def test_values_of_a_chain_are_the_expectile_in_closed_form(expectile):
    """The τ-expectile of a fair coin is τ, and expectiles move with a shift: V(s_k) = τ Σ γ^i over what is left."""
    data, discount = chain(), 0.9
    nets = {"actor": ActorConfig(hidden=(8,)), "critic": CriticConfig(hidden=(64,))}
    learner = IQL(IQLConfig(expectile=expectile, discount=discount, tau=0.05, lr=2e-3, reward_scale=1.0, **nets), 3, 1)
    learner.prepare(data)
    batch = Transitions(*(x.unsqueeze(0) for x in vars(data[:60]).values()))
    for step in range(1500):
        learner.opts["critic"].lr = 2e-3 * (1 - step / 1500)
        learner.update_offline(batch)
    with torch.no_grad():
        values = learner.v(learner.actor.normalizer(torch.eye(3)))[0].numpy()
    wanted = expectile * np.array([1 + discount + discount**2, 1 + discount, 1.0])
    np.testing.assert_allclose(values, wanted, rtol=0.02)
    if expectile == 0.99:  # close to the best that the data holds
        np.testing.assert_allclose(values, wanted / expectile, rtol=0.03)


def test_the_policy_prefers_the_better_action():
    data = chain()
    learner = IQL(IQLConfig(beta=3.0, lr=3e-3, **(SMALL | {"reward_scale": 1.0})), 3, 1)
    learner.prepare(data)
    batch = Transitions(*(x.unsqueeze(0) for x in vars(data[:60]).values()))
    for _ in range(500):
        learner.update_offline(batch)
    assert learner.actor.mode(torch.eye(3)).min() > 0.5


def test_fresh_and_old_batches_are_one_update(transitions):
    fresh, old = transitions(1, 8, seed=1), transitions(1, 24, seed=2)
    apart, together = (IQL(IQLConfig(**SMALL), 4, 2) for _ in range(2))
    apart.update_online(fresh, old)
    together.update_offline(Transitions.cat([fresh, old], 1))
    for a, b in zip(apart.nets.parameters(), together.nets.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_of_the_policy_falls_along_a_cosine(transitions):
    learner = IQL(IQLConfig(decay=4, lr=1e-3, **SMALL), 4, 2)
    rates = []
    for _ in range(6):
        learner.update_offline(transitions(1, 8))
        rates.append(learner.opts["actor"].lr)
    half = 0.5e-3
    np.testing.assert_allclose(rates, half * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1, 1]))), atol=1e-12)
    assert learner.opts["critic"].lr == 1e-3


def test_reward_scale_is_a_thousandth_of_the_range_of_returns(transitions):
    data = transitions(6)
    data.reward[:] = torch.tensor([1.0, 2.0, 5.0, -1.0, -3.0, 7.0])
    data.terminated[:] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    data.truncated[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])  # returns 3 and 1; the last episode is cut
    assert reward_scale(data) == pytest.approx(1000 / 3)
    data.terminated.zero_()
    data.truncated.zero_()
    assert reward_scale(data) == 1.0


def test_impossible_options_are_refused():
    for wrong in ({"expectile": 1.0}, {"discount": 1.5}, {"beta": 0.0}, {"offline_share": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            IQLConfig(**wrong)
