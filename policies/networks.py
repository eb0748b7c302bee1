"""Networks with a leading population axis: P members side by side, one matrix product per layer.

Ensemble members, twin critics and seeds are all populations. Member p of a stack initialised and trained here equals
a network initialised and trained alone (to 1e-5), because every random draw comes from that member's own generator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.products import by_onednn, product


def tanh(x: Tensor) -> Tensor:
    """tanh(x) = 2 σ(2x) − 1 on the CPU, where torch's sigmoid is several times faster than its tanh (equal to 2e-7)."""
    return torch.tanh(x) if x.is_cuda else torch.sigmoid(x * 2.0) * 2.0 - 1.0


# Activations whose derivative follows from their value: (in place, gradient from gradient and value, in place).
IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (torch.relu_, lambda g, y: torch.ops.aten.threshold_backward.grad_input(g, y, 0.0, grad_input=g)),
    "tanh": (
        lambda x: x.tanh_() if x.is_cuda else torch.add(-1.0, x.mul_(2.0).sigmoid_(), alpha=2.0, out=x),
        lambda g, y: torch.ops.aten.tanh_backward.grad_input(g, y, grad_input=g),
    ),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": tanh,
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
    "gelu": nn.functional.gelu,
}
INITS = ("torch", "orthogonal")
NORM_EPS = 1e-5  # torch's, added to the variance by layer normalisation


def generators(seed: int, population: int) -> list[torch.Generator]:
    """One CPU generator per member; member p of any stack draws what a lone network seeded `seed + p` draws."""
    return [torch.Generator().manual_seed(seed + p) for p in range(population)]


class StackedLinear(nn.Module):
    """y = x Wᵀ + b for each member: x (P, B, d_in) -> (P, B, d_out).

    weight (P, d_out, d_in) and bias (P, 1, d_out), as in torch.nn.Linear with a leading population axis.
    `init` "torch" is nn.Linear's uniform(±1/sqrt(d_in)); "orthogonal" is orthogonal with `gain` and zero bias.
    """

    def __init__(self, d_in: int, d_out: int, rngs: Sequence[torch.Generator], init: str = "torch", gain: float = 1.0):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init {init!r} is unknown; one of {', '.join(INITS)}")
        self.d_in, self.d_out, self.population = d_in, d_out, len(rngs)
        weight, bias = torch.empty(self.population, d_out, d_in), torch.zeros(self.population, 1, d_out)
        bound = 1.0 / math.sqrt(d_in)
        for p, rng in enumerate(rngs):
            if init == "torch":
                weight[p].uniform_(-bound, bound, generator=rng)
                bias[p].uniform_(-bound, bound, generator=rng)
            else:
                nn.init.orthogonal_(weight[p], gain, generator=rng)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.population == 1:  # one GEMM is faster than a batched one of size one
            weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
            if not torch.is_grad_enabled() and by_onednn(x, weight):
                return product(x.reshape(-1, self.d_in), weight, bias).view(-1, x.shape[-2], self.d_out)
            y = nn.functional.linear(x, weight, bias)
            return y if y.dim() == 3 else y.unsqueeze(0)
        if x.dim() == 2:
            x = x.expand(self.population, *x.shape)
        if not torch.is_grad_enabled():
            return product(x, self.weight, self.bias)
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class StackedLayerNorm(nn.Module):
    """Layer normalisation of the last axis with one gain and bias (P, 1, width) per member."""

    def __init__(self, width: int, population: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(population, 1, width))
        self.bias = nn.Parameter(torch.zeros(population, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias, normal, self.weight)


class StackedMLP(nn.Module):
    """Multi-layer perceptron per member: x (P, B, d_in) or shared (B, d_in) -> (P, B, d_out)."""

    def __init__(
        self,
        d_in: int,
        hidden: Sequence[int],
        d_out: int,
        rngs: Sequence[torch.Generator],
        activation: str = "relu",
        layer_norm: bool = False,
        init: str = "torch",
        out_gain: float = 1.0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
        self.activation, self.population = activation, len(rngs)
        self.d_in, self.hidden, self.d_out = d_in, tuple(hidden), d_out
        widths = [d_in, *hidden]
        gain = math.sqrt(2.0)
        self.layers = nn.ModuleList(
            StackedLinear(a, b, rngs, init, gain) for a, b in itertools.pairwise(widths)
        )
        self.layers.append(StackedLinear(widths[-1], d_out, rngs, init, out_gain))
        self.norms = nn.ModuleList(StackedLayerNorm(w, self.population) for w in hidden) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.activation in IN_PLACE and self._plain():
            weights = [t for layer in self.layers for t in (layer.weight, layer.bias) if isinstance(t, Tensor)]
            gains = [t for norm in self.norms or () for t in (norm.weight, norm.bias) if isinstance(t, Tensor)]
            large = [by_onednn(x, weight) for weight in weights[::2]]
            if torch.is_grad_enabled() and (any(large) or not gains):
                return FusedMLP.apply(x, self.activation, len(weights), *weights, *gains)
            if any(large):
                parts = _parts([*weights, *gains], len(weights), large)
                return _layers(x, self.activation, len(weights), parts, large)[0]
        act = ACTIVATIONS[self.activation]
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.norms is not None:
                x = self.norms[i](x)
            x = act(x)
        return self.layers[-1](x)

    def _plain(self) -> bool:
        """Nothing but linear layers, their normalisation and activations: no adapter around a layer, no hook on one."""
        return all(type(layer) is StackedLinear and not layer._forward_hooks for layer in self.layers)


class FusedMLP(torch.autograd.Function):
    """The layers of a StackedMLP without adapters as one node of the graph, for training: the loop above to rounding.

    Activations overwrite their input, weight gradients come out in the layout of the weights, and the engine visits
    one node instead of a dozen per layer: for small networks most of a gradient step. First derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, count: int, *tensors: Tensor) -> Tensor:
        """x as in StackedMLP; `count` weights (weight, bias) layer by layer, then (gain, bias) of each normalisation,
        if any -> (P, B, d_out)."""
        large = [by_onednn(x, weight) for weight in tensors[:count:2]]
        parts = _parts(tensors, count, large)
        output, kept, normal = _layers(x, activation, count, parts, large)
        ctx.save_for_backward(*kept, *(t for layer in normal for t in layer), *(t for part in parts for t in part))
        ctx.activation, ctx.lead, ctx.count, ctx.kept, ctx.large = activation, x.shape[:-1], count, len(kept), large
        ctx.shapes = [t.shape for t in tensors]
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, count, large, undo = ctx.needs_input_grad, ctx.count, ctx.large, IN_PLACE[ctx.activation][1]
        own, population = len(needs) - 3, ctx.shapes[0][0]
        amount = 2 * ctx.kept // count  # of parts
        saved, tensors = ctx.saved_tensors[: -own * amount], ctx.saved_tensors[-own * amount :]
        kept, normal = saved[: ctx.kept], saved[ctx.kept :]
        grads: list[list[Tensor]] = [[] for _ in ctx.shapes]
        inputs = []
        for p, g in enumerate(_split(grad, population, amount)):
            part = tensors[p * own : (p + 1) * own]
            for i in range(count - 2, -1, -2):
                h = kept[(p * count + i) // 2]
                if needs[3 + i]:
                    grads[i].append(product(g.mT, h.mT, large=large[i // 2]))
                if needs[4 + i]:
                    grads[i + 1].append(g.sum(-2))
                if i or needs[0]:
                    g = product(g, part[i].mT, large=large[i // 2])
                if i:
                    g = undo(g, h)
                if i and own > count:
                    at, k = count + i - 2, 3 * ((p * (count - 2) + i - 2) // 2)
                    g, gain, bias = _undo_norm(g, normal[k : k + 3], part[at], part[at + 1], needs[3 + at])
                    if needs[3 + at]:
                        grads[at].append(gain)
                        grads[at + 1].append(bias)
            inputs.append(g)
        joined = [_joined(parts, shape) if parts else None for parts, shape in zip(grads, ctx.shapes, strict=True)]
        if not needs[0]:
            return None, None, None, *joined
        gx = _joined(inputs, (population, -1, ctx.shapes[0][-1]))
        gx = gx.sum(0) if len(gx) > 1 and len(ctx.lead) == 1 else gx.view(*ctx.lead, -1)
        return gx, None, None, *joined


def _layers(
    x: Tensor, activation: str, count: int, parts: Sequence[Sequence[Tensor]], large: Sequence[bool]
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor, Tensor]]]:
    """Output (P, B, d_out) of all layers; what each product of a layer read, part by part; and of each normalisation
    its input, mean and 1 / deviation. `parts`: `count` weights and the gains, of what is multiplied at once."""
    act, relu = IN_PLACE[activation][0], activation == "relu"
    population = len(parts) if parts[0][0].dim() == 2 else len(parts[0][0])
    kept, normal, outputs = [], [], []
    for h, part in zip(_split(x, population, len(parts)), parts, strict=True):
        gains = part[count:]
        for i in range(0, count, 2):
            hidden = i + 2 < count
            kept.append(h)
            h = product(h, part[i], part[i + 1], relu and hidden and not gains, large[i // 2])
            if hidden and gains:
                y, mean, scale = torch.native_layer_norm(h, h.shape[-1:], gains[i], gains[i + 1], NORM_EPS)
                normal.append((h, mean, scale))
                h = y
            if hidden and (gains or not relu):
                act(h)
        outputs.append(h)
    if population == 1:
        return (outputs[0].unsqueeze(0) if x.dim() == 2 else outputs[0].view(*x.shape[:-1], -1)), kept, normal
    return (outputs[0] if len(outputs) == 1 else torch.stack(outputs)), kept, normal


def _undo_norm(
    grad: Tensor, normal: Sequence[Tensor], gain: Tensor, bias: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a normalisation's input (B, width), gain and bias (width,); the last two only if `learned`."""
    h, mean, scale = normal
    needed = [True, learned, learned]
    gx: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        grad, h, h.shape[-1:], mean, scale, gain, bias, needed
    )
    return gx


def _parts(tensors: Sequence[Tensor], count: int, large: Sequence[bool]) -> list[Sequence[Tensor]]:
    """The tensors of what is multiplied at once: all members; or each, where there is one, a product is large or
    something is normalised. Then weights are (d_out, d_in), biases and gains (width,)."""
    if len(tensors[0]) > 1 and len(tensors) == count and not any(large):
        return [tensors]
    matrices = range(0, count, 2)
    apart = [(t if i in matrices else t.flatten(1)).unbind() for i, t in enumerate(tensors)]
    return list(zip(*apart, strict=True))


def _split(x: Tensor, population: int, parts: int) -> Sequence[Tensor]:
    """Rows (P, B, d), or (B, d) shared, for each part: (B, d), or (P, B, d) for one part of several members."""
    if population == 1:
        return [x.reshape(-1, x.shape[-1])]
    if parts == 1:
        return [x.expand(population, *x.shape) if x.dim() == 2 else x]
    return [x] * parts if x.dim() == 2 else x.unbind()


def _joined(parts: list[Tensor], shape: Sequence[int]) -> Tensor:
    """The parts as one tensor of all members."""
    return (parts[0] if len(parts) == 1 else torch.stack(parts)).view(shape)
