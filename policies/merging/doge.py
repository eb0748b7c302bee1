"""Adaptive projective gradient descent: one shared correction that lets every skill keep its own direction."""

import torch
from torch import Tensor

from policies.merging.operator import checked, largest, share_of, weighted_sum


def doge(
    deltas: Tensor,
    weights: Tensor,
    rng: torch.Generator | None = None,
    density: float = 0.3,
    scale: float = 1.0,
    steps: int = 100,
    lr: float = 0.02,
    subspace: float = 0.5,
    norm: float | None = None,
) -> Tensor:
    """Wei et al. 2025 (arXiv 2501.01230). Find Δ minimising

        Σ_j ‖rowsum(τ_j ∘ (Σ_i λ_i (τ_i + Δ) − τ_j))‖²,    λ_i = scale · w_i · norm / ‖τ_i‖,

    by Adam (`lr` in units of the root mean square of τ over Σ λ, for Σ λ Δ is what acts), its gradient projected off
    the subspace shared by the top singular vectors of all τ; then Σ_i λ_i m_i ∘ (τ_i + Δ) with m_i the `density`
    largest of τ_i. `norm` is the norm every skill is brought to: a share of ‖W0‖, or the mean ‖τ‖ if None. A zero
    skill changes nothing.
    """
    deltas, weights = checked(deltas, weights)
    if len(deltas) == 1:
        return weighted_sum(deltas, weights)
    shape = deltas.shape[1:]
    tau = deltas.double().reshape(len(deltas), shape[0] if len(shape) > 1 else 1, -1)  # (K, rows, columns)
    norms = tau.flatten(1).norm(dim=1)
    lam = scale * weights.double() * (norms.mean() if norm is None else norm) / norms
    kept = largest(deltas, share_of("density", density)).reshape(tau.shape)
    correction = _correction(tau, lam, _shared_basis(tau, subspace), steps, lr)
    return weighted_sum((tau + correction) * kept, lam).reshape(shape).to(deltas)


def _correction(tau: Tensor, lam: Tensor, basis: Tensor, steps: int, lr: float) -> Tensor:
    """Δ (rows, columns), float64."""
    delta = torch.zeros_like(tau[0], requires_grad=True)
    size = tau.square().mean().sqrt() / lam.sum().abs().clamp_min(1e-12)
    optimiser = torch.optim.Adam([delta], lr=lr * size.item())
    summed = weighted_sum(tau, lam)
    with torch.enable_grad():
        for _ in range(steps):
            gap = tau * (summed + lam.sum() * delta - tau)  # (K, rows, columns)
            (grad,) = torch.autograd.grad(gap.sum(2).square().sum(), delta)
            delta.grad = grad - basis @ (basis.T @ grad)
            optimiser.step()
    return delta.detach()


def _shared_basis(tau: Tensor, share: float) -> Tensor:
    """Orthonormal (rows, k): leading left singular vectors of the skills' leading left singular vectors."""
    count = min(tau.shape[1:])
    U, _, _ = torch.linalg.svd(tau, full_matrices=False)
    leading = U[:, :, : max(1, count // len(tau))]
    joint = torch.linalg.svd(leading.permute(1, 0, 2).flatten(1), full_matrices=False)[0]
    return joint[:, : int(share * count)]
