"""A base, its skills and a composer as one actor, mixing weights, noise predictions or actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from policies.composers.composer import Composer
from policies.mixture import Mixture

LEVELS = ("parameter", "noise", "action")


class OutputMixture(nn.Module):
    """The actor's network with its K skills' *outputs* mixed: y_0 + Σ α_k (y_k − y_0), y_0 the bare base's.

    Two forwards: the base, and all skills as one batch of K·B rows. Arguments and outputs (..., B, width).
    """

    def __init__(self, net: nn.Module, mixture: Mixture):
        super().__init__()
        self.net, self.alpha = net, cast("Tensor | None", None)
        self.using, self.one_hot, self.skills = mixture.using, mixture.one_hot, mixture.num_skills

    def forward(self, *inputs: Tensor) -> Tensor:
        base = self.net(*inputs)
        if self.alpha is None:
            return base
        rows = max(x.shape[-2] for x in inputs)
        with self.using(self.one_hot(rows)):
            out = self.net(*(repeat_rows(x, self.skills) if x.shape[-2] == rows else x for x in inputs))
        return mix_rows(base, out, self.alpha)


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """(..., B, width) -> (..., times · B, width), block k being a copy of x."""
    return torch.cat([x] * times, dim=-2)


def mix_rows(base: Tensor, skills: Tensor, alpha: Tensor) -> Tensor:
    """base (..., B, d) + Σ_k alpha (B, K)[:, k] (skills (..., K·B, d)[block k] − base)."""
    blocks = skills.unflatten(-2, (alpha.shape[1], -1))  # (..., K, B, d)
    return base + ((blocks - base.unsqueeze(-3)) * alpha.T.unsqueeze(-1)).sum(-3)


class ComposedActor(nn.Module):
    """Everything an actor is, as a mixture under a composer; also a `Policy`.

    `level` is what is mixed: "parameter" (weights, PSEC), "noise" (outputs of the actor's network, the ε-predictions
    of a diffusion actor) or "action" (finished actions). At all levels coefficients 0 give the base and one-hot ones
    that skill. The composer sees observations normalised by the base. Only the composer's parameters train.
    """

    def __init__(
        self,
        mixture: Mixture,
        composer: Composer,
        level: str = "parameter",
        interface: Any = None,
        task: str | None = None,
        name: str = "composition",
    ):
        super().__init__()
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is unknown; one of {', '.join(LEVELS)}")
        if composer.shape.skills != mixture.num_skills:
            raise ValueError(f"the composer is for {composer.shape.skills} skills, not the {mixture.num_skills} mixed")
        self.mixture, self.composer, self.level = mixture, composer, level
        self.interface, self.task, self.name = interface, task, name
        actor = cast(Any, mixture.actor)
        self.obs_dim, self.act_dim = int(actor.obs_dim), int(actor.act_dim)
        if level == "noise":
            actor.net = OutputMixture(actor.net, mixture)

    def coefficients(self, obs: Tensor, task: Tensor | None = None) -> Any:
        """What the composer answers for raw observations (B, obs_dim)."""
        actor = cast(Any, self.mixture.actor)
        return self.composer(actor.normalizer(obs), task)

    def mode(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        """The deterministic action (1, B, act_dim) for raw observations (B, obs_dim)."""
        return self._compose(obs, task, lambda actor, rows: actor.mode(rows))

    def loss(self, obs: Tensor, action: Tensor, rng: torch.Generator, weight: Tensor | None = None) -> Tensor:
        """What trains the composer on demonstrations: the actor's own imitation loss where it has one (and the level
        leaves it defined), otherwise the squared error of the composed action. Scalar."""
        if self.level != "action" and hasattr(self.mixture.actor, "loss"):
            return self._compose(obs, None, lambda actor, rows: actor.loss(rows, action, [rng], weight)).sum()
        error = (self.mode(obs) - action).square().sum(-1)
        return (error if weight is None else error * weight).mean()

    def _compose(self, obs: Tensor, task: Tensor | None, call: Callable[[Any, Tensor], Tensor]) -> Tensor:
        coefficients, actor = self.coefficients(obs, task), cast(Any, self.mixture.actor)
        if self.level == "parameter":
            with self.mixture.using(coefficients):
                return call(actor, obs)
        alpha = self._per_skill(coefficients, obs)
        if self.level == "noise":
            actor.net.alpha = alpha
            try:
                return call(actor, obs)
            finally:
                actor.net.alpha = None
        base = call(actor, obs)
        with self.mixture.using(self.mixture.one_hot(obs.shape[-2])):
            skills = call(actor, repeat_rows(obs, self.mixture.num_skills))
        return mix_rows(base, skills, alpha).clamp(-1.0, 1.0)

    def _per_skill(self, coefficients: Any, obs: Tensor) -> Tensor:
        if not isinstance(coefficients, Tensor) or coefficients.dim() != 2:
            raise ValueError(f"level {self.level!r} mixes whole skills; use a composer with one coefficient per skill")
        return coefficients.expand(obs.shape[-2], -1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """obs (B, obs_dim) -> action (B, act_dim) float32 in [-1, 1]. Raises ValueError for another width."""
        rows = torch.as_tensor(np.asarray(obs, dtype=np.float32), device=next(self.mixture.parameters()).device)
        if rows.dim() != 2 or rows.shape[1] != self.obs_dim:
            raise ValueError(f"obs has shape {tuple(rows.shape)}, this policy reads (B, {self.obs_dim})")
        with torch.inference_mode():
            return self.mode(rows)[0].cpu().numpy()

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing to forget."""
