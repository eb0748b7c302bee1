"""Implicit Q-learning: values from actions in the data only, and a policy weighted by how much better they were."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from policies.critics import CriticConfig, StackedQ, StackedV, polyak
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, LearnerConfig, Metrics, OnlinePlan
from robot_cl.learners.optim import cosine
from robot_cl.learners.ranges import not_negative, positive, share
from robot_cl.learners.units import with_its_unit

MAX_WEIGHT = 100.0  # of one action in the policy's loss, as in the authors' code


@dataclass
class IQLConfig(LearnerConfig):
    """Options of IQL. Defaults for locomotion; antmaze: expectile 0.9, beta 10."""

    critic: CriticConfig = field(default_factory=CriticConfig)  # shape of Q and V
    expectile: float = 0.7  # of Q over the data's actions, in (0, 1); 0.5 is their mean
    beta: float = 3.0  # inverse temperature of the advantage weights
    discount: float = 0.99  # per control step
    tau: float = 0.005  # how far the target moves to Q per update
    lr: float = 3e-4  # Adam's learning rate of Q, V and policy
    decay: int = 0  # updates over which the policy's learning rate falls to zero along a cosine, 0: constant
    clip: float | None = None  # largest gradient norm per member, none: unbounded
    reward_scale: float | None = None  # none: 1000 / range of the data's returns, zero included
    updates: float = 1.0  # online: updates per environment step
    offline_share: float = 0.5  # online: share of each batch that comes from the dataset
    warmup: int = 1000  # online: environment steps before the first update
    capacity: int = 1_000_000  # online: transitions kept per seed

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expectile", "discount", "tau"):
            if not 0.0 < getattr(self, name) <= 1.0 or (name == "expectile" and self.expectile == 1.0):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number between 0 and 1")
        positive(self, "beta", "lr", "updates", "capacity", "clip", "reward_scale")
        not_negative(self, "decay", "warmup")
        share(self, "offline_share")


class IQL(Learner):
    """Kostrikov, Nair & Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning".

    V regresses an expectile of the target Q (eq. 5), Q regresses r + γ V(s') (eq. 6), and the policy is fitted to the
    data's actions weighted by exp(β A) (eq. 7). All three read the values as they were before the update, so that one
    backward pass serves them. Online the same update runs on fresh and old data mixed.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: IQLConfig

    def build(self) -> None:
        c = self.config
        self.q = self.add("q", StackedQ(self.obs_dim, self.act_dim, self.rng, 2, c.critic))
        self.target_q = self.add("target_q", copy.deepcopy(self.q).requires_grad_(False))
        self.v = self.add("v", StackedV(self.obs_dim, self.rng, c.critic))
        self.opts["critic"] = self.optimiser([self.q, self.v], c.lr, c.clip)
        self.opts["actor"] = self.optimiser([self.actor], c.lr, c.clip)
        self.extra["reward_scale"] = torch.tensor(c.reward_scale or 1.0, device=self.device)

    def plan(self) -> OnlinePlan:
        c = self.config
        return OnlinePlan(
            updates=c.updates, warmup=c.warmup, capacity=c.capacity, offline_share=c.offline_share, num_worlds=1
        )

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        if self.config.reward_scale is None:
            self.extra["reward_scale"].fill_(reward_scale(data))

    def adopt(self, state: dict[str, Tensor]) -> None:
        super().adopt(with_its_unit(state, "q", self.config.reward_scale))

    def value_loss(self, q: Tensor, v: Tensor) -> Tensor:
        """Eq. 5: E |τ − 1(q − v < 0)| (q − v)². q, v (P, B) -> (P,)."""
        gap = q - v
        weight = torch.where(gap.detach() < 0, 1.0 - self.config.expectile, self.config.expectile)
        return (weight * gap.square()).mean(-1)

    def q_loss(self, q: Tensor, reward: Tensor, terminated: Tensor, next_v: Tensor) -> Tensor:
        """Eq. 6: E (r + γ (1 − terminated) V(s') − Q)², averaged over the twins. q (P, 2, B), others (P, B) -> (P,)."""
        target = reward * self.extra["reward_scale"] + self.config.discount * (1.0 - terminated) * next_v
        return (q - target.unsqueeze(1)).square().mean((1, 2))

    def actor_loss(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """Eq. 7: −E min(exp(β A), 100) log π(a|s). (P, B) twice -> (P,)."""
        weight = (self.config.beta * advantage).exp().clamp_(max=MAX_WEIGHT)
        return -(weight * log_prob).mean(-1)

    def losses(self, batch: Transitions) -> Metrics:
        """value_loss, q_loss, actor_loss (P,), with gradients."""
        z = self.actor.normalizer(batch.obs)
        with torch.no_grad():
            next_v = self.v(self.actor.normalizer(batch.next_obs))
            target_q = self.target_q(z, batch.action).amin(1)
        v = self.v(z)
        mean, log_std = self.actor.heads(z)
        log_prob = self.actor.log_prob(mean, log_std, batch.action)
        return {
            "value_loss": self.value_loss(target_q, v),
            "q_loss": self.q_loss(self.q(z, batch.action), batch.reward, batch.terminated, next_v),
            "actor_loss": self.actor_loss(log_prob, (target_q - v).detach()),
        }

    def graph_key(self, online: bool = False) -> str:
        return "update"

    def schedule(self, online: bool = False) -> None:
        if self.config.decay:
            self.opts["actor"].lr = cosine(self.config.lr, self.step, self.config.decay)

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        losses = self.losses(batch)
        torch.autograd.backward(list(losses.values()), [torch.ones_like(loss) for loss in losses.values()])
        for opt in self.opts.values():
            opt.step()
        polyak(self.target_q, self.q, self.config.tau)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        return self.update_offline(fresh if offline is None else Transitions.cat([fresh, offline], dim=1))


def reward_scale(data: Transitions) -> float:
    """1000 / (largest − smallest return), zero counted among them: a heuristic after the authors' for locomotion.

    With it β and the learning rate mean the same on every dataset. 1.0 where no episode ends or all returns are 0.
    """
    ends = (data.terminated + data.truncated) > 0
    if not ends.any():
        return 1.0
    sums = data.reward.double().cumsum(0)[ends]
    returns = sums.diff(prepend=sums.new_zeros(1))
    spread = float(returns.max().clamp(min=0.0) - returns.min().clamp(max=0.0))
    return 1000.0 / spread if spread > 0 else 1.0
