"""Critics: twins are independent, members are lone critics, targets move by exactly τ."""

import pytest
import torch

from policies.critics import CriticConfig, StackedQ, StackedV, polyak
from policies.networks import generators

SMALL = CriticConfig(hidden=(8,))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_member_p_with_its_twins_is_the_lone_critic_seeded_p(layer_norm):
    options = {"twins": 2, "config": CriticConfig(hidden=(8, 8), layer_norm=layer_norm)}
    stack, z, action = StackedQ(4, 2, generators(5, 3), **options), torch.randn(3, 9, 4), torch.randn(3, 9, 2)
    assert stack(z, action).shape == (3, 2, 9)
    for p in range(3):
        alone = StackedQ(4, 2, generators(5 + p, 1), **options)
        torch.testing.assert_close(stack(z, action)[p], alone(z[p : p + 1], action[p : p + 1])[0])


def test_twins_differ_and_read_the_same_input():
    q, z, action = StackedQ(4, 2, generators(0, 1), config=SMALL), torch.randn(1, 5, 4), torch.randn(1, 5, 2)
    values = q(z, action)
    assert (values[0, 0] - values[0, 1]).abs().min() > 0
    torch.testing.assert_close(q(z[0], action[0]), values)


def test_state_values_have_one_row_per_member():
    v, z = StackedV(4, generators(2, 2), config=SMALL), torch.randn(2, 5, 4)
    assert v(z).shape == (2, 5)
    torch.testing.assert_close(v(z)[1], StackedV(4, generators(3, 1), config=SMALL)(z[1:])[0])


def test_polyak_moves_the_target_by_tau_and_leaves_the_source():
    target, source = StackedV(3, generators(0, 1), config=SMALL), StackedV(3, generators(1, 1), config=SMALL)
    before = [p.detach().clone() for p in target.parameters()]
    kept = [p.detach().clone() for p in source.parameters()]
    polyak(target, source, 0.25)
    for now, old, new in zip(target.parameters(), before, kept, strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new)
    assert all(torch.equal(p, old) for p, old in zip(source.parameters(), kept, strict=True))


def test_critics_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        StackedQ(3, 1, generators(0, 1), twins=0)
    with pytest.raises(ValueError, match="positive width"):
        CriticConfig(hidden=(0,))
    with pytest.raises(ValueError, match="torch, orthogonal"):
        CriticConfig(init="xavier")
