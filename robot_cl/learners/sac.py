"""Soft actor-critic, and the update that every learner of its family shares.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905). RLPD, WSRL, Cal-QL, LCB and
MOORL call the functions below with their own networks and batches; a page of theirs holds only what is theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.actor import ActorConfig, Distribution, Sigma, StackedGaussianActor
from policies.critics import CriticConfig, StackedQ, polyak
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.learners.base import Learner, LearnerConfig, Metrics, OnlinePlan
from robot_cl.learners.draws import Draws
from robot_cl.learners.optim import FlatAdam, cosine
from robot_cl.learners.ranges import not_negative, positive

Penalty = Callable[[Tensor, Tensor, Tensor], Tensor]  # z, mean, log σ -> what the actor's loss has besides, (P, B)


def tanh_actor() -> ActorConfig:
    """SAC's actor: the tanh of a Gaussian whose σ is a head of the network."""
    return ActorConfig(distribution=Distribution.tanh_gaussian, sigma=Sigma.clamped_head, log_std_min=-5.0)


@dataclass
class SACConfig(LearnerConfig):
    """Options of soft actor-critic and of what is built on it."""

    actor: ActorConfig = field(default_factory=tanh_actor)  # shape of the policy; ignored when one is loaded
    critic: CriticConfig = field(default_factory=CriticConfig)  # shape of each critic
    critics: int = 2  # critics per member
    subset: int = 2  # critics, drawn anew each update, whose minimum is the target
    lr: float = 3e-4  # Adam's learning rate, of everything
    discount: float = 0.99  # per control step
    tau: float = 0.005  # how far the targets move to the critics per update
    temperature: float = 1.0  # start of the entropy's weight
    entropy_per_action: float = -1.0  # target entropy over act_dim, in nats
    entropy_backup: bool = True  # the target value includes the next entropy
    actor_every: int = 1  # updates of the critics per update of the actor
    updates: float = 1.0  # online: updates per environment step
    horizon: int = 1  # online: steps of the world at a time, and then the updates that are due
    warmup: int = 5000  # online: environment steps before the first update
    capacity: int = 1_000_000  # online: transitions kept per seed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.subset <= self.critics:
            raise ValueError(f"subset is {self.subset}; expected between 1 and critics={self.critics}")
        positive(self, "lr", "temperature", "updates", "actor_every", "capacity", "horizon")
        not_negative(self, "warmup")
        if not 0.0 <= self.discount < 1.0 or not 0.0 < self.tau <= 1.0:
            raise ValueError(f"discount {self.discount} must lie in [0, 1) and tau {self.tau} in (0, 1]")


@dataclass
class CloningConfig(SACConfig):
    """Options of those whose policy clones the data before values move it."""

    temperature: float = 0.1  # start of the entropy's weight; 1.0 widens a clone before values tell actions apart
    cloning: int = 5000  # first updates offline, in which only the policy moves: it clones the data
    cloning_lr: float = 1e-3  # Adam's learning rate of cloning, falling to zero along a cosine

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cloning < 0 or not self.cloning_lr > 0:
            raise ValueError(
                f"cloning is {self.cloning} and cloning_lr {self.cloning_lr}; expected 0 or more updates and a "
                "positive rate"
            )


# -- equations, on (P, ...) tensors ---------------------------------------------------------------------------------


def bellman_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """r + γ (1 − terminated) V(s'), (P, B). A time limit does not end the future, so `truncated` plays no part."""
    return reward + discount * (1.0 - terminated) * next_value


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Σ_twins mean_B (Q − target)²: q (P, twins, B), target (P, B) or (P, twins, B) -> (P,)."""
    target = target.unsqueeze(1) if target.dim() == 2 else target
    return (q - target).square().mean(-1).sum(1)


def subset_min(q: Tensor, subset: int, draws: Draws) -> Tensor:
    """Minimum over `subset` critics drawn without replacement, for each member anew: (P, N, B) -> (P, B)."""
    if subset == q.shape[1]:
        return q.amin(1)
    drawn = draws.subset(q.shape[1], subset)
    return q.gather(1, drawn.unsqueeze(-1).expand(-1, -1, q.shape[-1])).amin(1)


class Temperature(nn.Module):
    """α = exp(log_alpha), one per member (P, 1)."""

    def __init__(self, population: int, start: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((population, 1), start).log())

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


# -- networks and their update --------------------------------------------------------------------------------------


@dataclass
class SoftNets:
    """What one update works on; `draws` has one generator per member (several members may share one).

    `doubt`: standard deviations between more than two critics that are taken off what the actor maximises.
    """

    actor: StackedGaussianActor
    critic: StackedQ
    target: StackedQ
    temperature: Temperature
    opts: dict[str, FlatAdam]
    draws: Draws
    doubt: float = 0.0

    def sample(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (P, B, obs_dim) normalised -> action in [-1, 1] (P, B, act_dim) and log π (P, B), reparametrised."""
        return self.drawn(*self.actor.heads(z))

    def drawn(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = self.actor.sample(mean, log_std, self.draws.normal(*mean.shape[1:]))
        return action.clamp(-1.0, 1.0), log_prob


def build(learner: Learner, config: SACConfig) -> SoftNets:
    """Give `learner` critics, targets, a temperature, and their optimisers."""
    critic = StackedQ(learner.obs_dim, learner.act_dim, learner.rng, config.critics, config.critic)
    soft = SoftNets(
        learner.actor,
        learner.add("critic", critic),
        learner.add("target", copy.deepcopy(critic).requires_grad_(False)),
        learner.add("temperature", Temperature(learner.seeds, config.temperature)),
        learner.opts,
        learner.draws,
    )
    for name in ("actor", "critic", "temperature"):
        learner.opts[name] = learner.optimiser([learner.nets[name]], config.lr)
    return soft


def soft_target(soft: SoftNets, config: SACConfig, batch: Transitions, z_next: Tensor) -> Tensor:
    """r + γ (1 − terminated) (min over a subset of Q̄(s', a') − α log π(a'|s')), (P, B), without a graph."""
    with torch.no_grad():
        action, log_prob = soft.sample(z_next)
        value = subset_min(soft.target(z_next, action), config.subset, soft.draws)
        if config.entropy_backup:
            value = value - soft.temperature() * log_prob
        return bellman_target(batch.reward, batch.terminated, value, config.discount)


def step_critic(soft: SoftNets, loss: Tensor) -> None:
    """One step of the critics on loss (P,); the actor's gradients stay untouched."""
    loss.sum().backward(inputs=soft.opts["critic"].parameters)
    soft.opts["critic"].step()


def ensemble_value(q: Tensor, doubt: float = 0.0) -> Tensor:
    """What the actor maximises: the minimum of two critics, the mean of more (REDQ, Chen et al. 2021) less `doubt` of
    their standard deviations."""
    if q.shape[1] <= 2:
        return q.amin(1)
    return q.mean(1) - doubt * q.std(1) if doubt else q.mean(1)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """What is computed in here passes gradients on to its input; those of the net's own weights are never computed."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def step_actor(soft: SoftNets, z: Tensor, penalty: Penalty | None = None) -> tuple[Metrics, Tensor]:
    """Maximise Q − α log π (equation 7), less a penalty. Returns metrics and the entropy (P,)."""
    alpha = soft.temperature().detach()
    heads = soft.actor.heads(z)
    with frozen(soft.critic):
        action, log_prob = soft.drawn(*heads)
        value = ensemble_value(soft.critic(z, action), soft.doubt)
    loss = (alpha * log_prob - value).mean(-1)
    if penalty is not None:
        loss = loss + penalty(z, *heads).mean(-1)
    loss.sum().backward(inputs=soft.opts["actor"].parameters)
    soft.opts["actor"].step()
    entropy = -log_prob.detach().mean(-1)
    return {"actor_loss": loss.detach(), "entropy": entropy, "alpha": alpha[:, 0]}, entropy


def clone(soft: SoftNets, batch: Transitions) -> Metrics:
    """One step of the policy on the likelihood of the data's actions."""
    mean, log_std = soft.actor.heads(soft.actor.normalizer(batch.obs))
    loss = -soft.actor.log_prob(mean, log_std, batch.action).mean(-1)
    loss.sum().backward(inputs=soft.opts["actor"].parameters)
    soft.opts["actor"].step()
    return {"cloning_loss": loss.detach()}


def actor_lr(config: CloningConfig, step: int, online: bool) -> float:
    """The policy's learning rate: while it clones, that of cloning, falling to zero along a cosine."""
    return config.lr if online or step >= config.cloning else cosine(config.cloning_lr, step, config.cloning)


def step_temperature(soft: SoftNets, entropy: Tensor, wanted: float | Tensor) -> None:
    """Raise α while the entropy (P,) is below the wanted one, () or (P,), in nats (equation 17)."""
    (soft.temperature.log_alpha[:, 0] * (entropy - wanted)).sum().backward()
    soft.opts["temperature"].step()


def update(
    soft: SoftNets,
    config: SACConfig,
    batch: Transitions,
    move_actor: bool = True,
    move_target: bool = True,
    penalty: Penalty | None = None,
    wanted: Tensor | None = None,
) -> Metrics:
    """Critics, targets, actor, temperature on one batch (P, B); `wanted` (P,) is another target of the entropy."""
    normalizer = soft.actor.normalizer
    z, z_next = normalizer(batch.obs), normalizer(batch.next_obs)
    target = soft_target(soft, config, batch, z_next)
    q = soft.critic(z, batch.action)
    loss = td_loss(q, target)
    step_critic(soft, loss)
    if move_target:
        polyak(soft.target, soft.critic, config.tau)
    metrics = {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}
    if move_actor:
        more, entropy = step_actor(soft, z, penalty)
        usual = config.entropy_per_action * batch.action.shape[-1]
        step_temperature(soft, entropy, usual if wanted is None else wanted)
        metrics |= more
    return metrics


def joined(fresh: Transitions, offline: Transitions | None) -> Transitions:
    """Both batches as one, along the batch axis."""
    return fresh if offline is None else Transitions.cat([fresh, offline], 1)


def actor_due(learner: Learner) -> bool:
    """Whether the next update is one in `actor_every` that moves the actor."""
    config = learner.config
    assert isinstance(config, SACConfig)
    return (learner.step + 1) % config.actor_every == 0


def online_plan(config: SACConfig, offline_share: float = 0.0) -> OnlinePlan:
    return OnlinePlan(
        horizon=config.horizon,
        updates=config.updates,
        warmup=config.warmup,
        capacity=config.capacity,
        offline_share=offline_share,
    )


class SAC(Learner):
    """Soft actor-critic from scratch, online; with a dataset it is trained on that first, without any care."""

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: SACConfig

    def build(self) -> None:
        self.soft = build(self, self.config)

    def new_normalizer(self) -> Normalizer:
        """Raw observations as long as there is no data; a clip at ten would cut joint velocities."""
        return Normalizer(self.obs_dim, clip=1e6)

    def plan(self) -> OnlinePlan:
        return online_plan(self.config)

    def graph_key(self, online: bool = False) -> bool:
        return actor_due(self)

    def update_offline(self, batch: Transitions) -> Metrics:
        moves = actor_due(self)
        self.step += 1
        return update(self.soft, self.config, batch, moves)

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        return self.update_offline(joined(fresh, offline))
