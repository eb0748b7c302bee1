"""Arithmetic on stacked actors: side by side, member by member, with each member's own skill added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter
from policies.lora import linear_layers

State = dict[str, Tensor]


@torch.no_grad()
def copied(actor: StackedGaussianActor) -> StackedGaussianActor:
    """The same weights and statistics, its own storage, all of it trainable again."""
    copy = StackedGaussianActor.from_spec(actor.spec())
    copy.load_state_dict({name: value.clone() for name, value in actor.state_dict().items()})
    return copy


@torch.no_grad()
def side_by_side(actors: Sequence[StackedGaussianActor]) -> StackedGaussianActor:
    """All members of several actors of one shape as one actor: actor 0's members first."""
    first, count = actors[0], sum(actor.population for actor in actors)
    spec = first.spec()
    whole = StackedGaussianActor.from_spec(
        spec | {"population": count, "normalizer": spec["normalizer"] | {"shared": False}}
    )
    own = dict(whole.named_parameters())
    for name in own:
        own[name].copy_(torch.cat([dict(actor.named_parameters())[name] for actor in actors]))
    for name in ("mean", "var"):
        rows = [getattr(actor.normalizer, name).expand(actor.population, 1, -1) for actor in actors]
        getattr(whole.normalizer, name).copy_(torch.cat(rows))
    whole.normalizer.count.copy_(first.normalizer.count)
    whole.normalizer.freeze()
    return whole.requires_grad_(False)


@torch.no_grad()
def chosen(actors: Sequence[StackedGaussianActor], which: Sequence[int]) -> StackedGaussianActor:
    """Member p of actors[which[p]], for every p."""
    return side_by_side([actors[k].member(p) for p, k in enumerate(which)])


@torch.no_grad()
def with_skills(base: StackedGaussianActor, skills: Sequence[Adapter | None]) -> StackedGaussianActor:
    """A copy of the base in which member p has skill p added to its weights (None: the bare base)."""
    copy = copied(base)
    layers = {name: layer for name, _, _, layer in linear_layers(copy)}
    for p, skill in enumerate(skills):
        for name, factors in (skill.layers if skill else {}).items():
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            weight[p] += factors.delta.to(weight)
    return copy


def mixed_states(states: Sequence[Mapping[str, Tensor]], which: Sequence[int]) -> State:
    """Member p's part of states[which[p]], for every p: what lets each member go on with the values of its own parent.

    `nets.*` have members on the first axis, `extra.*` on the last (numbers without an axis are shared).
    """
    population = len(which)

    def pick(name: str) -> Tensor:
        shape = states[0][name].shape
        if not shape:
            return states[which[0]][name]
        axis = 0 if name.startswith("nets.") else len(shape) - 1
        parts = [states[k][name].tensor_split(population, axis)[p] for p, k in enumerate(which)]
        return torch.cat(parts, axis)

    return {name: pick(name) for name in states[0]}
