"""MOORL's identities: where it is plain soft actor-critic, where nothing moves, and what never leaks."""

from dataclasses import replace

import pytest
import torch

from policies.actor import StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.data.sampler import Sampler
from robot_cl.learners.graph import Updates
from robot_cl.learners.moorl import MOORL, MOORLConfig, Tasks, where
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.returns import returns_to_go
from robot_cl.learners.sac import SAC, SACConfig, joined, tanh_actor

SMALL = {"actor": replace(tanh_actor(), hidden=(16, 16)), "critic": CriticConfig(hidden=(16, 16))}


def meta(learner: MOORL) -> list[torch.Tensor]:
    """Copies of the meta-parameters."""
    nets = (learner.nets["actor"], learner.nets["critic"])
    return [p.detach().clone() for net in nets for p in net.parameters()]


def test_one_whole_step_at_a_time_is_plain_soft_actor_critic_bit_for_bit(transitions):
    options = {**SMALL, "lr": 1e-2, "temperature": 1.0}
    plain = SAC(SACConfig(**options), 4, 2, seeds=2, seed=3)
    ours = MOORL(MOORLConfig(**options, tasks=Tasks.joined, inner=1, meta=1.0), 4, 2, seeds=2, seed=3)
    ours.actor.normalizer.clip = plain.actor.normalizer.clip
    for step in range(6):
        fresh, offline = transitions(2, 8, seed=step), transitions(2, 8, seed=100 + step)
        plain.update_online(fresh, offline)
        ours.update_online(fresh, offline)
    for name in ("actor", "critic", "target", "temperature"):
        theirs = plain.nets[name].state_dict()
        for key, value in ours.nets[name].state_dict().items():
            assert torch.equal(value, theirs[key]), (name, key)


def test_by_default_each_update_is_soft_actor_critic_on_a_whole_batch_of_one_buffer(transitions):
    """The published form where a meta step is one whole update."""
    plain = SAC(SACConfig(**SMALL, temperature=0.1), 4, 2, seeds=2, seed=3)
    ours = MOORL(MOORLConfig(**SMALL), 4, 2, seeds=2, seed=3)
    ours.actor.normalizer.clip = plain.actor.normalizer.clip
    turns = []
    for step in range(8):
        fresh, offline = transitions(2, 8, seed=step), transitions(2, 8, seed=100 + step)
        ours.update_online(fresh, offline)
        turns.append(ours.extra["offline_turn"].clone())
        plain.draws.uniform()  # whose turn it is
        plain.update_offline(where(turns[-1], offline, fresh))
    assert 0 < torch.stack(turns).float().mean() < 1
    for name in ("actor", "critic", "target", "temperature"):
        theirs = plain.nets[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.nets[name].state_dict().items()), name


@pytest.mark.parametrize("tasks", list(Tasks))
def test_a_meta_step_of_zero_moves_nothing(tasks, transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=tasks, inner=2, meta=0.0), 4, 2, seeds=2)
    before, target = meta(learner), [p.clone() for p in learner.nets["target"].parameters()]
    for step in range(4):
        learner.update_online(transitions(2, 8, seed=step), transitions(2, 8, seed=9 + step))
    assert all(torch.equal(a, b) for a, b in zip(before, meta(learner), strict=True))
    for old, now in zip(target, learner.nets["target"].parameters(), strict=True):
        torch.testing.assert_close(old, now, rtol=0.0, atol=1e-6)


def test_meta_parameters_and_targets_stand_still_between_meta_steps(transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks.both, inner=3, meta=0.5, tau=0.1, lr=1e-2), 4, 2)
    before, targets = meta(learner), [p.clone() for p in learner.nets["target"].parameters()]
    for _ in range(2):
        learner.update_online(transitions(1, 8), transitions(1, 8, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(before, meta(learner), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(targets, learner.nets["target"].parameters(), strict=True))
    learner.update_online(transitions(1, 8), transitions(1, 8, seed=1))
    assert not any(torch.equal(a, b) for a, b in zip(before, meta(learner), strict=True) if a.dim() == 3)
    for old, now, critic in zip(
        targets, learner.nets["target"].parameters(), learner.nets["critic"].parameters(), strict=True
    ):
        wanted = torch.lerp(old, critic.repeat(2, 1, 1), 0.1 * 3)  # τ·K towards the meta critics, for both tasks
        torch.testing.assert_close(now, wanted, rtol=1e-5, atol=1e-6)


def test_the_meta_step_is_the_mean_of_both_tasks_changes(transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks.both, inner=2, meta=0.25, lr=1e-2), 4, 2)
    before = [p.clone() for p in learner.nets["critic"].parameters()]
    learner.update_online(transitions(1, 8), transitions(1, 8, seed=1))
    fast: list[torch.Tensor] = []
    restart = learner._restart
    learner._restart = lambda: fast.extend(p.clone() for p in learner.nets["fast_critic"].parameters())
    learner.update_online(transitions(1, 8), transitions(1, 8, seed=1))
    for old, quick, now in zip(before, fast, learner.nets["critic"].parameters(), strict=True):
        both = quick.view(2, *old.shape)
        assert not torch.equal(both[0], both[1]) or old.numel() == 2  # the tasks see different buffers
        torch.testing.assert_close(now, old + 0.25 * (both.mean(0) - old), rtol=1e-4, atol=1e-6)
    restart()
    for quick, now in zip(learner.nets["fast_critic"].parameters(), learner.nets["critic"].parameters(), strict=True):
        assert torch.equal(quick.view(2, *now.shape)[0], now) and torch.equal(quick.view(2, *now.shape)[1], now)


def test_alternating_takes_one_buffer_for_a_whole_meta_step(transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks.alternate, inner=4, meta=0.5), 4, 2, seeds=3)
    fresh, offline = transitions(3, 8), transitions(3, 8, seed=1)
    turns = []
    for _ in range(40):
        batch = learner._task_batch(fresh, offline)
        old = learner.extra["offline_turn"]
        assert torch.equal(batch.obs, torch.where(old[:, None, None], offline.obs, fresh.obs))
        turns.append(old.clone())
        learner.step += 1
    by_step = torch.stack(turns).view(10, 4, 3)
    assert (by_step == by_step[:, :1]).all() and 0 < by_step.float().mean() < 1


def test_lookahead_sees_both_halves(transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks.joined), 4, 2)
    fresh, offline = transitions(1, 8), transitions(1, 8, seed=1)
    assert torch.equal(learner._task_batch(fresh, offline).obs, joined(fresh, offline).obs)


def test_critics_and_targets_of_all_tasks_begin_at_the_returns_of_the_data(transitions):
    data = transitions(1500)
    data = replace(data, reward=data.reward + 20.0)
    wanted = returns_to_go(data, 0.9)
    for steps, least in ((300, 0.9), (0, -1.0)):
        learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks.both, discount=0.9, returns_steps=steps), 4, 2, seeds=2)
        learner.prepare(data)
        z = learner.actor.normalizer(data.obs)
        for net in (learner.critic, learner.fast.critic, learner.fast.target):
            share = net(z, data.action).mean((1, 2)) / wanted.mean()
            assert ((share > least) & (share < (1.1 if steps else 0.1))).all()


def test_one_buffer_is_refused(transitions):
    with pytest.raises(ValueError, match="two buffers"):
        MOORL(MOORLConfig(**SMALL), 4, 2).update_online(transitions(1, 8), None)
    with pytest.raises(ValueError, match="inner is 0"):
        MOORLConfig(inner=0)


def test_seeds_with_statistics_of_their_own_keep_them_in_both_tasks(transitions):
    rows = transitions(2, 50)
    norm = Normalizer(4, population=2)
    norm.update(rows.obs * torch.tensor([1.0, 3.0]).view(2, 1, 1))
    actor = StackedGaussianActor(4, 2, generators(0, 2), SMALL["actor"], norm.freeze())
    stack = MOORL(MOORLConfig(**SMALL, tasks=Tasks.both), 4, 2, 2, actor=actor)
    stack.prepare(transitions(60))
    z = stack.fast.actor.normalizer(torch.cat([rows.obs, rows.obs]))
    assert torch.equal(z, torch.cat([stack.actor.normalizer(rows.obs)] * 2)) and not torch.equal(z[0], z[1])
    metrics = stack.update_online(rows, rows)
    assert all(value.shape == (2,) and value.isfinite().all() for value in metrics.values())


def test_the_share_of_the_dataset_is_of_turns_or_of_rows(transitions):
    turns = MOORL(MOORLConfig(**SMALL, tasks=Tasks.alternate, inner=1, offline_share=0.2), 4, 2, seeds=4)
    batches, taken = (transitions(4, 8), transitions(4, 8, seed=1)), []
    for _ in range(100):
        assert turns._task_batch(*batches).reward.shape == (4, 8)
        taken.append(turns.extra["offline_turn"].clone())
    assert turns.plan().offline_share == 0.5 and torch.stack(taken).float().mean() == pytest.approx(0.2, abs=0.06)
    assert MOORL(MOORLConfig(**SMALL, tasks=Tasks.joined, offline_share=0.2), 4, 2).plan().offline_share == 0.2
    with pytest.raises(ValueError, match="leave out offline_share"):
        MOORLConfig(tasks=Tasks.both, offline_share=0.2)


WHOLE = [("both", False, 4), ("both", True, 8), ("alternate", True, 8), ("joined", True, 4)]


@pytest.mark.parametrize("tasks, whole, rows", WHOLE)
def test_a_buffer_gives_half_a_batch_or_a_whole_one(tasks, whole, rows, transitions):
    learner = MOORL(MOORLConfig(**SMALL, tasks=Tasks(tasks), whole_batches=whole), 4, 2)
    data, seen, update = transitions(40), [], learner.update_online
    buffer = ReplayBuffer(40, 1, 4, 2)
    buffer.add_packed(transitions(1, 40, seed=1).pack())
    learner.update_online = lambda *batches: [seen.append(b.reward.shape[1]) for b in batches] and update(*batches)
    Updates(learner, Sampler.over(data, learner.rng), buffer, 8).online()
    assert seen == [rows, rows]
