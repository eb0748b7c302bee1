"""Actors of other populations, and with what their adapters add; moving members between stacked networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.actor import StackedGaussianActor
from policies.lora import LowRank, linear_layers
from policies.networks import StackedLinear

SHAKEN = 0.1  # of a layer's deviation: what copies that are to part begin with


@torch.no_grad()
def repeat_members(actor: StackedGaussianActor, times: int) -> StackedGaussianActor:
    """A copy with every member of `actor` `times` over, its repetitions side by side: population P·times."""
    population = actor.population
    many = StackedGaussianActor.from_spec(actor.spec() | {"population": population * times})
    many.normalizer = actor.normalizer
    rows = torch.arange(population).repeat_interleave(times)
    copy_rows(many.to(next(actor.parameters()).device), actor, None, rows)
    return many


@torch.no_grad()
def repeated(actor: StackedGaussianActor, seeds: int) -> StackedGaussianActor:
    """A copy of `actor` with `seeds` members: its own, or its only one repeated. Raises ValueError otherwise."""
    if actor.population not in (1, seeds):
        raise ValueError(f"the policy has {actor.population} members; continue it with seeds={actor.population}")
    spec = actor.spec() | {"population": seeds}
    copy = actor.from_spec(spec)
    wanted = copy.state_dict()
    state = {name: value.expand_as(wanted[name]) for name, value in actor.state_dict().items()}
    copy.load_state_dict(state)
    return copy


@torch.no_grad()
def merged(actor: StackedGaussianActor) -> StackedGaussianActor:
    """`actor` itself, or where adapters are attached, a copy with W + scale · up down in place of each W."""
    adapted = {name: layer for name, _, _, layer in linear_layers(actor) if isinstance(layer, LowRank)}
    if not adapted:
        return actor
    copy = actor.from_spec(actor.spec())
    plain = {name.replace(".base.", "."): value for name, value in actor.state_dict().items()}
    copy.load_state_dict({name: value for name, value in plain.items() if name in copy.state_dict()})
    for name, _, _, layer in linear_layers(copy):
        if name in adapted and isinstance(layer, StackedLinear):
            delta = adapted[name].scale * torch.bmm(adapted[name].up, adapted[name].down)
            layer.weight.add_(delta.to(layer.weight))
    return copy


@torch.no_grad()
def copy_rows(
    target: nn.Module, source: nn.Module, into: Tensor | None = None, rows: Tensor | None = None
) -> None:
    """Members `rows` of `source` into members `into` of `target` (None: all, in order), parameters matched by name.

    Raises LookupError if `source` lacks one of the target's parameters.
    """
    theirs = dict(source.named_parameters())
    for name, mine in target.named_parameters():
        if name not in theirs:
            raise LookupError(f"the source has no parameter {name!r}; networks of one kind are expected")
        given = theirs[name] if rows is None else theirs[name][rows.to(mine.device)]
        if into is None:
            mine.copy_(given)
        else:
            mine[into.to(mine.device)] = given


@torch.no_grad()
def shake(actor: StackedGaussianActor, members: Sequence[int], rngs: Sequence[torch.Generator]) -> None:
    """Noise on what trains of these members, from the generators of their own: copies that see the same batches would
    stay alike (Ash & Adams 2020, "On Warm-Starting Neural Network Training", of which this is the perturbation)."""
    for p in (p for p in actor.parameters() if p.requires_grad):
        for i in members:
            p[i] += SHAKEN * p[i].std(unbiased=False) * torch.randn(p[i].shape, generator=rngs[i]).to(p.device)
