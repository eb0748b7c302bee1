"""A new skill where it was shown something like it, the skills below it everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.composers.composer import Composer, CompositionShape

APART = 25  # steps, at most a quarter of the episode, by which its rows must be apart to be compared
QUANTILE = 0.95  # of what was shown finds something like it within the reach
WIDTH = 0.15  # of the transition, in reaches


def nearest(rows: Tensor, others: Tensor) -> Tensor:
    """Distance to the nearest other row: (..., B, d), (..., N, d) -> (..., B)."""
    square = rows.square().sum(-1, keepdim=True) + others.square().sum(-1).unsqueeze(-2)
    return (square - 2.0 * rows @ others.transpose(-1, -2)).amin(-1).clamp_min(0.0).sqrt()


def support(rows: Tensor, anchors: Tensor, reach: Tensor) -> Tensor:
    """In (0, 1): near 1 where an anchor is well within reach, 1/2 at the reach, 0 beyond; shapes as in `nearest`."""
    return torch.sigmoid((reach - nearest(rows, anchors)) / (WIDTH * reach))


def reach_of(rows: Tensor, episode: Tensor) -> Tensor:
    """Distance (), within which QUANTILE of the rows (N, d) find one of another episode; of a single one, far in time.

    episode (N,). Raises ValueError where there is nothing to compare with.
    """
    found, numbers, apart = [], torch.arange(len(rows)), max(1, min(APART, len(rows) // 4))
    for k in episode.unique().tolist():
        mine = episode == k
        if not mine.all():
            found.append(nearest(rows[mine], rows[~mine]))
            continue
        for start in range(0, len(rows), apart):
            others = (numbers < start - apart) | (numbers >= start + 2 * apart)
            if others.any():
                found.append(nearest(rows[start : start + apart], rows[others]))
    if not found:
        raise ValueError(f"{len(rows)} steps are too few to tell what is like them; give 4 or more")
    return torch.quantile(torch.cat(found), QUANTILE).clamp_min(1e-6)


class Supported(Composer):
    """Constant coefficients (K,), 1/K each unless given, of which those in `guarded` hold only where the observation is
    like the demonstrations that `fit` was shown, by the distance to the nearest, and fade to 0 elsewhere.

    A few demonstrations say nothing about most states; there the skills below know better than a new adapter. Remembers
    the demonstrated observations, normalised, and their reach. Not fitted, all coefficients hold everywhere.
    """

    weights: Tensor
    guards: Tensor
    anchors: Tensor
    reach: Tensor

    def __init__(
        self, shape: CompositionShape, weights: Sequence[float] | Tensor | None = None, guarded: Sequence[int] = (),
        anchors: int = 0,
    ):  # fmt: skip
        super().__init__(shape)
        given = torch.full((shape.skills,), 1.0 / shape.skills) if weights is None else torch.as_tensor(weights)
        if tuple(given.shape) != (shape.skills,) or not all(0 <= k < shape.skills for k in guarded):
            said = f"weights {tuple(given.shape)} and guarded {list(guarded)}"
            raise ValueError(f"{said} do not fit {shape.skills} skills; give one number per skill, and indices of them")
        guards = torch.zeros(shape.skills)
        guards[list(guarded)] = 1.0
        self.register_buffer("weights", given.float().clone())
        self.register_buffer("guards", guards)
        self.register_buffer("anchors", torch.zeros(anchors, shape.obs_dim))
        self.register_buffer("reach", torch.ones(()))

    def settings(self) -> dict[str, Any]:
        guarded = torch.nonzero(self.guards)[:, 0].tolist()
        return {"weights": self.weights.tolist(), "guarded": guarded, "anchors": len(self.anchors)}

    def fit(self, obs: Tensor, episode: Tensor) -> None:
        """Normalised observations (N, obs_dim) of the demonstrations and the episode (N,) of each."""
        self.anchors, self.reach = obs.detach().float().clone(), reach_of(obs, episode)

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        if not len(self.anchors):
            return self.weights.unsqueeze(0)
        share = support(obs, self.anchors, self.reach).unsqueeze(-1)
        return self.weights * (1.0 - self.guards * (1.0 - share))
