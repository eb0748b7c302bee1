"""Behaviour cloning of the best episodes only."""

from __future__ import annotations

from dataclasses import dataclass

from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.base import Metrics
from robot_cl.learners.bc import BC, BCConfig
from robot_cl.learners.returns import good_rows


@dataclass
class PercentBCConfig(BCConfig):
    """Options of cloning a share of the data."""

    share: float | None = None  # of the transitions, best episodes first, published 0.1; none: all near the best

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is {self.share}; expected above 0, and at most 1 for all of the data")


class PercentBC(BC):
    """The baseline of Chen et al. 2021 (Decision Transformer), appendix C: what choosing good episodes alone gives.

    They clone a fixed share; which one is right hangs on how much of the data is good, which is read off the returns.
    The batch that is handed in only says how many rows to draw; the rows come from the best episodes.
    """

    config: PercentBCConfig

    def attach_data(self, data: Transitions) -> None:
        self.best = Sampler.over(data[good_rows(data, self.config.share)], self.rng, self.device)

    def update_offline(self, batch: Transitions) -> Metrics:
        return super().update_offline(self.best.take(self.draws.rows(self.best, batch.reward.shape[1])))
