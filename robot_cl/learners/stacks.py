"""Moving members between stacked networks of different populations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.actor import StackedGaussianActor


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
