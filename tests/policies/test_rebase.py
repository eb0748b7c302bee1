import copy

import pytest
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import Header
from policies.lora import attach, extract
from policies.networks import generators
from policies.rebase import procrustes, procrustes_rebase, rebase


def _actor(seed, hidden=(24, 24), distribution="tanh"):
    return StackedGaussianActor(4, 2, generators(seed, 1), ActorConfig(hidden=hidden, activation=distribution))


def _obs(rows=200):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def skill():
    """An adapter on base 0, trained towards other actions."""
    base, obs = _actor(0), _obs()
    target = torch.stack([torch.sin(2 * obs[:, 0]), obs[:, 1].clamp(-1, 1)], 1) * 0.8
    trained = copy.deepcopy(base)
    optimiser = torch.optim.Adam(attach(trained, 4, generators(1, 1)), 1e-2)
    for _ in range(100):
        loss = ((trained.mode(obs) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    return extract(trained, header=Header("old"))


def test_a_base_whose_units_changed_places_keeps_the_skill_by_alignment_alone(skill):
    old, new = _actor(0), _actor(0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = new.net.layers[0], new.net.layers[1]
        first.weight.copy_(first.weight[:, order])
        first.bias.copy_(first.bias[..., order])
        second.weight.copy_(second.weight[:, :, order])
    moved, report = rebase(skill, old, new, _obs(), Header("new"), torch.Generator())
    assert report.method == "procrustes" and report.accepted
    assert report.final < 0.02 < 0.5 < report.naive
    assert moved.header.base == "new"


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_a_wide_base_is_aligned_layer_by_layer_too(activation):
    base = _actor(0, (256, 256), activation)
    trained = copy.deepcopy(base)
    attach(trained, 2, generators(1, 1))
    skill = extract(trained, header=Header("old"))
    moved = procrustes_rebase(skill, base, copy.deepcopy(base), _obs(64))
    assert moved.layers.keys() == skill.layers.keys()
    for name, (down, up) in skill.layers.items():
        torch.testing.assert_close(moved.layers[name].down, down)
        torch.testing.assert_close(moved.layers[name].up, up)


def test_an_unrelated_base_needs_distillation_and_the_report_says_so(skill):
    rng = torch.Generator().manual_seed(0)
    _, report = rebase(skill, _actor(0), _actor(7), _obs(600), Header("new"), rng, gate=0.3, steps=200)
    assert report.method == "distillation" and report.accepted
    assert report.final < 0.3 < report.procrustes


def test_what_distillation_cannot_reach_is_not_accepted(skill):
    _, report = rebase(skill, _actor(0), _actor(7), _obs(), Header("new"), torch.Generator(), gate=0.001, steps=2)
    assert not report.accepted and report.final > 0.001


def test_procrustes_finds_the_rotation():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=rng)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng))[0]
    torch.testing.assert_close(procrustes(x, x @ turn), turn, rtol=1e-4, atol=1e-5)
    assert torch.equal(procrustes(x, x), torch.eye(6))


def test_another_architecture_is_refused(skill):
    with pytest.raises(ValueError, match=r"differ in layer 'net\.layers\.0'"):
        procrustes_rebase(skill, _actor(0), _actor(0, hidden=(32, 24)), _obs())
