"""Methods of the offline benchmarks: learners with their options, and other options of some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from policies.critics import CriticConfig
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.cal_ql import CalQLConfig
from robot_cl.learners.incumbent import IncumbentConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.lcb import LCBConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.percent_bc import PercentBCConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.rebrac import ReBRACConfig
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.sac import SACConfig
from robot_cl.learners.uni_o4_config import Advantage, UniO4Config
from robot_cl.learners.wsrl import WSRLConfig


@dataclass(frozen=True)
class Method:
    """`config` of the learner; `steps` updates offline, `clones` of them of a policy alone; `start`: the offline cell
    that it goes on from.

    `cost` orders the cells, in minutes at the `gpu-half` size where one GPU is shared by all of them.
    """

    config: Callable[[], LearnerConfig]
    steps: int = 0
    clones: int = 0
    online: bool = False
    start: str | None = None
    uses_data: bool = True
    episodes_for_selection: int = 0
    cost: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def from_scratch(self) -> bool:
        """Whether it knows nothing of a dataset: the same on all of a task."""
        return not self.uses_data and self.start is None


NEAR_A_CLONE = ("max_kl", "least_log_std", "average", "incumbent")
ONLINE_OPTIONS = ("horizon", "minibatch", "epochs", "clip", "entropy", "lr", "critic_lr", *NEAR_A_CLONE)


def _ppo_from_bc() -> PPOConfig:
    """Uni-O4's online part without what its offline phases give: its values are its own, learned from the start."""
    like = UniO4Config()
    shared = {name: getattr(like, name) for name in ONLINE_OPTIONS}
    return PPOConfig(critic=CriticConfig(), value_warmup=5, **shared)


def _both(inner: int, meta: float, whole_batches: bool) -> MOORLConfig:
    """MOORL with two fast learners at once, one per buffer."""
    return MOORLConfig(tasks=Tasks.both, inner=inner, meta=meta, whole_batches=whole_batches, **BRISK)


OFFLINE, CLONING = 50_000, 20_000  # updates; Uni-O4 clones for as long and at the same rate
BRISK: dict[str, Any] = {"lr": 1e-3, "temperature": 0.1}  # soft actor-critics that have few updates
METHODS = {
    "bc": Method(lambda: BCConfig(lr=1e-3, decay=CLONING), clones=CLONING, cost=0.5),
    "10 % bc": Method(lambda: PercentBCConfig(lr=1e-3, decay=CLONING, share=0.1), clones=CLONING, cost=0.5),
    "near-best bc": Method(lambda: PercentBCConfig(lr=1e-3, decay=CLONING), clones=CLONING, cost=0.7),
    "iql": Method(lambda: IQLConfig(lr=1e-3, decay=OFFLINE), OFFLINE, cost=3),
    "rebrac": Method(lambda: ReBRACConfig(lr=1e-3, decay=OFFLINE), OFFLINE, cost=3),
    "lcb": Method(lambda: LCBConfig(cloning=CLONING), 20_000, CLONING, cost=3),
    "uni_o4": Method(UniO4Config, UniO4Config().offline_steps, cost=3),
    "uni_o4, advantage of values": Method(
        lambda: UniO4Config(advantage=Advantage.values), UniO4Config().offline_steps, cost=1
    ),
    "uni_o4, mean values": Method(lambda: UniO4Config(expectile=0.5), UniO4Config().offline_steps, cost=1),
    "cal_ql": Method(lambda: CalQLConfig(cloning=CLONING), 20_000, CLONING, cost=2),
    "uni_o4 online": Method(UniO4Config, online=True, start="uni_o4", cost=1.2, options={"num_worlds": 16}),
    "ppo from bc": Method(_ppo_from_bc, online=True, start="bc", uses_data=False, cost=1.2, options={"num_worlds": 16}),
    "sac": Method(lambda: SACConfig(**BRISK), online=True, uses_data=False, cost=4),
    "rlpd": Method(lambda: RLPDConfig(critics=5, **BRISK), online=True, cost=4.5),
    "moorl": Method(lambda: MOORLConfig(**BRISK), online=True, cost=4.7),
    "moorl, both at once": Method(lambda: _both(5, 1.0, True), online=True, cost=5.5),
    "moorl, both at once, shared batches": Method(lambda: _both(5, 1.0, False), online=True, cost=5.3),
    "sac + lookahead": Method(
        lambda: MOORLConfig(tasks=Tasks.joined, inner=5, meta=0.5, **BRISK), online=True, cost=4.7
    ),
    "rlpd, two critics": Method(lambda: RLPDConfig(critics=2, critic=CriticConfig(), **BRISK), online=True, cost=4.2),
    "cal_ql online": Method(CalQLConfig, online=True, start="cal_ql", cost=6),
    "wsrl": Method(WSRLConfig, online=True, start="near-best bc", cost=5.3),
    "wsrl, old data": Method(
        lambda: WSRLConfig(
            critics=3, warmup=2000, actor_every=4, offline_share=0.5, incumbent=IncumbentConfig(3, rest=8, lost=0.2)
        ),
        online=True, start="near-best bc", cost=20,
    ),
    "wsrl, old data, quick": Method(
        lambda: WSRLConfig(
            critics=3, warmup=2000, actor_every=4, offline_share=0.5, incumbent=IncumbentConfig(3, rest=8, lost=0.2),
            discount=0.98, tau=0.02, lr=7e-4,
        ),
        online=True, start="near-best bc", cost=20,
    ),
}  # fmt: skip


def _seldom_tried(**options: Any) -> WSRLConfig:
    """WSRL with an update of the policy every two of the critics, and eight episodes that explore between trials."""
    return WSRLConfig(actor_every=2, incumbent=IncumbentConfig(trials=3, rest=8, lost=0.2), **options)


# Other options of some, from which those of METHODS are chosen on development data.
STAYS = IncumbentConfig(trials=3)  # and learning goes on from wherever it has come to
TRIALS = {
    "wsrl, tight": Method(
        lambda: WSRLConfig(kl_per_action=0.05, anchor_tau=3e-4, incumbent=STAYS),
        online=True, start="near-best bc", cost=5.3,
    ),
    "wsrl, tight, comes back": Method(
        lambda: WSRLConfig(kl_per_action=0.05, anchor_tau=3e-4), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, doubts": Method(lambda: WSRLConfig(doubt=1.0), online=True, start="near-best bc", cost=5.3),
    "wsrl, patient": Method(lambda: WSRLConfig(actor_every=4), online=True, start="near-best bc", cost=5.3),
    "wsrl, patient, doubts": Method(
        lambda: WSRLConfig(actor_every=4, doubt=1.0), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, old data": Method(
        lambda: WSRLConfig(actor_every=4, offline_share=0.5), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, doubts, old data": Method(
        lambda: WSRLConfig(actor_every=4, doubt=1.0, offline_share=0.5), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, patient, quick": Method(
        lambda: WSRLConfig(actor_every=4, lr=1e-3), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, old data, two updates": Method(
        lambda: _seldom_tried(offline_share=0.5), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, old data, doubts": Method(
        lambda: _seldom_tried(offline_share=0.5, doubt=1.0), online=True, start="near-best bc", cost=5.3
    ),
    "wsrl, old data, tight": Method(
        lambda: _seldom_tried(offline_share=0.5, kl_per_action=0.05, anchor_tau=3e-4),
        online=True, start="near-best bc", cost=5.3,
    ),
    "wsrl, new data": Method(lambda: _seldom_tried(offline_share=0.0), online=True, start="near-best bc", cost=5.3),
    "moorl, both at once, each update": Method(lambda: _both(1, 1.0, False), online=True, cost=5.5),
    "moorl, both at once, each update, whole batches": Method(lambda: _both(1, 1.0, True), online=True, cost=5.5),
    "moorl, both at once, half steps": Method(lambda: _both(5, 0.5, True), online=True, cost=5.5),
    "moorl, two updates": Method(lambda: MOORLConfig(inner=2, **BRISK), online=True, cost=4.7),
    "moorl, two updates, half steps": Method(lambda: MOORLConfig(inner=2, meta=0.5, **BRISK), online=True, cost=4.7),
    "moorl, five updates, half steps": Method(lambda: MOORLConfig(inner=5, meta=0.5, **BRISK), online=True, cost=4.7),
    "moorl, five updates, half steps, mostly new": Method(
        lambda: MOORLConfig(inner=5, meta=0.5, offline_share=0.3, **BRISK), online=True, cost=4.7
    ),
    "moorl, five updates, half steps, mostly old": Method(
        lambda: MOORLConfig(inner=5, meta=0.5, offline_share=0.7, **BRISK), online=True, cost=4.7
    ),
    "sac, half and half": Method(lambda: MOORLConfig(tasks=Tasks.joined, **BRISK), online=True, cost=4.7),
    "sac, a whole batch of each": Method(
        lambda: MOORLConfig(tasks=Tasks.joined, **BRISK), online=True, cost=5.5, options={"batch": 512}
    ),
}  # fmt: skip
ALL = METHODS | TRIALS


def slug(method: str) -> str:
    """A method's name as a file's."""
    return "".join(c if c.isalnum() else "_" for c in method).strip("_")
