"""Uni-O4: its equations by hand, a chain with a closed form, and controls that a learner without advantages fails."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import SMALL_UNI_O4, Negated, Permuted, best_action, task

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.base import Trainable
from robot_cl.learners.returns import returns_to_go
from robot_cl.learners.uni_o4 import UniO4, check_data
from robot_cl.learners.uni_o4_config import Profile, UniO4Config
from robot_cl.learners.uni_o4_losses import (
    Compat,
    behaviour_loss,
    clipped_improvement,
    expectile_loss,
    standardised,
)

TINY = replace(
    SMALL_UNI_O4,
    critic_steps=400,
    offline_lr=3e-3,
    tau=0.05,
    dynamics=EnsembleConfig(2, 2, (16,), (8,)),
    fit=FitConfig(max_steps=400, batch=64),
    advantage_steps=150,
    gate=replace(SMALL_UNI_O4.gate, reach=10.0),
)


# -- equations --------------------------------------------------------------------------------------------------------


def test_losses_and_gradients_are_those_computed_by_hand():
    gap = torch.tensor([[1.0, -2.0]], requires_grad=True)
    loss = expectile_loss(gap, 0.7)
    assert loss.item() == pytest.approx((0.7 * 1 + 0.3 * 4) / 2)
    loss.sum().backward()
    torch.testing.assert_close(gap.grad, torch.tensor([[0.7, -0.6]]))

    log_ratio = torch.log(torch.tensor([[1.5, 0.5, 1.1, 0.5]])).requires_grad_()
    advantage = torch.tensor([[2.0, 2.0, -1.0, -1.0]])
    loss = clipped_improvement(log_ratio, advantage, 0.25)
    assert loss.item() == pytest.approx(-(1.25 * 2 + 0.5 * 2 - 1.1 - 0.75) / 4)
    loss.sum().backward()  # d ρ/d log ρ = ρ where the ratio is not clipped, else nothing
    torch.testing.assert_close(log_ratio.grad, torch.tensor([[0.0, -0.25, 0.275, 0.0]]))


def test_advantages_are_standardised_for_every_member_alone():
    wild = torch.tensor([[1.0, 2.0, 3.0], [100.0, 300.0, 500.0]])
    torch.testing.assert_close(standardised(wild)[0], standardised(wild)[1])


def test_diversity_adds_weight_exactly_where_a_member_is_not_the_likeliest():
    log_prob = torch.tensor([[[-1.0, -5.0], [-2.0, -3.0]]], requires_grad=True)  # (1, 2 members, 2 rows)
    loss = behaviour_loss(log_prob, 0.1)
    torch.testing.assert_close(loss, torch.tensor([[3.0 + 0.1 * (0 + 2) / 2, 2.5 + 0.1 * (1 + 0) / 2]]))
    loss.sum().backward()
    torch.testing.assert_close(log_prob.grad, -torch.tensor([[[1.0, 1.1], [1.1, 1.0]]]) / 2)


def test_the_published_diversity_is_a_constant_factor():
    log_prob = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    behaviour_loss(log_prob, 0.1, Compat.reference).sum().backward()
    torch.testing.assert_close(log_prob.grad, torch.full((1, 3, 5), -1.1 / 5))


# -- values on a chain ------------------------------------------------------------------------------------------------


def chain(data_of: int = 4000) -> Transitions:
    """Five states in a row (one-hot); action < 0 pays 0, action > 0 pays 1, both step on; the last one terminates."""
    rng = torch.Generator().manual_seed(0)
    state = torch.randint(5, (data_of,), generator=rng)
    action = torch.rand(data_of, 1, generator=rng) * 2 - 1
    one_hot = torch.eye(6)
    terminated = (state == 4).float()
    return Transitions(
        one_hot[state], action, (action[:, 0] > 0).float(), one_hot[state + 1], terminated, torch.zeros(data_of)
    )


def chain_values(expectile: float, discount: float) -> np.ndarray:
    """V of the five states: rewards 0 and 1 with equal chance have expectile ω; V = ω (1 + γ + ...) backwards."""
    values = np.zeros(6)
    for s in range(4, -1, -1):
        values[s] = expectile + discount * values[s + 1]
    return values[:5]


@pytest.mark.parametrize("expectile", [0.7, 0.99])
def test_values_on_a_chain_meet_the_closed_form(expectile):
    data = chain()
    config = replace(TINY, expectile=expectile, tau=0.02, discount=0.9)
    learner = UniO4(config, 6, 1)
    learner.prepare(data)
    learner.extra["reward_scale"] = torch.ones(())
    sampler = Sampler.over(data, learner.rng)
    for lr, steps in ((3e-3, 800), (3e-4, 900), (3e-5, 300)):
        learner.opts["critic"].lr = learner.opts["q"].lr = lr
        for _ in range(steps):
            learner.fit_values(sampler.sample(192))
    found = learner.v(learner.actor.normalizer(torch.eye(6)[:5])).detach()[0].numpy()
    np.testing.assert_allclose(found, chain_values(expectile, 0.9), rtol=0.02, atol=0.02)


def test_values_begin_at_the_returns_of_the_data():
    """One update at a rate of zero: what is there then has not been learned from one-step targets."""
    data, learner = chain(), UniO4(replace(TINY, discount=0.9, offline_lr=1e-12), 6, 1)
    learner.attach_data(data)
    learner.prepare(data)
    learner.update_offline(Sampler.over(data, learner.rng).sample(64))
    z = learner.actor.normalizer(data.obs)
    wanted = returns_to_go(replace(data, reward=data.reward * learner.extra["reward_scale"]), 0.9)
    for found in (learner.v(z), learner.q(z, data.action).amin(1), learner.target_q(z, data.action).amin(1)):
        assert 0.8 < (found.mean() / wanted.mean()).item() < 1.2


# -- controls ---------------------------------------------------------------------------------------------------------


def quality(learner: UniO4) -> tuple[float, float]:
    """−E (a − best)² of the cloned policies and of the improved ones, averaged over seeds and members."""
    obs = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    cloned, improved = (-(actor.mode(obs) - best_action(obs)).square() for actor in (learner.cloned, learner.members))
    return cloned.mean().item(), improved.mean().item()


def trained(cls: type[UniO4], **options) -> UniO4:
    """The offline part without a gate (every step kept), so that the control is the advantage alone."""
    data, config = task(), replace(TINY, compat=Compat.reference, **options)
    learner = cls(config, 2, 1, seeds=2)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng)
    for step in range(config.offline_steps):
        if step == config.fit_steps:
            learner.cloned = learner.members.__class__.from_spec(learner.members.spec())
            learner.cloned.load_state_dict(learner.members.state_dict())
        learner.update_offline(sampler.sample(64))
    return learner


def test_real_advantages_gain_permuted_ones_do_not_and_negated_ones_lose():
    before, real = quality(trained(UniO4))
    _, permuted = quality(trained(Permuted))
    _, negated = quality(trained(Negated))
    room = -before
    assert real - before > 0.5 * room
    assert permuted - before < 0.1 * room
    assert negated - before < -0.3 * room


def test_untrained_values_give_no_gain():
    before, after = quality(trained(UniO4, critic_steps=0))
    assert after - before < 0.1 * -before


@pytest.fixture(scope="module")
def gated() -> UniO4:
    """The whole offline part."""
    data = task()
    learner = UniO4(TINY, 2, 1, seeds=2)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng)
    for _ in range(TINY.offline_steps):
        learner.update_offline(sampler.sample(64))
    return learner


def test_the_gate_keeps_what_it_accepted(gated):
    learner, gate = gated, gated.gate
    assert (gate.made >= 15).all() and (gate.passed.sum(1) > 0).all()
    again = learner.judge(learner.accepted).each
    torch.testing.assert_close(again, gate.scores, rtol=1e-5, atol=1e-5)
    chosen = gate.scores.mean(-1).argmax(1)
    obs = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    for p in range(learner.seeds):
        mine = learner.policy().mode(obs)[p]
        torch.testing.assert_close(mine, learner.accepted.mode(obs)[2 * p + int(chosen[p])])


def test_a_rejected_candidate_goes_back_to_the_accepted_policy(gated):
    learner = gated
    with torch.no_grad():
        for p in learner.members.parameters():
            p.add_(3.0)  # a candidate that saturates
    learner.pass_gate()
    for mine, kept in zip(learner.members.parameters(), learner.accepted.parameters(), strict=True):
        assert torch.equal(mine, kept)


def test_a_wild_member_does_not_shrink_the_steps_of_the_others():
    """A clip of the whole stack's norm would scale member 1 by what member 0 does."""
    learner = UniO4(replace(TINY, max_grad_norm=0.5), 2, 1)
    opt, rng = learner.opts["members"], torch.Generator().manual_seed(0)
    opt.clip = TINY.max_grad_norm
    for p in opt.parameters:
        p.grad = torch.randn(p.shape, generator=rng)
        p.grad[0] *= 1000.0
    calm = torch.cat([p.grad[1].flatten() for p in opt.parameters])
    opt._clip([p.grad for p in opt.parameters], None)
    clipped = torch.cat([p.grad[1].flatten() for p in opt.parameters])
    torch.testing.assert_close(clipped, calm * (0.5 / calm.norm()))


def test_policies_and_critics_see_normalised_states_the_dynamics_raw_ones():
    """In other units and from another origin the same data gives the same policies and the same scores."""
    plain, scores = task(1500), []
    moved = Transitions(**{**vars(plain), "obs": 3.0 * plain.obs + 40.0, "next_obs": 3.0 * plain.next_obs + 40.0})
    for data in (plain, moved):
        learner = UniO4(replace(TINY, critic_steps=200, behaviour_steps=200), 2, 1)
        learner.attach_data(data)
        learner.prepare(data)
        z = learner.actor.normalizer(data.obs)
        assert learner.actor.normalizer.frozen and z.mean(0).abs().max() < 1e-3 and (z.std(0) - 1.0).abs().max() < 1e-2
        sampler = Sampler.over(data, learner.rng)
        for _ in range(205):
            learner.update_offline(sampler.sample(64))
        found = learner.gate.judge(learner.accepted.mode, learner.value)
        assert found.clamped.max() < 0.2
        scores.append(found.each.mean(-1))
    torch.testing.assert_close(scores[0], scores[1], rtol=0.2, atol=0.0)  # roundings grow as it learns


def test_a_clone_nowhere_near_the_data_is_not_improved_and_nothing_breaks():
    config = replace(TINY, critic_steps=2, behaviour_steps=0, improve_steps=2, returns_steps=0, advantage_steps=2)
    config = replace(config, gate=replace(TINY.gate, every=1), fit=FitConfig(max_steps=2))
    learner, data = UniO4(replace(config, actor=replace(TINY.actor, log_std_max=-2.9)), 2, 1), task(1500)
    data.action.copy_(data.action.sign() * 0.9)  # as far from what was drawn as an action can be
    learner.attach_data(data)
    learner.prepare(data)
    for _ in range(config.offline_steps):
        learner.update_offline(Transitions.unpack(data[:32].pack().unsqueeze(0), 2, 1))
    assert learner.gate.trust.tolist() == [[0.0, 0.0]] and not learner.gate.passed.any()
    assert all(p.isfinite().all() for p in learner.members.parameters())


def test_a_run_that_ends_while_it_clones_gives_the_clones_as_they_are():
    learner, data = UniO4(replace(TINY, behaviour_lr=1e-2, returns_steps=0), 2, 1), task(1500)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng)
    for _ in range(30):
        learner.update_offline(sampler.sample(64))
    assert torch.equal(learner.policy().mode(data.obs)[0], learner.members.mode(data.obs)[0])
    now, drawn = (actor.log_prob(*actor(data.obs), data.action).mean() for actor in (learner.actor, learner.accepted))
    assert now > drawn + 0.05


@pytest.mark.parametrize("trainable", [Trainable.full, Trainable.weights, Trainable.adapter])
def test_policies_cloned_from_a_loaded_one_differ_and_the_first_begins_as_it_was(trainable):
    data, config = task(1500), replace(TINY, returns_steps=0, trainable=trainable, rank=2)
    loaded = UniO4(TINY, 2, 1).actor
    loaded.normalizer.fit(data.obs)
    loaded.normalizer.freeze()
    learner = UniO4(config, 2, 1, seeds=2, actor=loaded)
    learner.attach_data(data)
    learner.prepare(data)
    assert torch.equal(learner.members.mode(data.obs)[0], loaded.mode(data.obs)[0])
    sampler = Sampler.over(data, learner.rng)
    for _ in range(100):
        learner.update_offline(sampler.sample(64))
    first, second = learner.members.mode(data.obs)[:2]
    assert (first - second).abs().mean() > 1e-4
    assert (learner.members.mode(data.obs)[2] - first).abs().mean() > 1e-4  # another seed


def test_a_loaded_policy_that_is_not_cloned_stays_as_it_was():
    loaded = UniO4(TINY, 2, 1).actor
    loaded.normalizer.freeze()
    learner = UniO4(replace(TINY, behaviour_steps=0), 2, 1, actor=loaded)
    obs = torch.randn(50, 2)
    assert torch.equal(learner.members.mode(obs), loaded.mode(obs).expand(2, -1, -1))


def test_a_resumed_online_part_explores_as_widely_as_the_one_that_was_stopped(transitions):
    """What is on disk is the incumbent, from before the policy that learns was widened."""
    config = replace(TINY, minibatch=16, epochs=1, least_log_std=-0.5)
    obs, noise = torch.randn(1, 8, 4), torch.randn(1, 8, 2)
    first = UniO4(replace(config, max_kl=None), 4, 2)
    first.explore(obs, noise)
    first.update_online(transitions(1, 8, 8))
    again = UniO4(replace(config, max_kl=None), 4, 2, seed=9, actor=first.policy())
    again.load_state_dict(first.state_dict())
    assert torch.equal(first.explore(obs, noise), again.explore(obs, noise))


# -- options and data -------------------------------------------------------------------------------------------------


def test_profiles_fill_in_sizes_and_what_is_given_wins():
    config = UniO4Config(profile=Profile.reference, critic_steps=7)
    assert (config.critic_steps, config.improve_steps, config.offline_lr) == (7, 10_000, 1e-4)
    assert config.actor.hidden == (256, 256, 256)
    assert UniO4Config().offline_steps < 100_000


def test_data_that_teaches_nothing_is_refused_in_a_sentence():
    good = task(1200)
    with pytest.raises(ValueError, match="1200 transitions"):
        check_data(good, 5000)
    still = Transitions(**{**vars(good), "action": torch.zeros_like(good.action)})
    with pytest.raises(ValueError, match="action 0 is the same"):
        check_data(still)
    silent = Transitions(**{**vars(good), "reward": torch.zeros_like(good.reward)})
    with pytest.raises(ValueError, match="all rewards are zero"):
        check_data(silent)
