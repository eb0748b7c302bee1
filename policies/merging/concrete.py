"""A learned mask of the subspace that the skills share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policies.adapter import Adapter, Factors, check_same_base
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


def concrete_ranks(
    skills: Sequence[Adapter],
    inputs: Mapping[str, Tensor],
    rng: torch.Generator,
    scale: float = 1.0,
    steps: int = 200,
    lr: float = 0.05,
) -> Adapter:
    """The same in the space of the factors: one mask entry per rank of each skill, Σ r_k numbers per layer.

    With a few observations this is the form to use: a mask of every weight fits them and nothing else. inputs[layer]
    (K, n, d_in) are the layer's inputs under each skill. A single skill comes back as it is.
    """
    check_same_base(skills)
    if len(skills) == 1:
        return skills[0]
    layers = {}
    for name in dict.fromkeys(n for skill in skills for n in skill.layers):
        parts = [(k, skill.layers[name]) for k, skill in enumerate(skills) if name in skill.layers]
        down, up = torch.cat([f.down for _, f in parts]).double(), torch.cat([f.up for _, f in parts], 1).double()
        owner = torch.tensor([k for k, f in parts for _ in range(f.rank)])
        seen = inputs[name].double() @ down.T  # (K, n, R)
        own = (seen * (owner == torch.arange(len(skills))[:, None, None])) @ up.T  # what each skill answers
        logits = torch.zeros(len(owner), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=lr)
        with torch.enable_grad():
            for _ in range(steps):
                gap = (seen * masked(torch.full_like(logits, scale), logits, rng)) @ up.T - own
                (logits.grad,) = torch.autograd.grad(gap.square().mean() / own.square().mean(), logits)
                optimiser.step()
        mask = masked(torch.full_like(logits, scale), logits.detach(), None)
        layers[name] = Factors(down.float(), (up * mask).float())
    return Adapter(layers, skills[0].header)


def masked(total: Tensor, logits: Tensor, rng: torch.Generator | None) -> Tensor:
    """m / mean(m) ∘ total, with a relaxed Bernoulli mask at temperature 0.5 (noise-free if `rng` is None)."""
    if rng is not None:
        uniform = torch.rand(logits.shape, generator=rng).clamp(1e-6, 1 - 1e-6).to(logits)
        logits = logits + torch.logit(uniform)
    mask = torch.sigmoid(logits / 0.5)
    return mask / mask.mean() * total
