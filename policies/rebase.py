"""Moving a skill to a new base: align the layers' activations, accept by what the policy does, otherwise distil."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from policies.adapter import Adapter, Factors, Header
from policies.lora import attach, detach, extract, linear_layers, load_into, merge_into


@dataclass(frozen=True)
class RebaseReport:
    """`method` procrustes or distillation; how much of the gap between the new base and the skill's actions is left
    (0: the same actions, 1: nothing was gained) for the naive copy, for Procrustes and for what was returned."""

    method: str
    accepted: bool
    gate: float
    naive: float
    procrustes: float
    final: float


def rebase(
    adapter: Adapter,
    old: nn.Module,
    new: nn.Module,
    obs: Tensor,
    header: Header,
    rng: torch.Generator,
    gate: float = 0.1,
    steps: int = 1000,
    lr: float = 3e-3,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Adapter, RebaseReport]:
    """The skill on the new base, under `header`, and how it went.

    First ΔW' = R_outᵀ ΔW R_in with R the orthogonal maps that align both bases' activations on the observations
    (OCA's and LoRA-X's idea). If more than `gate` of the action gap remains, an adapter starting there is distilled
    from the old policy's actions. `obs` (N, obs_dim) should be the old policy's own; a quarter is kept aside to judge.
    `loss` (module, obs, action) -> scalar replaces the squared error of actions. Raises ValueError if the bases'
    layers differ in name or shape.
    """
    fit, held = obs[: len(obs) * 3 // 4], obs[len(obs) * 3 // 4 :]
    wanted = _actions(_with(old, adapter), held)
    bare = _actions(new, held)

    def left(candidate: Adapter) -> float:
        gap = (wanted - bare).norm().clamp_min(1e-12)
        return float((_actions(_with(new, candidate), held) - wanted).norm() / gap)

    moved = procrustes_rebase(adapter, old, new, fit).with_header(header)
    naive, aligned = left(adapter), left(moved)
    if aligned <= gate:
        return moved, RebaseReport("procrustes", True, gate, naive, aligned, aligned)
    target = _actions(_with(old, adapter), fit)
    learned = _distil(moved, new, fit, target, rng, steps, lr, loss or _action_error).with_header(header)
    final = left(learned)
    return learned, RebaseReport("distillation", final <= gate, gate, naive, aligned, final)


def procrustes_rebase(adapter: Adapter, old: nn.Module, new: nn.Module, obs: Tensor) -> Adapter:
    """ΔW' = R_outᵀ ΔW R_in per layer. Where both bases see the same inputs R_in is the identity, and so is R_out of
    the last layer: the action means the same in both."""
    before, after = _activations(old, obs), _activations(new, obs)
    shapes = [{n: (i.shape[-1], o.shape[-1]) for n, (i, o) in a.items()} for a in (before, after)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        raise ValueError(f"the bases differ in layer {odd!r}; rebase needs the same architecture, distil instead")
    names, layers = list(before), {}
    into: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, following in zip(names, [*names[1:], None], strict=True):
        into.setdefault(name, procrustes(before[name][0], after[name][0]))
        if following is None:
            out[name] = torch.eye(before[name][1].shape[1])
        elif before[following][0].shape[1] == before[name][1].shape[1]:
            # One space on both sides of the activation: before it alone, a first layer spans only obs_dim directions.
            both = [torch.cat([_unit(a[name][1]), _unit(a[following][0])]) for a in (before, after)]
            out[name] = into[following] = procrustes(*both)
        else:
            out[name] = procrustes(before[name][1], after[name][1])
    for name, (down, up) in adapter.layers.items():
        layers[name] = Factors(down @ into[name].to(down), out[name].T.to(up) @ up)
    return Adapter(layers, adapter.header)


def _unit(x: Tensor) -> Tensor:
    """Scaled to a root mean square of 1."""
    return x / x.square().mean().sqrt().clamp_min(1e-12)


def procrustes(x: Tensor, y: Tensor) -> Tensor:
    """Orthogonal R (d, d) minimising ‖x R − y‖ for rows x, y (N, d); the identity if they are equal."""
    if torch.equal(x, y):
        return torch.eye(x.shape[1], dtype=x.dtype)
    U, _, Vh = torch.linalg.svd(x.double().T @ y.double())
    return (U @ Vh).to(x.dtype)


def _activations(module: nn.Module, obs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and outputs (N, d) of every linear layer, in the order in which the layers run."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for name, _, _, layer in linear_layers(module):

        def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            seen.setdefault(name, []).append((args[0].flatten(0, -2), out.flatten(0, -2)))

        handles.append(layer.register_forward_hook(keep))
    try:
        _actions(module, obs)
    finally:
        for handle in handles:
            handle.remove()
    joined = {n: tuple(torch.cat(side) for side in zip(*calls, strict=True)) for n, calls in seen.items()}
    return cast("dict[str, tuple[Tensor, Tensor]]", joined)


def _distil(
    start: Adapter,
    new: nn.Module,
    obs: Tensor,
    target: Tensor,
    rng: torch.Generator,
    steps: int,
    lr: float,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Adapter:
    student = copy.deepcopy(new)
    rank = max(start.ranks.values())
    trainable = attach(student, rank, [rng], targets=list(start.layers))
    load_into(student, _padded(start, rank, rng))
    optimiser = torch.optim.Adam(trainable, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(0, len(obs), (min(256, len(obs)),), generator=rng)
        value = loss(student, obs[rows], target[rows])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    learned = extract(student)
    detach(student)
    return learned


def _padded(adapter: Adapter, rank: int, rng: torch.Generator) -> Adapter:
    """All layers at one rank; added ranks change nothing yet (up 0) and can learn (down random)."""
    layers = {}
    for name, (down, up) in adapter.layers.items():
        extra = torch.randn(rank - len(down), down.shape[1], generator=rng) / down.shape[1] ** 0.5
        layers[name] = Factors(torch.cat([down, extra.to(down)]), nn.functional.pad(up, (0, len(extra))))
    return Adapter(layers, adapter.header)


def _action_error(module: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    return (cast(Any, module).mode(obs) - action).square().sum(-1).mean()


def _with(module: nn.Module, adapter: Adapter) -> nn.Module:
    return merge_into(copy.deepcopy(module), adapter)


@torch.no_grad()
def _actions(module: nn.Module, obs: Tensor) -> Tensor:
    """(N, act_dim)."""
    return cast(Any, module).mode(obs)[0]
