"""Policies of Uni-O4 between cloning and selection: n per seed, each as cloned, as accepted and as it is improved."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.learners.stacks import copy_rows


@dataclass
class Candidates:
    """Three stacks of P·n actors, seed p's as members p·n to p·n + n − 1: π (`members`), π_old (`accepted`), clones."""

    members: StackedGaussianActor
    accepted: StackedGaussianActor
    clones: StackedGaussianActor
    each: int  # n

    @staticmethod
    def of(members: StackedGaussianActor, each: int) -> Candidates:
        """All three alike, with the same statistics of observations."""
        accepted, clones = (copy.deepcopy(members).requires_grad_(False) for _ in range(2))
        for actor in (accepted, clones):
            actor.normalizer = members.normalizer
        return Candidates(members, accepted, clones, each)

    def cloned(self) -> None:
        """What has been learned so far is the behaviour."""
        for kept in (self.accepted, self.clones):
            copy_rows(kept, self.members)

    def accept(self, passed: Tensor) -> None:
        """Members of `passed` (P, n) bool become π_old."""
        rows = torch.nonzero(passed.flatten())[:, 0]
        copy_rows(self.accepted, self.members, rows, rows)

    def go_back(self) -> None:
        """All members become π_old."""
        copy_rows(self.members, self.accepted)

    def spread(self, x: Tensor) -> Tensor:
        """(P, ...) -> (P·n, ...), a seed's rows once per member."""
        return x.repeat_interleave(self.each, 0)

    def gathered(self, x: Tensor) -> Tensor:
        """(P·n, B, d) -> (P, n·B, d)."""
        return x.reshape(len(x) // self.each, -1, x.shape[-1])

    def distance(self, z: Tensor, action: Tensor) -> Tensor:
        """Squared distance from the clones' means in their deviations, mean over actions; (P·n, R, ·) -> (P·n, R)."""
        with torch.no_grad():
            mean, log_std = self.clones.heads(z)
        return ((action - mean) * torch.exp(-log_std)).square().mean(-1)
