"""Elastic weight consolidation: important weights are held by springs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State
from robot_cl.continual.method import Setup, below
from robot_cl.continual.methods.one_network import OneNetwork, body
from robot_cl.learners.base import Learner

DRAWS = 32


class EWC(OneNetwork):
    """Kirkpatrick et al. 2017: λ/2 Σ_tasks Σ_i F_i (θ_i − θ*_i)² on all layers but the output's, which is per task.

    Remembers Σ F and Σ F θ*, from which the gradient of the whole sum follows. F is the diagonal of the Gaussian
    policy's Fisher information, so that λ = 1 weighs a change by its KL to the old policy in nats.
    """

    heads: ClassVar[bool] = True

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.fisher = {name: torch.zeros_like(p) for name, p in body(self.actor).items()}
        self.anchor = {name: torch.zeros_like(p) for name, p in body(self.actor).items()}

    def guard(self, learner: Learner) -> None:
        for name, p in body(learner.actor).items():
            assert p.grad is not None
            p.grad.add_(self.fisher[name] * p.detach() - self.anchor[name], alpha=self.config.ewc)

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        super().end(k, learner, fresh)
        assert fresh is not None
        rows = fresh.obs.flatten(1, 2)[:, : self.config.memory]
        for name, f in fisher_diagonal(self.actor, rows, self.rng[0]).items():
            self.fisher[name] += f
            self.anchor[name] += f * dict(self.actor.named_parameters())[name].detach()

    def kept(self) -> dict[str, Tensor]:
        return super().kept() | self._sums()

    def _sums(self) -> dict[str, Tensor]:
        parts = (("fisher", self.fisher), ("anchor", self.anchor))
        return {f"{kind}.{name}": value for kind, table in parts for name, value in table.items()}

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self._sums()

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.fisher, self.anchor = below(tensors, "fisher."), below(tensors, "anchor.")


def fisher_diagonal(actor: StackedGaussianActor, obs: Tensor, rng: torch.Generator, draws: int = DRAWS) -> State:
    """E_s Σ_d (∂μ_d/∂θ)² / σ_d² for every body parameter, of a Gaussian with fixed σ; obs (P, B, obs_dim).

    One backward pass with random signs per draw: E_ε (Σ_sd ε_sd ∂μ_d(s)/∂θ / σ_d)² is the sum over s and d.
    """
    parameters = body(actor)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for _ in range(draws):
        mean, log_std = actor(obs)
        signs = torch.randint(0, 2, mean.shape, generator=rng) * 2.0 - 1.0
        summed = (mean * signs * (-log_std).exp()).sum()
        for name, g in zip(parameters, torch.autograd.grad(summed, list(parameters.values())), strict=True):
            total[name] += g.square() / (draws * obs.shape[1])
    return total
