"""Model-based policy optimisation: what is imagined, which rows the model learns from, and what a loss changes."""

from dataclasses import replace

import pytest
import torch

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import member_errors
from dynamics.losses import normalised_mse, value_gradient
from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.learners.mbpo import MBPO, MBPOConfig, flattened
from robot_cl.learners.model_config import ModelConfig, ModelLoss, Ramp
from robot_cl.learners.real_data import HOLDOUT, part
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.sac import tanh_actor

OBS, ACT = 4, 2
SMALL = {"actor": replace(tanh_actor(), hidden=(16, 16)), "critic": CriticConfig(hidden=(16, 16), layer_norm=True)}


def model(**options) -> ModelConfig:
    shape = EnsembleConfig(3, 2, (16,), (8,))
    sizes = {"every": 10, "first": 20, "steps": 10, "batch": 32, "rollouts": 4.0, "keep": 120, "end_steps": 5}
    return ModelConfig(**{"ensemble": shape, **sizes, **options})


def learner(seeds: int = 1, seed: int = 0, rows: int = 0, transitions=None, **options) -> MBPO:
    """With `rows` transitions of each seed in its replay buffer."""
    made = MBPO(MBPOConfig(**{**SMALL, "model": model(), "warmup": 0, **options}), OBS, ACT, seeds, seed)
    if rows:
        buffer = ReplayBuffer(1000, seeds, OBS, ACT)
        buffer.add(transitions(seeds, rows, 1))
        made.attach_replay(buffer)
    return made


def constant(batch: Transitions, value: float) -> Transitions:
    return Transitions(**{**vars(batch), "reward": torch.full_like(batch.reward, value)})


def test_a_ramp_is_flat_before_and_after_and_linear_between():
    ramp = Ramp(0.1, 0.9, 100, 300)
    assert [ramp(step) for step in (0, 100, 200, 300, 1e9)] == pytest.approx([0.1, 0.1, 0.5, 0.9, 0.9])
    assert Ramp(1.0, 5.0)(0) == 1.0


def test_exactly_the_share_of_a_batch_is_imagined_and_both_real_parts_keep_theirs(transitions):
    made = learner(2)
    fresh, offline = constant(transitions(2, 30), 1.0), constant(transitions(2, 10), 2.0)
    assert made.mixed(fresh, offline, 0.5).reward.shape == (2, 40)  # nothing is imagined yet
    made._remember(constant(transitions(2, 50), 3.0).pack())
    for share, counts in ((0.0, (30, 10, 0)), (0.5, (15, 5, 20)), (0.9, (3, 1, 36))):
        reward = made.mixed(fresh, offline, share).reward
        assert [int((row == kind).sum()) for row in reward for kind in (1.0, 2.0, 3.0)] == [*counts, *counts]


def test_the_share_follows_the_environment_steps_of_the_online_part(transitions):
    made = learner(rows=60, transitions=transitions, share=Ramp(0.0, 0.5, 5, 25), warmup=5, updates=2.0)
    shares = []
    mixed = made.mixed
    made.mixed = lambda fresh, offline, share: shares.append(share) or mixed(fresh, offline, share)
    for _ in range(50):
        made.update_online(transitions(1, 16), None)
    assert shares[0] == 0.0 and shares[20] == pytest.approx(0.25) and shares[-1] == 0.5
    assert shares == sorted(shares)


def test_without_a_share_no_model_is_fitted(transitions):
    made = learner(rows=60, transitions=transitions, share=Ramp(0.0, 0.0))
    before = [p.clone() for p in made.model.parameters()]
    metrics = made.update_online(transitions(1, 16), None)
    assert "model_loss" not in metrics and int(made.extra["total"]) == 0
    assert all(torch.equal(p, q) for p, q in zip(made.model.parameters(), before, strict=True))


def test_retraining_comes_at_its_interval_and_keeps_weights_and_moments(transitions):
    made = learner(rows=200, transitions=transitions, updates=2.0)
    fitted = [i for i in range(60) if "model_loss" in made.update_online(transitions(1, 16), None)]
    assert fitted == [0, 20, 40]  # every 10 environment steps at two updates each
    assert float(made.opts["model"].state["step"]) == 20 + 10 + 10
    assert made.opts["model"].state["exp_avg"].abs().sum() > 0


def test_only_the_loss_differs_between_the_choices(transitions):
    kinds = [kind for kind in ModelLoss if kind is not ModelLoss.nll]
    made = [learner(rows=80, transitions=transitions, model=model(loss=kind)) for kind in kinds]
    first = {name: value.clone() for name, value in made[0].state_dict().items()}
    for other in made[1:]:
        assert all(torch.equal(value, first[name]) for name, value in other.state_dict().items())
    for each in made:
        each.retrain(True, 0.0)
    generators = [each.rng[0].get_state() for each in made]
    assert all(torch.equal(state, generators[0]) for state in generators)  # the same rows, starts and actions
    weights = [torch.cat([p.flatten() for p in each.model.parameters()]) for each in made]
    assert all(not torch.equal(a, b) for k, a in enumerate(weights) for b in weights[:k])
    assert learner(model=model(loss=ModelLoss.nll)).model.config.gaussian and not made[0].model.config.gaussian


@pytest.mark.parametrize("kind", list(ModelLoss))
def test_every_loss_learns_the_dynamics_of_every_seed(kind, transitions):
    made = learner(2, model=model(loss=kind, first=150, lr=1e-2))
    made.attach_replay(ReplayBuffer(1000, 2, OBS, ACT))
    fresh = transitions(2, 300, 1)
    fresh.next_obs.copy_(fresh.obs + torch.cat([fresh.action, 0.1 * fresh.obs[..., :2]], -1))
    made.replay.add(fresh)
    rows, held = made.real(False, True), flattened(made.real(True, True))
    index = torch.arange(60).view(2, 30).repeat_interleave(3, 0)

    def error() -> torch.Tensor:
        e = member_errors(made.model, held, index)
        return (e.state / e.state_scale).square().mean((1, 2))

    made.model.measure(rows.obs, rows.action, rows.reward, rows.next_obs)
    before = error()
    metrics = made.retrain(True, 0.0)
    assert all(value.shape == (2,) and value.isfinite().all() for value in metrics.values())
    assert (error() < 0.5 * before).all()


def test_value_gradients_are_those_of_every_critic_and_target_of_the_row_s_own_seed(transitions):
    made = learner(2, rows=50, transitions=transitions)
    made._begin_online(transitions(2, 16))
    states = transitions(2, 30).next_obs
    found = made.value_gradients(states, chunk=7)
    assert found.shape == (4, 60, OBS)
    for p in range(2):
        actor = made.actor.member(p)
        for c, (net, twin) in enumerate([(n, t) for n in (made.soft.critic, made.soft.target) for t in range(2)]):

            def value(x, p=p, net=net, twin=twin, actor=actor):
                z = actor.normalizer(x).expand(2, -1, -1)
                return net(z, actor.mode(x).detach().expand(2, -1, -1))[p, twin]

            wanted = value_gradient(value, states[p])[1]
            torch.testing.assert_close(found[c, 30 * p : 30 * p + 30], wanted, rtol=1e-4, atol=1e-6)


def test_a_held_out_row_stays_held_out_while_the_data_grow(transitions):
    made, trained, held = learner(), set(), set()
    for rows in (25, 60, 137):
        data = transitions(rows)
        data.reward.copy_(torch.arange(rows))  # a row's name
        trained |= set(part(data, False, 1000, False, made.rng).reward.int().flatten().tolist())
        held |= set(part(data, True, 1000, False, made.rng).reward.int().flatten().tolist())
    assert trained.isdisjoint(held)
    assert held == set(range(HOLDOUT - 1, 137, HOLDOUT)) and len(trained | held) == 137 - 137 % HOLDOUT + 137 % HOLDOUT


def test_every_network_draws_from_its_own_seed_s_rows(transitions):
    made = learner(2)
    index = made.bootstraps(50, 8)
    assert index.shape == (8, 6, 32)
    for k in range(6):
        rows = index[:, k].unique()
        assert (rows // 50 == k // 3).all()
        assert len(rows) < 50  # a resampling leaves some out
    assert not torch.equal(index[:, 0], index[:, 1])


def test_old_and_new_data_share_the_model_s_rows_as_asked(transitions):
    made = learner(rows=40, transitions=transitions, offline_share=0.25)
    old = constant(transitions(500), 7.0)
    made.attach_data(old)
    rows = made.real(False, True).reward
    assert rows.shape[1] == 540 and int((rows == 7.0).sum()) == 135
    assert (made.real(False, False).reward == 7.0).all()  # offline there is only the dataset


def test_rows_after_the_end_of_a_rollout_are_not_remembered(transitions):
    made = learner(rows=100, transitions=transitions, model=model(horizon=Ramp(4.0, 4.0), rollouts=2.0))
    made.retrain(True, 0.0)
    ring = Transitions.unpack(made.extra["imagined"], OBS, ACT)
    assert int(made.extra["total"]) == 80
    made.ends.forward = lambda obs: torch.ones(obs.shape[:-1], dtype=torch.bool)
    made.imagine(made.real(False, True), 0.0, 0.0)
    ring = Transitions.unpack(made.extra["imagined"][:, [(80 + i) % 120 for i in range(80)]], OBS, ACT)
    assert (ring.terminated == 1.0).all()  # each rollout gave its first step alone
    starts = set(map(tuple, made.real(False, True).obs[0].tolist()))
    assert all(tuple(obs) in starts for obs in ring.obs[0].tolist())


def test_offline_the_imagined_reward_is_lowered_by_disagreement_and_online_it_is_not(transitions):
    data, rewards = transitions(300), []
    for penalty in (0.0, 2.0):
        made = learner(penalty=penalty, model=model(loss=ModelLoss.mse))
        made.attach_data(data)
        made.prepare(data)
        made.update_offline(transitions(1, 16))
        rewards.append(Transitions.unpack(made.extra["imagined"][:, :40], OBS, ACT))
    plain, lowered = rewards
    apart = made.model.disagreement(plain.obs, plain.action)
    wanted = plain.reward - 2.0 * apart * made.model.reward_scale.view(1, -1)[:, :1]
    torch.testing.assert_close(lowered.reward, wanted, rtol=1e-4, atol=1e-4)
    assert apart.min() > 0.0
    made.update_online(transitions(1, 16), transitions(1, 16))
    assert int(made.extra["total"]) == 40  # what was imagined with the penalty is gone


def test_offline_the_actor_is_kept_near_the_actions_of_the_data(transitions):
    data, apart = transitions(200), []
    data.action.fill_(0.5)
    for cloning in (0.0, 20.0):
        made = learner(cloning=cloning, offline_imagined=0.0, lr=3e-3)
        made.prepare(data)
        for _ in range(60):
            made.update_offline(Transitions.unpack(data.pack().unsqueeze(0), OBS, ACT))
        apart.append((made.policy().mode(data.obs) - 0.5).square().mean().item())
    assert apart[1] < 0.05 and apart[0] > 3 * apart[1]


def test_where_the_data_end_the_imagined_episodes_end(transitions):
    data = transitions(2000)
    data.terminated.copy_((data.next_obs[:, 0] > 3.0).float())
    made = learner(model=model(end_steps=300))
    made.attach_data(data)
    made.prepare(data)
    made.fit_ends(Transitions(*(x.unsqueeze(0) for x in vars(data).values())))
    test = transitions(1, 500, seed=5).next_obs
    right = made.ends(test) == (test[..., 0] > 3.0)
    assert right.float().mean() > 0.9
    data.terminated.zero_()
    made.fit_ends(Transitions(*(x.unsqueeze(0) for x in vars(data).values())))
    assert not made.ends(test).any()


def test_a_seed_that_sees_its_first_end_late_learns_it_as_it_would_alone(transitions):
    rounds = [transitions(2, 100, seed=seed) for seed in range(3)]
    rounds[0].terminated[1] = rounds[2].terminated[0] = 0.0
    stack, *alone = [learner(seeds, seed=5 + p) for seeds, p in ((2, 0), (1, 0), (1, 1))]
    for rows in rounds:
        stack.fit_ends(rows)
        for p, one in enumerate(alone):
            one.fit_ends(Transitions(*(x[p : p + 1] for x in vars(rows).values())))
    for p, one in enumerate(alone):
        for mine, theirs in zip(one.ends.parameters(), stack.ends.parameters(), strict=True):
            torch.testing.assert_close(mine[0], theirs[p], rtol=1e-5, atol=1e-6)


def test_plain_error_is_added_while_the_critic_means_nothing(transitions):
    for kind in (ModelLoss.vagram, ModelLoss.value_difference):
        made = learner(rows=60, transitions=transitions, model=model(loss=kind, plain=5))
        rows = made.real(False, True)
        made.model.measure(rows.obs, rows.action, rows.reward, rows.next_obs)
        index = torch.arange(rows.reward.shape[1]).expand(3, -1)
        e = member_errors(made.model, flattened(rows), index)
        early = made.loss_on(rows)(e)
        made.step = 5
        torch.testing.assert_close(early - made.loss_on(rows)(e), normalised_mse(e), rtol=1e-4, atol=1e-4)


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match=r"model\.every"):
        ModelConfig(every=0)
    with pytest.raises(ValueError, match="horizon"):
        ModelConfig(horizon=Ramp(0.0, 1.0))
    with pytest.raises(ValueError, match="share"):
        MBPOConfig(share=Ramp(0.0, 1.0))
    with pytest.raises(ValueError, match="cloning"):
        MBPOConfig(cloning=-1.0)
    with pytest.raises(ValueError, match="offline_imagined"):
        MBPOConfig(offline_imagined=1.0)
    with pytest.raises(ValueError, match="no real data"):
        learner().retrain(True, 0.0)
