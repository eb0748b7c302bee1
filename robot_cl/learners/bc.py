"""Behaviour cloning: the actor that makes the data most likely."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor

from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, LearnerConfig, Metrics
from robot_cl.learners.optim import cosine
from robot_cl.learners.ranges import not_negative, positive


class CloningLoss(StrEnum):
    """`nll`: −log π(a|s); `mse`: squared error of the deterministic action."""

    nll = "nll"
    mse = "mse"


@dataclass
class BCConfig(LearnerConfig):
    """Options of behaviour cloning."""

    loss: CloningLoss = CloningLoss.nll  # nll (−log π) or mse (of the deterministic action)
    lr: float = 3e-4  # Adam's learning rate
    decay: int = 0  # updates over which the learning rate falls to zero along a cosine, 0: constant
    clip: float | None = None  # largest gradient norm per member, none: unbounded

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "lr", "clip")
        not_negative(self, "decay")


class BC(Learner):
    """Behaviour cloning (Pomerleau 1989), with a Gaussian likelihood or a squared error."""

    phases: ClassVar[tuple[str, ...]] = ("offline",)
    config: BCConfig

    def build(self) -> None:
        self.opts["actor"] = self.optimiser([self.actor], self.config.lr, self.config.clip)

    def loss(self, batch: Transitions) -> Tensor:
        """(P,)."""
        if self.config.loss is CloningLoss.mse:
            return (self.actor.mode(batch.obs) - batch.action).square().sum(-1).mean(-1)
        mean, log_std = self.actor(batch.obs)
        return -self.actor.log_prob(mean, log_std, batch.action).mean(-1)

    def graph_key(self, online: bool = False) -> str:
        return "update"

    def schedule(self, online: bool = False) -> None:
        if self.config.decay:
            self.opts["actor"].lr = cosine(self.config.lr, self.step, self.config.decay)

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        loss = self.loss(batch)
        loss.sum().backward()
        self.opts["actor"].step()
        self.step += 1
        return {"actor_loss": loss.detach()}
