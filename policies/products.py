"""Matrix products without gradient, by the faster library.

torch multiplies 32-bit numbers with MKL, which uses half the vector width of AMD's processors; the same product by
oneDNN, which torch ships for its other types, takes half the time there and the same elsewhere. Small products stay
with MKL, whose calls are cheaper. Weights that oneDNN can read only element by element, such as a part of wider
rows, are copied first: it would take a thousand times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 21  # multiplications of one member's product, from which oneDNN's call pays
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False, large: bool | None = None
) -> Tensor:
    """x weightᵀ + bias, any strides: x (B, d_in), weight (d_out, d_in), bias (d_out,) -> (B, d_out).

    Or one for each member: x (P, B, d_in), weight (P, d_out, d_in), bias (P, 1, d_out) -> (P, B, d_out). With `relu`
    what is negative becomes zero, in the same pass over memory where oneDNN multiplies. `large` is what `by_onednn`
    says, asked here if not given: it is the same for a layer's output and its two gradients.
    """
    if by_onednn(x, weight) if large is None else large:
        if x.dim() == 2:
            return _onednn(x, weight, bias, relu)
        biases = [None] * len(x) if bias is None else list(bias)
        return torch.stack([_onednn(*member, relu) for member in zip(x, weight, biases, strict=True)])
    if bias is None:
        y = x @ weight.mT if x.shape[-1] > 1 else x * weight.mT  # an outer product is no sum
    else:
        y = (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, weight.mT)
    return y.relu_() if relu else y


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes rows x (..., B, any) times weight; by kind and size alone, so that a resumed run agrees."""
    if not ONEDNN or x.is_cuda or x.dtype is not torch.float32 or torch.compiler.is_compiling():
        return False
    return x.shape[-2] * weight.shape[-1] * weight.shape[-2] >= LARGE


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    flat = None if bias is None else bias.flatten()
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.mT.contiguous().mT if weight.stride(0) == 1 else weight.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, flat, "relu" if relu else "none", [], "")
    return result
