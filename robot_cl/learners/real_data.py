"""The real transitions that a dynamics model is fitted to, and those it is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from robot_cl.batch import Transitions
from robot_cl.learners.replay import ReplayBuffer, draw

HOLDOUT = 10  # every tenth transition trains no model
HELD = 2000  # held-out transitions that members are compared on, at most


@dataclass(frozen=True)
class RealData:
    """A dataset (n,), fresh experience, or both. Where there are both, the dataset gives the part `offline_share`."""

    data: Transitions | None
    fresh: ReplayBuffer | None
    offline_share: float
    limit: int  # transitions to fit to, at most

    def rows(self, held: bool, rngs: Sequence[torch.Generator]) -> Transitions:
        """Transitions (P, n, ·) to fit to, or of the tenth that is held out: all there are, or `limit` drawn.

        Where there is a dataset and fresh data, each gives its part, drawn with replacement. Raises ValueError if
        there is neither.
        """
        limit, data, fresh = HELD if held else self.limit, self.data, self.fresh
        if fresh is not None and data is not None and len(fresh) >= HOLDOUT:
            limit = min(limit, len(fresh) + len(data))
            count = round(limit * self.offline_share)
            parts = [part(data, held, count, True, rngs), part(fresh, held, limit - count, True, rngs)]
            return Transitions.cat([rows for rows in parts if rows.reward.shape[1]], 1)
        source = fresh if fresh is not None and (data is None or len(fresh) >= HOLDOUT) else data
        if source is None:
            raise ValueError("there is no real data to fit a model to; give data=NAME, or task=NAME and online_steps")
        return part(source, held, limit, len(source) > limit, rngs)


def part(
    source: Transitions | ReplayBuffer, held: bool, limit: int, drawn: bool, rngs: Sequence[torch.Generator]
) -> Transitions:
    """(P, n): the row after every ninth is held out, so that a row that was stays so while the data grow."""
    few = len(source) < HOLDOUT
    there = len(source) // HOLDOUT if held and not few else len(source) - (0 if few else len(source) // HOLDOUT)
    index = draw(there, limit, rngs) if drawn else torch.arange(there).expand(len(rngs), -1)
    if not few:
        index = HOLDOUT * index + HOLDOUT - 1 if held else index + index // (HOLDOUT - 1)
    if isinstance(source, ReplayBuffer):
        return source.take(index.to(source.device))
    return source[index.to(source.obs.device)]
