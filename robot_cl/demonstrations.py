"""Demonstrations: a few whole episodes of a dataset, and which of them are kept aside to judge by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from robot_cl.data.store import Episode, StoredDataset

BLOCK = 25  # steps that are kept aside together where a single episode has to be divided


class Pick(StrEnum):
    """`first`: as they were recorded; `best`: those with the highest returns."""

    first = "first"
    best = "best"


@dataclass(frozen=True)
class Demonstrations:
    """obs (N, obs_dim) and action (N, act_dim) in [-1, 1], float32, of episodes numbered in `episode` (N,) from 0."""

    obs: Tensor
    action: Tensor
    episode: Tensor

    def __post_init__(self) -> None:
        if not len(self.obs) or not len(self.obs) == len(self.action) == len(self.episode):
            sizes = f"{len(self.obs)} observations, {len(self.action)} actions, {len(self.episode)} episode numbers"
            raise ValueError(f"demonstrations need as many observations as actions and at least one; got {sizes}")

    @classmethod
    def of(cls, dataset: StoredDataset, count: int, pick: Pick = Pick.first) -> Demonstrations:
        """`count` complete episodes of a dataset. Raises ValueError if it has fewer."""
        data, taken = dataset.transitions(), picked(dataset, count, pick)
        parts = [slice(episode.start, episode.stop) for episode in taken]
        number = [torch.full((part.stop - part.start,), k) for k, part in enumerate(parts)]
        return cls(
            torch.cat([data.obs[part] for part in parts]),
            torch.cat([data.action[part] for part in parts]),
            torch.cat(number),
        )

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def episodes(self) -> int:
        return int(self.episode.max()) + 1

    def split(self, share: float) -> tuple[Demonstrations, Demonstrations]:
        """To learn from, and to judge by: the last `share` of the episodes, at least one of them. A single episode is
        divided in blocks of 25 steps. Raises ValueError for a share outside (0, 1), or too few steps."""
        if not 0.0 < share < 1.0:
            raise ValueError(f"held_out is {share}; expected a share between 0 and 1")
        if self.episodes > 1:
            kept = min(self.episodes - 1, max(1, round(share * self.episodes)))
            held = self.episode >= self.episodes - kept
        else:
            every = max(2, round(1.0 / share))
            block = min(BLOCK, max(1, len(self) // every))
            held = torch.arange(len(self)) // block % every == every - 1
        if not held.any() or held.all():
            raise ValueError(f"{len(self)} steps cannot be divided; give more demonstrations")
        return self.where(~held), self.where(held)

    def where(self, rows: Tensor) -> Demonstrations:
        return Demonstrations(self.obs[rows], self.action[rows], self.episode[rows])


def picked(dataset: StoredDataset, count: int, pick: Pick = Pick.first) -> list[Episode]:
    """`count` complete episodes of a dataset. Raises ValueError if it has fewer."""
    whole = [episode for episode in dataset.episodes() if episode.complete]
    if not 1 <= count <= len(whole):
        raise ValueError(f"demos={count}, but {dataset.name} has {len(whole)} complete episodes; ask for 1 to that")
    if pick is Pick.best:
        whole.sort(key=lambda episode: -episode.ret)
    return whole[:count]
