"""Reset: every task begins at the base again, with all weights. Its curves are the reference of forward transfer."""

from __future__ import annotations

from typing import ClassVar

from robot_cl.continual.methods.one_network import OneNetwork
from robot_cl.learners.base import Learner


class Reset(OneNetwork):
    """Start each task from the base; the newest network plays all tasks."""

    knows_task: ClassVar[bool] = False

    def begin(self, k: int) -> tuple[Learner | None, int]:
        return self.learner(k, self.setup.base, self.setup.values), 0
