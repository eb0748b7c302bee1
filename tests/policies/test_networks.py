"""Stacked networks: P members side by side are P networks."""

import pytest
import torch
from torch import nn

from policies.networks import StackedLayerNorm, StackedLinear, StackedMLP, generators
from policies.products import by_onednn


def lone(seed: int, **options) -> StackedMLP:
    return StackedMLP(5, (8, 8), 3, generators(seed, 1), **options)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "activation": "tanh"}, {"init": "orthogonal"}])
def test_member_p_of_a_stack_is_the_lone_network_seeded_p(options):
    stack, x = StackedMLP(5, (8, 8), 3, generators(7, 3), **options), torch.randn(3, 11, 5)
    for p in range(3):
        torch.testing.assert_close(stack(x)[p], lone(7 + p, **options)(x[p : p + 1])[0], rtol=1e-5, atol=1e-6)


def test_a_shared_input_is_read_by_every_member():
    stack, x = StackedMLP(5, (8,), 2, generators(0, 4)), torch.randn(6, 5)
    torch.testing.assert_close(stack(x), stack(x.expand(4, 6, 5)))


def test_a_lone_member_computes_what_torch_linear_computes():
    layer, reference = StackedLinear(4, 3, generators(1, 1)), nn.Linear(4, 3)
    with torch.no_grad():
        reference.weight.copy_(layer.weight[0])
        reference.bias.copy_(layer.bias[0, 0])
    x = torch.randn(9, 4)
    torch.testing.assert_close(layer(x)[0], reference(x))


def test_gradients_of_one_member_do_not_reach_another():
    stack = StackedMLP(5, (8,), 1, generators(0, 2), layer_norm=True)
    stack(torch.randn(2, 7, 5))[1].sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad[0].abs().sum() == 0
        assert parameter.grad[1].abs().sum() > 0


SHAPES = [(1, (7, 5)), (1, (1, 7, 5)), (3, (7, 5)), (3, (3, 7, 5)), (1, (2, 7, 5))]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("population", "shape"), SHAPES)
def test_the_training_pass_equals_the_layers_one_by_one(activation, population, shape):
    """Values, gradients of weights and of the input, against torch's own derivatives."""
    net = StackedMLP(5, (8, 6), 2, generators(1, population), activation)
    x = torch.randn(shape, requires_grad=True)
    fused = net(x)
    h = x
    for i, layer in enumerate(net.layers):
        h = layer(h)
        if i < 2:
            h = torch.relu(h) if activation == "relu" else torch.tanh(h)
    torch.testing.assert_close(fused, h)
    weight = torch.randn_like(h)
    wanted = torch.autograd.grad((h * weight).sum(), [x, *net.parameters()])
    got = torch.autograd.grad((fused * weight).sum(), [x, *net.parameters()])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(net(x), fused)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("population", "shape"), [(1, (96, 5)), (1, (2, 96, 5)), (3, (96, 5)), (3, (3, 96, 5))])
def test_the_training_pass_of_wide_normalised_layers_equals_the_layers_one_by_one(
    activation, population, shape, frozen
):
    """Values, gradients of weights, gains and the input, against torch's own derivatives."""
    net = StackedMLP(5, (160, 144), 2, generators(1, population), activation, layer_norm=True)
    for norm in net.norms:
        nn.init.uniform_(norm.weight, 0.5, 2.0), nn.init.uniform_(norm.bias, -1.0, 1.0)
    net.requires_grad_(not frozen)
    x = torch.randn(shape, requires_grad=True)
    assert any(by_onednn(x, layer.weight) for layer in net.layers), "not the pass that is meant here"
    fused = net(x)
    h = x
    for i, layer in enumerate(net.layers):
        h = torch.matmul(h, layer.weight.mT) + layer.bias
        if i < 2:
            h = net.norms[i](h)
            h = torch.relu(h) if activation == "relu" else torch.tanh(h)
    torch.testing.assert_close(fused, h, rtol=1e-4, atol=1e-5)
    weight, of = torch.randn_like(h), [x, *(net.parameters() if not frozen else ())]
    wanted = torch.autograd.grad((h * weight).sum(), of)
    got = torch.autograd.grad((fused * weight).sum(), of)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), fused, rtol=1e-5, atol=1e-6)


def test_a_frozen_network_passes_gradients_to_its_input_only():
    net, x = StackedMLP(5, (8,), 1, generators(0, 2)).requires_grad_(False), torch.randn(2, 4, 5, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())


def test_layer_norm_is_torchs_with_gain_and_bias_per_member():
    norm, x = StackedLayerNorm(6, 2), torch.randn(2, 5, 6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    for p in range(2):
        expected = nn.functional.layer_norm(x[p], (6,), norm.weight[p, 0], norm.bias[p, 0])
        torch.testing.assert_close(norm(x)[p], expected, rtol=1e-5, atol=1e-6)


def test_orthogonal_layers_are_orthogonal_with_their_gain():
    weight = StackedLinear(8, 8, generators(3, 2), "orthogonal", gain=2.0).weight[1]
    torch.testing.assert_close(weight @ weight.T, 4.0 * torch.eye(8), rtol=1e-4, atol=1e-4)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="relu, tanh"):
        lone(0, activation="rleu")
    with pytest.raises(ValueError, match="torch, orthogonal"):
        StackedLinear(2, 2, generators(0, 1), "xavier")
