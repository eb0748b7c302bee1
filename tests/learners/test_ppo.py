"""PPO: advantages and the clipped gradient by hand, time limits against terminations, and what stays frozen."""

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, Distribution, Sigma, StackedGaussianActor
from policies.critics import CriticConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.learners.averaging import PolicyAverage
from robot_cl.learners.ppo import PPO, PPOConfig, discounted_returns, gae

SMALL = {
    "actor": ActorConfig(hidden=(16,), activation="tanh", squash_mean=False, init="orthogonal"),
    "critic": CriticConfig(hidden=(16,), activation="tanh", init="orthogonal"),
    "minibatch": 16,
    "epochs": 2,
}


def slow_gae(reward, value, next_value, terminated, ended, discount, lam):
    """The definition: a weighted sum of temporal differences up to the end of the episode, one step at a time."""
    steps, worlds = reward.shape
    out = np.zeros((steps, worlds))
    for w in range(worlds):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, w] else next_value[k, w]
                out[t, w] += weight * (reward[k, w] + discount * bootstrap - value[k, w])
                weight *= discount * lam
                if ended[k, w]:
                    break
    return out


def test_advantages_are_the_sum_of_the_definition():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 20, 5))
    terminated, truncated = rng.random((2, 20, 5)) < 0.1
    ended = terminated | truncated
    assert terminated.any() and (truncated & ~terminated).any()
    tensors = [torch.from_numpy(np.asarray(x, dtype=np.float64))[None] for x in
               (reward, value, next_value, terminated, ended)]  # fmt: skip
    fast = gae(*tensors, 0.95, 0.9)[0].numpy()
    np.testing.assert_allclose(fast, slow_gae(reward, value, next_value, terminated, ended, 0.95, 0.9), atol=1e-12)


def test_a_time_limit_is_bootstrapped_and_a_termination_is_not():
    def one(terminated: float, truncated: float) -> list[float]:
        ended = max(terminated, truncated)
        columns = ([1.0, 1.0], [0.5, 0.5], [10.0, 10.0], [terminated, 0.0], [ended, 0.0])
        return gae(*(torch.tensor(x).view(1, 2, 1) for x in columns), 0.9, 0.8).flatten().tolist()

    later = 1 + 0.9 * 10 - 0.5
    assert one(1.0, 0.0) == pytest.approx([1 - 0.5, later])
    assert one(0.0, 1.0) == pytest.approx([later, later])
    assert one(0.0, 0.0) == pytest.approx([later + 0.9 * 0.8 * later, later])


def test_discounted_returns_restart_after_an_end():
    reward, ended = torch.ones(1, 4, 1), torch.tensor([0.0, 1.0, 0.0, 0.0]).view(1, 4, 1)
    out = discounted_returns(torch.full((1, 1), 2.0), reward, ended, 0.5)
    assert out.flatten().tolist() == [2.0, 2.0, 1.0, 1.5]


def test_the_clipped_gradient_is_that_computed_by_hand(transitions):
    learner, batch = PPO(PPOConfig(clip=0.1, **SMALL), 4, 2, seed=1), transitions(1, 64)
    mean, log_std = learner.actor.heads(batch.obs)
    log_prob = learner.actor.log_prob(mean, log_std, batch.action)
    rng = torch.Generator().manual_seed(0)
    old = log_prob.detach() + 0.3 * torch.randn(1, 64, generator=rng)
    advantage = torch.randn(1, 64, generator=rng)
    loss, _ = learner.policy_loss(log_prob, old, advantage)
    loss.sum().backward()
    ratio = np.exp((log_prob.detach() - old)[0].double().numpy())
    a, gain = batch.action[0].double().numpy(), advantage[0].double().numpy()
    clipped = np.clip(ratio, 0.9, 1.1)
    assert loss.item() == pytest.approx(-np.minimum(ratio * gain, clipped * gain).mean(), abs=1e-5)
    active = ~((gain > 0) & (ratio > 1.1) | (gain < 0) & (ratio < 0.9))
    assert 10 < active.sum() < 60
    d_bias = -(active * ratio * gain)[:, None] * (a - mean[0].detach().double().numpy())  # σ = 1
    np.testing.assert_allclose(learner.actor.net.layers[-1].bias.grad[0, 0].numpy(), d_bias.mean(0), atol=1e-5)


def test_the_prepared_rollout_has_advantages_from_raw_observations(transitions):
    learner, fresh = PPO(PPOConfig(scale_reward=False, **SMALL), 4, 2, seed=1), transitions(1, 8, 4)
    learner.actor.normalizer.update(fresh.obs)
    z, action, log_prob, advantage, target = learner.prepare_rollout(fresh).split([4, 2, 1, 1, 1], -1)
    norm = learner.actor.normalizer
    torch.testing.assert_close(z, norm(fresh.obs.reshape(1, 32, 4)))
    torch.testing.assert_close(action, fresh.action.reshape(1, 32, 2))
    with torch.no_grad():
        value, following = (learner.v(norm(x.reshape(1, 32, 4))) for x in (fresh.obs, fresh.next_obs))
        torch.testing.assert_close(log_prob[..., 0], learner.actor.log_prob(*learner.actor.heads(z), action))
    ended = torch.maximum(fresh.terminated, fresh.truncated)
    pair = (x.view(8, 4).numpy() for x in (value, following))
    flags = (x[0].numpy() for x in (fresh.terminated, ended))
    raw = slow_gae(fresh.reward[0].numpy(), *pair, *flags, 0.99, 0.95).reshape(-1)
    np.testing.assert_allclose(target[0, :, 0].numpy(), raw + value[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(advantage[0, :, 0].numpy(), (raw - raw.mean()) / raw.std(ddof=1), atol=1e-4)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(transitions):
    learner, ended = PPO(PPOConfig(**SMALL), 4, 2), torch.zeros(1, 500, 4)
    reward = 3.0 * torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0))
    scale = learner._reward_scale(reward, ended).item()
    assert 1 / scale == pytest.approx(3.0 / np.sqrt(1 - 0.99**2), rel=0.3)


def test_the_first_epoch_starts_at_ratio_one(transitions):
    learner = PPO(PPOConfig(**(SMALL | {"epochs": 1, "minibatch": 32})), 4, 2)
    metrics = learner.update_online(transitions(1, 8, 4))
    assert abs(metrics["kl"].item()) < 1e-6 and metrics["clipped"].item() == 0.0


def test_value_warmup_leaves_the_policy_alone(transitions):
    learner = PPO(PPOConfig(value_warmup=1, **SMALL), 4, 2)
    policy, values = ([p.clone() for p in net.parameters()] for net in (learner.actor, learner.v))
    learner.update_online(transitions(1, 8, 4))
    assert all(torch.equal(a, b) for a, b in zip(policy, learner.actor.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values, learner.v.parameters(), strict=True))
    learner.update_online(transitions(1, 8, 4, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(policy, learner.actor.parameters(), strict=True))


def test_statistics_of_a_loaded_policy_stay_frozen_and_those_of_a_new_one_move(transitions):
    normalizer = Normalizer(4).fit(torch.randn(50, 4))
    loaded = StackedGaussianActor(4, 2, generators(0, 1), SMALL["actor"], normalizer)
    continued, scratch = PPO(PPOConfig(**SMALL), 4, 2, actor=loaded), PPO(PPOConfig(**SMALL), 4, 2)
    for learner in (continued, scratch):
        learner.update_online(transitions(1, 8, 4))
    assert continued.actor.normalizer.digest == normalizer.digest
    assert scratch.actor.normalizer.count == 64  # the first rollout counts before the update, for want of others, too


def test_a_loaded_policy_explores_more_after_the_first_rollout_and_acts_the_same(transitions):
    shape = ActorConfig(hidden=(16,), sigma=Sigma.head, log_std_min=-5.0, log_std_max=0.0)
    source = StackedGaussianActor(4, 2, generators(0, 1), shape, Normalizer(4).fit(torch.randn(50, 4)))
    options = SMALL | {"actor": shape, "value_warmup": 1, "least_log_std": -1.0}
    learner, obs = PPO(PPOConfig(**options), 4, 2, actor=source), torch.randn(1, 20, 4)
    acted, narrow = source.mode(obs), learner.actor(obs)[1].min().item()
    first = learner.update_online(transitions(1, 8, 4))
    assert narrow < -2.0 and learner.actor(obs)[1].min() >= -1.0
    torch.testing.assert_close(learner.policy().mode(obs), acted)
    assert "ratio" not in first and learner.policy().spec()["config"]["log_std_min"] == -1.0
    second = learner.update_online(transitions(1, 8, 4, seed=1))
    assert second["kl"].isfinite().all()


def test_a_policy_that_was_made_to_explore_more_goes_on_so(transitions):
    config = PPOConfig(**SMALL, least_log_std=-0.5)
    actor = PPO(config, 4, 2, 1, 0).actor
    actor.log_std.data.fill_(-3.0)
    learner = PPO(config, 4, 2, 1, 0, actor=actor)
    learner.update_online(transitions(1, 8, 4))
    again = PPO(config, 4, 2, 1, 0, actor=actor)
    again.load_state_dict(learner.state_dict())
    obs, noise = torch.zeros(1, 3, 4), torch.ones(1, 3, 2)
    assert torch.equal(again.explore(obs, noise), learner.explore(obs, noise))


def test_a_rollout_of_one_row_changes_no_policy_into_nan(transitions):
    learner = PPO(PPOConfig(**SMALL), 4, 2, 1, 0)
    learner.update_online(transitions(1, 1, 1))
    assert all(p.isfinite().all() for p in learner.actor.parameters())


def test_learning_rates_fall_to_zero(transitions):
    learner = PPO(PPOConfig(decay=2, **SMALL), 4, 2)
    for seed in range(2):
        learner.update_online(transitions(1, 8, 4, seed=seed))
    assert learner.opts["actor"].lr == pytest.approx(0.5e-3)
    policy = [p.clone() for p in learner.actor.parameters()]
    learner.update_online(transitions(1, 8, 4, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(policy, learner.actor.parameters(), strict=True))


def test_a_squashed_policy_is_refused():
    with pytest.raises(ValueError, match="distribution=gaussian"):
        PPO(PPOConfig(actor=ActorConfig(distribution=Distribution.tanh_gaussian)), 4, 2)


def test_a_step_too_far_is_halved_member_by_member_until_it_is_within_reach(transitions):
    """Both members learn from the same rollout; only what is beyond `max_kl` is shortened, along its own direction."""
    fresh, moved = transitions(2, 8, 4), {}
    for most in (None, 0.02):
        learner = PPO(PPOConfig(**SMALL | {"epochs": 1}, lr=5e-2, max_kl=most), 4, 2, 2, seed=0)
        learner.actor.normalizer.fit(fresh.obs.reshape(-1, 4))
        with torch.no_grad():
            learner.actor.log_std[1] += 2.0  # a wide policy moves by fewer nats
        weight = learner.actor.net.layers[0].weight
        before = weight.detach().clone()
        rows = learner.prepare_rollout(fresh)
        metrics = learner._improve(rows)
        log_ratio = learner.actor.log_prob(*learner.actor.heads(rows[..., :4]), rows[..., 4:6]) - rows[..., 6]
        moved[most] = ((weight - before).detach(), (log_ratio.exp() - 1.0 - log_ratio).mean(-1), metrics)
    far, near = moved[None][1], moved[0.02][1]
    assert far[0] > 0.02 and (near <= 0.02).all()
    share = moved[0.02][2]["taken"]
    assert share[0] < 1.0 and "taken" not in moved[None][2]
    torch.testing.assert_close(moved[0.02][0], share.view(-1, 1, 1) * moved[None][0], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="max_kl"):
        PPOConfig(max_kl=0.0)


def test_a_narrow_policy_that_jumps_gives_no_infinite_ratio():
    learner = PPO(PPOConfig(**SMALL), 4, 2)
    log_prob = torch.tensor([[900.0, 0.1]], requires_grad=True)
    loss, ratio = learner.policy_loss(log_prob, torch.zeros(1, 2), torch.tensor([[-1.0, 1.0]]))
    loss.sum().backward()
    assert loss.isfinite().all() and ratio.isfinite().all()
    assert log_prob.grad[0, 0] == 0.0 and log_prob.grad[0, 1] < 0.0


def test_every_epoch_of_many_ends_within_reach(transitions):
    learner = PPO(PPOConfig(**SMALL | {"epochs": 5}, lr=5e-2, max_kl=0.02), 4, 2)
    fresh = transitions(1, 8, 4)
    learner.actor.normalizer.fit(fresh.obs.reshape(-1, 4))
    rows = learner.prepare_rollout(fresh)
    ends, shorten = [], learner._shorten
    learner._shorten = lambda *args: (shorten(*args), ends.append(divergence(learner, rows)))[0]
    learner._improve(rows)
    assert len(ends) == 5 and max(ends) <= 0.02 and ends[-1] > 0.0


def divergence(learner, rows):
    log_ratio = learner.actor.log_prob(*learner.actor.heads(rows[..., :4]), rows[..., 4:6]) - rows[..., 6]
    return (log_ratio.exp() - 1.0 - log_ratio).mean().item()


def test_the_average_of_policies_keeps_its_decay_and_is_what_is_published():
    learner = PPO(PPOConfig(**SMALL, average=0.9), 3, 1, 2)
    before, one = PolicyAverage(learner, 0.9), learner.actor.net.layers[0].weight
    start = one.detach().clone()
    before.begin()
    with torch.no_grad():
        one += 1.0
    before.follow()
    torch.testing.assert_close(before.policy.net.layers[0].weight, start + 0.1)
    assert learner.published is learner.actor  # nothing was learned yet
    learner.step = 1
    assert learner.published is learner.average.policy
