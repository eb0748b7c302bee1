"""What is published online: who plays, who takes over, and what a learner still learns from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import sim
from policies.actor import ActorConfig, StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.learners.incumbent import IncumbentConfig, Role, gained
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.rollout import Collector
from robot_cl.learners.sac import SACConfig
from robot_cl.learners.wsrl import WSRL, WSRLConfig
from robot_cl.run_config import TrainConfig
from robot_cl.train import begin

SHAPE, CRITIC = ActorConfig(hidden=(8,)), CriticConfig(hidden=(8,))


def off_policy(seeds=1, **options):
    options = {"trials": 2, "rest": 1} | options
    policy = StackedGaussianActor(4, 2, generators(5, 1), SHAPE, Normalizer(4).fit(torch.randn(50, 4)))
    config = WSRLConfig(actor=SHAPE, critic=CRITIC, critics=2, anchor_tau=0.0, incumbent=IncumbentConfig(**options))
    return WSRL(config, 4, 2, seeds, actor=policy)


def on_policy(seeds=1, worlds=8, obs_dim=4, act_dim=2, seed=0, **options):
    options = {"minibatch": 16, "epochs": 1} | options
    config = PPOConfig(actor=SHAPE, critic=CRITIC, incumbent=IncumbentConfig(trials=2), **options)
    learner = PPO(config, obs_dim, act_dim, seeds, seed)
    step(learner, worlds)
    return learner


def step(learner, worlds=1):
    """One step of the worlds: the actions (P, W, act_dim)."""
    shape = learner.seeds, worlds
    return learner.explore(torch.ones(*shape, learner.obs_dim), torch.ones(*shape, learner.act_dim))


def move(learner, by=0.1):
    """What learning does to what would be published."""
    with torch.no_grad():
        for p in learner.candidates[0].parameters():
            p.add_(by)


def episode(learner, earned, worlds=1, ended=None):
    """An episode of every world (or of those given) ends: who played it (P, W)."""
    step(learner, worlds)
    played = learner.incumbent.roles.clone()
    over = np.zeros(played.shape, bool)
    over[:, slice(None) if ended is None else ended] = True
    learner.heard(over, np.broadcast_to(np.asarray(earned, float), over.shape))
    return played


def until(learner, role, earned=0.0, most=20):
    for _ in range(most):
        step(learner)
        if learner.incumbent.roles[0, 0] == role:
            return
        episode(learner, earned)
    raise AssertionError(f"no {role.name} within {most} episodes")


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_gain_and_its_error_are_those_of_student_s_test():
    rng = np.random.default_rng(0)
    one, other = rng.normal(5.0, 2.0, 4), rng.normal(7.0, 2.0, 6)
    records = [torch.tensor([len(x), x.sum(), (x**2).sum()], dtype=torch.float64) for x in (one, other)]
    gain, error = gained(*records)
    pooled = (3 * one.var(ddof=1) + 5 * other.var(ddof=1)) / 8
    assert gain == pytest.approx(other.mean() - one.mean())
    assert error == pytest.approx(math.sqrt(pooled * (1 / 4 + 1 / 6)))
    assert gained(records[0], records[1] * 0.0) == (0.0, math.inf)


def test_the_loaded_policy_is_published_until_a_challenger_has_surely_earned_more():
    learner = off_policy()
    until(learner, Role.explores, earned=100.0)
    first = weights(learner.policy())
    move(learner)
    until(learner, Role.challenger, earned=100.0)
    assert torch.equal(weights(learner.policy()), first)
    tried = weights(learner.candidates[0])
    move(learner)  # goes on learning meanwhile: what is on trial does not change
    episode(learner, 130.0)
    assert torch.equal(weights(learner.policy()), first)
    episode(learner, 131.0)
    assert torch.equal(weights(learner.policy()), tried)
    assert learner.incumbent.taken_over.tolist() == [1]


def about_to_challenge(learner):
    """The incumbent has earned 100 and its learner has moved on: whoever plays next is a challenger."""
    for value in (99.0, 101.0):
        episode(learner, value)
    first = weights(learner.policy())
    episode(learner, 100.0)
    move(learner)
    episode(learner, 100.0)
    return first


@pytest.mark.parametrize("earned", [[80.0], [100.4, 98.0], [101.0, 99.5, 101.0, 99.5]])
def test_a_challenger_that_earns_less_or_not_surely_more_is_given_up(earned):
    learner = off_policy()
    first = about_to_challenge(learner)
    for value in earned:
        assert episode(learner, value).item() == Role.challenger
    assert learner.incumbent.taken_over.tolist() == [0]
    after = [Role(episode(learner, 100.0).item()) for _ in range(3)]
    assert after == [Role.incumbent, Role.explores, Role.challenger]
    assert torch.equal(weights(learner.policy()), first)


def test_what_plays_on_trial_has_no_noise_and_what_explores_has():
    learner = off_policy()
    obs = torch.ones(1, 1, 4)
    torch.testing.assert_close(step(learner), learner.actor.mode(obs))
    until(learner, Role.explores)
    assert not torch.allclose(step(learner), learner.actor.mode(obs))
    move(learner)
    until(learner, Role.challenger)
    tried = learner.candidates[0].mode(obs)
    move(learner)
    torch.testing.assert_close(step(learner), tried)


@pytest.mark.parametrize("earned, back", [(20.0, False), (-60.0, True)])
def test_what_took_over_with_a_lucky_record_plays_on_and_its_predecessor_may_come_back(earned, back):
    learner = off_policy()
    until(learner, Role.explores, earned=30.0)
    first = weights(learner.policy())
    move(learner)
    until(learner, Role.challenger, earned=30.0)
    episode(learner, 50.0), episode(learner, 50.0)
    second = weights(learner.policy())
    assert learner.incumbent.taken_over.tolist() == [1] and not torch.equal(first, second)
    assert episode(learner, earned).item() == Role.incumbent
    assert torch.equal(weights(learner.policy()), first if back else second)
    assert learner.incumbent.records[0, 0, :2].tolist() == ([2.0, 60.0] if back else [3.0, 120.0])
    assert not back or not learner.incumbent.records[0, Role.predecessor - 1].any()
    move(learner, 0.2)
    until(learner, Role.challenger, earned=30.0)
    episode(learner, 1.0)
    assert episode(learner, -999.0).item() == Role.incumbent
    assert torch.equal(weights(learner.policy()), first)


def test_members_are_tried_apart():
    learner = off_policy(seeds=2)
    for _ in range(3):
        episode(learner, 10.0)
    before = [weights(learner.policy().member(p)) for p in range(2)]
    move(learner)
    episode(learner, 10.0)
    for _ in range(2):
        episode(learner, [[5.0], [30.0]])
    assert learner.incumbent.taken_over.tolist() == [0, 1]
    changed = [not torch.equal(weights(learner.policy().member(p)), old) for p, old in enumerate(before)]
    assert changed == [False, True]
    assert torch.equal(weights(learner.policy().member(1)), weights(learner.candidates[0].member(1)))


def test_no_more_challengers_play_side_by_side_than_a_trial_needs():
    learner = on_policy(worlds=12)
    episode(learner, 10.0, 12)
    move(learner)
    episode(learner, 10.0, 12)
    for earned in (10.5, 9.8, 10.5):  # one world's, while the other's episode is long
        assert learner.incumbent.roles[0, 10] == Role.challenger
        episode(learner, earned, 12, ended=[10])
    assert learner.incumbent.roles[0, -2:].tolist() == [Role.incumbent, Role.challenger]


@pytest.mark.parametrize("rest", [0, 2])
def test_between_challengers_the_learner_explores(rest):
    learner = off_policy(rest=rest)
    for _ in range(2):
        episode(learner, 10.0)
    move(learner)
    first = [Role.explores] * max(rest, 1)  # it had nothing to try yet
    turn = [Role.challenger, Role.incumbent, *[Role.explores] * rest]
    played = [Role(episode(learner, 10.0 - k).item()) for k in range(9)]
    assert played == [*first, *turn * 4][:9]


@pytest.mark.parametrize("left, played", [(2.9, Role.explores), (3.0, Role.challenger), (4.9, Role.challenger),
                                          (5.0, Role.explores), (math.inf, Role.explores)])  # fmt: skip
def test_before_a_run_ends_a_last_challenger_does_not_wait_until_the_learner_has_explored(left, played):
    learner = off_policy(trials=3, rest=50)
    for _ in range(4):
        episode(learner, 10.0)
    move(learner)
    learner.episodes_left = left
    assert episode(learner, 10.0).item() == Role.explores
    assert learner.incumbent.roles[0, 0] == played


def test_a_run_counts_down_the_episodes_that_are_left(tmp_path):
    config = SACConfig(actor=replace(SACConfig().actor, hidden=(8,)), critic=CRITIC, warmup=0, horizon=5, updates=0.2)
    task = TrainConfig(task="hopper", online_steps=40, num_worlds=2, torch_threads=1, threads=1, out=str(tmp_path))
    run, _ = begin(task, config)
    seen = [run.learner.episodes_left for _ in run.turns()]
    assert seen == [steps / 2 / 1000 for steps in (40, 30, 20, 10)]


def test_candidates_are_tried_in_turn(transitions):
    learner = on_policy(worlds=8, average=0.5)
    tried = []
    for k in range(8):
        learner.update_online(transitions(1, 8, 8, seed=k))
        episode(learner, -1.0, 8)
        if learner.incumbent.roles[0, -1] == Role.challenger:
            challenger = weights(learner.incumbent.policies[Role.challenger])
            tried.append([torch.equal(challenger, weights(policy)) for policy in learner.candidates])
    assert tried[:4] == [[True, False], [False, True]] * 2


@pytest.mark.parametrize("earned, back", [(70.0, True), (90.0, False)])
def test_learning_goes_on_from_the_incumbent_where_a_challenger_has_lost_much(earned, back):
    learner = off_policy(lost=0.2)
    first = about_to_challenge(learner)
    assert episode(learner, earned).item() == Role.challenger
    for candidate in (learner.actor, *learner.candidates):
        assert torch.equal(weights(candidate), first) == back


def test_without_learning_nothing_is_tried():
    learner = off_policy()
    assert Role.challenger not in [Role(episode(learner, 1.0).item()) for _ in range(12)]


def test_on_policy_the_last_worlds_are_for_trials_and_nothing_is_learned_from_them(transitions):
    learner = on_policy(worlds=8)
    assert learner.incumbent.roles.tolist() == [[0] * 6 + [Role.incumbent] * 2]
    rollout, cut = transitions(1, 8, 8), transitions(1, 8, 8)
    for field in (cut.obs, cut.action, cut.reward, cut.next_obs):
        field[:, :, 6:] = 77.0
    twin = on_policy(worlds=8)
    learner.update_online(rollout), twin.update_online(cut)
    assert torch.equal(weights(learner.actor), weights(twin.actor))
    cut.reward[:, :, 5] = 77.0
    learner.update_online(rollout), twin.update_online(cut)
    assert not torch.equal(weights(learner.actor), weights(twin.actor))


def test_on_policy_challengers_play_side_by_side_and_what_is_left_of_a_trial_does_not_count():
    learner = on_policy(worlds=12)
    assert episode(learner, 10.0, 12)[0].tolist() == [Role.explores] * 10 + [Role.incumbent] * 2
    move(learner)
    episode(learner, 10.0, 12)
    assert (learner.incumbent.roles[0, -2:] == Role.challenger).all()
    episode(learner, 3.0, 12, ended=[11])  # given up, while the other one still plays
    counted = learner.incumbent.played.item()
    episode(learner, 1e9, 12, ended=[10])
    assert learner.incumbent.played.item() == counted and learner.incumbent.taken_over.tolist() == [0]


def test_trials_are_saved_with_the_learner_and_forgotten_by_another_run():
    learner = off_policy()
    until(learner, Role.explores, earned=1.0)
    move(learner)
    until(learner, Role.challenger, earned=1.0)
    episode(learner, 5.0)
    again = off_policy()
    again.load_state_dict(learner.state_dict())
    for one in (learner, again):
        episode(one, 6.0)
        assert one.incumbent.taken_over.tolist() == [1]
    assert torch.equal(weights(learner.policy()), weights(again.policy()))
    assert torch.equal(learner.incumbent.roles, again.incumbent.roles)
    other = off_policy()
    other.adopt(learner.state_dict())
    assert not other.incumbent.begun and other.incumbent.played.tolist() == [0]
    assert torch.equal(weights(other.policy()), weights(other.actor))


def test_the_collector_tells_which_episodes_are_over_and_what_they_earned():
    learner, heard = on_policy(2, 4, 11, 3, seed=1), []
    collector = Collector(sim.make("hopper", num_worlds=8, threads=1), 2, 1, lambda *told: heard.append(told))
    rollout = collector.collect(learner, 60)
    ended = (rollout.terminated + rollout.truncated) > 0
    assert sum(int(over.sum()) for over, _ in heard) == int(ended.sum()) > 0
    p, t, w = (int(i[0]) for i in torch.nonzero(ended, as_tuple=True))
    told = next(returns[p, w] for over, returns in heard if over[p, w])
    assert told == pytest.approx(rollout.reward[p, : t + 1, w].sum().item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"trials": 1}, {"trials": -2}, {"rest": -1}, {"deviations": -1.0}, {"lost": 0.0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        IncumbentConfig(**options)
