"""Adam on one buffer is Adam, and clips each member alone."""

import pytest
import torch
from torch import nn

from policies.networks import StackedMLP, generators
from robot_cl.learners.optim import FlatAdam


def loss_of(net: nn.Module, step: int, members: slice = slice(None)) -> torch.Tensor:
    x = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(step))
    scale = torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)  # so that clipping binds for some members only
    return (net(x[members]) * scale[members]).square().sum()


def test_steps_are_those_of_torch_adam():
    ours, reference = StackedMLP(4, (8,), 2, generators(0, 3)), StackedMLP(4, (8,), 2, generators(0, 3))
    flat, adam = FlatAdam(ours.parameters(), 3, 1e-2), torch.optim.Adam(reference.parameters(), 1e-2)
    for step in range(30):
        loss_of(ours, step).backward()
        flat.step()
        adam.zero_grad()
        loss_of(reference, step).backward()
        adam.step()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stacked", [True, False])
def test_clipping_is_that_of_each_member_alone(stacked, late):
    ours = StackedMLP(4, (8,), 2, generators(0, 3)) if stacked else StackedMLP(4, (8,), 2, generators(1, 1))
    members = slice(None) if stacked else slice(1, 2)
    flat = FlatAdam(ours.parameters(), 3 if stacked else 1, 1e-2, None if late else 0.5)
    flat.clip = 0.5
    references = [StackedMLP(4, (8,), 2, generators(p, 1)) for p in range(3)]
    optimisers = [torch.optim.Adam(r.parameters(), 1e-2) for r in references]
    for step in range(20):
        loss_of(ours, step, members).backward()
        flat.step()
        for p, (net, adam) in enumerate(zip(references, optimisers, strict=True)):
            adam.zero_grad()
            loss_of(net, step, slice(p, p + 1)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            adam.step()
    for p in range(3) if stacked else [1]:
        for a, b in zip(ours.parameters(), references[p].parameters(), strict=True):
            torch.testing.assert_close(a[p if stacked else 0], b[0], rtol=1e-4, atol=1e-5)


def test_a_parameter_without_a_gradient_is_left_alone():
    net = StackedMLP(4, (8,), 2, generators(0, 1))
    flat = FlatAdam(net.parameters(), 1, 1e-2)
    before = [p.detach().clone() for p in net.parameters()]
    net.layers[1](torch.ones(3, 8)).sum().backward()
    flat.step()
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert moved == [False, False, True, True] and all(p.grad is None for p in net.parameters())


def test_moments_return_from_their_state():
    first, second = StackedMLP(4, (8,), 2, generators(0, 3)), StackedMLP(4, (8,), 2, generators(0, 3))
    a = FlatAdam(first.parameters(), 3, 1e-2)
    for step in range(5):
        loss_of(first, step).backward()
        a.step()
    b = FlatAdam(second.parameters(), 3, 1e-2)
    second.load_state_dict(first.state_dict())
    b.load_state_dict({name: value.clone() for name, value in a.state_dict().items()})
    for net, opt in ((first, a), (second, b)):
        loss_of(net, 9).backward()
        opt.step()
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


def test_mistakes_are_named():
    net = StackedMLP(4, (8,), 2, generators(0, 1))
    flat = FlatAdam(net.parameters(), 1, 1e-2, clip=1.0)
    with pytest.raises(ValueError, match="exp_avg is \\(3,\\)"):
        flat.load_state_dict({"step": torch.zeros(()), "exp_avg": torch.zeros(3)})
    net.zero_grad(set_to_none=True)
    with pytest.raises(RuntimeError, match="gradients were replaced"):
        flat.step()
    with pytest.raises(ValueError, match="nothing to train"):
        FlatAdam(StackedMLP(4, (8,), 2, generators(0, 1)).requires_grad_(False).parameters(), 1, 1e-2)
