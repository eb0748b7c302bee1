"""Low-rank adapters on any linear layer of any actor: attach, train, extract, detach.

Hu et al. 2022 (LoRA). `attach` freezes the module and puts y = base(x) + scale · (x downᵀ) upᵀ in place of every linear
layer: torch.nn.Linear, StackedLinear, and the mixed layers of a frozen composition (then the new adapter is a
residual on top of it). The factors carry a population axis P, so that P seeds train side by side on one frozen base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from policies.adapter import Adapter, Factors, Header
from policies.networks import StackedLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LowRank(nn.Module):
    """One adapted layer: base(x) + scale · (x downᵀ) upᵀ.

    down (P, r, d_in) starts lecun-normal, up (P, d_out, r) at zero, so that training starts at the base. The base
    may have population 1 (shared by all P members) or P. x (B, d_in), (1, B, d_in) or (P, B, d_in).
    """

    def __init__(self, base: nn.Module, rank: int, rngs: Sequence[torch.Generator], scale: float = 1.0):
        super().__init__()
        d_out, d_in = layer_shape(base)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.base, self.scale, self.population = base, scale, len(rngs)
        weight = next(base.parameters())
        down = torch.stack([torch.randn(rank, d_in, generator=g) for g in rngs]) / math.sqrt(d_in)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(torch.zeros(self.population, d_out, rank).to(weight))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.population == 1:
            h = nn.functional.linear(x, self.down[0])
            return y + nn.functional.linear(h, self.up[0]) * self.scale
        if x.dim() == 2 or x.shape[0] == 1:
            x = x.expand(self.population, *x.shape[-2:])
        h = torch.bmm(x, self.down.transpose(1, 2))  # (P, B, r)
        return torch.baddbmm(y.expand(self.population, *y.shape[-2:]), h, self.up.transpose(1, 2), alpha=self.scale)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer, bare, adapted or mixed."""
    weight = cast(Tensor, base_layer(layer).weight)
    return weight.shape[-2], weight.shape[-1]


def base_layer(layer: nn.Module) -> nn.Module:
    """The bare linear layer below adapters and mixtures (each keeps what it wraps in `base`)."""
    while not isinstance(layer, (nn.Linear, StackedLinear)):
        layer = cast(nn.Module, layer.base)
    return layer


def is_linear(module: nn.Module) -> bool:
    """A bare linear layer, or one adapted or mixed (both keep the layer below in `base`)."""
    return isinstance(module, (nn.Linear, StackedLinear)) or is_linear_wrapper(module)


def is_linear_wrapper(module: nn.Module) -> bool:
    inner = module._modules.get("base")
    return inner is not None and is_linear(inner)


def linear_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(name, parent, attribute, layer) of every outermost linear layer; the name does not change when it is wrapped."""
    for attribute, child in module.named_children():
        name = prefix + attribute
        if is_linear(child):
            yield name, module, attribute, child
        else:
            yield from linear_layers(child, name + ".")


def attach(
    module: nn.Module,
    rank: int,
    rngs: Sequence[torch.Generator],
    scale: float = 1.0,
    targets: Sequence[str] | None = None,
) -> list[nn.Parameter]:
    """Freeze `module`, adapt its linear layers (all, or those named) and return the only trainable parameters.

    Member p draws from rngs[p]; `scale` multiplies the change while it trains and is folded in by `extract`.
    Raises LookupError for a target that is not a linear layer, ValueError if there is nothing to adapt.
    """
    found = {name: (parent, attribute, layer) for name, parent, attribute, layer in linear_layers(module)}
    unknown = sorted(set(targets or ()) - set(found))
    if unknown:
        raise LookupError(f"no linear layer {unknown[0]!r}; layers: {', '.join(found)}")
    if not found:
        raise ValueError(f"{type(module).__name__} has no linear layer to adapt")
    module.requires_grad_(False)
    trainable: list[nn.Parameter] = []
    for name in targets or found:
        parent, attribute, layer = found[name]
        adapted = LowRank(layer, rank, rngs, scale)
        setattr(parent, attribute, adapted)
        trainable += [adapted.down, adapted.up]
    return trainable


def extract(module: nn.Module, member: int = 0, header: Header | None = None) -> Adapter:
    """Member `member` of the outermost adapter on `module`, detached and copied, with its scale inside `up`."""
    layers = {}
    for name, _, _, layer in linear_layers(module):
        if isinstance(layer, LowRank):
            up = layer.up[member].detach() * layer.scale
            layers[name] = Factors(layer.down[member].detach().clone(), up)
    if not layers:
        raise ValueError("no adapter is attached to this module; call attach first")
    return Adapter(layers, header or Header())


@torch.no_grad()
def layer_inputs(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each linear layer reads while the module reads x (P, N, width): layer name -> (P, N, d_in)."""
    read: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, given, __: read.update({name: given[0]})

    # Hooks on what a layer gives, not on what it is given: these make a network call its layers one by one.
    hooks = [layer.register_forward_hook(note(name)) for name, _, _, layer in linear_layers(module)]
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return read


@torch.no_grad()
def standing_for_one(x: Tensor) -> Tensor:
    """v (P, d_in, 1) for which x v is nearest to 1 over inputs x (P, N, d_in): least squares with a small ridge."""
    x = x.double()
    moments, mean = x.mT @ x / x.shape[-2], x.mean(-2).unsqueeze(-1)
    ridge = 1e-4 * moments.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-9
    return torch.linalg.solve(moments + ridge * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), mean)


@torch.no_grad()
def with_gain(start: ModuleT, trained: nn.Module, rank: int, inputs: Mapping[str, Tensor] | None = None) -> ModuleT:
    """`start`, changed in place: each linear layer with the adapter that brings it nearest to that of `trained`.

    Both are bare and of one shape. Ranks are `rank` at most; singular values tell which matter (Eckart–Young). An
    adapter has no biases: given what the layers of `trained` read (`layer_inputs`), the change of a bias becomes the
    change of weights that is nearest to it there.
    """
    goals = {name: layer for name, _, _, layer in linear_layers(trained)}
    for name, parent, attribute, layer in list(linear_layers(start)):
        gained = (cast(Tensor, goals[name].weight) - cast(Tensor, layer.weight)).detach()
        gained = gained.unsqueeze(0) if gained.dim() == 2 else gained  # (P, d_out, d_in)
        if inputs is not None:
            rise = (cast(Tensor, goals[name].bias) - cast(Tensor, layer.bias)).detach().view(len(gained), -1, 1)
            one = standing_for_one(inputs[name].reshape(len(gained), -1, gained.shape[-1]))
            gained = gained + rise @ one.mT.to(rise)
        kept = min(rank, *gained.shape[1:])
        U, S, Vh = torch.linalg.svd(gained.double(), full_matrices=False)
        root = S[:, :kept].sqrt().unsqueeze(-1)
        adapted = LowRank(layer, kept, [torch.Generator() for _ in gained])
        adapted.down.copy_(root * Vh[:, :kept])
        adapted.up.copy_(U[:, :, :kept] * root.transpose(1, 2))
        setattr(parent, attribute, adapted)
    return start


def detach(module: nn.Module) -> nn.Module:
    """Take the outermost adapter off; what was below comes back untouched. Returns the module."""
    for _, parent, attribute, layer in list(linear_layers(module)):
        if isinstance(layer, LowRank):
            setattr(parent, attribute, layer.base)
    return module


def load_into(module: nn.Module, adapter: Adapter, member: int | None = None) -> None:
    """Copy an adapter into the attached factors of one member (None: all), to go on training it.

    Raises ValueError if layers or ranks differ from what is attached.
    """
    attached = {name: layer for name, _, _, layer in linear_layers(module) if isinstance(layer, LowRank)}
    ranks = {name: layer.down.shape[1] for name, layer in attached.items()}
    if ranks != adapter.ranks:
        raise ValueError(f"the adapter's layers and ranks {adapter.ranks} are not those attached, {ranks}")
    with torch.no_grad():
        for name, layer in attached.items():
            members = slice(None) if member is None else slice(member, member + 1)
            layer.down[members] = adapter.layers[name].down
            layer.up[members] = adapter.layers[name].up / layer.scale


def merge_into(module: nn.Module, adapter: Adapter | Mapping[str, Tensor], weight: float = 1.0) -> nn.Module:
    """Add weight · ΔW to the bare weights in place: for coefficients that stay constant, and for export.

    `adapter` may also be dense changes {layer: (d_out, d_in)}. Raises LookupError for a layer the module lacks.
    """
    layers = {name: base_layer(layer) for name, _, _, layer in linear_layers(module)}
    deltas = {n: f.delta for n, f in adapter.layers.items()} if isinstance(adapter, Adapter) else adapter
    with torch.no_grad():
        for name, delta in deltas.items():
            if name not in layers:
                raise LookupError(f"the actor has no linear layer {name!r}; layers: {', '.join(layers)}")
            cast(Tensor, layers[name].weight).add_(delta.to(cast(Tensor, layers[name].weight)), alpha=weight)
    return module


def layer_shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """layer -> (d_out, d_in) of everything that can be adapted: what a library of this base needs to know."""
    return {name: layer_shape(layer) for name, _, _, layer in linear_layers(module)}


def base_digest(module: nn.Module, member: int | None = None) -> str:
    """sha256 hex of the base's parameters (names, shapes, bytes), the same with and without adapters attached.

    With `member`, of that member of a stack alone: what `module.member(member)` would have.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_base_parameters(module)):
        tensor = parameter if member is None else parameter[member : member + 1]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _base_parameters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if is_linear_wrapper(module):
        yield from _base_parameters(base_layer(module), prefix)
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        yield from _base_parameters(child, prefix + name + ".")
