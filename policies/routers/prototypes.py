"""Prototypes learned online: each skill's pulls its contexts closer than the others', which keep their relations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from policies.routers.router import Router
from policies.routers.statistics import Contribution


class Prototypes(Router):
    """Logits z·p_k / (‖p_k‖ temperature) on a frozen embedding z, unit length, of [x, relu(P x + b)].

    Each observation moves its skill's prototype by the running mean (De Lange and Tuytelaars 2021, continual prototype
    evolution), then all prototypes one gradient step down

        −log softmax(z·p / temperature)[skill] + distill · KL(relation before ‖ relation now),

    a context's relation being its softmax over the *other* skills, and "before" where they stood when this skill's
    turn began (Asadi et al. 2023, prototype-sample relation distillation): the skill learns to win its contexts
    without the others changing among themselves. Remembers that stand besides the contributions.
    """

    def __init__(
        self, width: int, robot: str = "robot", features: int = 128, temperature: float = 0.05, lr: float = 0.1,
        distill: float = 1.0, seed: int = 0,
    ):  # fmt: skip
        super().__init__(width, robot)
        self.temperature, self.lr, self.distill = temperature, lr, distill
        rng = torch.Generator().manual_seed(seed)
        self._project = torch.randn(width, features, generator=rng, dtype=torch.float64) / width**0.5
        self._shift = torch.rand(features, generator=rng, dtype=torch.float64) * 2.0 - 1.0
        self._turn: tuple[str, dict[str, Tensor]] = ("", {})

    def embed(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width + features), unit length."""
        return torch.nn.functional.normalize(torch.cat([x, torch.relu(x @ self._project + self._shift)], 1), dim=1)

    def logits(self, context: Tensor) -> Tensor:
        return self._similarity(self.embed(context.double()), torch.stack(list(self.total.extra.values())))

    def _similarity(self, z: Tensor, prototypes: Tensor) -> Tensor:
        return z @ torch.nn.functional.normalize(prototypes, dim=1).T / self.temperature

    def learn(self, before: Contribution, features: Tensor, skill: str) -> Contribution:
        if self._turn[0] != skill:
            self._turn = (skill, dict(before.extra))
        after, z = before.observe(skill, features), self.embed(features)
        share = len(z) / after.moments[skill].count
        own = before.extra.get(skill, torch.zeros_like(z[0])) * (1.0 - share) + z.mean(0) * share
        return replace(after, extra=self._step({**before.extra, skill: own}, skill, z))

    def _step(self, prototypes: dict[str, Tensor], skill: str, z: Tensor) -> dict[str, Tensor]:
        names = list(prototypes)
        if len(names) == 1:
            return prototypes
        mine, anchor = names.index(skill), self._turn[1]
        p = torch.stack(list(prototypes.values())).requires_grad_()
        with torch.enable_grad():
            similarity = self._similarity(z, p)
            loss = -torch.log_softmax(similarity, 1)[:, mine].mean()
            others = [i for i, name in enumerate(names) if name in anchor and i != mine]
            if len(others) > 1:
                then = torch.softmax(self._similarity(z, torch.stack([anchor[names[i]] for i in others])), 1)
                now = torch.log_softmax(similarity[:, others], 1)
                loss = loss + self.distill * torch.nn.functional.kl_div(now, then, reduction="batchmean")
            (grad,) = torch.autograd.grad(loss, p)
        # The mean's own scale sets the step: prototypes are sums of unit vectors, gradients grow as 1 / temperature.
        return dict(zip(names, (p - self.lr * self.temperature * grad).detach(), strict=True))
