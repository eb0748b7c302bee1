"""What the few-shot benchmark rests on: a stack of compositions is the library's composition, member by member."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from few_shot_parts.setting import split
from few_shot_parts.stacked import (
    MemberConstants,
    MemberGate,
    Pools,
    Schedule,
    StackedComposition,
    attach_member_subspaces,
    clone,
    copies,
    fit,
)

from policies.adapter import Adapter, Factors
from policies.composed import LEVELS, ComposedActor
from policies.composers import CompositionShape
from policies.composers.fixed import Fixed
from policies.diffusion import GENERATIVE, GenerativeConfig
from policies.lora import layer_shapes
from policies.mixture import Mixture
from policies.networks import generators

SHAPE = GenerativeConfig(hidden=16, blocks=1, features=8, time_width=8, dropout=0.0)
OBS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))  # three members, five rows


@pytest.fixture(params=GENERATIVE)
def base(request):
    return GENERATIVE[request.param](4, 2, generators(0, 1), SHAPE).eval().requires_grad_(False)


def skill(base, seed):
    rng = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(base).items()
    return Adapter({n: Factors(torch.randn(2, i, generator=rng) * 0.3, torch.randn(o, 2, generator=rng) * 0.3)
                    for n, (o, i) in shapes})  # fmt: skip


def random_constants(skills, members):
    constants = MemberConstants(skills, members)
    with torch.no_grad():
        constants.weights.normal_(generator=torch.Generator().manual_seed(5))
    return constants


@pytest.mark.parametrize("level", LEVELS)
def test_every_member_acts_as_the_librarys_composition_of_its_skills(base, level):
    shared, new = {"a": skill(base, 1), "b": skill(base, 2)}, [skill(base, 10 + p) for p in range(3)]
    constants = random_constants(3, 3)
    with torch.no_grad():
        together = StackedComposition(base, shared, new, constants, 3, level).mode(OBS)
    for p in range(3):
        mixture = Mixture(base, {**shared, "new": new[p]})
        weights = constants.weights[p, 0].detach()
        alone = ComposedActor(mixture, Fixed(CompositionShape.of(mixture, 4), weights), level)
        with torch.no_grad():
            torch.testing.assert_close(together[p], alone.mode(OBS[p])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_a_members_coefficients_learn_from_its_own_rows_only(base, level):
    stack = StackedComposition(base, {"a": skill(base, 1)}, [skill(base, 10 + p) for p in range(3)],
                               MemberGate(4, 2, 3), 3, level)  # fmt: skip
    torch.manual_seed(0)
    losses = stack.loss(OBS, torch.zeros(3, 5, 2))
    assert losses.shape == (3,)
    weights = torch.tensor([1.0, 0.0, 0.0])
    if level == "action":
        (losses * weights).sum().backward()
        for layer in stack.composer.net.layers[-1:]:
            assert layer.bias.grad[0].abs().max() > 0 and layer.bias.grad[1:].abs().max() == 0
    before = [p.clone() for p in stack.mixture.parameters()]
    losses_again = stack.loss(OBS, torch.zeros(3, 5, 2)).sum()
    losses_again.backward()
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, stack.mixture.parameters(), strict=True))
    assert all(p.grad is not None for p in stack.composer.parameters())


def test_rows_are_drawn_from_a_members_own_pool():
    obs = torch.arange(30.0)[:, None]
    pools = Pools.of(obs, obs, [torch.arange(10), torch.arange(10, 13)])
    torch.manual_seed(0)
    drawn, _ = pools.draw(500)
    assert set(drawn[0].flatten().tolist()) == set(range(10)) and set(drawn[1].flatten().tolist()) == {10, 11, 12}


def test_held_out_rows_are_no_training_rows():
    for count, length in ((1, 20), (3, 20), (10, 20)):
        numbers = torch.arange(count * length).view(count, length)
        train, held = split(numbers)
        assert not set(train.tolist()) & set(held.tolist())
        assert len(train) + len(held) == count * length and len(held) >= length // 5


def test_copies_and_subspaces_start_at_the_base(base):
    wanted = base.mode(OBS[0]).expand(3, -1, -1)
    torch.testing.assert_close(copies(base, 3).eval().mode(OBS[0]), wanted, rtol=1e-4, atol=1e-5)
    actor = clone(base)
    theta = attach_member_subspaces(actor, 50, 3, 0)
    torch.testing.assert_close(actor.mode(OBS[0]), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        theta[1] += 1.0
    moved = actor.mode(OBS[0])
    torch.testing.assert_close(moved[[0, 2]], wanted[[0, 2]], rtol=1e-4, atol=1e-5)
    assert (moved[1] - wanted[1]).abs().max() > 1e-3


def test_constants_find_the_skill_that_was_demonstrated(base):
    """Demonstrations of skill b: its coefficient grows to about one, a's falls to about zero, for every member."""
    skills = {"a": skill(base, 1), "b": skill(base, 2)}
    mixture = Mixture(base, skills)
    obs = torch.randn(400, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), mixture.using(torch.tensor([0.0, 1.0])):
        action = mixture.actor.mode(obs)[0]
    stack = StackedComposition(base, skills, [], MemberConstants(2, 2), 2, "action")
    fit(stack.loss, list(stack.composer.parameters()), Pools.of(obs, action, [torch.arange(400)] * 2),
        Schedule(60, 3e-2, 64), 0)  # fmt: skip
    found = stack.composer.weights[:, 0]
    assert found.shape == (2, 2) and (found[:, 1] > found[:, 0] + 0.5).all()
