import json
import math

import numpy as np
import pytest
import torch

from policies.actor import ActorPolicy
from policies.adapter import distance
from policies.composed import ComposedActor
from policies.composers import COMPOSERS, CompositionShape
from policies.diffusion import GENERATIVE, GenerativeConfig, generative_from_spec
from policies.lora import attach, extract, linear_layers
from policies.mixture import Mixture
from policies.networks import generators
from policies.normalizer import Normalizer
from policies.skill_losses import cost_target, cost_weight, expectile_loss, reversed_expectile_loss, reward_weight

SMALL = {"hidden": 16, "blocks": 2, "features": 8, "time_width": 8, "dropout": 0.0}


def _rngs(count=1, seed=0):
    return generators(seed, count)


@pytest.fixture(params=GENERATIVE)
def make(request):
    """make(members=1, seed=0, **config): a small untrained actor."""

    def build(members=1, seed=0, **config):
        normalizer = Normalizer(4).fit(torch.randn(60, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1)
        rngs = _rngs(members, seed)
        return GENERATIVE[request.param](4, 2, rngs, GenerativeConfig(**{**SMALL, **config}), normalizer).eval()

    return build


def _obs(rows=9):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)) * 2


def _train(actor, parameters, obs, action, rngs, steps, lr=3e-3):
    actor.train()
    optimiser, losses = torch.optim.AdamW(parameters, lr=lr), []
    for _ in range(steps):
        loss = actor.loss(obs, action, rngs)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        losses.append(loss.detach())
    actor.eval()
    return torch.stack(losses)


def test_actions_stay_in_range_and_the_deterministic_one_depends_on_its_row_only(make):
    actor = make(temperature=0.5)
    with torch.no_grad():
        actor.net.leave.weight.mul_(30)
    batch = actor.mode(_obs())[0]
    assert batch.abs().max() <= 1 and torch.equal(batch, actor.mode(_obs())[0])
    for i, row in enumerate(_obs()):
        torch.testing.assert_close(actor.mode(row[None])[0, 0], batch[i])
    drawn = actor.sample(_obs(), _rngs())
    assert drawn.abs().max() <= 1 and torch.equal(drawn, actor.sample(_obs(), _rngs()))
    assert not torch.equal(drawn, actor.sample(_obs(), _rngs(seed=1)))


def test_it_learns_to_imitate(make):
    actor, obs = make(), _obs(256)
    action = torch.stack([torch.tanh(obs[:, 0]), torch.sin(obs[:, 1])], 1) * 0.7
    before = (actor.mode(obs)[0] - action).square().mean()
    _train(actor, actor.parameters(), obs, action, _rngs(), 300, lr=1e-2)
    assert (actor.mode(obs)[0] - action).square().mean() < 0.1 * before


def test_samples_follow_both_ways_that_the_data_show(make):
    """Two right actions, none in between: the mean would be wrong."""
    actor, obs = make(hidden=32), torch.zeros(512, 4)
    side = torch.randint(0, 2, (512, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    _train(actor, actor.parameters(), obs, (0.8 * side).expand(-1, 2), _rngs(), 400, lr=1e-2)
    drawn = actor.sample(obs[:400], _rngs(seed=7))[0, :, 0].detach()
    assert 0.25 < (drawn > 0).float().mean() < 0.75
    assert ((drawn.abs() - 0.8).abs() < 0.3).float().mean() > 0.7


def test_members_trained_side_by_side_equal_members_trained_alone(make):
    obs, action = _obs(32), torch.rand(32, 2, generator=torch.Generator().manual_seed(2))
    together, alone = make(3, seed=5), make(1, seed=6)
    _train(together, together.parameters(), obs.expand(3, -1, -1), action.expand(3, -1, -1), _rngs(3, 20), 10)
    _train(alone, alone.parameters(), obs, action, _rngs(1, 21), 10)
    one = together.member(1)
    for mine, theirs in zip(one.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.mode(obs), alone.mode(obs), rtol=1e-3, atol=1e-4)


def test_skills_for_all_seeds_train_on_one_frozen_base(make):
    obs, action = _obs(32), torch.rand(32, 2, generator=torch.Generator().manual_seed(2))
    together, alone = make(), make()
    _train(together, attach(together, 4, _rngs(3, 8), scale=4.0), obs, action, _rngs(3, 20), 10)
    _train(alone, attach(alone, 4, _rngs(1, 9), scale=4.0), obs, action, _rngs(1, 21), 10)
    assert distance(extract(together, 1), extract(alone)) < 1e-3
    assert together.mode(obs).shape == (3, 32, 2)


def test_every_linear_layer_takes_part_in_a_skill(make):
    names = {name for name, *_ in linear_layers(make())}
    assert {"net.time1", "net.time2", "net.enter", "net.leave", "net.widen.0", "net.narrow.1"} <= names
    assert len(names) == 8


def test_weights_choose_what_is_imitated(make):
    actor, obs = make(), torch.zeros(64, 4)
    action = torch.cat([torch.full((32, 2), 0.6), torch.full((32, 2), -0.6)])
    weight = torch.cat([torch.ones(32), torch.zeros(32)])
    optimiser, rngs = torch.optim.Adam(actor.parameters(), 1e-2), _rngs(seed=5)
    for _ in range(200):
        loss = actor.loss(obs, action, rngs, weight)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    assert (actor.mode(obs[:1]) - 0.6).abs().max() < 0.2


@pytest.mark.parametrize("level", ["parameter", "noise", "action"])
def test_levels_agree_where_they_must_and_only_there(make, make_skill, level):
    actor = make(temperature=0.3)
    skills = {f"s{k}": make_skill(actor, k, rank=2) for k in range(2)}

    def act(level, weights):
        mixture = Mixture(actor, skills)
        shape = CompositionShape.of(mixture, 4)
        return ComposedActor(mixture, COMPOSERS["fixed"](shape, weights), level).act(_obs().numpy())

    np.testing.assert_array_equal(act(level, [0.0, 0.0]), actor.mode(_obs())[0].detach().numpy())
    for hot in ([1.0, 0.0], [0.0, 1.0]):
        np.testing.assert_allclose(act(level, hot), act("parameter", hot), rtol=1e-4, atol=1e-5)
    other = {"parameter": "noise", "noise": "action", "action": "parameter"}[level]
    assert np.abs(act(level, [0.6, 0.7]) - act(other, [0.6, 0.7])).max() > 1e-3


def test_a_gate_trains_by_the_actors_own_loss_at_noise_and_parameter_level(make, make_skill):
    actor = make()
    for level in ("parameter", "noise"):
        mixture = Mixture(actor, {"a": make_skill(actor, 1, 2), "b": make_skill(actor, 2, 2)})
        composed = ComposedActor(mixture, COMPOSERS["context_gate"](CompositionShape.of(mixture, 4)), level)
        composed.loss(_obs(), torch.zeros(9, 2), torch.Generator().manual_seed(0)).backward()
        assert all(p.grad is not None for p in composed.composer.parameters())
        assert all(p.grad is None for p in mixture.parameters())


def test_the_schedule_is_the_papers():
    actor = GENERATIVE["diffusion"](4, 2, _rngs(), GenerativeConfig(**SMALL))
    expected = [math.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * t - 1) / 25) for t in range(1, 6)]
    np.testing.assert_allclose(actor.alpha.numpy(), expected, rtol=1e-6)
    assert actor.alpha_bar[-1] < 0.01  # what the last step sees is noise


def test_a_spec_rebuilds_the_actor(make):
    actor = make(2, temperature=0.2)
    again = generative_from_spec(json.loads(json.dumps(actor.spec())))
    again.load_state_dict(actor.state_dict())
    assert torch.equal(again.eval().mode(_obs()), actor.mode(_obs()))
    assert ActorPolicy(actor, 1).act(_obs().numpy()).shape == (9, 2)
    with pytest.raises(ValueError, match="unknown actor options wings"):
        generative_from_spec({**actor.spec(), "kind": "wings"})
    with pytest.raises(LookupError, match="no member 2"):
        actor.member(2)


def test_skill_weights_and_targets_are_the_papers():
    q, v = torch.tensor([0.0, 1.0, 9.0]), torch.zeros(3)
    torch.testing.assert_close(reward_weight(q, v), torch.tensor([1.0, math.e, 100.0]))
    torch.testing.assert_close(cost_weight(q - 2, v), torch.tensor([math.e**2, math.e, 0.0]))
    u = torch.tensor([-2.0, 2.0])
    torch.testing.assert_close(expectile_loss(u, 0.7), torch.tensor([1.2, 2.8]))
    torch.testing.assert_close(reversed_expectile_loss(u, 0.9), torch.tensor([3.6, 0.4]))
    cost, ahead = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    torch.testing.assert_close(cost_target(cost, ahead, 0.9), torch.tensor([1.0, 4.5]))
    assert not reward_weight(q.requires_grad_(), v).requires_grad


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="activation 'swoosh' is unknown"):
        GenerativeConfig(activation="swoosh")
    with pytest.raises(ValueError, match="steps 0"):
        GenerativeConfig(steps=0)
    for odd in ({"dropout": 1.0}, {"dropout": -0.1}, {"hidden": 0}, {"features": 0}, {"time_width": 0}):
        with pytest.raises(ValueError, match="expected positive widths and a dropout"):
            GenerativeConfig(**odd)
    with pytest.raises(ValueError, match="temperature is nan"):
        GenerativeConfig(temperature=float("nan"))
    with pytest.raises(ValueError, match="0 < beta_min ≤ beta_max"):
        GenerativeConfig(beta_min=20.0)


def test_a_policy_samples_what_its_generator_says(make):
    policy, obs = ActorPolicy(make(2), 1), _obs().numpy()
    first, again, other = (policy.sample(obs, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (9, 2) and np.abs(first - other).max() > 1e-3
