"""PSEC: a generative policy, and skills as low-rank changes of it that imitate, seek reward or avoid cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.critics import CriticConfig, StackedQ, StackedV, polyak
from policies.diffusion import GENERATIVE, Drawn, GenerativeConfig
from policies.skill_losses import cost_target, cost_weight, expectile_loss, reversed_expectile_loss, reward_weight
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, LearnerConfig, Metrics
from robot_cl.learners.iql import reward_scale
from robot_cl.learners.ranges import not_negative, positive
from robot_cl.learners.stacks import merged
from robot_cl.learners.units import with_its_unit


class Kind(StrEnum):
    """`diffusion`: denoising in a few steps; `flow`: Euler steps along straight paths."""

    diffusion = "diffusion"
    flow = "flow"


class Skill(StrEnum):
    """`imitation`: what the data does; `reward`: the better of it; `cost`: the safer of it (reward is minus cost)."""

    imitation = "imitation"
    reward = "reward"
    cost = "cost"


@dataclass
class PSECConfig(LearnerConfig):
    """Options of PSEC. A skill is trainable=adapter with init_from=BASE."""

    actor: GenerativeConfig = field(default_factory=GenerativeConfig)  # type: ignore[assignment]  # shape of the policy; ignored when one is loaded
    kind: Kind = Kind.diffusion  # diffusion or flow; ignored when a policy is loaded
    skill: Skill = Skill.imitation  # imitation, reward, or cost (then the data's reward is read as minus the cost)
    scale: float = 4.0  # multiplies an adapter's change while it trains; stored inside the factors
    lr: float = 3e-4  # AdamW's learning rate of the policy; a skill: 1e-3 to 3e-3
    decay: int = 0  # updates over which the policy's learning rate falls to zero along a cosine, 0: constant
    weight_decay: float = 0.01  # of AdamW, per unit of learning rate
    ema: float = 0.001  # how far the published average moves per update (early on more, see `average_rate`)
    critic: CriticConfig = field(default_factory=CriticConfig)  # shape of Q and V of a reward or cost skill
    critic_lr: float = 3e-4  # Adam's learning rate of Q and V
    beta: float = 1.0  # reward skill: inverse temperature of its weights, in units of the scaled return
    expectile: float = 0.7  # reward skill: of Q over the data's actions
    cost_expectile: float = 0.9  # cost skill: reversed, towards the safest actions
    discount: float = 0.99  # per control step
    tau: float = 0.005  # how far the target moves to Q per update
    reward_scale: float | None = None  # none: 1000 / range of the data's returns for reward, 1 for cost

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "scale", "lr", "critic_lr", "beta", "reward_scale")
        not_negative(self, "decay", "weight_decay")
        for name in ("expectile", "cost_expectile", "discount", "tau", "ema"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number between 0 and 1")


class PSEC(Learner):
    """Liu et al. 2025, "Skill Expansion and Composition in Parameter Space".

    The policy predicts noise (or a velocity); its loss is weighted by what the skill wants. Reward: implicit
    Q-learning's advantage, min(exp(β (Q − V)), 100). Cost: the Hamilton-Jacobi value of the worst cost ahead,
    1[Q_h < V_h] min(exp(V_h − Q_h), 100). The exponential average of the weights is what acts, is published, and is
    what skills are later trained on.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline",)
    kinds: ClassVar[tuple[str, ...]] = tuple(GENERATIVE)
    config: PSECConfig

    def build(self) -> None:
        c = self.config
        self.ema = self.add("ema", copy.deepcopy(self.actor).requires_grad_(False).eval())
        self.opts["actor"] = self.optimiser([self.actor], c.lr)
        self._moving = [(e, p) for e, p in zip(self.ema.parameters(), self.actor.parameters(), strict=True)
                        if p.requires_grad]  # fmt: skip
        self.extra["reward_scale"] = torch.tensor(c.reward_scale or 1.0, device=self.device)
        if c.skill is not Skill.imitation:
            self.q = self.add("q", StackedQ(self.obs_dim, self.act_dim, self.rng, 2, c.critic))
            self.target_q = self.add("target_q", copy.deepcopy(self.q).requires_grad_(False))
            self.v = self.add("v", StackedV(self.obs_dim, self.rng, c.critic))
            self.opts["critic"] = self.optimiser([self.q, self.v], c.critic_lr)

    def new_actor(self) -> Any:
        actor = GENERATIVE[self.config.kind]
        return actor(self.obs_dim, self.act_dim, self.rng, self.config.actor, self.new_normalizer())

    @property
    def adapter_scale(self) -> float:
        return self.config.scale

    @property
    def actor(self) -> Any:
        """The policy in training, a GenerativeActor."""
        return self.nets["actor"]

    def policy(self) -> Any:
        """The average, its adapters added to the weights."""
        return merged(self.adapted() or self.ema)

    def adapted(self) -> Any:
        return self._adapted(self.ema)

    def prepare(self, data: Transitions) -> None:
        super().prepare(data)
        self.ema.normalizer.load_state_dict(self.actor.normalizer.state_dict())
        if self.config.skill is Skill.reward and self.config.reward_scale is None:
            self.extra["reward_scale"].fill_(reward_scale(data))

    def adopt(self, state: dict[str, Tensor]) -> None:
        super().adopt(with_its_unit(state, "q", self.config.reward_scale))

    # The skills

    def reward_values(self, batch: Transitions, z: Tensor, z_next: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """Implicit Q-learning: target Q and V (P, B) of the data's actions, and the losses that train both."""
        with torch.no_grad():
            next_v = self.v(z_next)
            q = self.target_q(z, batch.action).amin(1)
        v = self.v(z)
        reward = batch.reward * self.extra["reward_scale"]
        target = reward + self.config.discount * (1.0 - batch.terminated) * next_v
        losses = {
            "value_loss": expectile_loss(q - v, self.config.expectile).mean(-1),
            "q_loss": (self.q(z, batch.action) - target.unsqueeze(1)).square().mean((1, 2)),
        }
        return q, v, losses

    def cost_values(self, batch: Transitions, z: Tensor, z_next: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """Hamilton-Jacobi: target Q_h (the more costly twin) and V_h (P, B), and the losses that train both."""
        cost = -batch.reward * self.extra["reward_scale"]
        with torch.no_grad():
            ahead = torch.where(batch.terminated > 0, cost, self.v(z_next))
            q = self.target_q(z, batch.action).amax(1)
        v, target = self.v(z), cost_target(cost, ahead, self.config.discount)
        losses = {
            "value_loss": reversed_expectile_loss(q - v, self.config.cost_expectile).mean(-1),
            "q_loss": (self.q(z, batch.action) - target.unsqueeze(1)).square().mean((1, 2)),
        }
        return q, v, losses

    def weigh(self, batch: Transitions) -> tuple[Tensor | None, Metrics]:
        """Weights (P, B) of the imitation loss, None for all alike, and the losses (P,) of what they come from."""
        if self.config.skill is Skill.imitation:
            return None, {}
        z, z_next = self.actor.normalizer(batch.obs), self.actor.normalizer(batch.next_obs)
        if self.config.skill is Skill.reward:
            q, v, losses = self.reward_values(batch, z, z_next)
            return reward_weight(q, v, 1.0 / self.config.beta), losses
        q, v, losses = self.cost_values(batch, z, z_next)
        return cost_weight(q, v), losses

    def schedule(self, online: bool = False) -> None:
        if self.config.decay:
            done = min(1.0, self.step / self.config.decay)
            self.opts["actor"].lr = 0.5 * self.config.lr * (1.0 + math.cos(math.pi * done))

    def update_offline(self, batch: Transitions) -> Metrics:
        self.schedule()
        weight, losses = self.weigh(batch)
        losses["actor_loss"] = self.actor.loss_at(batch.obs, batch.action, self.drawn(batch.reward.shape[-1]), weight)
        torch.stack(list(losses.values())).sum().backward()
        self._step_actor()
        if "critic" in self.opts:
            self.opts["critic"].step()
            polyak(self.target_q, self.q, self.config.tau)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def drawn(self, rows: int) -> Drawn:
        """The random numbers of one loss, member by member."""
        seeds = self.draws.uniform(self.config_of_actor.blocks) if self.actor.drops else None
        return Drawn(self.draws.uniform(rows, 1), self.draws.normal(rows, self.act_dim), seeds)

    @property
    def config_of_actor(self) -> GenerativeConfig:
        config = self.actor.config
        assert isinstance(config, GenerativeConfig)
        return config

    @torch.no_grad()
    def _step_actor(self) -> None:
        """AdamW, then the average."""
        c, opt = self.config, self.opts["actor"]
        opt.flat.mul_(1.0 - opt.lr * c.weight_decay)
        opt.step()
        averages, weights = zip(*self._moving, strict=True)
        torch._foreach_lerp_(list(averages), list(weights), average_rate(self.step, c.ema))

    def graph_key(self, online: bool = False) -> Hashable | None:
        """The average moves by another rate with every early update, and decay follows the learning rate."""
        return None if self.config.decay or average_rate(self.step, self.config.ema) > self.config.ema else "update"


def average_rate(step: int, ema: float) -> float:
    """How far the average moves after update `step`: over the last tenth or so of the updates made, then by `ema`.

    Polynomial-decay averaging (Shamir & Zhang 2013): with `ema` alone a short training would publish its start.
    """
    return max(ema, 9.0 / (step + 9.0))
