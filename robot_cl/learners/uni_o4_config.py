"""Options of Uni-O4, in sizes for a CPU and in the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.actor import ActorConfig, Sigma
from policies.critics import CriticConfig
from robot_cl.learners.evaluation import EvaluationConfig
from robot_cl.learners.gate import GateConfig, Score
from robot_cl.learners.imagined import ImaginationConfig
from robot_cl.learners.incumbent import IncumbentConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.ranges import not_negative, positive, share
from robot_cl.learners.uni_o4_losses import Compat


class Advantage(StrEnum):
    """`evaluated`: by critics of the policy itself, see evaluation.py; `trajectories`: read off the data's, see
    deviations.py; `imagined`: of rollouts in learned dynamics, see imagined.py; `values`: min Q − V, as published."""

    evaluated = "evaluated"
    trajectories = "trajectories"
    imagined = "imagined"
    values = "values"


class Profile(StrEnum):
    """`cpu`: sizes that finish in minutes on two cores; `reference`: the published ones."""

    cpu = "cpu"
    reference = "reference"


def _actor(hidden: tuple[int, ...] = (256, 256)) -> ActorConfig:
    return ActorConfig(hidden=hidden, sigma=Sigma.head, log_std_min=-3.0, log_std_max=0.0, init="orthogonal")


# Field -> (cpu, reference); a field that is given wins. Lei et al. 2024, appendix.
PROFILES: Mapping[str, tuple[Any, Any]] = {
    "critic_steps": (20_000, 2_000_000),
    "behaviour_steps": (20_000, 400_000),
    "improve_steps": (1_500, 10_000),
    "offline_lr": (3e-4, 1e-4),
    "behaviour_lr": (1e-3, 1e-4),
    "improve_lr": (3e-4, 1e-4),
}


@dataclass
class UniO4Config(PPOConfig):
    """Options of Uni-O4: PPO's for its online part, and those of the five phases before it."""

    profile: Profile = Profile.cpu  # cpu or reference sizes
    compat: Compat = Compat.ours  # ours, or reference: as the published code behaves
    actor: ActorConfig = field(default_factory=_actor)  # shape of the policy; ignored when one is loaded
    critic: CriticConfig = field(default_factory=CriticConfig)  # shape of Q and V
    behaviours: int = 4  # cloned policies per seed, each improved on its own
    share: float | None = None  # of the data, best first, that is cloned; none: all near the best; published 1
    advantage: Advantage = Advantage.trajectories  # what improves them: evaluated, trajectories, imagined or values
    advantage_steps: int = 2_000  # updates of advantages of trajectories
    folds: int = 4  # networks of advantages per policy, each without its fold of the episodes
    trace: float = 0.9  # λ of these advantages
    evaluated: EvaluationConfig = field(default_factory=EvaluationConfig)  # of advantages by policy evaluation
    imagined: ImaginationConfig = field(default_factory=ImaginationConfig)  # of advantages by imagination
    diversity: float = 0.1  # α, extra weight where a cloned policy is not the likeliest of its seed
    expectile: float = 0.7  # of Q over the data's actions; 0.5 values the behaviour itself, for near-expert data
    tau: float = 0.005  # how far the target moves to Q per update
    returns_steps: int = 3_000  # first updates of Q and V, on the data's returns
    critic_steps: int | None = None  # updates of Q and V
    behaviour_steps: int | None = None  # updates of the cloned policies, beside the critics'
    improve_steps: int | None = None  # offline policy gradient steps
    offline_lr: float | None = None  # Adam's learning rate of Q and V, falling to zero along a cosine
    behaviour_lr: float | None = None  # Adam's learning rate of cloning, falling to zero along a cosine
    improve_lr: float | None = None  # of the offline policy gradient, falling linearly to 0
    improve_clip: float = 0.25  # of the probability ratio, offline
    dynamics: EnsembleConfig = field(default_factory=lambda: EnsembleConfig(4, 3, (200, 200, 200)))  # of the gate
    fit: FitConfig = field(default_factory=lambda: FitConfig(holdout=0.2, max_holdout=1000, max_steps=8_000))
    gate: GateConfig = field(default_factory=GateConfig)  # of the acceptance test
    horizon: int = 128  # control steps per world and rollout
    minibatch: int = 512  # transitions per gradient step and seed
    clip: float = 0.2  # of the probability ratio, online; published 0.05
    entropy: float = 0.01  # weight of the entropy bonus, online
    lr: float = 5e-4  # Adam's learning rate of the policy, online; published 1e-6 to 3e-5, for a million steps
    critic_lr: float = 1e-3  # Adam's learning rate of V, online; published 2e-4
    max_kl: float | None = 0.03  # nats from the policy that acted, at most, after every epoch
    average: float = 0.95  # weight of the past in the average of policies that is published, per rollout; published 0
    least_log_std: float | None = -2.3  # smallest log σ online, σ = 0.1
    value_warmup: int = 2  # first rollouts that train V alone
    incumbent: IncumbentConfig = field(default_factory=lambda: IncumbentConfig(trials=3))  # what is published online

    def __post_init__(self) -> None:
        super().__post_init__()
        reference = self.profile is Profile.reference
        for name, sizes in PROFILES.items():
            if getattr(self, name) is None:
                setattr(self, name, sizes[reference])
        if reference and self.actor == _actor():
            self.actor = _actor((256, 256, 256))
        if self.compat is Compat.reference:
            self.share, self.advantage = 1.0, Advantage.values
            self.gate = replace(self.gate, score=Score.values)
        if not 0.0 < (1.0 if self.share is None else self.share) <= 1.0 or self.folds < 2:
            raise ValueError(f"share {self.share} must lie above 0 and up to 1, folds {self.folds} be at least 2")
        positive(self, "offline_lr", "behaviour_lr", "improve_lr", "improve_clip")
        not_negative(self, "critic_steps", "behaviour_steps", "improve_steps", "advantage_steps", "returns_steps")
        share(self, "discount")  # values begin at sums of rewards without an end
        if not 0.0 < self.tau <= 1.0 or not 0.0 <= self.trace <= 1.0:
            raise ValueError(f"tau {self.tau} must lie in (0, 1] and trace {self.trace} in [0, 1]")
        if self.gate.doubt and self.dynamics.elites < 2:
            raise ValueError("gate.doubt is what models cost that disagree; give dynamics.elites of at least 2")
        if not 0.0 < self.expectile < 1.0 or self.behaviours < 1 or self.diversity < 0.0:
            raise ValueError(
                f"expectile {self.expectile} must lie between 0 and 1, behaviours {self.behaviours} be at least 1 and "
                f"diversity {self.diversity} not negative"
            )

    @property
    def fit_steps(self) -> int:
        """Updates before the policies are improved."""
        return max(self.critic_steps or 0, self.behaviour_steps or 0)

    @property
    def offline_steps(self) -> int:
        """Updates of the whole offline part."""
        return self.fit_steps + (self.improve_steps or 0)
