"""A skill's weights: one low-rank change per linear layer of a named base.

An adapter is a value: its functions return new adapters, with the scale already inside the factors, so that
coefficient 1 always means "this skill as trained".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Factors(NamedTuple):
    """ΔW = up @ down with down (r, d_in) and up (d_out, r)."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def delta(self) -> Tensor:
        """(d_out, d_in)."""
        return self.up @ self.down


@dataclass(frozen=True)
class Header:
    """What an adapter was trained on: sha256 digests of the base's weights, the interface and the normaliser."""

    base: str = ""
    interface: str = ""
    normalizer: str = ""

    def mismatch(self, other: Header) -> str | None:
        """One clause naming the first difference from `other` (both digests), or None if equal."""
        for name in ("base", "interface", "normalizer"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine[:12] or 'none'} against {theirs[:12] or 'none'}"
        return None


@dataclass(frozen=True)
class Adapter:
    """Low-rank factors by layer name, and the header saying which base they belong to.

    Layers that are absent are unchanged. Raises ValueError for factors whose shapes do not fit each other, NaN or
    infinity.
    """

    layers: Mapping[str, Factors]
    header: Header = field(default_factory=Header)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("an adapter needs at least one layer; this one is empty")
        for name, (down, up) in self.layers.items():
            if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
                raise ValueError(
                    f"layer {name!r}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit; "
                    "expected (r, d_in) and (d_out, r) with r ≥ 1"
                )
            if not (down.isfinite().all() and up.isfinite().all()):
                raise ValueError(f"layer {name!r} holds NaN or infinity: its training diverged; train the skill again")

    @property
    def ranks(self) -> dict[str, int]:
        return {name: factors.rank for name, factors in self.layers.items()}

    @property
    def num_parameters(self) -> int:
        return sum(f.down.numel() + f.up.numel() for f in self.layers.values())

    def delta(self, name: str) -> Tensor:
        """ΔW (d_out, d_in) of one layer."""
        return self.layers[name].delta

    def with_header(self, header: Header) -> Adapter:
        return replace(self, header=header)

    def scaled(self, weight: float) -> Adapter:
        """The adapter with ΔW multiplied by `weight` (only `up` carries it: scaling both would square it)."""
        return replace(self, layers={name: Factors(f.down, f.up * weight) for name, f in self.layers.items()})


LayerWeights: TypeAlias = Mapping[str, Sequence[float]]


def linear_combination(adapters: Sequence[Adapter], weights: Sequence[float] | LayerWeights) -> Adapter:
    """Σ_k w_k ΔW_k exactly, by stacking factors: rank Σ r_k. Adding downs and ups separately would give cross terms.

    `weights` is (K,) or, per layer, {layer: (K,)}. Terms of weight 0 are left out (one is kept if all are 0).
    Raises ValueError for no adapters, different bases or a wrong number of weights.
    """
    check_same_base(adapters)
    names = dict.fromkeys(name for adapter in adapters for name in adapter.layers)
    layers = {}
    for name in names:
        row = list(weights[name] if isinstance(weights, Mapping) else weights)
        if len(row) != len(adapters):
            raise ValueError(f"{len(adapters)} adapters need {len(adapters)} weights, got {len(row)}")
        terms = [(a.layers[name], w) for a, w in zip(adapters, row, strict=True) if name in a.layers]
        terms = [t for t in terms if t[1] != 0] or terms[:1]
        layers[name] = Factors(torch.cat([f.down for f, _ in terms]), torch.cat([f.up * w for f, w in terms], 1))
    return Adapter(layers, adapters[0].header)


def check_same_base(adapters: Sequence[Adapter]) -> None:
    """Raises ValueError if there are none, or if two were trained on different bases, interfaces or normalisers."""
    if not adapters:
        raise ValueError("no skills were given; name at least one")
    for adapter in adapters[1:]:
        clause = adapters[0].header.mismatch(adapter.header)
        if clause:
            raise ValueError(f"these skills do not share a base: {clause}; rebase one of them first")
    for name in dict.fromkeys(n for a in adapters for n in a.layers):
        present = [a.layers[name] for a in adapters if name in a.layers]
        shapes = {(f.up.shape[0], f.down.shape[1]) for f in present}
        if len(shapes) > 1:
            raise ValueError(f"layer {name!r} has different widths in these skills: {sorted(shapes)}")


def factorise(delta: Tensor, rank: int | None = None, tolerance: float = 1e-6) -> Factors:
    """Best low-rank factors of a dense ΔW (d_out, d_in); `rank` None keeps singular values > tolerance · largest."""
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    kept = rank if rank is not None else int((tolerance * S[0] < S).sum())
    kept = max(1, min(kept, len(S)))
    root = S[:kept].sqrt()
    return Factors((root[:, None] * Vh[:kept]).to(delta.dtype), (U[:, :kept] * root).to(delta.dtype))


def compress(adapter: Adapter, rank: int | None = None, tolerance: float = 1e-6) -> Adapter:
    """The same ΔW in the fewest ranks (or the best approximation of rank `rank`), without forming ΔW.

    QR of both factors, then the singular values of the small (r, r) core.
    """
    layers = {}
    for name, (down, up) in adapter.layers.items():
        q_up, r_up = torch.linalg.qr(up.double())
        q_down, r_down = torch.linalg.qr(down.double().T)
        core = factorise(r_up @ r_down.T, rank, tolerance)
        layers[name] = Factors((core.down @ q_down.T).to(down.dtype), (q_up @ core.up).to(up.dtype))
    return replace(adapter, layers=layers)


def distance(a: Adapter, b: Adapter) -> float:
    """Frobenius norm of ΔW_a − ΔW_b over all layers, relative to the larger of the two norms (0: the same skill)."""
    squared = [0.0, 0.0, 0.0]
    for name in dict.fromkeys([*a.layers, *b.layers]):
        fa, fb = a.layers.get(name), b.layers.get(name)
        aa, bb = (_inner(f, f) if f else 0.0 for f in (fa, fb))
        squared[0] += aa
        squared[1] += bb
        squared[2] += _inner(fa, fb) if fa and fb else 0.0
    gap = max(0.0, squared[0] + squared[1] - 2 * squared[2])
    return float((gap / max(squared[0], squared[1], 1e-30)) ** 0.5)


def _inner(a: Factors, b: Factors) -> float:
    """⟨ΔW_a, ΔW_b⟩ = trace(up_aᵀ up_b · down_b down_aᵀ), in (r_a, r_b) products only."""
    return float(((a.up.double().T @ b.up.double()) * (a.down.double() @ b.down.double().T)).sum())


def random_like(adapter: Adapter, rng: torch.Generator) -> Adapter:
    """Random factors with each layer's ‖ΔW‖ kept: the control that shows whether a skill's content matters."""
    layers = {}
    for name, (down, up) in adapter.layers.items():
        draw = Factors(torch.randn(down.shape, generator=rng), torch.randn(up.shape, generator=rng))
        layers[name] = Factors(draw.down, draw.up * (adapter.delta(name).norm() / draw.delta.norm()))
    return replace(adapter, layers=layers)
