"""LCB, ReBRAC, Cal-QL, WSRL and the best tenth: what makes each of them what it is."""

import math
from dataclasses import replace

import pytest
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig, StackedV
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.cal_ql import CalQL, CalQLConfig, conservative_gap
from robot_cl.learners.graph import Captured
from robot_cl.learners.lcb import BETA_RANGE, LCB, LCBConfig, action_disagreement, beta_for
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.percent_bc import PercentBC, PercentBCConfig
from robot_cl.learners.rebrac import ReBRAC, ReBRACConfig, deterministic
from robot_cl.learners.returns import best_rows, episode_returns, fit_returns, near_best_rows, returns_to_go
from robot_cl.learners.sac import tanh_actor
from robot_cl.learners.wsrl import WSRL, WSRLConfig

CRITIC = CriticConfig(hidden=(16, 16), layer_norm=True)
SMALL = {"actor": replace(tanh_actor(), hidden=(16, 16)), "critic": CRITIC}


def episodes(*rewards: list[float], terminated: tuple[int, ...] = ()) -> Transitions:
    """One episode per list of rewards; the numbered ones terminate, the others reach their time limit."""
    flat = torch.tensor([r for episode in rewards for r in episode])
    ends = torch.tensor([len(e) for e in rewards]).cumsum(0) - 1
    dead, cut = torch.zeros(len(flat)), torch.zeros(len(flat))
    cut[ends] = 1.0
    dead[ends[list(terminated)]], cut[ends[list(terminated)]] = 1.0, 0.0
    obs = torch.arange(len(flat) * 4.0).view(-1, 4) / 10
    return Transitions(obs, torch.sin(obs[:, :2]), flat, obs + 1, dead, cut)


def test_returns_of_episodes_and_from_every_step_on():
    data = episodes([1.0, 2.0], [3.0, 3.0, 3.0], [5.0], terminated=(0,))
    totals, owner = episode_returns(data)
    assert totals.tolist() == [3.0, 9.0, 5.0] and owner.tolist() == [0, 0, 1, 1, 1, 2]
    found = returns_to_go(data, 0.5)  # a terminated episode ends at zero, a cut one goes on at its mean reward
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 6.0, 6.0, 6.0, 10.0]))


def test_the_best_share_is_whole_episodes_from_the_top():
    data = episodes([1.0] * 4, [5.0] * 4, [3.0] * 4)
    assert best_rows(data, 0.1).tolist() == [4, 5, 6, 7]
    assert best_rows(data, 0.5).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert len(best_rows(data, 1.0)) == 12
    assert near_best_rows(data).tolist() == [4, 5, 6, 7]  # returns of 20, and none else above 18
    assert near_best_rows(data, within=0.5).tolist() == list(range(4, 12))
    learner = PercentBC(PercentBCConfig(actor=ActorConfig(hidden=(8,)), share=0.3), 4, 2)
    learner.attach_data(data)
    assert len(learner.best) == 4 and (learner.best.sample(50).reward == 5.0).all()


def test_pessimism_takes_beta_deviations_off_and_orders_by_agreement():
    learner = LCB(LCBConfig(**SMALL, critics=3, beta=2.0), 4, 2)
    q = torch.tensor([[[1.0, 0.0], [1.0, 3.0], [1.0, 0.0]]])  # (1, 3 critics, 2 actions): sure 1, unsure mean 1
    torch.testing.assert_close(learner.bound(q), torch.tensor([[1.0, 1.0 - 2.0 * math.sqrt(3.0)]]))


def test_no_next_value_is_below_what_the_behaviour_earned(transitions):
    """Unfloored, β deviations come off every target, and off the next one again: values fall without end."""
    data, last = transitions(400), {}
    rows = Transitions.unpack(data[:64].pack().unsqueeze(0), 4, 2)
    for floored in (True, False):
        learner = LCB(LCBConfig(**SMALL | {"lr": 3e-3}, critics=3, beta=30.0, cloning=0, floored=floored), 4, 2)
        learner.prepare(data)
        z = learner.actor.normalizer(rows.next_obs)
        earned = learner.reference(z)
        for _ in range(80):
            metrics = learner.update_offline(rows)
        last[floored] = metrics["q"].item()
        above = learner.next_value(z) >= earned
        assert above.all() if floored else not above.all()
    assert last[False] < last[True] - 5.0


def test_the_rate_of_cloning_falls_to_zero_and_that_of_improvement_follows(transitions):
    batch = transitions(1, 16)
    for cls, config in ((CalQL, CalQLConfig), (WSRL, WSRLConfig), (LCB, LCBConfig)):
        learner, rates = cls(config(**SMALL, critics=3, cloning=10, cloning_lr=1e-2), 4, 2), []
        learner.prepare(transitions(400))
        for _ in range(11):
            learner.update_offline(batch)
            rates.append(learner.opts["actor"].lr)
        assert rates[0] == pytest.approx(1e-2) and 0.0 < rates[9] < 3e-4 and rates[10] == learner.config.lr
        learner.step = 0
        learner.update_online(batch, None)  # online nothing is cloned
        assert learner.opts["actor"].lr == learner.config.lr


def test_beta_is_large_where_a_state_has_one_action_and_small_where_it_has_many():
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(3000, 4, generator=rng)
    noise = torch.rand(3000, 2, generator=rng) * 2 - 1
    zero = torch.zeros(3000)
    one, many = torch.tanh(obs[:, :2]), noise
    narrow, wide = (Transitions(obs, a, zero, obs, zero, zero) for a in (one, many))
    assert action_disagreement(narrow) < 0.5 < 0.9 < action_disagreement(wide)
    assert BETA_RANGE[0] <= beta_for(wide) < 2.0 < beta_for(narrow) <= BETA_RANGE[1]
    learner = LCB(LCBConfig(**SMALL, critics=3), 4, 2)
    learner.prepare(narrow)
    assert learner.extra["beta"].item() == pytest.approx(beta_for(narrow))


def test_a_few_rows_have_no_neighbours_to_disagree_with(transitions):
    few, more = transitions(40), transitions(300)
    few.action[1:] = 0.5
    assert action_disagreement(few) == action_disagreement(few[:1]) == 0.0
    assert action_disagreement(more) > 0.5


@pytest.mark.parametrize("cls", [CalQL, WSRL, LCB])
def test_values_begin_at_the_return_of_a_single_transition(cls, transitions):
    config = {CalQL: CalQLConfig, WSRL: WSRLConfig, LCB: LCBConfig}[cls](**SMALL, critics=2, returns_steps=3, cloning=0)
    learner, one = cls(config, 4, 2), transitions(1, seed=4)
    learner.attach_data(one)
    learner.prepare(one)
    metrics = learner.update_offline(Transitions.unpack(one.pack().unsqueeze(0), 4, 2))
    assert all(value.isfinite().all() for value in metrics.values())


def test_rebrac_without_penalties_is_td3_and_with_one_stays_at_the_data(transitions):
    data = transitions(400)
    rows = data[:64].pack().unsqueeze(0)
    batch = Transitions.unpack(rows, 4, 2)
    away = {}
    for weight in (0.0, 100.0):
        config = ReBRACConfig(
            actor=ActorConfig(hidden=(32,)), critic=CRITIC, actor_penalty=weight, lr=1e-2, actor_every=1
        )
        learner = ReBRAC(config, 4, 2)
        learner.prepare(data)
        for _ in range(150):
            learner.update_offline(batch)
        away[weight] = (learner.actor.mode(batch.obs) - batch.action).square().sum(-1).mean().item()
    assert away[100.0] < 0.3 * away[0.0]


def test_rebrac_s_target_is_penalised_by_the_distance_to_the_data(transitions):
    batch = transitions(1, 64)
    targets = []
    for weight in (0.0, 1.0):
        learner = ReBRAC(ReBRACConfig(critic=CRITIC, critic_penalty=weight, noise=0.0), 4, 2, seed=1)
        z = learner.actor.normalizer(batch.next_obs)
        targets.append(learner.target(batch, z))
        away = (learner.target_actor.heads(z)[0] - learner.clone(z).tanh()).square().sum(-1)
    torch.testing.assert_close(targets[0] - targets[1], 0.99 * (1 - batch.terminated) * away, rtol=1e-4, atol=1e-5)


def test_rebrac_trains_the_action_that_a_tanh_policy_takes(transitions):
    learner, batch = ReBRAC(ReBRACConfig(**SMALL, noise=0.0, critic_penalty=0.0), 4, 2), transitions(1, 64)
    with torch.no_grad():
        learner.actor.net.layers[-1].bias.add_(1.5)
    learner.target_actor.load_state_dict(learner.actor.state_dict())
    z = learner.actor.normalizer(batch.obs)
    assert torch.equal(deterministic(learner.actor, z), learner.actor.mode(batch.obs))
    value = learner.target_q(z, learner.actor.mode(batch.obs)).amin(1)
    wanted = batch.reward + 0.99 * (1.0 - batch.terminated) * value
    torch.testing.assert_close(learner.target(batch, z), wanted)


def test_values_are_not_pushed_below_what_the_behaviour_earned(transitions):
    """Cal-QL's floor: where it is above every drawn value the term no longer depends on them."""
    batch = transitions(1, 32)
    grads = {}
    for calibrated in (True, False):
        learner = CalQL(CalQLConfig(**SMALL, drawn=3, calibrated=calibrated), 4, 2)
        soft, z = learner.soft, learner.actor.normalizer(batch.obs)
        with torch.no_grad():
            learner.reference.net.layers[-1].bias.fill_(1000.0)
        uniform_only = soft.critic(z, batch.action) * 0.0
        gap = conservative_gap(soft, learner.config, z, z, uniform_only, learner.reference)
        grads[calibrated] = torch.autograd.grad(gap.sum(), soft.critic.net.layers[-1].bias)[0].abs().sum()
    assert grads[True] < 1e-6 < grads[False]


def test_the_conservative_term_lowers_values_off_the_data(transitions):
    data, gaps = transitions(400), []
    rows = data[:64].pack().unsqueeze(0)
    learner = CalQL(CalQLConfig(**SMALL, drawn=3, lr=3e-3, conservatism=5.0, calibrated=False, cloning=0), 4, 2)
    learner.prepare(data)
    gaps = [learner.update_offline(Transitions.unpack(rows, 4, 2))["gap"].item() for _ in range(60)]
    assert gaps[-1] < gaps[0] - 0.5


def test_values_begin_at_the_returns_that_the_data_earned():
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(2000, 4, generator=rng)
    ones = torch.ones(2000)
    data = Transitions(obs, obs[:, :2], 50.0 + 20.0 * obs[:, 0], obs, ones, 0 * ones)  # every step is an episode
    norm, value = Normalizer(4).fit(obs), StackedV(4, generators(0, 2), CriticConfig(hidden=(32,)))
    opt, draws_from = FlatAdam(value.parameters(), 2, 1e-4), WSRL(WSRLConfig(**SMALL), 4, 2, seeds=2)
    fit_returns(lambda b: value(norm(b.obs)), value.net, opt, data, 0.9, draws_from, steps=600)
    assert ((value(norm(obs)) - data.reward).abs().mean(-1) < 5.0).all()  # of a deviation of 20
    assert opt.lr == 1e-4 and not any(moment.any() for moment in opt.state.values())

    for learner in (CalQL(CalQLConfig(**SMALL, drawn=1), 4, 2), WSRL(WSRLConfig(**SMALL, critics=3, drawn=1), 4, 2)):
        learner.prepare(data)  # critics and floor alike, else the floor hides what the policy's actions are worth
        for net in (learner.soft.critic, learner.soft.target):
            found = net(learner.actor.normalizer(obs), data.action)
            assert ((found - data.reward).abs().mean(-1) < 5.0).all()


def test_values_begin_at_the_same_returns_where_updates_are_replayed(transitions):
    found = []
    for fixed in (False, True):
        learner = CalQL(CalQLConfig(**SMALL, returns_steps=20), 4, 2, seeds=2)
        learner.captured = Captured(learner, fixed)
        learner.prepare(transitions(600))
        found.append([p.detach().clone() for p in (*learner.reference.parameters(), *learner.soft.target.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    still = CalQL(CalQLConfig(**SMALL, returns_steps=0), 4, 2, seeds=2)
    before = [p.clone() for p in still.reference.parameters()]
    still.prepare(transitions(600))
    assert all(torch.equal(a, b) for a, b in zip(before, still.reference.parameters(), strict=True))


@pytest.mark.parametrize("cls, config", [(CalQL, CalQLConfig), (WSRL, WSRLConfig), (LCB, LCBConfig)])
def test_while_the_policy_clones_the_critics_wait_and_the_clone_is_as_narrow_as_the_data(cls, config):
    """Critics that followed the untrained policy fell below the floor; an entropy bonus widened the clone."""
    rng = torch.Generator().manual_seed(0)
    obs, ones = torch.randn(600, 4, generator=rng), torch.ones(600)
    action = 0.5 * torch.tanh(obs[:, :2]) + 0.05 * torch.randn(600, 2, generator=rng)
    data = Transitions(obs, action, 1.0 + obs[:, 0], obs, 0 * ones, ones)
    learner = cls(config(**SMALL | {"lr": 3e-3}, critics=3, cloning=600), 4, 2)
    learner.attach_data(data)
    learner.prepare(data)
    before = [p.clone() for net in (learner.soft.critic, learner.soft.target) for p in net.parameters()]
    sampler = Sampler.over(data, learner.rng)
    for _ in range(600):
        learner.update_offline(sampler.sample(64))
    after = [p for net in (learner.soft.critic, learner.soft.target) for p in net.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
    mean, log_std = learner.actor(obs)
    assert (torch.tanh(mean[0]) - action).square().mean().sqrt() < 0.1 and log_std.exp().mean() < 0.15
    learner.update_offline(sampler.sample(64))
    assert not torch.equal(before[0], next(learner.soft.critic.parameters()))


def test_wsrl_is_conservative_online_where_that_is_asked_for(transitions):
    """Drawn actions' values fall further below those of the actions that were taken."""
    gaps = []
    for weight in (0.0, 0.5, 20.0):
        learner = WSRL(WSRLConfig(**SMALL, critics=3, drawn=2, online_conservatism=weight, lr=1e-3), 4, 2)
        for step in range(60):
            metrics = learner.update_online(transitions(1, 64, seed=step), None)
        assert ("gap" in metrics) == (weight > 0.0)
        batch, soft = transitions(1, 64, seed=60), learner.soft
        z = learner.actor.normalizer(batch.obs)
        q = soft.critic(z, batch.action)
        gaps.append(conservative_gap(soft, learner.config, z, z, q, learner.reference).item())
    assert gaps[0] > gaps[1] > gaps[2]


def test_wsrl_warms_up_with_the_frozen_policy_and_keeps_no_offline_data(transitions):
    learner = WSRL(WSRLConfig(**SMALL, critics=3, drawn=2), 4, 2)
    plan = learner.plan()
    assert plan.offline_share == 0.0 and plan.warmup == 5000
    learner.prepare(transitions(300))
    before = [p.clone() for p in learner.nets["reference"].parameters()]
    metrics = learner.update_online(transitions(1, 8), None)
    assert "gap" not in metrics  # soft actor-critic alone
    assert all(torch.equal(p, q) for p, q in zip(before, learner.nets["reference"].parameters(), strict=True))


def test_senseless_options_are_refused():
    for make in (
        lambda: LCBConfig(beta=-1.0),
        lambda: LCBConfig(critics=1, subset=1),
        lambda: ReBRACConfig(actor_penalty=-1.0),
        lambda: CalQLConfig(drawn=0),
        lambda: CalQLConfig(cloning=-1),
        lambda: WSRLConfig(cloning_lr=0.0),
        lambda: WSRLConfig(doubt=-0.5),
        lambda: PercentBCConfig(share=0.0),
    ):
        with pytest.raises(ValueError):
            make()
