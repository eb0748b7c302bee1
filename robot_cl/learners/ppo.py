"""Proximal policy optimisation on many worlds, from scratch or from an offline policy and its values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from policies.actor import HALF_LOG_TWO_PI, ActorConfig, Distribution, StackedGaussianActor
from policies.critics import CriticConfig, StackedV
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.learners.averaging import PolicyAverage
from robot_cl.learners.base import Learner, LearnerConfig, Metrics, OnlinePlan
from robot_cl.learners.incumbent import Incumbent, IncumbentConfig
from robot_cl.learners.ranges import not_negative, positive
from robot_cl.learners.units import with_its_unit

HALVINGS = 10  # after an epoch, at most
MAX_LOG_RATIO = 20.0  # in nats; beyond it a narrow policy's ratio overflows, and there is nothing to learn from


def _actor() -> ActorConfig:
    return ActorConfig(hidden=(64, 64), activation="tanh", squash_mean=False, init="orthogonal")


def _critic() -> CriticConfig:
    return CriticConfig(hidden=(64, 64), activation="tanh", init="orthogonal")


@dataclass
class PPOConfig(LearnerConfig):
    """Options of PPO. For a policy from offline learning: clip 0.05, lr 3e-5, critic_lr 2e-4, value_warmup 5."""

    actor: ActorConfig = field(default_factory=_actor)  # shape of the policy; ignored when one is loaded
    critic: CriticConfig = field(default_factory=_critic)  # shape of V; ignored when one is loaded
    horizon: int = 64  # control steps per world and rollout
    minibatch: int = 512  # transitions per gradient step and seed
    epochs: int = 10  # passes over each rollout
    clip: float = 0.2  # of the probability ratio
    discount: float = 0.99  # per control step
    gae: float = 0.95  # lambda of generalised advantage estimation
    entropy: float = 0.0  # weight of the entropy bonus
    lr: float = 1e-3  # Adam's learning rate of the policy
    critic_lr: float = 1e-3  # Adam's learning rate of V
    max_grad_norm: float = 0.5  # largest gradient norm per network and member
    max_kl: float | None = None  # nats from the policy that acted, at most, after every epoch; none: what the clip lets
    decay: int = 0  # rollouts over which both learning rates fall linearly to zero, 0: constant
    value_warmup: int = 0  # first rollouts that train V alone, so that a loaded policy is not spoilt by wrong values
    least_log_std: float | None = None  # smallest log σ after the first rollout; a clone may be too sure to explore
    scale_reward: bool = True  # divide rewards by the running deviation of the discounted return
    average: float = 0.0  # weight of the past in the exponential average of policies, per rollout, that is published
    incumbent: IncumbentConfig = field(default_factory=IncumbentConfig)  # what is published, from a good policy on

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "horizon", "minibatch", "epochs", "clip", "lr", "critic_lr", "max_grad_norm")
        not_negative(self, "decay", "value_warmup")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(f"max_kl is {self.max_kl}; expected a positive number of nats, e.g. 0.01, or none")
        for name in ("discount", "gae", "average"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number between 0 and 1")


class PPO(Learner):
    """Schulman et al. 2017, "Proximal Policy Optimization Algorithms", with generalised advantage estimation (2016).

    A rollout carries raw observations and the unclipped actions. Log-probabilities and values are computed once over
    the whole rollout, with the statistics it was collected under; time limits are bootstrapped from the last
    observation, terminations are not. Observation statistics move on after the update, and not at all for a loaded
    policy. Values are in units of the scaled reward.
    """

    phases: ClassVar[tuple[str, ...]] = ("online",)
    apart: ClassVar[tuple[str, ...]] = ("offline", "online")
    folds_biases: ClassVar[bool] = True
    config: PPOConfig

    def build(self) -> None:
        c = self.config
        if self.actor.config.distribution is not Distribution.gaussian:
            raise ValueError("ppo needs a policy with actor.distribution=gaussian, this one is a tanh_gaussian")
        self.v = self.add("v", StackedV(self.obs_dim, self.rng, c.critic))
        self.opts["actor"] = self.optimiser([self.actor], c.lr, c.max_grad_norm)
        self.opts["critic"] = self.optimiser([self.v], c.critic_lr, c.max_grad_norm)
        # Of the discounted return: its running value per world (set at the first rollout), moments and count.
        self.extra["return_moments"] = torch.zeros(3, self.seeds, dtype=torch.float64)
        self.extra["reward_scale"] = torch.zeros(())  # of a loaded V; zero: follow the running deviation
        self._minibatch: Tensor | None = None
        self.average = PolicyAverage(self, c.average) if c.average else None
        if c.incumbent.trials:
            self.incumbent = Incumbent(self, c.incumbent, lambda: self.candidates)

    @property
    def candidates(self) -> tuple[StackedGaussianActor, ...]:
        return (self.actor,) if self.average is None or not self.rollouts else (self.average.policy, self.actor)

    def new_normalizer(self) -> Normalizer:
        return Normalizer(self.obs_dim, population=self.seeds)

    def plan(self) -> OnlinePlan:
        return OnlinePlan(self.config.horizon, on_policy=True, num_worlds=64)

    def adopt(self, state: dict[str, Tensor]) -> None:
        super().adopt(with_its_unit(state, "v"))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self.rollouts:
            self._widen()  # a policy on disk has the bounds of σ that the published one had

    @property
    def rollouts(self) -> int:
        """Online updates so far; a learner with an offline part before this one counts them apart from `step`."""
        return self.step

    def prepare(self, data: Transitions) -> None:
        """Nothing: a new policy's statistics come from its own rollouts, a loaded one keeps its own."""

    @torch.inference_mode()
    def explore(self, obs: Tensor, noise: Tensor, actor: StackedGaussianActor | None = None) -> Tensor:
        """The sample as drawn: the world clips it, the ratio needs it unclipped."""
        actor = actor or self.actor
        actor.config = self.actor.config
        mean, log_std = actor(obs)
        return self.tried(obs, actor.sample(mean, log_std, noise)[0])

    def update_online(self, fresh: Transitions, offline: Transitions | None = None) -> Metrics:
        """One rollout (P, T, W)."""
        fresh = (fresh if self.incumbent is None else self.incumbent.learned_from(fresh)).to(self.device)
        norm = self.actor.normalizer
        if not norm.frozen and not norm.count.item():
            norm.update(fresh.obs)  # the first policy hardly looks at its input; there is nothing else to start from
        if self.average is not None and not self.rollouts:
            self.average.begin()
        rows = self.prepare_rollout(fresh)
        self._set_lr()
        metrics = self._improve(rows)
        if not norm.frozen:
            norm.update(fresh.obs)
        self._widen()
        if self.average is not None:
            self.average.follow()
        self.see(fresh.obs.flatten(1, 2))
        self.step += 1
        return metrics

    def _widen(self) -> None:
        """Only now, so that the likelihoods of the first rollout are those of the policy that acted."""
        least, config = self.config.least_log_std, self.actor.config
        if least is not None and config.log_std_min < least:
            self.actor.config = replace(config, log_std_min=least)

    @torch.no_grad()
    def prepare_rollout(self, fresh: Transitions) -> Tensor:
        """[z | action | log π_old(a) | advantage | return] (P, T·W, ·), advantages standardised per member."""
        P, (T, W) = self.seeds, fresh.reward.shape[1:]
        z = self.actor.normalizer(fresh.obs.reshape(P, T * W, -1))
        action = fresh.action.reshape(P, T * W, -1)
        log_prob = self.actor.log_prob(*self.actor.heads(z), action)
        next_value = self.v(self.actor.normalizer(fresh.next_obs.reshape(P, T * W, -1))).view(P, T, W)
        value = self.v(z).view(P, T, W)
        ended = torch.maximum(fresh.terminated, fresh.truncated)
        reward = fresh.reward * self._reward_scale(fresh.reward, ended)
        c = self.config
        advantage = gae(reward, value, next_value, fresh.terminated, ended, c.discount, c.gae)
        target = (advantage + value).reshape(P, -1, 1)
        flat = advantage.reshape(P, -1, 1)
        spread = flat.std(1, keepdim=True) if flat.shape[1] > 1 else torch.zeros_like(flat)  # one row tells nothing
        flat = (flat - flat.mean(1, keepdim=True)) / (spread + 1e-8)
        return torch.cat([z, action, log_prob.unsqueeze(-1), flat, target], -1)

    def policy_loss(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """−E min(ρ A, clip(ρ, 1 ± ε) A) (P,), and the ratio ρ (P, B)."""
        ratio = (log_prob - old_log_prob).clamp(max=MAX_LOG_RATIO).exp()
        clipped = ratio.clamp(1.0 - self.config.clip, 1.0 + self.config.clip)
        return -torch.minimum(ratio * advantage, clipped * advantage).mean(-1), ratio

    def _improve(self, rows: Tensor) -> Metrics:
        c, metrics = self.config, {}
        before = [p.detach().clone() for p in self.opts["actor"].parameters] if c.max_kl is not None else []
        for _ in range(c.epochs):
            for batch in self._shuffled(rows).split(c.minibatch, dim=1):
                metrics = self._captured_step(batch) if self.captured.fixed else self._gradient_step(batch)
            if c.max_kl is not None and "ratio" in metrics:
                metrics["taken"] = self._shorten(rows, before, c.max_kl)
        ratio = metrics.pop("ratio", None)  # those reported are of the last minibatch, where the policy has moved most
        if ratio is not None:
            metrics["clipped"] = ((ratio - 1.0).abs() > c.clip).float().mean(-1)
            metrics["kl"] = (ratio - 1.0 - ratio.log()).mean(-1)
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def _shorten(self, rows: Tensor, before: list[Tensor], most: float) -> Tensor:
        """Halve what each member has moved until it is within `most` nats of the policy that acted; shares (P,).

        Clipping alone bounds no policy: a ratio that is beyond the clip is left there, wherever that is.
        """
        parameters = self.opts["actor"].parameters
        steps = [p - old for p, old in zip(parameters, before, strict=True)]
        share = torch.ones(self.seeds, device=self.device)
        z, action, tail = rows.split([self.obs_dim, self.act_dim, 3], -1)
        for _ in range(HALVINGS):
            log_ratio = self.actor.log_prob(*self.actor.heads(z), action) - tail[..., 0]
            beyond = (log_ratio.exp() - 1.0 - log_ratio).mean(-1) > most
            if not beyond.any():
                break
            share = torch.where(beyond, 0.5 * share, share)
            for p, old, step in zip(parameters, before, steps, strict=True):
                p.copy_(old + (step.view(self.seeds, -1) * share.view(-1, 1)).view_as(step))
        return share

    def _captured_step(self, batch: Tensor) -> Metrics:
        """`_gradient_step` on a copy of the batch at a fixed address."""
        c, rows = self.config, batch.shape[1]
        if self._minibatch is None:
            self._minibatch = batch.new_empty(self.seeds, c.minibatch, batch.shape[2])
        held = self._minibatch[:, :rows]
        held.copy_(batch)
        key = "minibatch", rows, self.rollouts < c.value_warmup, self.actor.config.log_std_min
        found = self.captured(key, lambda: {k: v.detach() for k, v in self._gradient_step(held).items()})
        return dict(found)  # a graph hands out the same dict every time

    def _gradient_step(self, batch: Tensor) -> Metrics:
        z, action, tail = batch.split([self.obs_dim, self.act_dim, 3], -1)
        old_log_prob, advantage, target = tail.unbind(-1)
        value_loss = (self.v(z) - target).square().mean(-1)
        metrics = {"value_loss": value_loss}
        if self.rollouts < self.config.value_warmup:
            value_loss.sum().backward()
        else:
            mean, log_std = self.actor.heads(z)
            log_prob = self.actor.log_prob(mean, log_std, action)
            policy_loss, ratio = self.policy_loss(log_prob, old_log_prob, advantage)
            entropy = (log_std + HALF_LOG_TWO_PI + 0.5).sum(-1).mean(-1)
            loss = policy_loss + value_loss - self.config.entropy * entropy
            loss.sum().backward()
            self.opts["actor"].step()
            metrics |= {"policy_loss": policy_loss, "entropy": entropy, "ratio": ratio}
        self.opts["critic"].step()
        return metrics

    def _shuffled(self, rows: Tensor) -> Tensor:
        """Rows in a random order of its own for every member."""
        P, n, width = rows.shape
        index = torch.stack([torch.randperm(n, generator=g) + p * n for p, g in enumerate(self.rng)])
        return rows.view(P * n, width).index_select(0, index.view(-1).to(rows.device)).view(P, n, width)

    def _set_lr(self) -> None:
        c = self.config
        if c.decay:
            left = max(0.0, 1.0 - self.rollouts / c.decay)
            self.opts["actor"].lr, self.opts["critic"].lr = c.lr * left, c.critic_lr * left

    def _reward_scale(self, reward: Tensor, ended: Tensor) -> Tensor:
        """1 / deviation of the discounted return so far (P, 1, 1), this rollout (P, T, W) included."""
        if self.extra["reward_scale"] or not self.config.scale_reward:
            return self.extra["reward_scale"] if self.extra["reward_scale"] else torch.ones((), device=self.device)
        if "discounted" not in self.extra:
            self.extra["discounted"] = torch.zeros_like(reward[:, 0])
        running = discounted_returns(self.extra["discounted"], reward, ended, self.config.discount)
        self.extra["discounted"] = running[:, -1] * (1.0 - ended[:, -1])
        flat = running.flatten(1).double().cpu()
        self.extra["return_moments"] += torch.stack(
            [torch.full((self.seeds,), float(flat.shape[1])), flat.sum(1), flat.square().sum(1)]
        )
        n, total, squares = self.extra["return_moments"]
        var = squares / n - (total / n) ** 2
        return torch.rsqrt(var + 1e-8).float().view(-1, 1, 1).to(self.device)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discount: float,
    lam: float,
) -> Tensor:
    """Advantages (P, T, W) by generalised advantage estimation, eq. 16 of Schulman et al. 2016.

    All inputs (P, T, W), time on axis 1. `next_value` is V of the step's own next observation, which at a time limit is
    the last one of its episode: there the value is bootstrapped and the trace is cut; at `terminated` both end.
    """
    delta = reward + discount * (1.0 - terminated) * next_value - value
    carry = discount * lam * (1.0 - ended)
    advantage, running = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = torch.addcmul(delta[:, t], carry[:, t], running)
        advantage[:, t] = running
    return advantage


def discounted_returns(start: Tensor, reward: Tensor, ended: Tensor, discount: float) -> Tensor:
    """R_t = r_t + γ R_{t−1}, restarted after an end: start (P, W), others (P, T, W) -> (P, T, W)."""
    out, running = torch.empty_like(reward), start
    for t in range(reward.shape[1]):
        running = reward[:, t] + discount * running
        out[:, t] = running
        running = running * (1.0 - ended[:, t])
    return out
