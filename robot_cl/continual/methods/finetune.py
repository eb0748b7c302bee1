"""Fine-tuning: one network, trained on whatever comes."""

from __future__ import annotations

from typing import ClassVar

from robot_cl.continual.methods.one_network import OneNetwork


class FineTune(OneNetwork):
    """Go on training one network on each task; the newest network plays all tasks."""

    knows_task: ClassVar[bool] = False
