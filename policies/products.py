"""Matrix products without gradient, by the faster library.

torch multiplies 32-bit numbers with MKL, which uses half the vector width of AMD's processors; the same product by
oneDNN, which torch ships for its other types, takes half the time there and the same elsewhere. Small products stay
with MKL, whose calls are cheaper.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 21  # multiplications of one member's product, from which oneDNN's call pays
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias, any strides: x (B, d_in), weight (d_out, d_in), bias (1, d_out) -> (B, d_out).

    Or one for each member: x (P, B, d_in), weight (P, d_out, d_in), bias (P, 1, d_out) -> (P, B, d_out).
    """
    if by_onednn(x, weight):
        if x.dim() == 2:
            return _onednn(x, weight, bias)
        biases = [None] * len(x) if bias is None else list(bias)
        return torch.stack([_onednn(*member) for member in zip(x, weight, biases, strict=True)])
    if bias is None:
        return x @ weight.transpose(-1, -2)
    return (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, weight.transpose(-1, -2))


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes rows x (..., B, any) times weight; by kind and size alone, so that a resumed run agrees."""
    if not ONEDNN or x.is_cuda or x.dtype is not torch.float32 or torch.compiler.is_compiling():
        return False
    return x.shape[-2] * weight.shape[-1] * weight.shape[-2] >= LARGE


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = None if bias is None else bias.flatten()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, flat, "none", [], "")
    return result
