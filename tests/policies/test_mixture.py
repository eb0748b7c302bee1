import copy

import pytest
import torch
from torch import nn

from policies.lora import merge_into
from policies.mixture import Mixture
from policies.networks import StackedMLP, generators


@pytest.fixture
def mixture(base, make_skill):
    """Three skills of different ranks; the second leaves one layer alone."""
    first = make_skill(base, 1, rank=2)
    fewer = list(first.layers)[1:]
    return Mixture(base, {"a": first, "b": make_skill(base, 2, rank=4, layers=fewer), "c": make_skill(base, 3, rank=3)})


def _run(mixture, coefficients, obs):
    with torch.no_grad(), mixture.using(coefficients):
        return mixture.actor(obs)


def _merged(base, make_skill, mixture, weights, obs):
    module = copy.deepcopy(base)
    skills = {"a": (1, 2, None), "b": (2, 4, list(mixture.layers)[1:]), "c": (3, 3, None)}
    for name, weight in zip(mixture.names, weights, strict=True):
        seed, rank, layers = skills[name]
        merge_into(module, make_skill(base, seed, rank, layers), weight)
    return module(obs).detach()


def test_coefficients_zero_give_the_base_bit_for_bit(base, mixture, obs):
    bare = base(obs)
    for rows in (obs, obs[:1]):
        assert torch.equal(_run(mixture, torch.zeros(3), rows), base(rows))
    assert torch.equal(_run(mixture, None, obs), bare)
    with mixture.using(torch.zeros(7, 3)):
        assert torch.equal(mixture.actor(obs), bare)


@pytest.mark.parametrize("rows", [1, 15, 16, 64, 256])
@pytest.mark.parametrize("wide", ["stacked", "plain"])
def test_the_laws_hold_whichever_library_multiplies(wide, rows, make_skill):
    """Large products go to another library than small ones, and that must not show."""
    if wide == "stacked":
        base = StackedMLP(64, (256, 256), 8, generators(0, 1)).requires_grad_(False)
    else:
        base = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    skills = {f"s{k}": make_skill(base, k, rank=8) for k in range(3)}
    mixture, x = Mixture(base, skills), torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(_run(mixture, torch.zeros(3), x), base(x))
        weights = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
        learned = mixture.using(weights)
    with learned:
        expected = mixture.actor(x).detach()  # with gradients: the plain formula
    torch.testing.assert_close(_run(mixture, weights, x), expected, rtol=1e-4, atol=1e-4)
    weights[0] = 0.0  # one quiet row among others
    torch.testing.assert_close(_run(mixture, weights, x)[..., 0, :], base(x)[..., 0, :], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        next(base.parameters()).mul_(1.1)  # what was made from the base is made again
        with mixture.using(weights):
            changed = mixture.actor(x)
    torch.testing.assert_close(changed[..., 0, :], base(x)[..., 0, :], rtol=1e-4, atol=1e-5)
    alone = Mixture(base, {"s1": skills["s1"]})
    with torch.no_grad():
        merged = merge_into(copy.deepcopy(base), skills["s1"])(x)
    torch.testing.assert_close(_run(alone, torch.ones(1), x), merged, rtol=1e-4, atol=1e-4)
    assert torch.equal(_run(mixture, torch.eye(3)[1], x).argmax(-1), merged.argmax(-1))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, -1.0, 2.0)])
def test_unmerged_equals_merged(base, mixture, make_skill, obs, weights):
    expected = _merged(base, make_skill, mixture, weights, obs)
    torch.testing.assert_close(_run(mixture, torch.tensor(weights), obs), expected, rtol=1e-5, atol=1e-5)


def test_every_form_of_coefficients_says_the_same(mixture, obs):
    c = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    per_layer = c[:, :, None].expand(7, 3, len(mixture.layers))
    per_rank = per_layer[..., None].expand(7, 3, len(mixture.layers), 4)
    expected = _run(mixture, c, obs)
    assert torch.equal(_run(mixture, per_layer, obs), expected)
    assert torch.equal(_run(mixture, per_rank, obs), expected)
    assert torch.equal(_run(mixture, lambda h, layer: c[:, layer.skill_of], obs), expected)


def test_each_row_meets_its_own_coefficients(mixture, obs):
    c = torch.randn(7, 3, len(mixture.layers), 4, generator=torch.Generator().manual_seed(0))
    batch = _run(mixture, c, obs)
    for i in range(7):
        torch.testing.assert_close(_run(mixture, c[i : i + 1], obs[i : i + 1])[..., 0, :], batch[..., i, :])


def test_coefficients_of_one_layer_or_rank_change_only_that(mixture, obs):
    c = torch.zeros(1, 3, len(mixture.layers), 4)
    still = _run(mixture, c, obs)
    c[0, 0, 0, 3] = 1.0  # the first skill has rank 2: its fourth rank does not exist
    assert torch.equal(_run(mixture, c, obs), still)
    c[0, 0, 0, 1] = 1.0
    assert not torch.equal(_run(mixture, c, obs), still)


def test_gradients_reach_the_coefficients_and_nothing_else(mixture, obs):
    c = torch.ones(7, 3, requires_grad=True)
    with mixture.using(c):
        mixture.actor(obs).sum().backward()
    assert c.grad is not None and c.grad.abs().min() > 0
    assert all(p.grad is None for p in mixture.parameters())


def test_with_and_without_gradients_the_answer_is_the_same(mixture, obs):
    c = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    with mixture.using(c):
        torch.testing.assert_close(mixture.actor(obs), _run(mixture, c, obs), rtol=1e-5, atol=1e-6)


def test_the_base_weights_are_shared_not_copied(base, mixture):
    addresses = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in mixture.parameters()} == addresses


def test_adding_a_skill_leaves_the_output_of_the_others(base, mixture, make_skill, obs):
    alone = Mixture(base, {"a": make_skill(base, 1, rank=2)})
    more = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(_run(mixture, more, obs), _run(alone, torch.ones(1), obs), rtol=1e-6, atol=1e-6)


def test_coefficients_of_the_wrong_shape_are_refused(mixture):
    with pytest.raises(ValueError, match=r"do not fit 3 skills, \d layers and rank 4"):
        mixture.expand(torch.zeros(7, 2))
