"""Large products by oneDNN: the same numbers as in 64 bits, in networks of one member and of several."""

import pytest
import torch

from policies.networks import StackedMLP, generators
from policies.products import by_onednn, product

LARGE = ((130, 160), (128, 160))  # (B, d_in), (d_out, d_in): above the threshold


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("shapes", [LARGE, ((5, 7), (3, 7)), ((5, 1), (3, 1))])
def test_a_product_is_the_one_of_twice_the_precision(shapes, members, strided) -> None:
    (rows, d_in), (d_out, _) = shapes
    x = torch.randn(*members, d_in, rows).mT if strided else torch.randn(*members, rows, d_in)
    weight = torch.randn(*members, d_in, d_out).mT if strided else torch.randn(*members, d_out, d_in)
    bias = torch.randn(*members, 1, d_out)
    assert by_onednn(x, weight) is (shapes is LARGE)
    wanted = x.double() @ weight.double().mT
    torch.testing.assert_close(product(x, weight).double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(x, weight, bias).double(), wanted + bias.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("across", [False, True])
def test_a_part_of_wider_rows_gives_the_bits_of_its_copy(members, across) -> None:
    """oneDNN rounds otherwise, and takes a thousand times as long, where it has to read weights one by one."""
    wide_x, wide_weight = torch.randn(*members, 130, 200), torch.randn(*members, 128, 200)
    x, weight = wide_x[..., 20:180], wide_weight[..., 20:180]
    if across:  # as a gradient's product reads them: rows of the batch are summed
        x, weight = torch.randn(*members, 160, 130).mT, torch.randn(*members, 160, 200)[..., 20:148].mT
    copies = x.mT.contiguous().mT, weight.mT.contiguous().mT if across else weight.contiguous()
    bias = torch.randn(*members, 1, 128)
    assert by_onednn(x, weight) and not weight.is_contiguous() and not weight.mT.is_contiguous()
    assert torch.equal(product(x, weight, bias, relu=True), product(*copies, bias, relu=True))
    one = torch.randn(*members, 1, 160).expand(*members, 128, 160)
    assert torch.equal(product(x, one), product(x, one.contiguous()))


@pytest.mark.parametrize("members", [1, 3])
def test_a_network_and_its_gradients_are_the_same_bits_on_strided_rows(members) -> None:
    net = StackedMLP(160, (128, 8), 2, generators(1, members))
    wide = torch.randn(members, 130, 200)
    strided = wide[..., 20:180].requires_grad_()
    plain = strided.detach().contiguous().requires_grad_()
    def both_ways(x):
        return [net(x), *torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])]

    found = [both_ways(strided), both_ways(plain)]
    assert not strided.is_contiguous() and all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize(("members", "shape"), [(1, (130, 5)), (1, (1, 130, 5)), (3, (130, 5)), (3, (3, 130, 5))])
def test_a_wide_networks_training_pass_and_its_gradients_are_those_of_twice_the_precision(members, shape) -> None:
    net = StackedMLP(5, (160, 128), 2, generators(1, members))
    exact = StackedMLP(5, (160, 128), 2, generators(1, members)).double()
    x = torch.randn(shape, requires_grad=True)
    assert by_onednn(torch.empty(130, 1), net.layers[1].weight[0])
    outputs, wanted = net(x), exact(x.double())
    torch.testing.assert_close(outputs.double(), wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(net(x), outputs)
    weight = torch.randn_like(outputs)
    grads = torch.autograd.grad((outputs * weight).sum(), [x, *net.parameters()])
    exact_grads = torch.autograd.grad((wanted * weight.double()).sum(), [x, *exact.parameters()])
    for one, other in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)
