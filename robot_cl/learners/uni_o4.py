"""Uni-O4: one on-policy objective, first on a dataset and then in the world."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.critics import StackedQ, polyak
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.base import Learner, Metrics, OnlinePlan, Trainable
from robot_cl.learners.candidates import Candidates
from robot_cl.learners.gate import Earning, Gate, Score, Scores
from robot_cl.learners.improvement import HOLD, source_of
from robot_cl.learners.iql import reward_scale
from robot_cl.learners.optim import FlatAdam, cosine
from robot_cl.learners.ppo import PPO
from robot_cl.learners.returns import fit_returns, good_rows
from robot_cl.learners.sac import bellman_target, td_loss
from robot_cl.learners.stacks import copy_rows, merged, repeat_members, shake
from robot_cl.learners.uni_o4_config import Advantage, UniO4Config
from robot_cl.learners.uni_o4_losses import (
    Compat,
    behaviour_loss,
    clipped_improvement,
    expectile_loss,
    standardised,
)
from robot_cl.learners.units import with_its_unit, without


class UniO4(PPO):
    """Lei et al. 2024, "Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy
    Optimization", ICLR.

    1 critics by expectile regression, 2 learned dynamics, 3 an ensemble of cloned behaviours (1 and 3 side by side),
    4 gated policy improvement of each, 5 selection by the gate, 6 PPO from the selected policy and V. Phases 1 to 5
    are `config.offline_steps` calls of `update_offline`; 6 is PPO, whose `rollouts` are counted apart. Seed p's
    policies are members p·n to p·n + n − 1 of `members` (being improved) and `accepted` (what the gate let through).
    Policies and critics see normalised observations, dynamics and ends raw ones.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    beside: ClassVar[tuple[str, ...]] = ("data", "init_from")  # of which online it needs one besides a world
    apart: ClassVar[tuple[str, ...]] = ()  # the gate has a model for each seed
    folds_biases: ClassVar[bool] = False  # candidates are compared as they are, not as they would be published
    config: UniO4Config

    def build(self) -> None:
        self._share_statistics()
        super().build()
        c = self.config
        self.q = self.add("q", StackedQ(self.obs_dim, self.act_dim, self.rng, 2, c.critic))
        self.target_q = self.add("target_q", copy.deepcopy(self.q).requires_grad_(False))
        self.policies = Candidates.of(self._members(), c.behaviours)
        self.members = self.add("members", self.policies.members)
        self.accepted = self.add("accepted", self.policies.accepted)
        self.clones = self.add("clones", self.policies.clones)
        sizes = (self.obs_dim, self.act_dim, self.seeds, c.behaviours)
        gate = replace(c.gate, reach=c.imagined.reach) if c.advantage is Advantage.imagined else c.gate
        self.gate = self.add("gate", Gate(*sizes, gate, c.dynamics, self.actor.normalizer))
        self.source = source_of(self)
        assert c.offline_lr is not None
        self.opts["q"] = self.optimiser([self.q], c.offline_lr)
        self.opts["members"] = FlatAdam(self.members.parameters(), self.seeds * c.behaviours, c.behaviour_lr or 0.0)
        self.extra["rollouts"] = torch.zeros((), dtype=torch.int64)
        self.extra["chosen"] = torch.zeros(self.seeds, dtype=torch.int64)
        self.data: Transitions | None = None
        self._price: Tensor | None = None  # of doubt, from data and models
        self.best: Sampler | None = None

    def _share_statistics(self) -> None:
        """A loaded policy that learned online has statistics for each seed, which the candidates of one seed share."""
        norm = self.actor.normalizer
        if norm.population is None:
            return
        one = norm.member(0)
        if not torch.equal(norm.mean, one.mean.expand_as(norm.mean)):
            raise ValueError("uni_o4 continues seeds with the same observation statistics, and those of init_from "
                             "differ; continue a run of one seed, or use learner=ppo")  # fmt: skip
        self.actor.normalizer = one.to(self.device)

    def _members(self) -> StackedGaussianActor:
        """n policies per seed: drawn anew, or from a loaded one (the first a copy), with adapters where these train."""
        c, n, each = self.config, self.config.behaviours, self.each()
        if not self.actor.normalizer.frozen:  # a loaded policy brings its statistics along
            return StackedGaussianActor(self.obs_dim, self.act_dim, each, c.actor, self.actor.normalizer)
        many = repeat_members(merged(self.actor), n)
        many.normalizer = self.actor.normalizer
        self.restrict(many, each)
        if c.trainable is not Trainable.adapter and c.behaviour_steps:  # adapters are drawn apart
            shake(many, [i for i in range(len(each)) if i % n], each)
        return many

    def each(self) -> list[torch.Generator]:
        """The generator of every one of P·n policies."""
        return [g for g in self.rng for _ in range(self.config.behaviours)]

    def new_normalizer(self) -> Normalizer:
        return Normalizer(self.obs_dim)

    @property
    def rollouts(self) -> int:
        return int(self.extra["rollouts"])

    def attach_data(self, data: Transitions) -> None:
        self.data = data
        share = self.config.share
        if share != 1.0:
            self.best = Sampler.over(data[good_rows(data, share)], self.rng, self.device)

    def prepare(self, data: Transitions) -> None:
        check_data(data)
        Learner.prepare(self, data)  # statistics of the data, then frozen: PPO's own would come from its rollouts
        self.extra["reward_scale"] = torch.tensor(reward_scale(data), device=self.device)

    def plan(self) -> OnlinePlan:
        return OnlinePlan(self.config.horizon, on_policy=True, num_worlds=16)

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Values and their unit go over; candidates, what judged them and what was counted are this run's own."""
        names = ("average", "members", "accepted", "clones", "slopes", "evaluation", "imagination", "gate")
        state = without(state, *(f"nets.{name}." for name in names), "extra.imagined", "extra.rollouts", "extra.chosen")
        super().adopt(with_its_unit(state, "v"))

    def policy(self) -> StackedGaussianActor:
        if not self.rollouts:
            self.select()
        return super().policy()

    def graph_key(self, online: bool = False) -> tuple[bool, bool] | None:
        """Which of values and clones are fitted (neither: improvement), as long as nothing else happens."""
        c, after = self.config, self.step + 1
        assert c.critic_steps is not None and c.behaviour_steps is not None
        handed_over = after in (1, c.behaviour_steps, c.fit_steps, c.fit_steps + 1, c.offline_steps)
        tested = after > c.fit_steps and (after - c.fit_steps) % c.gate.every == 0
        if online or handed_over or tested or (after > c.fit_steps and self.source.eager(self.step - c.fit_steps)):
            return None
        return self.step < c.critic_steps, self.step < c.behaviour_steps

    def schedule(self, online: bool = False) -> None:
        c = self.config
        if self.step >= c.fit_steps:
            left = 1.0 - (self.step - c.fit_steps) / max(1, c.improve_steps or 1)
            self.opts["members"].lr = (c.improve_lr or 0.0) * max(0.0, left)
            self.opts["members"].clip = c.max_grad_norm
            self.source.schedule(self.step - c.fit_steps)
            return
        for name in ("q", "critic"):
            self.opts[name].lr = cosine(c.offline_lr or 0.0, self.step, c.critic_steps or 1)
        self.opts["critic"].clip = None
        self.opts["members"].lr = cosine(c.behaviour_lr or 0.0, self.step, c.behaviour_steps or 1)

    # -- phases 1 and 3 -----------------------------------------------------------------------------------------------

    def update_offline(self, batch: Transitions) -> Metrics:
        c = self.config
        self.schedule()
        metrics: Metrics = {}
        assert c.critic_steps is not None and c.behaviour_steps is not None
        if self.step < c.critic_steps:
            if not self.step:
                self.begin_values()
            metrics |= self.fit_values(batch)
        if self.step < c.behaviour_steps:
            metrics |= self.fit_behaviour(batch)
        if self.step >= c.fit_steps:
            if self.step == c.fit_steps:
                metrics |= self.begin_improvement()
            metrics |= self.improve(batch)
            if (self.step + 1 - c.fit_steps) % c.gate.every == 0:
                metrics |= self.pass_gate()
        self.step += 1
        if self.step == c.fit_steps or self.step == c.offline_steps:
            self.select()
        return metrics

    def begin_values(self) -> None:
        """Q and V start at the data's returns: by one-step targets alone they would take most of phase 1 to rise."""
        c, norm = self.config, self.actor.normalizer
        if self.data is None or not c.returns_steps:
            return
        scaled = replace(self.data, reward=self.data.reward * self.extra["reward_scale"])
        how = (scaled, c.discount, self, c.returns_steps)
        fit_returns(lambda b: self.v(norm(b.obs)), self.v.net, self.opts["critic"], *how)
        fit_returns(lambda b: self.q(norm(b.obs), b.action), self.q.net, self.opts["q"], *how)
        polyak(self.target_q, self.q, 1.0)

    def fit_values(self, batch: Transitions) -> Metrics:
        """Phase 1. V regresses an expectile of the target Q, Q regresses r + γ (1 − terminated) V(s')."""
        c, norm = self.config, self.actor.normalizer
        z = norm(batch.obs)
        with torch.no_grad():
            next_v = self.v(norm(batch.next_obs))
            target_q = self.target_q(z, batch.action).amin(1)
            target = bellman_target(batch.reward * self.extra["reward_scale"], batch.terminated, next_v, c.discount)
        value_loss = expectile_loss(target_q - self.v(z), c.expectile)
        q_loss = td_loss(self.q(z, batch.action), target)
        (value_loss + q_loss).sum().backward()
        self.opts["critic"].step()
        self.opts["q"].step()
        polyak(self.target_q, self.q, c.tau)
        return {"value_loss": value_loss.detach(), "q_loss": q_loss.detach()}

    def fit_behaviour(self, batch: Transitions) -> Metrics:
        """Phase 3. All members of a seed see the same batch, so that they can be compared.

        Of a share of the data the rows are drawn here; the batch that is handed in only says how many.
        """
        c, n = self.config, self.config.behaviours
        if self.best is not None:
            batch = self.best.take(self.draws.rows(self.best, batch.reward.shape[1]))
        mean, log_std = self.members.heads(self.policies.spread(self.actor.normalizer(batch.obs)))
        log_prob = self.members.log_prob(mean, log_std, self.policies.spread(batch.action)).view(self.seeds, n, -1)
        loss = behaviour_loss(log_prob, c.diversity, c.compat)
        loss.sum().backward()
        self.opts["members"].step()
        if self.step + 1 == c.behaviour_steps:
            self.policies.cloned()
        return {"behaviour_loss": loss.detach().mean(1)}

    # -- phases 2 and 4 -----------------------------------------------------------------------------------------------

    def begin_improvement(self) -> Metrics:
        """Phase 2, and the scores that the first candidates have to beat."""
        assert self.data is not None
        losses = self.gate.fit(self.data, self.config.fit, self.rng)
        self._price = None
        self.gate.trust.copy_(self.source.begin(self.data))
        for moment in self.opts["members"].state.values():
            moment.zero_()
        self.policies.go_back()
        self.gate.scores = self.judge(self.accepted).each
        return {"dynamics_loss": torch.tensor(losses), "trust": self.gate.trust.mean(1)}

    def improve(self, batch: Transitions) -> Metrics:
        """Phase 4, one step: the clipped objective of advantages from `source`, held within reach of the clones."""
        loss, beyond = self.source.loss(batch, self.step - self.config.fit_steps)
        hold = HOLD if self.config.compat is Compat.ours else 0.0
        (loss + hold * beyond).sum().backward()
        self.opts["members"].step()
        self.source.step()
        return {"improve_loss": loss.detach().view(self.seeds, -1).mean(1)}

    def credited(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """The clipped objective of P·n policies, (P·n, B) twice -> (P·n,)."""
        return clipped_improvement(log_ratio, standardised(advantage), self.config.improve_clip)

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """min Q at raw observations (P, R, obs_dim) and actions -> (P, R)."""
        return self.q(self.actor.normalizer(obs), action).amin(1)

    def state_value(self, obs: Tensor) -> Tensor:
        """V at raw observations (P, R, obs_dim) -> (P, R)."""
        return self.v(self.actor.normalizer(obs))

    def judge(self, policies: StackedGaussianActor, watch: bool = False) -> Scores:
        """What the gate says of P·n policies; with `watch` also how far they are from their clones."""
        returns = self.config.gate.score is Score.returns
        if self._price is None and self.data is not None:
            self._price = self.gate.price(self.data)
        how = (self.extra["reward_scale"], self.config.discount, self.state_value, self._price)
        earning = Earning(*how) if returns else None
        return self.gate.judge(policies.mode, self.value, self.away if watch else None, earning)

    def away(self, obs: Tensor, action: Tensor) -> Tensor:
        """`Candidates.distance` at raw observations."""
        return self.policies.distance(self.actor.normalizer(obs), action)

    @torch.no_grad()
    def pass_gate(self) -> Metrics:
        """Members that are surely better become π_old; the others go back to it."""
        ours = self.config.compat is Compat.ours
        found = self.judge(self.members, watch=True)
        self.policies.accept(self.gate.test(found, paired=ours))
        if ours:
            self.policies.go_back()
        return {
            "accepted": (self.gate.passed / self.gate.made).mean(1),
            "clamped": found.clamped.mean(1),
            "away": found.away.mean(1),
            "score": self.gate.scores.mean(-1).amax(1),
        }

    # -- phases 5 and 6 -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, chosen: Tensor | None = None) -> None:
        """Phase 5: the member of each seed with the best score (P,), or the `chosen` ones, becomes the policy."""
        if chosen is not None:
            self.extra["chosen"] = chosen
        elif self.gate.made.any():
            self.extra["chosen"] = self.gate.best()
        n, seeds = self.config.behaviours, torch.arange(self.seeds, device=self.device)
        cloning = self.step < (self.config.behaviour_steps or 0)  # nothing is accepted yet
        source = self.members if cloning or self.config.compat is Compat.reference else self.accepted
        copy_rows(self.actor, source, None, seeds * n + self.extra["chosen"].to(self.device))

    def update_online(self, fresh: Transitions, offline: Transitions | None = None) -> Metrics:
        """Phase 6: one rollout (P, T, W)."""
        self.opts["critic"].clip = self.config.max_grad_norm
        if not self.rollouts:
            self.opts["critic"].lr = self.config.critic_lr
        metrics = super().update_online(fresh)
        self.extra["rollouts"] += 1
        return metrics


def check_data(data: Transitions, least: int = 1000) -> None:
    """Raises ValueError for data from which nothing can be learned."""
    if len(data) < least:
        raise ValueError(f"the dataset has {len(data)} transitions, uni_o4 needs at least {least}; collect more")
    constant = (data.action.amax(0) == data.action.amin(0)).nonzero()[:, 0].tolist()
    if constant:
        name = f"action {constant[0]}"
        raise ValueError(f"{name} is the same in every transition; collect data in which it varies, with noise=0.1")
    if not data.reward.any():
        raise ValueError("all rewards are zero; label the dataset with the task's reward before learning from it")
