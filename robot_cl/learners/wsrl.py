"""WSRL: an offline start, a short warm-up with the frozen policy, and then no offline data at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.critics import CriticConfig, StackedV
from robot_cl.batch import Transitions
from robot_cl.learners import cal_ql, sac
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.cal_ql import CalQLConfig, begin_at_returns
from robot_cl.learners.ranges import not_negative
from robot_cl.learners.sac import joined
from robot_cl.learners.warm_start import WarmStart


@dataclass
class WSRLConfig(CalQLConfig):
    """Options of WSRL. Published: critics 10, updates 4, actor_every 4; the defaults here are for a CPU."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    critics: int = 5  # critics per member
    doubt: float = 0.0  # standard deviations between critics that are taken off what the policy maximises
    kl_per_action: float = 0.2  # nats from its anchor that the policy is held at, over act_dim
    anchor_tau: float = 1e-3  # how far the anchor moves to the policy per update of it, 0: not at all
    online_conservatism: float = 0.0  # weight of the conservative term online; published: none
    warmup: int = 5000  # online: environment steps with the frozen policy before the first update
    offline_share: float = 0.0  # online: share of each batch that comes from the dataset, where one is given

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "doubt")


class WSRL(Learner):
    """Zhou et al. 2025, "Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data".

    Offline: Cal-QL with an ensemble. Online: the frozen policy fills the replay buffer for `warmup` steps, so that the
    values meet their own policy's data before they move; from there on soft actor-critic on that buffer alone.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: WSRLConfig

    def build(self) -> None:
        self.soft = sac.build(self, self.config)
        self.soft.doubt = self.config.doubt
        self.reference = self.add("reference", StackedV(self.obs_dim, self.rng, self.config.critic))
        self.warm = WarmStart(self, self.config)

    @property
    def candidates(self) -> tuple[StackedGaussianActor, ...]:
        return self.warm.candidates

    def plan(self) -> OnlinePlan:
        return sac.online_plan(self.config, self.config.offline_share)

    def attach_data(self, data: Transitions) -> None:
        self.warm.attach_data(data)

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        begin_at_returns(self, self.soft, self.reference, data, self.config)

    def graph_key(self, online: bool = False) -> tuple[bool, bool]:
        return not online and self.step < self.config.cloning, self._moves(online)

    def schedule(self, online: bool = False) -> None:
        self.warm.schedule(online)

    def explore(self, obs: Tensor, noise: Tensor, actor: StackedGaussianActor | None = None) -> Tensor:
        """As every learner does, but a policy that comes too wide is narrow from the first step on: what fills the
        buffer while it waits is what its values will be asked about."""
        self.schedule(online=True)
        return super().explore(obs, noise, actor)

    def adopt(self, state: dict[str, Tensor]) -> None:
        super().adopt(state)
        self.warm.begin_anew()

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        clones, moves = self.step < self.config.cloning, self._moves(online=False)
        self.step += 1
        how = (self.config.conservatism, clones, moves, self.warm)
        return cal_ql.update(self.soft, self.config, batch, self.reference, *how)

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        self.schedule(online=True)
        c, moves = self.config, self._moves(online=True)
        self.step += 1
        batch, warm = joined(fresh, offline), self.warm
        if c.online_conservatism:
            how = (c.online_conservatism, False, moves, warm)
            return cal_ql.update(self.soft, c, batch, self.reference, *how)
        metrics = sac.update(self.soft, c, batch, moves, penalty=warm.penalty, wanted=warm.wanted)
        return metrics | warm.follow() if moves else metrics

    def _moves(self, online: bool) -> bool:
        return self.warm.moves(online) and (sac.actor_due(self) or not online)
