"""MOORL: meta-parameters pulled towards what soft actor-critic learns on old and on new data."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.actor import StackedGaussianActor
from policies.critics import CriticConfig, StackedQ
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.ranges import not_negative
from robot_cl.learners.returns import fit_returns
from robot_cl.learners.sac import SACConfig, SoftNets, Temperature, actor_due, joined, online_plan, update
from robot_cl.learners.stacks import merged, repeated


class Tasks(StrEnum):
    """What one fast learner trains on.

    `alternate`: one fast learner, which takes a buffer at random for every meta step, as published. `both`: two fast
    learners side by side, one per buffer, whose steps are averaged; each fits one buffer, and it takes twice the
    arithmetic (inner=5 meta=1 suits it best). `joined`: one fast learner on half and half, which with inner=5 meta=0.5
    is soft actor-critic with Lookahead (Zhang et al. 2019): the ablation of the meta step.
    """

    both = "both"
    alternate = "alternate"
    joined = "joined"


@dataclass
class MOORLConfig(SACConfig):
    """Options of MOORL; the paper leaves most constants open, these are ours."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    temperature: float = 0.1  # start of the entropy's weight; at 1.0 thousands of updates pass before values count
    returns_steps: int = 3_000  # first updates of the critics, on the data's returns; 0: from zero, as published
    tasks: Tasks = Tasks.alternate  # alternate, both or joined
    inner: int = 1  # K, updates of the fast weights per meta step
    meta: float = 1.0  # ε, how far the meta-parameters move to the fast ones
    offline_share: float = 0.5  # joined: of each batch; alternate: how often the dataset has its turn; both: half
    whole_batches: bool = True  # both buffers give a whole batch, unless tasks=joined; false: they share one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1 or not 0.0 <= self.meta <= 1.0:
            raise ValueError(f"inner is {self.inner} and meta {self.meta}; expected at least 1 and 0 to 1")
        not_negative(self, "returns_steps")
        if not 0.0 < self.offline_share < 1.0:
            raise ValueError(f"offline_share is {self.offline_share}; expected a number between 0 and 1")
        if self.tasks is Tasks.both and self.offline_share != 0.5:
            raise ValueError("tasks=both learns from both buffers alike; leave out offline_share, or use tasks=joined")


class MOORL(Learner):
    """"MOORL: A Framework for Integrating Offline-Online Reinforcement Learning", TMLR 2025.

    Every K updates: meta ψ → fast ψ₀, K soft actor-critic updates, ψ ← ψ + ε (mean over tasks ψ_K − ψ). Targets follow
    the meta critics, by τ·K; temperatures, one per task, take no part in it; Adam's moments persist. One call is
    one inner update. Members of the fast stack are task-major: task t of member p is t·P + p.
    """

    phases: ClassVar[tuple[str, ...]] = ("online",)
    beside: ClassVar[tuple[str, ...]] = ("data",)  # what it needs besides a world
    config: MOORLConfig

    def build(self) -> None:
        c, P, T = self.config, self.seeds, 2 if self.config.tasks is Tasks.both else 1
        self.critic = self.add("critic", StackedQ(self.obs_dim, self.act_dim, self.rng, c.critics, c.critic))
        rngs = [g for _ in range(T) for g in self.rng]
        actor = self.add("fast_actor", self._copy_actor(T))
        critic = self.add("fast_critic", StackedQ(self.obs_dim, self.act_dim, rngs_like(rngs), c.critics, c.critic))
        target = self.add("target", copy.deepcopy(critic).requires_grad_(False))
        temperature = self.add("temperature", Temperature(P * T, c.temperature))
        self.fast = SoftNets(actor, critic, target, temperature, self.opts, self.draws.of(rngs))
        self.opts["actor"] = FlatAdam(actor.parameters(), P * T, c.lr)
        self.opts["critic"] = FlatAdam(critic.parameters(), P * T, c.lr)
        self.opts["temperature"] = FlatAdam(temperature.parameters(), P * T, c.lr)
        self._restart()
        copy_into(target, self.critic)
        if c.tasks is Tasks.alternate:
            self.extra["offline_turn"] = torch.zeros(P, dtype=torch.bool, device=self.device)

    def prepare(self, data: Transitions) -> None:
        """Values of tens of steps' rewards would take most of a short run to rise from zero."""
        super().prepare(data)
        c, norm = self.config, self.actor.normalizer
        if c.returns_steps:
            opt = FlatAdam(self.critic.parameters(), self.seeds, c.lr)
            how = (data, c.discount, self, c.returns_steps)
            fit_returns(lambda b: self.critic(norm(b.obs), b.action), self.critic.net, opt, *how)
            self._restart()
            copy_into(self.fast.target, self.critic)

    def adopt(self, state: dict[str, Tensor]) -> None:
        """What is taken over are the meta-parameters: fast weights and targets begin at them."""
        super().adopt(state)
        self._restart()
        if any(name.startswith("nets.critic.") for name in state):
            copy_into(self.fast.target, self.critic)

    def plan(self) -> OnlinePlan:
        mixes = self.config.tasks is Tasks.joined  # else a batch is of one buffer, and both give equally many rows
        plan = online_plan(self.config, self.config.offline_share if mixes else 0.5)
        whole = self.config.whole_batches and self.config.tasks is not Tasks.joined
        return replace(plan, batches=2) if whole else plan

    def graph_key(self, online: bool = False) -> tuple[bool, bool, bool]:
        """Whether the next update draws the buffer of a meta step, whether it closes one, and moves the actor."""
        draws = self.config.tasks is Tasks.alternate and self.step % self.config.inner == 0
        return draws, (self.step + 1) % self.config.inner == 0, actor_due(self)

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        if offline is None:
            raise ValueError("moorl learns from two buffers; give it a dataset with data=NAME")
        batch = self._task_batch(fresh, offline)
        metrics = update(self.fast, self.config, batch, actor_due(self), move_target=False)
        self.step += 1
        if self.step % self.config.inner == 0:
            self._meta_step()
            self._restart()
        return {name: value.view(-1, self.seeds).mean(0) for name, value in metrics.items()}

    def _task_batch(self, fresh: Transitions, offline: Transitions) -> Transitions:
        """(T·P, B)."""
        match self.config.tasks:
            case Tasks.both:
                n = min(fresh.reward.shape[1], offline.reward.shape[1])
                return Transitions.cat([first(fresh, n), first(offline, n)])
            case Tasks.joined:
                return joined(fresh, offline)
        if self.step % self.config.inner == 0:
            self.extra["offline_turn"].copy_(self.draws.uniform() < self.config.offline_share)
        return where(self.extra["offline_turn"], offline, fresh)

    def _meta_step(self) -> None:
        c = self.config
        meta_step(self.actor, self.fast.actor, c.meta)
        meta_step(self.critic, self.fast.critic, c.meta)
        follow(self.fast.target, self.critic, min(1.0, c.tau * c.inner))

    def _restart(self) -> None:
        """Fast weights from the meta-parameters."""
        copy_into(self.fast.actor, self.actor)
        copy_into(self.fast.critic, self.critic)

    def _copy_actor(self, tasks: int) -> StackedGaussianActor:
        """The actor once per task, sharing the statistics, with adapters of its own where these are trained."""
        plain = merged(self.actor)
        many = repeated_members(plain, tasks)
        many.normalizer = for_tasks(self.actor.normalizer, tasks)
        self.restrict(many, rngs_like(range(tasks * self.seeds)))
        return many


@torch.no_grad()
def for_tasks(norm: Normalizer, tasks: int) -> Normalizer:
    """The statistics for so many blocks of members: the same object where all members share them."""
    if norm.population is None:
        return norm
    many = Normalizer(norm.width, norm.clip, norm.eps, norm.population * tasks).to(norm.mean.device)
    for held, given in zip(many.buffers(), norm.buffers(), strict=True):
        held.copy_(given.repeat(tasks, 1, 1) if given.dim() else given)
    return many


def rngs_like(members: Iterable[object]) -> list[torch.Generator]:
    """Generators for networks whose weights are overwritten at once: no draw of a member's own is spent on them."""
    return [torch.Generator() for _ in members]


@torch.no_grad()
def repeated_members(actor: StackedGaussianActor, times: int) -> StackedGaussianActor:
    """All members of `actor`, `times` over: population times·P, one block after the other."""
    if actor.population == 1:
        return repeated(actor, times)
    many = StackedGaussianActor.from_spec(actor.spec() | {"population": actor.population * times})
    copy_into(many, actor)
    return many.to(next(actor.parameters()).device)


def pairs(fast: nn.Module, meta: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
    """(fast parameter (T, n, ...), meta parameter (n, ...)) for every trainable parameter, matched by name."""
    theirs = dict(meta.named_parameters())
    for name, mine in fast.named_parameters():
        yield mine.view(-1, *theirs[name].shape), theirs[name]


@torch.no_grad()
def copy_into(fast: nn.Module, meta: nn.Module) -> None:
    for mine, theirs in pairs(fast, meta):
        mine.copy_(theirs)


@torch.no_grad()
def meta_step(meta: nn.Module, fast: nn.Module, step: float) -> None:
    """ψ ← ψ + ε (mean_tasks ψ_K − ψ); exact at ε = 0 and, with one task, at ε = 1."""
    for mine, theirs in pairs(fast, meta):
        if theirs.requires_grad:
            theirs.lerp_(mine[0] if len(mine) == 1 else mine.mean(0), step)


@torch.no_grad()
def follow(target: nn.Module, meta: nn.Module, tau: float) -> None:
    """target ← (1 − τ) target + τ meta, for every task's copy."""
    for mine, theirs in pairs(target, meta):
        mine.lerp_(theirs.expand_as(mine), tau)


def where(choice: Tensor, a: Transitions, b: Transitions) -> Transitions:
    """Member by member (P,) bool: a's batch where `choice`, else b's; both cut to the smaller batch."""
    n = min(a.reward.shape[1], b.reward.shape[1])
    rows = torch.where(choice[:, None, None], a.pack()[:, :n], b.pack()[:, :n])
    return Transitions.unpack(rows, a.obs_dim, a.act_dim)


def first(batch: Transitions, n: int) -> Transitions:
    """The first n of each member's batch (P, B)."""
    return Transitions.unpack(batch.pack()[:, :n], batch.obs_dim, batch.act_dim)
