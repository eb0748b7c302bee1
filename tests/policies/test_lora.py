import copy

import pytest
import torch

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors, Header, compress, distance, factorise, linear_combination, random_like
from policies.lora import (
    attach,
    base_digest,
    detach,
    extract,
    layer_inputs,
    layer_shape,
    layer_shapes,
    linear_layers,
    load_into,
    merge_into,
    standing_for_one,
    with_gain,
)
from policies.mixture import Mixture
from policies.networks import StackedMLP, generators


def _train(module, parameters, obs, target, steps=5):
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        loss = ((module(obs) - target) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_a_fresh_adapter_is_the_base_bit_for_bit(base, obs):
    before = base(obs)
    attach(base, 4, generators(1, 1), scale=16.0)
    assert torch.equal(base(obs).reshape(before.shape), before)


def test_only_the_adapter_learns(base, obs):
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    trainable = attach(base, 4, generators(1, 1))
    _train(base, trainable, obs, torch.ones(7, 3))
    assert {id(p) for p in base.parameters() if p.requires_grad} == {id(p) for p in trainable}
    detach(base)
    assert {n for n, _ in base.named_parameters()} == set(frozen)
    assert all(torch.equal(p, frozen[n]) for n, p in base.named_parameters())


def test_an_extracted_skill_merged_into_the_base_acts_as_trained_whatever_its_scale(base, obs):
    plain = copy.deepcopy(base)
    _train(base, attach(base, 4, generators(1, 1), scale=7.0), obs, torch.ones(7, 3))
    trained = base(obs)
    merged = merge_into(plain, extract(base))(obs)
    torch.testing.assert_close(merged.reshape(trained.shape), trained, rtol=1e-4, atol=1e-5)


def test_a_forgotten_scale_would_be_noticed(base, obs):
    plain = copy.deepcopy(base)
    _train(base, attach(base, 4, generators(1, 1), scale=7.0), obs, torch.ones(7, 3))
    wrong = merge_into(plain, extract(base).scaled(7.0))(obs)
    assert (wrong.reshape(base(obs).shape) - base(obs)).abs().max() > 1e-2


def test_seeds_trained_side_by_side_on_one_base_equal_seeds_trained_alone(base, obs):
    together, alone = copy.deepcopy(base), copy.deepcopy(base)
    _train(together, attach(together, 4, generators(5, 3)), obs, torch.ones(7, 3))
    _train(alone, attach(alone, 4, generators(6, 1)), obs, torch.ones(7, 3))
    assert together(obs).shape == (3, 7, 3)
    assert distance(extract(together, member=1), extract(alone)) < 1e-4
    assert distance(extract(together, member=0), extract(alone)) > 0.1


def test_a_population_of_bases_takes_a_population_of_adapters(obs):
    module = StackedMLP(5, (32,), 3, generators(0, 2))
    _train(module, attach(module, 2, generators(3, 2)), obs, torch.ones(7, 3))
    assert module(obs).shape == (2, 7, 3)
    assert set(extract(module, 1).layers) == {"layers.0", "layers.1"}


def test_training_continues_from_a_loaded_skill(base, obs, make_skill):
    skill = make_skill(base, 3)
    expected = merge_into(copy.deepcopy(base), skill)(obs)
    attach(base, 4, generators(0, 1), scale=4.0)
    load_into(base, skill)
    torch.testing.assert_close(base(obs).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    assert distance(extract(base), skill) < 1e-6


def test_a_residual_on_a_frozen_composition_adds_to_it(base, obs, make_skill):
    parents = {"stand": make_skill(base, 1), "walk": make_skill(base, 2)}
    mixture = Mixture(base, parents)
    trainable = attach(mixture.actor, 3, generators(1, 1), scale=2.0)
    with mixture.using(torch.tensor([0.25, 0.75])):
        start = mixture.actor(obs).detach()
        _train(mixture.actor, trainable, obs, torch.ones(7, 3))
        trained = mixture.actor(obs)
    assert (trained - start).abs().max() > 1e-3
    residual = extract(mixture.actor).with_header(parents["walk"].header)
    flat = linear_combination([*parents.values(), residual], [0.25, 0.75, 1.0])
    alone = merge_into(copy.deepcopy(base), flat)(obs)
    torch.testing.assert_close(alone.reshape(trained.shape), trained, rtol=1e-4, atol=1e-5)


def test_the_base_digest_ignores_adapters_and_notices_a_changed_weight(base, obs, make_skill):
    before = base_digest(base)
    assert base_digest(Mixture(base, {"a": make_skill(base, 1)}).actor) == before
    attach(base, 4, generators(1, 1))
    assert base_digest(base) == before
    detach(base)
    with torch.no_grad():
        next(base.parameters()).view(-1)[0] += 1e-6
    assert base_digest(base) != before


def test_one_member_of_a_stack_has_the_digest_it_has_alone():
    stack = StackedGaussianActor(5, 3, generators(0, 3))
    alone = base_digest(stack.member(1))
    attach(stack, 2, generators(0, 3))
    assert base_digest(stack, member=1) == alone != base_digest(stack, member=2)
    assert layer_shapes(stack)["net.layers.0"] == (256, 5)


def test_a_combination_of_skills_is_the_sum_of_their_changes_without_cross_terms(base, make_skill):
    a, b = make_skill(base, 1, rank=2), make_skill(base, 2, rank=5)
    half = linear_combination([a, b], [0.5, -2.0])
    for name in half.layers:
        torch.testing.assert_close(half.delta(name), 0.5 * a.delta(name) - 2.0 * b.delta(name))
    small = compress(linear_combination([half, a], [1.0, -0.5]))
    assert max(small.ranks.values()) <= 5
    assert distance(small, b.scaled(-2.0)) < 1e-4


def test_factorise_returns_the_matrix_and_its_rank():
    rng = torch.Generator().manual_seed(0)
    delta = torch.randn(6, 2, generator=rng) @ torch.randn(2, 9, generator=rng)
    factors = factorise(delta)
    assert factors.rank == 2
    torch.testing.assert_close(factors.delta, delta)


def test_random_factors_keep_each_layers_norm(base, make_skill):
    skill = make_skill(base, 1)
    other = random_like(skill, torch.Generator().manual_seed(0))
    assert distance(skill, other) > 0.5
    for name in skill.layers:
        torch.testing.assert_close(other.delta(name).norm(), skill.delta(name).norm())


def test_mistakes_are_named(base, make_skill):
    with pytest.raises(LookupError, match="no linear layer 'elbow'"):
        attach(base, 2, generators(0, 1), targets=["elbow"])
    with pytest.raises(ValueError, match="no adapter is attached"):
        extract(base)
    with pytest.raises(ValueError, match="NaN"):
        Adapter({"a": Factors(torch.full((1, 2), torch.nan), torch.zeros(2, 1))})
    with pytest.raises(ValueError, match="do not fit"):
        Adapter({"a": Factors(torch.zeros(2, 3), torch.zeros(3, 1))})
    with pytest.raises(ValueError, match="do not share a base: base aaaa against bbbb"):
        linear_combination([make_skill(base, s).with_header(Header(h)) for s, h in ((1, "aaaa"), (2, "bbbb"))], [1, 1])


def test_every_linear_layer_is_found_once_under_a_stable_name(base):
    names = [name for name, *_ in linear_layers(base)]
    shapes = [layer_shape(layer) for *_, layer in linear_layers(base)]
    attach(base, 2, generators(0, 1))
    assert [name for name, *_ in linear_layers(base)] == names
    assert [layer_shape(layer) for *_, layer in linear_layers(base)] == shapes


@pytest.mark.parametrize("width", [16, 80])  # without and with products that go to the faster library
def test_what_biases_gained_becomes_weights_where_the_inputs_were(width):
    rng = torch.Generator().manual_seed(3)
    start = StackedMLP(5, (width, width), 2, generators(0, 2), "tanh")
    trained = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    seen = torch.randn(2, 400, 5, generator=rng)
    seen[..., 0] = 1.0  # the first layer reads a constant, so that nothing is lost there
    inputs = layer_inputs(trained, seen)
    assert [x.shape for x in inputs.values()] == [(2, 400, 5), (2, 400, width), (2, 400, width)]
    first = standing_for_one(inputs["layers.0"])
    torch.testing.assert_close(first.squeeze(-1), torch.eye(5)[0].double().expand(2, 5), atol=2e-3, rtol=0.0)
    wanted = trained(seen)
    folded, without = (with_gain(copy.deepcopy(start), trained, width, x)(seen) for x in (inputs, None))
    assert (folded - wanted).norm() < 0.3 * (without - wanted).norm()
    elsewhere = with_gain(copy.deepcopy(start), trained, width, layer_inputs(trained, seen - 3.0))(seen)
    assert (folded - wanted).norm() < (elsewhere - wanted).norm()
