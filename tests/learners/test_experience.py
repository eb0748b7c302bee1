"""Replay buffers are rings; collectors record what the world answered, and meet the worlds that lone runs meet."""

import numpy as np
import pytest
import torch

import sim
from policies.actor import ActorPolicy
from robot_cl.batch import Transitions
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.rollout import Collector, play


def numbered(first: int, count: int) -> Transitions:
    """(2, count, 1): rewards count up from `first`, the second member's are negative."""
    reward = torch.arange(first, first + count).float() * torch.tensor([[1.0], [-1.0]])
    wide = reward.view(2, count, 1, 1)
    flags = torch.zeros(2, count, 1)
    return Transitions(wide, wide, reward.unsqueeze(-1), wide, flags, flags)


def test_a_full_buffer_forgets_the_oldest_and_members_keep_their_own():
    buffer, rngs = ReplayBuffer(10, 2, 1, 1), [torch.Generator().manual_seed(p) for p in range(2)]
    for first, count in ((0, 4), (4, 5), (9, 4), (13, 25)):
        buffer.add(numbered(first, count))
        held = range(max(0, first + count - 10), first + count)
        rows = buffer.sample(500, rngs).reward
        assert set(rows[0].int().tolist()) == set(held)
        assert set((-rows[1]).int().tolist()) == set(held)
        assert len(buffer) == len(held) and buffer.total == first + count


def test_rows_added_since_a_position_come_in_order():
    buffer = ReplayBuffer(10, 2, 1, 1)
    buffer.add(numbered(0, 7))
    buffer.add(numbered(7, 6))
    assert buffer.since(9)[0, :, 0].int().tolist() == [9, 10, 11, 12]
    assert buffer.since(0)[0, :, 0].int().tolist() == list(range(3, 13))  # as far as they are still held


def test_an_empty_buffer_cannot_be_sampled():
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(10, 1, 1, 1).sample(2, [torch.Generator()])


def make(seeds: int, seed: int, worlds: int = 2) -> tuple[PPO, Collector]:
    learner = PPO(PPOConfig(), 11, 3, seeds, seed)
    return learner, Collector(sim.make("hopper", num_worlds=seeds * worlds, threads=1), seeds, seed)


def test_a_rollout_is_what_the_world_answers_to_these_actions():
    learner, collector = make(1, 3)
    rollout = collector.collect(learner, 60)
    world = sim.make("hopper", num_worlds=2, threads=1)
    obs = world.reset(seed=6)
    ends = 0
    for t in range(60):
        np.testing.assert_array_equal(rollout.obs[0, t].numpy(), obs.astype(np.float32))
        obs, reward, terminated, truncated, info = world.step(rollout.action[0, t].numpy())
        np.testing.assert_array_equal(rollout.reward[0, t].numpy(), reward.astype(np.float32))
        np.testing.assert_array_equal(rollout.next_obs[0, t].numpy(), info["final_obs"].astype(np.float32))
        np.testing.assert_array_equal(rollout.terminated[0, t].numpy(), terminated)
        np.testing.assert_array_equal(rollout.truncated[0, t].numpy(), truncated)
        ends += int(terminated.sum())
    assert ends and collector.finished().shape == (1,) and collector.finished() is None


def test_a_stack_meets_the_worlds_that_lone_runs_meet():
    stacked = make(2, 5)[1].collect(make(2, 5)[0], 5)
    for p in range(2):
        learner, collector = make(1, 5 + p)
        alone = collector.collect(learner, 5)
        for mine, theirs in zip(vars(stacked).values(), vars(alone).values(), strict=True):
            torch.testing.assert_close(mine[p], theirs[0], rtol=1e-4, atol=1e-4)


def test_a_restored_collector_goes_on_bit_for_bit():
    learner, collector = make(1, 0)
    collector.collect(learner, 30)
    state, rng = collector.state(), learner.rng[0].get_state()
    first = collector.collect(learner, 30)
    other = make(1, 9)[1]
    other.restore({name: value.copy() for name, value in state.items()})
    learner.rng[0].set_state(rng)
    again = other.collect(learner, 30)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


def test_played_returns_are_the_sums_of_the_first_episodes():
    policy, world = ActorPolicy(make(1, 0)[0].actor), sim.make("hopper", num_worlds=3, threads=1)
    returns = play(policy, world, 11)
    for i in range(3):
        alone = sim.make("hopper", num_worlds=1, threads=1)
        obs, total, over = alone.reset(seed=11 + i), 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = alone.step(policy.act(obs.astype(np.float32)))
            total, over = total + reward[0], bool(terminated[0] or truncated[0])
        assert returns[i] == pytest.approx(total, rel=1e-3)
