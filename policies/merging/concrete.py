"""A learned mask of the subspace that the skills share."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.merging.operator import active, checked, weighted_sum


def concrete(
    deltas: Tensor,
    weights: Tensor,
    rng: torch.Generator | None = None,
    scale: float = 1.0,
    steps: int = 100,
    lr: float = 0.1,
    inputs: Tensor | None = None,
) -> Tensor:
    """Tang et al. 2023 (Concrete subspace). Learn logits x of a mask m = σ((x + logistic noise) / 0.5), shared by all
    skills, so that λ Σ w_k (m / mean(m) ∘ τ_k) answers like each skill on that skill's own observations:

        loss = Σ_k ‖X_k (merged − w_k τ_k)ᵀ‖²,

    X_k = inputs[k] (K, n, d_in), the layer's inputs on a few observations per skill; without them all inputs count
    alike. The result uses the mask without noise. A zero skill changes nothing (its inputs are left out with it).
    """
    if inputs is not None and (inputs.dim() != 3 or len(inputs) != len(deltas) or inputs.shape[2] != deltas.shape[-1]):
        raise ValueError(f"inputs {tuple(inputs.shape)} do not fit deltas {tuple(deltas.shape)}; expected (K, n, d_in)")
    every, row = deltas, weights
    deltas, weights = checked(deltas, weights)
    if len(deltas) == 1:
        return weighted_sum(deltas, weights)
    if inputs is not None:
        inputs = inputs[active(every, row)].transpose(1, 2).double()
    dtype, deltas, weights = deltas.dtype, deltas.double(), weights.double()
    own = deltas * weights.view(-1, *[1] * (deltas.dim() - 1))
    total = scale * own.sum(0)
    logits = torch.zeros_like(total, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=lr)
    generator = rng or torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            gap = masked(total, logits, generator) - own  # (K, *shape)
            answer = gap if inputs is None else gap @ inputs
            (logits.grad,) = torch.autograd.grad(answer.square().mean() / own.square().mean(), logits)
            optimiser.step()
    return masked(total, logits.detach(), None).to(dtype)


def masked(total: Tensor, logits: Tensor, rng: torch.Generator | None) -> Tensor:
    """m / mean(m) ∘ total, with a relaxed Bernoulli mask at temperature 0.5 (noise-free if `rng` is None)."""
    if rng is not None:
        uniform = torch.rand(logits.shape, generator=rng).clamp(1e-6, 1 - 1e-6).to(logits)
        logits = logits + torch.logit(uniform)
    mask = torch.sigmoid(logits / 0.5)
    return mask / mask.mean() * total
