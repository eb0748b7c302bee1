"""PackNet: each task gets its own share of one network's weights; what a task owns never changes again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, copied
from robot_cl.continual.method import Method, Setup, below, learner_values
from robot_cl.continual.methods.one_network import flat, listed
from robot_cl.learners.base import Learner

FREE = -1


class PackNet(Method):
    """Mallya & Lazebnik 2018, as in Continual World: train the free weights, keep the largest 1/N of each layer, set
    the rest to zero, retrain the kept ones, own them.

    The number of tasks N must be known. Remembers each weight's owner and value, and per task the biases and σ (the
    original freezes these after the first task; a copy per task is better and nearly free). Weights not owned yet
    begin each task at the base's value, because every method begins at the base.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        weights = matrices(setup.base)
        self.owner = {name: torch.full(w.shape, FREE, dtype=torch.int16) for name, w in weights.items()}
        self.weight = {name: w.detach().clone() for name, w in weights.items()}
        self.small: list[State] = []  # of each task: biases, σ
        self.kept_now: dict[str, Tensor] = {}  # of the task in progress, once pruned: which weights it keeps

    def begin(self, k: int) -> tuple[Learner | None, int]:
        actor = copied(self.setup.base)
        with torch.no_grad():
            for name, w in matrices(actor).items():
                w.copy_(torch.where(self.owner[name] == FREE, w, self.weight[name]))
        self.kept_now = {}
        learner = self.learner(k, actor, self.values[-1] if self.values else self.setup.values)
        self._guard(learner)
        return learner, 0

    def _guard(self, learner: Learner) -> None:
        """Only free weights move, after pruning only the kept ones: the others' gradients, and so their moments, are
        exactly zero."""

        def freeze() -> None:
            for name, w in matrices(learner.actor).items():
                assert w.grad is not None
                w.grad.mul_(self.kept_now[name] if self.kept_now else self.owner[name] == FREE)

        learner.opts["actor"].before = freeze

    def during(self, k: int, learner: Learner, fresh: Transitions, done: float) -> int:
        if self.kept_now or done < self.config.prune_at:
            return 0
        count = len(self.setup.stream.stages)
        with torch.no_grad():
            for name, w in matrices(learner.actor).items():
                free = self.owner[name] == FREE
                quota = w[0].numel() // count if k + 1 < count else w[0].numel()
                self.kept_now[name] = largest(w.abs(), free, quota)
                w.mul_(self.kept_now[name] | ~free)
        old = learner.opts["actor"]
        learner.opts["actor"] = learner.optimiser([learner.actor], old.lr, old.clip)  # moments of pruned weights go
        self._guard(learner)
        return 0

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        assert learner is not None
        for name, w in matrices(learner.actor).items():
            kept = self.kept_now[name]
            self.weight[name] = torch.where(kept, w.detach(), self.weight[name])
            self.owner[name] = torch.where(kept, torch.tensor(k, dtype=torch.int16), self.owner[name])
        self.small.append(smalls(learner.actor))
        self.values = [learner_values(learner)]
        self.kept_now = {}

    def policy(self, j: int) -> StackedGaussianActor:
        """For a task not learned yet, the newest one's network; before the first, the base."""
        if not self.small:
            return self.setup.base
        j, actor = min(j, len(self.small) - 1), copied(self.setup.base)
        with torch.no_grad():
            for name, w in matrices(actor).items():
                mine = (self.owner[name] != FREE) & (self.owner[name] <= j)
                w.copy_(torch.where(mine, self.weight[name], 0.0))
            for name, p in actor.named_parameters():
                if name in self.small[j]:
                    p.copy_(self.small[j][name])
        return actor

    def kept(self) -> dict[str, Tensor]:
        owned = {f"weight.{name}": w for name, w in self.weight.items()}
        return owned | {f"owner.{name}": o for name, o in self.owner.items()} | flat("small", self.small)

    def tensors(self) -> dict[str, Tensor]:
        pruned = {f"kept_now.{name}": mask for name, mask in self.kept_now.items()}
        return super().tensors() | self.kept() | pruned

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.weight, self.owner = below(tensors, "weight."), below(tensors, "owner.")
        self.small, self.kept_now = listed(tensors, "small"), below(tensors, "kept_now.")


def matrices(actor: StackedGaussianActor) -> dict[str, Tensor]:
    """The weight matrices (P, d_out, d_in) by name."""
    return {name: p for name, p in actor.named_parameters() if name.endswith(".weight")}


def smalls(actor: StackedGaussianActor) -> State:
    """Copies of all other parameters."""
    return {name: p.detach().clone() for name, p in actor.named_parameters() if not name.endswith(".weight")}


def largest(magnitude: Tensor, free: Tensor, quota: int) -> Tensor:
    """Of the free entries of each member, the `quota` largest (all if there are fewer): mask (P, d_out, d_in)."""
    flat_rank = magnitude.masked_fill(~free, -1.0).flatten(1).argsort(1, descending=True).argsort(1)
    return (flat_rank < quota).view(magnitude.shape) & free
