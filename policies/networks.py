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
        lambda x: x.tanh_() if x.is_cuda else x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0),
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
                return product(_rows(x, 1), weight, bias).view(-1, x.shape[-2], self.d_out)
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
            if torch.is_grad_enabled():
                return FusedMLP.apply(x, self.activation, *weights)
            if any(by_onednn(x, weight) for weight in weights[::2]):
                return _layers(x, self.activation, weights)[0]
        act = ACTIVATIONS[self.activation]
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.norms is not None:
                x = self.norms[i](x)
            x = act(x)
        return self.layers[-1](x)

    def _plain(self) -> bool:
        """Nothing but linear layers and activations: no normalisation, no adapter around a layer."""
        return self.norms is None and all(type(layer) is StackedLinear for layer in self.layers)


class FusedMLP(torch.autograd.Function):
    """The layers of a plain StackedMLP as one node of the graph, for training: equal to the loop above to rounding.

    Activations overwrite their input, weight gradients come out in the layout of the weights, and the engine visits
    one node instead of a dozen per layer: for small networks most of a gradient step. First derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, *weights: Tensor) -> Tensor:
        """x as in StackedMLP, weights (weight, bias) layer by layer -> (P, B, d_out)."""
        output, kept = _layers(x, activation, weights)
        ctx.save_for_backward(*kept, *weights)
        ctx.activation, ctx.lead = activation, x.shape[:-1]
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        count, undo = len(needs) - 2, IN_PLACE[ctx.activation][1]
        kept, weights = ctx.saved_tensors[:-count], ctx.saved_tensors[-count:]
        grads: list[list[Tensor]] = [[] for _ in range(count)]
        inputs = []
        lone = len(weights[0]) == 1
        for p, (g, layers) in enumerate(_parts(grad.reshape(-1, grad.shape[-1]) if lone else grad, weights)):
            for i in range(count - 2, -1, -2):
                h = kept[(p * count + i) // 2]
                if needs[2 + i]:
                    grads[i].append(product(g.mT, h.mT))
                if needs[3 + i]:
                    grads[i + 1].append(g.sum(-2, keepdim=True))
                if i or needs[0]:
                    g = product(g, layers[i].mT)
                if i:
                    g = undo(g, h)
            inputs.append(g)
        joined = [_joined(parts, w.shape) if parts else None for parts, w in zip(grads, weights, strict=True)]
        if not needs[0]:
            return None, None, *joined
        gx = _joined(inputs, (len(weights[0]), -1, weights[0].shape[-1]))
        return (gx.sum(0) if len(gx) > 1 and len(ctx.lead) == 1 else gx.view(*ctx.lead, -1)), None, *joined


def _layers(x: Tensor, activation: str, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Output (P, B, d_out) of all layers, and what each product of a layer read, member by member."""
    act, relu = IN_PLACE[activation][0], activation == "relu"
    kept, outputs = [], []
    for h, layers in _parts(_rows(x, len(weights[0])), weights):
        for i in range(0, len(layers), 2):
            hidden = i + 2 < len(layers)
            kept.append(h)
            h = product(h, layers[i], layers[i + 1], relu and hidden)
            if hidden and not relu:
                act(h)
        outputs.append(h)
    if len(weights[0]) == 1:
        return (outputs[0].unsqueeze(0) if x.dim() == 2 else outputs[0].view(*x.shape[:-1], -1)), kept
    return (outputs[0] if len(outputs) == 1 else torch.stack(outputs)), kept


def _rows(x: Tensor, population: int) -> Tensor:
    """What the first layer multiplies: (B, d) for one member, (P, B, d) for several."""
    if population == 1:
        return x.reshape(-1, x.shape[-1])
    return x.expand(population, *x.shape) if x.dim() == 2 else x


def _parts(h: Tensor, weights: Sequence[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """(input, weights) of what is multiplied at once: all members, or each where products are large."""
    if len(weights[0]) == 1:
        return [(h, [w.flatten(0, 1) for w in weights])]
    if not any(by_onednn(h, w) for w in weights[::2]):
        return [(h, list(weights))]
    return [(h[p], [w[p] for w in weights]) for p in range(len(h))]


def _joined(parts: list[Tensor], shape: Sequence[int]) -> Tensor:
    """The parts as one tensor of all members."""
    return (parts[0] if len(parts) == 1 else torch.stack(parts)).view(shape)
