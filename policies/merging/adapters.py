"""Merging whole skills: each layer by the operator, the result again an adapter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policies.adapter import Adapter, Factors, check_same_base, distance, factorise, linear_combination
from policies.merging import LINEAR, MERGE
from policies.merging.operator import seeded, weighted_sum


def merge_adapters(
    skills: Mapping[str, Adapter],
    how: str = "ties",
    weights: Sequence[float] | None = None,
    seed: int = 0,
    rank: int | None = None,
    **settings: float,
) -> Adapter:
    """One adapter from many (weights default to 1 each). Linear operators stay exact on the factors, at rank Σ r_k; the
    others merge dense changes and are factorised at their full rank, or at `rank` (then approximately).

    Raises LookupError for an unknown operator, ValueError for no skills, two equal skills or different bases.
    """
    row = check_merge(skills, how, weights)
    if how in LINEAR:
        return linear_combination(list(skills.values()), shares(skills, how, row, **settings).tolist())
    deltas = merge_deltas(skills, how, row.tolist(), seed, **settings)
    layers: dict[str, Factors] = {name: factorise(delta, rank) for name, delta in deltas.items()}
    return Adapter(layers, next(iter(skills.values())).header)


def merge_deltas(
    skills: Mapping[str, Adapter],
    how: str = "ties",
    weights: Sequence[float] | None = None,
    seed: int = 0,
    **settings: float,
) -> dict[str, Tensor]:
    """Dense merged changes {layer: (d_out, d_in)}, for `policies.lora.merge_into`."""
    row = check_merge(skills, how, weights)
    linear = shares(skills, how, row, **settings) if how in LINEAR else None
    merged = {}
    for name in dict.fromkeys(n for a in skills.values() for n in a.layers):
        shape = next(a.delta(name) for a in skills.values() if name in a.layers)
        deltas = [a.delta(name) if name in a.layers else torch.zeros_like(shape) for a in skills.values()]
        if linear is not None:
            merged[name] = weighted_sum(torch.stack(deltas), linear.to(shape))
            continue
        # The layer's own generator: a layer merges alike alone and among others.
        merged[name] = MERGE[how](torch.stack(deltas), row.to(shape), seeded(f"{seed}:{name}".encode()), **settings)
    return merged


def shares(skills: Mapping[str, Adapter], how: str, row: Tensor, **settings: float) -> Tensor:
    """Coefficients (K,) float64 of a linear operator, the same in all layers, also in those that only some skills have:
    what is merged is skills. A skill that changes nothing anywhere is the operator's to judge."""
    changes = torch.tensor([any(bool(f.delta.any()) for f in a.layers.values()) for a in skills.values()])
    return MERGE[how](torch.diag(changes.double()), row, None, **settings)


def check_merge(skills: Mapping[str, Adapter], how: str, weights: Sequence[float] | None) -> Tensor:
    """The weights (K,) float64, or the error that says what cannot be merged."""
    if how not in MERGE:
        raise LookupError(f"no merge operator {how!r}; operators: {', '.join(MERGE)}")
    check_same_base(list(skills.values()))
    for (a, first), (b, second) in itertools.combinations(skills.items(), 2):
        if distance(first, second) < 1e-6:
            raise ValueError(f"skills {a!r} and {b!r} are the same; name one of them and give it a larger weight")
    row = torch.tensor([1.0] * len(skills) if weights is None else list(weights), dtype=torch.float64)
    if len(row) != len(skills):
        raise ValueError(f"{len(skills)} skills need {len(skills)} weights, got {len(row)}")
    return row
