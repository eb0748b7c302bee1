"""The mixture kernel: K skills on one frozen base, with coefficients per row, for two extra matrix products per layer.

y = x W0ᵀ + ((x A_catᵀ) ∘ coefficients) B_cat, where A_cat (R, d_in) and B_cat (R, d_out) stack the factors of all
skills, R = Σ_k r_k. Every merge and composer is a choice of coefficients: constant, per skill, per layer, per rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from policies.adapter import Adapter, check_same_base
from policies.lora import linear_layers
from policies.networks import StackedLinear
from policies.products import by_onednn, product

MANY_ROWS = 16  # from which another library may be faster (policies.products)

Gate: TypeAlias = Callable[[Tensor, "MixedLinear"], Tensor]  # a layer's activations (..., R) -> coefficients (..., R)
Coefficients: TypeAlias = Tensor | Gate  # (K,), (B, K), (B, K, L), (B, K, L, R), or computed inside each layer


def _nothing(coefficients: Tensor) -> bool:
    """Whether all are 0; never where that would have to be waited for, differentiated or written into a graph."""
    if torch.is_grad_enabled() or coefficients.is_cuda or torch.compiler.is_compiling():
        return False
    return not bool(coefficients.any())


class _Active:
    """The coefficients of the forward in progress, shared by the layers of one mixture. None: the bare base."""

    rows: list[Tensor] | Gate | None = None


class MixedLinear(nn.Module):
    """One layer of a mixture. `down` (R, d_in), `up` (R, d_out), frozen; `skill_of` (R,) and `rank_of` (R,) name each
    row's skill and its rank within that skill. x (B, d_in) or (..., B, d_in)."""

    down: Tensor
    up: Tensor
    skill_of: Tensor
    rank_of: Tensor

    def __init__(self, base: nn.Linear | StackedLinear, factors: Mapping[int, tuple[Tensor, Tensor]], index: int):
        super().__init__()
        if isinstance(base, StackedLinear) and base.population != 1:
            raise ValueError(f"a mixture needs one base, this one holds {base.population} members; pick one of them")
        self.base, self.index, self.stacked = base, index, isinstance(base, StackedLinear)
        self.active = _Active()
        self._ready: tuple[Tensor, Tensor | None, Tensor, Tensor] | None = None
        self._joined: tuple[int, Tensor] | None = None
        ranks = [(k, r) for k, (down, _) in factors.items() for r in range(down.shape[0])]
        self.register_buffer("down", torch.cat([d for d, _ in factors.values()]).to(base.weight))
        self.register_buffer("up", torch.cat([u.T for _, u in factors.values()]).to(base.weight).contiguous())
        self.register_buffer("skill_of", torch.tensor([k for k, _ in ranks]).to(base.weight.device))
        self.register_buffer("rank_of", torch.tensor([r for _, r in ranks]).to(base.weight.device))

    def _tensors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """weight (d_out, d_in), bias (d_out,), down, up: looked up once, which at batch 1 counts."""
        weight, bias = self.base.weight, self.base.bias
        bare = (weight[0], bias[0, 0]) if self.stacked else (weight, bias)
        self._ready = (*bare, self.down, self.up)
        return self._ready

    def _side_by_side(self, weight: Tensor, up: Tensor) -> Tensor:
        """[W0 | upᵀ] (d_out, d_in + R): one large product instead of two that pass the result through memory. Made when
        the first large batch comes, and again should the base have been written to."""
        version = 0 if weight.is_inference() else weight._version
        if self._joined is None or self._joined[0] != version:
            self._joined = (version, torch.cat([weight, up.T], 1))
        return self._joined[1]

    def _apply(self, *args: Any, **kwargs: Any) -> MixedLinear:
        self._ready = self._joined = None  # moved to another device or type
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None, "_joined": None}  # a copy looks up its own

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, down, up = self._ready or self._tensors()
        lone = x.dim() == 3 and x.shape[0] == 1
        if lone:
            x = x[0]
        rows, plain = self.active.rows, torch.is_grad_enabled() or x.dim() > 2
        large = not plain and len(x) >= MANY_ROWS and self.stacked and by_onednn(x, weight)
        if large and type(rows) is list:
            h = product(x, down).mul_(rows[self.index])
            y = product(torch.cat([x, h], 1), self._side_by_side(weight, up), bias)
        else:
            # A base's own layer decides by which library it multiplies, and coefficients of 0 must give its very bits.
            y = product(x, weight, bias) if large else nn.functional.linear(x, weight, bias)
            if rows is not None:
                h = nn.functional.linear(x, down)
                coefficients = rows[self.index] if type(rows) is list else rows(h, self)  # type: ignore[operator]
                if plain:
                    y = y + (h * coefficients) @ up
                else:  # nothing to differentiate: no copies, the cheapest form for single observations
                    y.addmm_(h.mul_(coefficients), up)
        return y.unsqueeze(0) if lone or (self.stacked and y.dim() == 2) else y


class Mixture(nn.Module):
    """A frozen actor with K named skills beside it. `actor` shares its base weights with the one given.

    Outside `using` the actor is the bare base. Remembers only the coefficients of the call in progress.
    Raises ValueError for no skills, skills of different bases, or a base with a population axis above 1; LookupError
    for layers the actor lacks.
    """

    def __init__(self, actor: nn.Module, adapters: Mapping[str, Adapter]):
        super().__init__()
        check_same_base(list(adapters.values()))
        shared = {id(t): t for t in [*actor.parameters(), *actor.buffers()]}
        self.actor = copy.deepcopy(actor, shared).eval().requires_grad_(False)
        self.names = tuple(adapters)
        self.ranks = [max(a.ranks.values()) for a in adapters.values()]
        found = {name: (parent, attribute, layer) for name, parent, attribute, layer in linear_layers(self.actor)}
        missing = sorted({n for a in adapters.values() for n in a.layers} - set(found))
        if missing:
            raise LookupError(f"the actor has no linear layer {missing[0]!r}; layers: {', '.join(found)}")
        self.active = _Active()
        self.mixed: list[MixedLinear] = []
        for name, (parent, attribute, layer) in found.items():
            factors = {k: a.layers[name] for k, a in enumerate(adapters.values()) if name in a.layers}
            if factors:
                if not isinstance(layer, (nn.Linear, StackedLinear)):
                    raise ValueError(f"layer {name!r} is adapted already; detach the adapter before mixing")
                mixed = MixedLinear(layer, factors, len(self.mixed))
                mixed.active = self.active
                setattr(parent, attribute, mixed)
                self.mixed.append(mixed)
        self.layers = tuple(name for name in found if any(name in a.layers for a in adapters.values()))
        keys = [tuple(m.skill_of.tolist()) for m in self.mixed]
        self._group_of = [keys.index(key) for key in keys]  # the first layer with the same stacked rows

    @property
    def num_skills(self) -> int:
        return len(self.names)

    @contextmanager
    def using(self, coefficients: Coefficients | None) -> Iterator[nn.Module]:
        """The actor under these coefficients: (K,) or (1, K…) for all rows alike, else row i of x meets row i.

        If all are 0 and nothing is learned, it is the bare base, bit for bit.
        """
        before = self.active.rows
        ready = coefficients is None or not isinstance(coefficients, Tensor)
        if not ready and _nothing(coefficients):  # type: ignore[arg-type]
            coefficients, ready = None, True
        self.active.rows = coefficients if ready else self.expand(coefficients)  # type: ignore[assignment,arg-type]
        try:
            yield self.actor
        finally:
            self.active.rows = before

    def expand(self, coefficients: Tensor) -> list[Tensor]:
        """Coefficients (K,), (B, K), (B, K, L) or (B, K, L, R) -> per layer (B, R_layer), one per stacked row.

        Raises ValueError for other shapes, naming K, L and R.
        """
        c = coefficients.unsqueeze(0) if coefficients.dim() == 1 else coefficients
        expected = (self.num_skills, len(self.mixed), max(self.ranks))
        if not 2 <= c.dim() <= 4 or tuple(c.shape[1:]) != expected[: c.dim() - 1]:
            raise ValueError(
                f"coefficients {tuple(coefficients.shape)} do not fit {expected[0]} skills, {expected[1]} layers and "
                f"rank {expected[2]}; expected (B, K), (B, K, L) or (B, K, L, R)"
            )
        if c.dim() == 4:
            return [c[:, m.skill_of, i, m.rank_of] for i, m in enumerate(self.mixed)]
        if c.dim() == 3:
            return [c[:, m.skill_of, i] for i, m in enumerate(self.mixed)]
        return self._expand_shared(c)

    def _expand_shared(self, c: Tensor) -> list[Tensor]:
        """(B, K): layers with the same rows share one expanded tensor."""
        done: dict[int, Tensor] = {}
        rows = []
        for mixed, group in zip(self.mixed, self._group_of, strict=True):
            if group not in done:
                done[group] = c.index_select(1, mixed.skill_of)
            rows.append(done[group])
        return rows

    def one_hot(self, batch: int = 1) -> Tensor:
        """(K · batch, K): block k selects skill k alone."""
        eye = torch.eye(self.num_skills, device=self.mixed[0].down.device, dtype=self.mixed[0].down.dtype)
        # Not repeat_interleave: its translation to ONNX is wrong for a batch of unknown size.
        return eye.unsqueeze(1).expand(-1, batch, -1).reshape(-1, self.num_skills)

