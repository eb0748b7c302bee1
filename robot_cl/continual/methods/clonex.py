"""Behavioural cloning of old actors, as in ClonEx-SAC: the network goes on doing what it did on the states it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from robot_cl.batch import Transitions
from robot_cl.continual.actors import State
from robot_cl.continual.method import Setup
from robot_cl.continual.methods.one_network import OneNetwork, flat, listed
from robot_cl.learners.base import Learner
from robot_cl.learners.replay import draw

BATCH = 256


class ClonEx(OneNetwork):
    """Wołczyk et al. 2022, without its exploration: + λ Σ_old KL(π_old ‖ π) on stored states, with a head per task.

    Remembers `memory` observations of each task and the means its actor had there. Each step draws one old task and
    weighs it by their number.
    """

    heads: ClassVar[bool] = True

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.stored: list[State] = []  # of each task: obs (P, n, obs_dim), target (P, n, act_dim)

    @torch.enable_grad()
    def guard(self, learner: Learner) -> None:
        j = int(torch.randint(len(self.stored), (1,), generator=self.rng[0]))
        loss = self.memory_loss(learner, j, self._batch(self.stored[j]))
        (len(self.stored) * loss).backward()

    def memory_loss(self, learner: Learner, j: int, batch: State) -> Tensor:
        """λ KL(π_old ‖ π) under task j's own head, summed over members."""
        mean, log_std = functional_call(learner.actor, self.head[j], (batch["obs"],))
        kl = 0.5 * ((mean - batch["target"]) * (-log_std).exp()).square().sum(-1)
        return self.config.clone * kl.mean(-1).sum()

    def _batch(self, stored: State) -> State:
        index = draw(stored["obs"].shape[1], BATCH, self.rng)  # (P, B)
        return {
            name: torch.take_along_dim(x, index.view(*index.shape, *[1] * (x.dim() - 2)), 1)
            for name, x in stored.items()
        }

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        super().end(k, learner, fresh)
        assert fresh is not None and learner is not None
        self.stored.append(self.remember(learner, fresh))

    @torch.no_grad()
    def remember(self, learner: Learner, fresh: Transitions) -> State:
        obs = fresh.obs.flatten(1, 2)[:, : self.config.memory].clone()
        return {"obs": obs, "target": self.actor(obs)[0]}

    def kept(self) -> dict[str, Tensor]:
        return super().kept() | flat("stored", self.stored)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | flat("stored", self.stored)

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.stored = listed(tensors, "stored")
