"""What all merge operators share: the signature, the checks, and randomness that does not depend on order.

An operator maps deltas (K, *shape) and weights (K,) to (*shape); `rng` only where something is drawn. It works on one
tensor at a time, so that results do not depend on how tensors are grouped. What has nothing to resolve is returned: a
single skill comes back exactly at its weight; zero skills and zero weights are ignored (`average` they dilute).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

SMALL = 100  # tensors with fewer elements are never trimmed or dropped: a share of them is no element at all


MergeFn: TypeAlias = Callable[..., Tensor]  # (deltas, weights, rng=None, **settings) -> merged, pure


def checked(deltas: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same, without skills that change nothing (one is kept). Raises ValueError for empty, NaN or wrong shapes."""
    if deltas.dim() < 2 or not deltas.numel():
        raise ValueError(f"deltas {tuple(deltas.shape)} hold nothing to merge; expected (K, *shape) with K ≥ 1")
    if weights.shape != deltas.shape[:1]:
        raise ValueError(f"{len(deltas)} skills need weights ({len(deltas)},), got {tuple(weights.shape)}")
    if not (deltas.isfinite().all() and weights.isfinite().all()):
        raise ValueError("a delta or weight is NaN or infinite; leave that skill out or train it again")
    weights = weights.to(deltas)
    kept = active(deltas, weights)
    return (deltas[kept], weights[kept]) if kept.any() else (torch.zeros_like(deltas[:1]), weights[:1])


def active(deltas: Tensor, weights: Tensor) -> Tensor:
    """Mask (K,) of the skills that change something."""
    return (deltas.flatten(1) != 0).any(1) & (weights.to(deltas.device) != 0)


def weighted_sum(deltas: Tensor, weights: Tensor) -> Tensor:
    """Σ_k w_k τ_k (*shape)."""
    return torch.tensordot(weights, deltas, 1)


def largest(deltas: Tensor, share: float) -> Tensor:
    """Mask (K, *shape) of the ⌈share · n⌉ largest |elements| of each skill (ties kept); all of a small tensor."""
    flat = deltas.abs().flatten(1)
    n = flat.shape[1]
    if n < SMALL:
        return torch.ones_like(deltas, dtype=torch.bool)
    kept = min(n, max(1, -int(-share * n // 1)))
    threshold = flat.kthvalue(n - kept + 1, dim=1).values
    return (flat >= threshold[:, None]).view_as(deltas)


def share_of(name: str, value: float) -> float:
    """The value, if it lies in (0, 1]. Raises ValueError otherwise."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} is {value}; expected a share in (0, 1]")
    return value


def skill_generators(deltas: Tensor, rng: torch.Generator | None) -> list[torch.Generator]:
    """One generator per skill, from one draw of `rng` and the skill's own content: order and company do not matter."""
    seed = int(torch.randint(0, 2**62, (1,), generator=rng or torch.Generator().manual_seed(0)))
    return [seeded(f"{seed}:".encode() + d.contiguous().cpu().numpy().tobytes()) for d in deltas]


def seeded(content: bytes) -> torch.Generator:
    """A CPU generator whose seed is a hash of the content."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1)
