"""Cal-QL: conservative values that do not fall below what the behaviour earned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.critics import StackedV, polyak
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.ranges import not_negative, positive, share
from robot_cl.learners.returns import fit_returns
from robot_cl.learners.sac import (
    SoftNets,
    actor_due,
    build,
    clone,
    joined,
    online_plan,
    soft_target,
    step_actor,
    step_critic,
    step_temperature,
    td_loss,
)
from robot_cl.learners.warm_start import WarmStart, WarmStartConfig


@dataclass
class CalQLConfig(WarmStartConfig):
    """Options of Cal-QL; calibrated false is CQL (Kumar et al. 2020)."""

    conservatism: float = 5.0  # weight of the conservative term offline
    online_conservatism: float = 0.5  # the same online
    drawn: int = 4  # actions drawn per state from each of three proposals; published 10
    calibrated: bool = True  # floor the drawn actions' values at the behaviour's return
    entropy_backup: bool = False  # the target value includes the next entropy
    returns_steps: int = 3_000  # first updates of the critics and of the floor, on the data's returns
    offline_share: float = 0.5  # online: share of each batch that comes from the dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "drawn")
        not_negative(self, "conservatism", "online_conservatism", "returns_steps")
        share(self, "offline_share")


class CalQL(Learner):
    """Nakamoto et al. 2023, "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning".

    The floor is a regression of the data's returns on states, fitted before the first update (the authors use each
    transition's own return; in expectation they agree). The critics begin at the same returns (Jelley et al. 2024, "The
    Critic is Critical"): from zero they would lie below the floor for tens of thousands of updates, in which nothing
    holds the policy's own actions down. The policy begins by cloning, as in the code of CQL's authors, and the critics
    wait for it: they would follow an untrained policy below the floor.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: CalQLConfig

    def build(self) -> None:
        self.soft = build(self, self.config)
        self.reference = self.add("reference", StackedV(self.obs_dim, self.rng, self.config.critic))
        self.warm = WarmStart(self, self.config)

    @property
    def candidates(self) -> tuple[StackedGaussianActor, ...]:
        return self.warm.candidates

    def plan(self) -> OnlinePlan:
        return online_plan(self.config, self.config.offline_share)

    def attach_data(self, data: Transitions) -> None:
        self.warm.attach_data(data)

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        begin_at_returns(self, self.soft, self.reference, data, self.config)

    def graph_key(self, online: bool = False) -> tuple[bool, bool]:
        return not online and self.step < self.config.cloning, self._moves(online)

    def _moves(self, online: bool) -> bool:
        return self.warm.moves(online) and actor_due(self)

    def schedule(self, online: bool = False) -> None:
        self.warm.schedule(online)

    def adopt(self, state: dict[str, Tensor]) -> None:
        super().adopt(state)
        self.warm.begin_anew()

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        return self._update(batch, self.config.conservatism, self.step < self.config.cloning, self._moves(False))

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        self.schedule(online=True)
        return self._update(joined(fresh, offline), self.config.online_conservatism, False, self._moves(True))

    def _update(self, batch: Transitions, weight: float, clones: bool, moves: bool) -> Metrics:
        self.step += 1
        return update(self.soft, self.config, batch, self.reference, weight, clones, moves, self.warm)


def update(
    soft: SoftNets,
    config: CalQLConfig,
    batch: Transitions,
    reference: StackedV,
    weight: float,
    clones: bool = False,
    move_actor: bool = True,
    warm: WarmStart | None = None,
) -> Metrics:
    """Soft actor-critic's update with the calibrated conservative term added to the critics' loss.

    With `clones` only the policy moves, by the likelihood of the data's actions: critics that follow a policy which is
    not there yet fall below the floor, and an entropy bonus would make the clone wider than the data.
    """
    if clones:
        return clone(soft, batch)
    norm = soft.actor.normalizer
    z, z_next = norm(batch.obs), norm(batch.next_obs)
    target = soft_target(soft, config, batch, z_next)
    q = soft.critic(z, batch.action)
    gap = conservative_gap(soft, config, z, z_next, q, reference)
    loss = td_loss(q, target) + weight * gap
    step_critic(soft, loss)
    polyak(soft.target, soft.critic, config.tau)
    metrics = {"critic_loss": loss.detach(), "gap": gap.detach(), "q": q.detach().mean((1, 2))}
    if move_actor:
        more, entropy = step_actor(soft, z, warm.penalty if warm else None)
        usual = config.entropy_per_action * batch.action.shape[-1]
        step_temperature(soft, entropy, warm.wanted if warm else usual)
        metrics |= more | (warm.follow() if warm else {})
    return metrics


def conservative_gap(
    soft: SoftNets, config: CalQLConfig, z: Tensor, z_next: Tensor, q: Tensor, reference: StackedV
) -> Tensor:
    """Σ_critics mean_B (log Σ_a exp max(Q(s, a), V^μ(s)) − Q(s, a_data)), (P,); CQL(H) with equation 5.1's floor.

    Actions are drawn uniformly, from π(s) and from π(s'), each weighted by its density.
    """
    P, B, A = z.shape[0], z.shape[1], soft.actor.act_dim
    many = z.repeat(1, config.drawn, 1)
    with torch.no_grad():
        uniform = soft.draws.uniform(config.drawn * B, A) * 2.0 - 1.0
        here, log_here = soft.sample(many)
        there, log_there = soft.sample(z_next.repeat(1, config.drawn, 1))
        log_uniform = torch.full_like(log_here, -A * math.log(2.0))
        floor = reference(z).unsqueeze(1).repeat(1, 1, config.drawn) if config.calibrated else None  # (P, 1, drawn·B)
    logits = []
    for action, log_prob, own in ((uniform, log_uniform, False), (here, log_here, True), (there, log_there, True)):
        value = soft.critic(many, action)
        if own and floor is not None:
            value = torch.maximum(value, floor)
        logits.append((value - log_prob.unsqueeze(1)).view(P, -1, config.drawn, B))
    stacked = torch.cat(logits, 2)
    soft_max = torch.logsumexp(stacked, 2) - math.log(stacked.shape[2])
    return (soft_max - q).mean(-1).sum(1)


def begin_at_returns(
    learner: Learner, soft: SoftNets, reference: StackedV, data: Transitions, config: CalQLConfig
) -> None:
    """Fit the floor V^μ(s) and the critics Q^μ(s, a) to the data's discounted returns-to-go."""
    norm, how = soft.actor.normalizer, (data, config.discount, learner, config.returns_steps)
    floor = FlatAdam(reference.parameters(), reference.population, config.lr)
    fit_returns(lambda b: reference(norm(b.obs)), reference.net, floor, *how)
    fit_returns(lambda b: soft.critic(norm(b.obs), b.action), soft.critic.net, soft.opts["critic"], *how)
    polyak(soft.target, soft.critic, 1.0)
