"""A skill trained on top of a frozen composition: stored whole, it composes, merges and travels like any other."""

import copy

import pytest
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import distance, linear_combination
from policies.composed import ComposedActor
from policies.composers import COMPOSERS, CompositionShape
from policies.library import Library
from policies.lora import attach, base_digest, extract, layer_shapes, merge_into
from policies.merging.adapters import merge_adapters
from policies.mixture import Mixture
from policies.networks import generators
from policies.peft_io import export_peft, import_peft

OBS = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
BELOW = {"stand": 0.3, "walk": 0.7}


@pytest.fixture
def actor():
    return StackedGaussianActor(5, 3, generators(0, 1), ActorConfig(hidden=(16, 16)))


@pytest.fixture
def library(actor, make_skill, tmp_path):
    skills = {"stand": make_skill(actor, 1), "walk": make_skill(actor, 2)}
    shapes = layer_shapes(actor)
    library = Library.create(tmp_path, skills["walk"].header, shapes, durable=False)
    for name, skill in skills.items():
        library.publish(name, skill)
    return library


def _trained(actor, library, seeds=1):
    """A residual on stand and walk, trained through the composition, and the policy as it was while training."""
    mixture = Mixture(actor, {name: library.adapter(name) for name in BELOW})
    trainable = attach(mixture.actor, 2, generators(4, seeds))
    optimiser = torch.optim.Adam(trainable, 1e-2)
    with mixture.using(torch.tensor(list(BELOW.values()))):
        for _ in range(30):
            loss = (mixture.actor.mode(OBS) - 0.5).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        policy = mixture.actor.mode(OBS).detach()
    return extract(mixture.actor, header=library.header), policy


def _act(actor, adapter):
    return merge_into(copy.deepcopy(actor), adapter).mode(OBS).detach()


def test_a_published_residual_acts_as_it_did_in_training(actor, library):
    residual, policy = _trained(actor, library)
    library.publish("run", residual, parents=BELOW)
    torch.testing.assert_close(_act(actor, library.adapter("run")), policy, rtol=1e-4, atol=1e-5)
    assert {p.skill: p.coefficient for p in library.card("run").parents} == BELOW
    assert (_act(actor, residual) - policy).abs().max() > 1e-2  # the residual alone is not the skill


def test_it_composes_merges_and_travels_like_any_other(actor, library, tmp_path):
    residual, policy = _trained(actor, library)
    library.publish("run", residual, parents=BELOW)
    run, stand = library.adapter("run"), library.adapter("stand")
    mixture = Mixture(actor, {"stand": stand, "run": run})
    composed = ComposedActor(mixture, COMPOSERS["fixed"](CompositionShape.of(mixture, 5), [0.0, 1.0]))
    torch.testing.assert_close(composed.mode(OBS).detach(), policy, rtol=1e-4, atol=1e-5)
    half = merge_adapters({"stand": stand, "run": run}, "average")
    assert distance(half, linear_combination([stand, run], [0.5, 0.5])) < 1e-5
    again = import_peft(export_peft(run, tmp_path / "peft"), run.header)
    assert distance(again, run) < 1e-6


def test_seeds_of_a_residual_train_side_by_side_on_one_composition(actor, library):
    _, policies = _trained(actor, library, seeds=3)
    assert policies.shape == (3, 64, 3)
    assert (policies[0] - policies[1]).abs().max() > 1e-3


def test_training_a_residual_touches_neither_base_nor_parents(actor, library):
    before = base_digest(actor)
    contents = {name: library.card(name).content for name in library.names()}
    _trained(actor, library)
    assert base_digest(actor) == before and library.check() == []
    assert {name: library.card(name).content for name in library.names()} == contents


def test_a_residual_on_a_missing_parent_is_refused(actor, library):
    residual, _ = _trained(actor, library)
    with pytest.raises(LookupError, match="no skill 'hop'"):
        library.publish("run", residual, parents={"hop": 1.0})
    assert "run" not in library.names()
