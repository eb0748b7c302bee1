"""RLPD: soft actor-critic that learns online from half old, half new data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.sac import SACConfig, actor_due, build, joined, online_plan, update


@dataclass
class RLPDConfig(SACConfig):
    """Options of RLPD. Published: updates 20, actor_every 20; the defaults here are for a CPU."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    critics: int = 10  # critics per member
    entropy_per_action: float = -0.5  # target entropy over act_dim, in nats
    offline_share: float = 0.5  # of each batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.offline_share < 1.0:
            raise ValueError(f"offline_share is {self.offline_share}; expected 0 to below 1")


class RLPD(Learner):
    """Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data".

    No offline phase: symmetric batches, layer normalisation in an ensemble of critics, the minimum of a random two as
    target. Needs a dataset beside the task.
    """

    phases: ClassVar[tuple[str, ...]] = ("online",)
    beside: ClassVar[tuple[str, ...]] = ("data",)  # what it needs besides a world
    config: RLPDConfig

    def build(self) -> None:
        self.soft = build(self, self.config)

    def plan(self) -> OnlinePlan:
        return online_plan(self.config, self.config.offline_share)

    def graph_key(self, online: bool = False) -> bool:
        return actor_due(self)

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        moves = actor_due(self)
        self.step += 1
        return update(self.soft, self.config, joined(fresh, offline), moves)
