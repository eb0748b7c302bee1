"""ReBRAC: TD3 held near the data by two separate penalties."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from policies.actor import Distribution, StackedGaussianActor
from policies.critics import CriticConfig, StackedQ, polyak
from policies.networks import StackedMLP
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, LearnerConfig, Metrics, OnlinePlan
from robot_cl.learners.optim import cosine
from robot_cl.learners.ranges import not_negative, positive, share
from robot_cl.learners.sac import bellman_target, joined, td_loss


@dataclass
class ReBRACConfig(LearnerConfig):
    """Options of ReBRAC; critic_penalty 0 and critic.layer_norm false is TD3+BC (Fujimoto & Gu 2021)."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    actor_penalty: float = 0.1  # β1, weight of the squared distance to the data's action; published 0.001 to 0.1
    critic_penalty: float = 0.01  # β2, the same in the target value
    discount: float = 0.99  # per control step
    tau: float = 0.005  # how far the targets move per update
    noise: float = 0.2  # standard deviation of the target policy's smoothing noise
    noise_clip: float = 0.5  # its bound
    actor_every: int = 2  # updates of the critics per update of the policy
    lr: float = 3e-4  # Adam's learning rate of everything
    decay: int = 0  # updates over which the policy's learning rate falls to zero along a cosine, 0: constant
    explore: float = 0.1  # standard deviation of the noise on collected actions
    updates: float = 1.0  # online: updates per environment step
    warmup: int = 1000  # online: environment steps before the first update
    capacity: int = 1_000_000  # online: transitions kept per seed
    offline_share: float = 0.5  # online: share of each batch that comes from the dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "actor_penalty", "critic_penalty", "noise", "noise_clip", "explore", "decay", "warmup")
        positive(self, "updates", "capacity")
        share(self, "offline_share")
        if not 0.0 <= self.discount < 1.0 or not 0.0 < self.tau <= 1.0 or self.actor_every < 1 or not self.lr > 0.0:
            raise ValueError("rebrac expects discount in [0, 1), tau in (0, 1], actor_every at least 1, lr above 0")


class ReBRAC(Learner):
    """Tarasov et al. 2023, "Revisiting the Minimalist Approach to Offline Reinforcement Learning".

    The target's penalty is held against the mean action that a clone of the data takes at s', instead of the next
    action stored: for a given s' the expectation differs by the data's own variance only, which no policy changes.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: ReBRACConfig

    def build(self) -> None:
        c = self.config
        self.q = self.add("q", StackedQ(self.obs_dim, self.act_dim, self.rng, 2, c.critic))
        self.target_q = self.add("target_q", copy.deepcopy(self.q).requires_grad_(False))
        self.target_actor = self.add("target_actor", copy.deepcopy(self.actor).requires_grad_(False))
        self.clone = self.add("clone", StackedMLP(self.obs_dim, c.critic.hidden, self.act_dim, self.rng))
        self.opts["q"] = self.optimiser([self.q], c.lr)
        self.opts["clone"] = self.optimiser([self.clone], c.lr)
        self.opts["actor"] = self.optimiser([self.actor], c.lr)

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        self.target_actor.normalizer = self.actor.normalizer

    def plan(self) -> OnlinePlan:
        c = self.config
        return OnlinePlan(updates=c.updates, warmup=c.warmup, capacity=c.capacity, offline_share=c.offline_share)

    @torch.inference_mode()
    def explore(self, obs: Tensor, noise: Tensor, actor: StackedGaussianActor | None = None) -> Tensor:
        return ((actor or self.actor).mode(obs) + self.config.explore * noise).clamp(-1.0, 1.0)

    def target(self, batch: Transitions, z_next: Tensor) -> Tensor:
        """r + γ (1 − terminated) (min Q̄(s', a') − β2 |a' − μ(s')|²), (P, B); equation 5."""
        c = self.config
        with torch.no_grad():
            smooth = (c.noise * self.noise(*batch.action.shape[1:])).clamp(-c.noise_clip, c.noise_clip)
            action = (deterministic(self.target_actor, z_next) + smooth).clamp(-1.0, 1.0)
            away = (action - self.clone(z_next).tanh()).square().sum(-1)
            value = self.target_q(z_next, action).amin(1) - c.critic_penalty * away
            return bellman_target(batch.reward, batch.terminated, value, c.discount)

    def graph_key(self, online: bool = False) -> bool:
        return (self.step + 1) % self.config.actor_every == 0

    def schedule(self, online: bool = False) -> None:
        if self.config.decay:
            self.opts["actor"].lr = cosine(self.config.lr, self.step, self.config.decay)

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        c, norm = self.config, self.actor.normalizer
        z, z_next = norm(batch.obs), norm(batch.next_obs)
        target = self.target(batch, z_next)
        q = self.q(z, batch.action)
        loss = td_loss(q, target)
        cloning = (self.clone(z).tanh() - batch.action).square().sum(-1).mean(-1)
        (loss + cloning).sum().backward()
        self.opts["q"].step()
        self.opts["clone"].step()
        self.step += 1
        metrics = {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}
        if self.step % c.actor_every == 0:
            metrics["actor_loss"] = self._step_actor(batch, z)
            polyak(self.target_actor, self.actor, c.tau)
        polyak(self.target_q, self.q, c.tau)
        return metrics

    def _step_actor(self, batch: Transitions, z: Tensor) -> Tensor:
        """−Q / mean |Q| + β1 |π(s) − a|² (P,); equation 4, with Q brought to unit scale."""
        action = deterministic(self.actor, z)
        q = self.q(z, action).amin(1)
        scale = q.detach().abs().mean(-1, keepdim=True) + 1e-8
        away = (action - batch.action).square().sum(-1)
        loss = (self.config.actor_penalty * away - q / scale).mean(-1)
        loss.sum().backward(inputs=self.opts["actor"].parameters)
        self.opts["actor"].step()
        return loss.detach()

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        return self.update_offline(joined(fresh, offline))


def deterministic(actor: StackedGaussianActor, z: Tensor) -> Tensor:
    """The actor's `mode` at normalised observations, (P, B, ·) -> (P, B, act_dim)."""
    mean, _ = actor.heads(z)
    return mean.clamp(-1.0, 1.0) if actor.config.distribution is Distribution.gaussian else torch.tanh(mean)
