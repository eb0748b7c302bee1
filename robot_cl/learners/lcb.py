"""Pessimism by a lower confidence bound: an ensemble of critics that trusts the data as far as it agrees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from policies.critics import CriticConfig, StackedV, polyak
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.iql import reward_scale
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.ranges import not_negative, share
from robot_cl.learners.returns import fit_returns
from robot_cl.learners.sac import (
    CloningConfig,
    actor_due,
    actor_lr,
    bellman_target,
    build,
    clone,
    joined,
    online_plan,
    step_critic,
    step_temperature,
    td_loss,
)
from robot_cl.learners.units import with_its_unit, without

APART = 50  # rows of the data
BETA_RANGE = (1.0, 8.0)  # of the pessimism: actions as varied as random ones, and one action per state


@dataclass
class LCBConfig(CloningConfig):
    """Options of the lower confidence bound."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    critics: int = 5  # N, critics per member
    beta: float | None = None  # standard deviations of the critics taken off a value; none: from the data
    floored: bool = True  # no next value is below what the behaviour earned from there
    entropy_backup: bool = False  # the target value includes the next entropy
    returns_steps: int = 3_000  # first updates of the critics and of the floor, on the data's returns
    updates: float = 1.0  # online: updates per environment step
    offline_share: float = 0.5  # online: share of each batch that comes from the dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critics < 2:
            raise ValueError(f"critics is {self.critics}; a confidence bound needs at least 2")
        if self.subset != LCBConfig.subset:
            raise ValueError(f"subset is {self.subset}, but lcb looks at all of its critics; leave it out")
        not_negative(self, "beta", "returns_steps")  # a beta below 0 would be optimism
        share(self, "offline_share")


class LCB(Learner):
    """The deep form of VI-LCB (Rashidinejad et al. 2021; `tabular.py` has the exact one).

    Targets and policy use mean − β · std over N critics with one shared target, as SAC does the minimum of two. No next
    value is lower than what the behaviour earned from there, as VI-LCB lets none fall below the one before: what is
    taken off a target would come back in the next one, and values would fall without end. How pessimistic to be is
    read from the data (`beta_for`): where every state was seen with many actions, the critics' agreement means
    something, and little has to be taken off. The policy begins by cloning and the critics at the data's returns: new
    critics all agree, so that nothing would hold a policy which is not there yet.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: LCBConfig

    def build(self) -> None:
        self.soft = build(self, self.config)
        self.reference = self.add("reference", StackedV(self.obs_dim, self.rng, self.config.critic))
        beta = self.config.beta if self.config.beta is not None else BETA_RANGE[1]
        self.extra["beta"] = torch.tensor(beta, device=self.device)
        self.extra["reward_scale"] = torch.ones((), device=self.device)
        self.measured = False  # whether β was read from this run's data

    def plan(self) -> OnlinePlan:
        return online_plan(self.config, self.config.offline_share)

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        self.extra["reward_scale"].fill_(reward_scale(data))
        if self.config.beta is None:
            self.extra["beta"].fill_(beta_for(data))
            self.measured = True
        soft, norm = self.soft, self.actor.normalizer
        scaled = replace(data, reward=data.reward * self.extra["reward_scale"])
        how = (scaled, self.config.discount, self, self.config.returns_steps)
        floor = FlatAdam(self.reference.parameters(), self.seeds, self.config.lr)
        fit_returns(lambda b: self.reference(norm(b.obs)), self.reference.net, floor, *how)
        fit_returns(lambda b: soft.critic(norm(b.obs), b.action), soft.critic.net, self.opts["critic"], *how)
        polyak(soft.target, soft.critic, 1.0)

    def adopt(self, state: dict[str, Tensor]) -> None:
        """A pessimism that was read from other data stays behind."""
        if self.config.beta is not None or self.measured:
            state = without(state, "extra.beta")
        super().adopt(with_its_unit(state, "critic"))

    def graph_key(self, online: bool = False) -> tuple[bool, bool]:
        return not online and self.step < self.config.cloning, actor_due(self)

    def bound(self, q: Tensor) -> Tensor:
        """mean − β std over the critics, (P, N, B) -> (P, B)."""
        return q.mean(1) - self.extra["beta"] * q.std(1)

    def schedule(self, online: bool = False) -> None:
        self.opts["actor"].lr = actor_lr(self.config, self.step, online)

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        if self.step < self.config.cloning:
            self.step += 1
            return clone(self.soft, batch)
        return self._update(batch)

    def _update(self, batch: Transitions) -> Metrics:
        c, soft, norm = self.config, self.soft, self.actor.normalizer
        z, z_next = norm(batch.obs), norm(batch.next_obs)
        reward = batch.reward * self.extra["reward_scale"]
        target = bellman_target(reward, batch.terminated, self.next_value(z_next), c.discount)
        q = soft.critic(z, batch.action)
        loss = td_loss(q, target)
        step_critic(soft, loss)
        polyak(soft.target, soft.critic, c.tau)
        moved = self._step_actor(z) if actor_due(self) else {}
        self.step += 1
        return {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2)), **moved}

    @torch.no_grad()
    def next_value(self, z_next: Tensor) -> Tensor:
        """The bound at the policy's action, or what the behaviour earned where that is more: z (P, B, ·) -> (P, B)."""
        soft = self.soft
        action, log_prob = soft.sample(z_next)
        value = self.bound(soft.target(z_next, action))
        if self.config.floored:
            value = torch.maximum(value, self.reference(z_next))
        return value - soft.temperature() * log_prob if self.config.entropy_backup else value

    def _step_actor(self, z: Tensor) -> Metrics:
        soft = self.soft
        action, log_prob = soft.sample(z)
        bound = self.bound(soft.critic(z, action))
        loss = (soft.temperature().detach() * log_prob - bound).mean(-1)
        loss.sum().backward(inputs=soft.opts["actor"].parameters)
        soft.opts["actor"].step()
        entropy = -log_prob.detach().mean(-1)
        step_temperature(soft, entropy, self.config.entropy_per_action * self.act_dim)
        return {"actor_loss": loss.detach(), "entropy": entropy, "bound": bound.detach().mean(-1)}

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        self.schedule(online=True)
        return self._update(joined(fresh, offline))


def beta_for(data: Transitions, rows: int = 2000) -> float:
    """β from how much neighbouring states' actions differ: BETA_RANGE[1] if not at all, [0] if as much as any two.

    A heuristic: the bonus of VI-LCB falls with the visits of a state and action, and data in which a state comes with
    many actions has visits to spare. Drawn evenly from the data, no randomness.
    """
    spread = action_disagreement(data, rows)
    low, high = BETA_RANGE
    return high - (high - low) * min(1.0, max(0.0, spread))


def action_disagreement(data: Transitions, rows: int = 2000) -> float:
    """Root of the mean squared action difference of nearest neighbours, relative to that of any two rows; 0 to about 1.

    Neighbours within APART rows in time are left out, because a trajectory is its own neighbour; 0 where there are no
    others.
    """
    if len(data) <= APART + 1:
        return 0.0
    picked = torch.linspace(0, len(data) - 1, min(rows, len(data)), device=data.obs.device).long()
    obs, action = data.obs[picked], data.action[picked].double()
    z = (obs - obs.mean(0)) / obs.std(0).clamp_min(1e-6)
    distance = torch.cdist(z, z)
    distance[(picked[:, None] - picked[None]).abs() <= APART] = torch.inf
    nearest, neighbour = distance.min(1)
    beside = (action - action[neighbour])[nearest.isfinite()].square().sum(1).mean()
    apart = 2.0 * action.var(0, unbiased=False).sum()
    return float((beside / apart.clamp_min(1e-12)).sqrt())
