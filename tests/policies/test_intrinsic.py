import pytest
import torch

from policies.intrinsic import attach_subspace, intrinsic_dimension, subspace_deltas, suggested_rank
from policies.lora import attach, detach, layer_shape, linear_layers
from policies.networks import generators


def test_a_subspace_starts_at_the_base_and_moves_it_by_as_much_as_its_coordinates(base, obs):
    before = base(obs)
    theta = attach_subspace(base, 20, torch.Generator().manual_seed(0))
    assert theta.shape == (20,) and torch.equal(base(obs), before)
    assert [p is theta for p in base.parameters() if p.requires_grad] == [True]
    with torch.no_grad():
        theta.copy_(torch.randn(20, generator=torch.Generator().manual_seed(1)))
    moved = sum(float(d.square().sum()) for d in subspace_deltas(base).values())
    assert moved == pytest.approx(float(theta.square().sum()), rel=1e-4)  # P has orthonormal columns
    assert not torch.equal(base(obs), before)


def test_all_layers_share_the_coordinates_and_they_learn(base, obs):
    theta = attach_subspace(base, 50, torch.Generator().manual_seed(0))
    optimiser, losses = torch.optim.Adam([theta], 0.05), []
    for _ in range(60):
        loss = ((base(obs) - 1.0) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert (theta.detach() != 0).all() and losses[-1] < 0.5 * losses[0]


def test_the_smallest_sufficient_dimension_is_found_and_later_ones_are_not_tried():
    report = intrinsic_dimension(lambda d: 100 * d / (d + 10), [10, 80, 30, 400], reference=80, baseline=0, share=0.9)
    assert report.dimension == 30 and list(report.scores) == [10, 30] and report.target == 72
    assert intrinsic_dimension(lambda d: 0.0, [1, 2], 10, 0).dimension is None
    assert suggested_rank(30, {"a": (3, 7), "b": (1, 1)}) == 3
    assert suggested_rank(1, {"a": (3, 7)}) == 1


def test_a_dimension_out_of_range_or_a_second_adapter_is_refused(base):
    weights = sum(layer_shape(layer)[0] * layer_shape(layer)[1] for *_, layer in linear_layers(base))
    for dimension in (0, weights + 1):
        with pytest.raises(ValueError, match=f"outside 1 … {weights}"):
            attach_subspace(base, dimension, torch.Generator())
    attach(base, 1, generators(0, 1))
    with pytest.raises(ValueError, match="an adapter already"):
        attach_subspace(base, 3, torch.Generator())
    detach(base)
    attach_subspace(base, 3, torch.Generator())
