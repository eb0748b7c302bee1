"""Model-based policy optimisation: soft actor-critic on real data and on short rollouts in learned dynamics."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynamics.fit import member_errors
from dynamics.imagine import imagine
from dynamics.losses import (
    LOSSES,
    GradientTable,
    Loss,
    VaGraM,
    ValueDifference,
    ValueFn,
    normalised_mse,
    value_gradient,
)
from dynamics.stacked import EnsembleStack
from policies.critics import CriticConfig, StackedQ
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions, row_width
from robot_cl.learners import sac
from robot_cl.learners.base import Learner, Metrics, OnlinePlan
from robot_cl.learners.ends import EndModel
from robot_cl.learners.model_config import ModelConfig, ModelLoss, Ramp
from robot_cl.learners.moorl import first
from robot_cl.learners.ranges import not_negative, share
from robot_cl.learners.real_data import RealData
from robot_cl.learners.replay import ReplayBuffer, draw
from robot_cl.learners.sac import SACConfig, joined
from robot_cl.learners.units import without


@dataclass
class MBPOConfig(SACConfig):
    """Options of MBPO. configs/learner/mbpo_*.yaml have the published schedules."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(layer_norm=True))  # shape of each critic
    model: ModelConfig = field(default_factory=ModelConfig)  # dynamics, their loss, and imagination
    share: Ramp = field(default_factory=lambda: Ramp(0.05, 0.05))  # online: imagined part of each batch; 0 is SAC
    offline_imagined: float = 0.5  # offline: imagined part of each batch
    penalty: float = 1.0  # offline: reward deviations taken per deviation the elites disagree by
    cloning: float = 1.0  # offline: weight of the squared distance to the data's actions; 0: none
    offline_share: float = 0.5  # online, with a dataset: its part of the real data
    warmup: int = 1000  # online: environment steps before the first update

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "offline_imagined", "offline_share")
        if not all(0.0 <= x < 1.0 for x in (self.share.begin, self.share.end)):
            raise ValueError(f"share goes from {self.share.begin} to {self.share.end}; expected 0 to below 1")
        not_negative(self, "penalty", "cloning")


class MBPO(Learner):
    """Janner et al. 2019, "When to Trust Your Model", with the losses of Voelcker et al. 2022 (VaGraM).

    Every `model.every` environment steps: fit the ensemble to the real data, imagine short rollouts of the policy from
    states of it; every update: soft actor-critic on a batch of which `share` was imagined. Offline, where nobody
    corrects what is wrong, imagined rewards are lowered by the elites' disagreement (Yu et al. 2020, MOPO) and the
    actor is kept near the data's actions.
    Remembers, beside what all learners do, the imagined transitions (a ring in `extra`); the real ones are the run's.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: MBPOConfig

    def build(self) -> None:
        m = self.config.model
        self.data: Transitions | None = None
        self.replay: ReplayBuffer | None = None
        self.soft = sac.build(self, self.config)
        self.model = self.add("model", EnsembleStack(self.obs_dim, self.act_dim, m.ensemble, self.rng))
        self.ends = self.add("ends", EndModel(self.obs_dim, self.rng, self.actor.normalizer))
        self.ends.log_odds = torch.full((self.seeds, 1), -torch.inf, device=self.device)
        for name, rate in (("model", m.lr), ("ends", 1e-3)):
            self.opts[name] = self.optimiser([self.nets[name]], rate)
        width = row_width(self.obs_dim, self.act_dim)
        self.extra["imagined"] = torch.zeros(self.seeds, m.keep, width, device=self.device)
        self.extra |= {name: torch.zeros((), dtype=torch.int64) for name in ("total", "online", "fits")}

    def new_normalizer(self) -> Normalizer:
        """Statistics of each seed's own first data, then frozen."""
        return Normalizer(self.obs_dim, population=self.seeds)

    def plan(self) -> OnlinePlan:
        return sac.online_plan(self.config, self.config.offline_share)

    def attach_data(self, data: Transitions) -> None:
        self.data = data

    def attach_replay(self, buffer: ReplayBuffer) -> None:
        self.replay = buffer

    def prepare(self, data: Transitions) -> None:
        if not self.actor.normalizer.frozen:
            shared = self.actor.normalizer.population is None
            self.actor.normalizer.fit(data.obs if shared else data.obs.expand(self.seeds, *data.obs.shape))

    def adopt(self, state: dict[str, Tensor]) -> None:
        """How long it was online before does not count: schedules are in steps of this run."""
        super().adopt(without(state, "extra.online"))

    # -- the two parts ------------------------------------------------------------------------------------------------

    def update_offline(self, batch: Transitions) -> Metrics:
        c, more = self.config, {}
        if c.offline_imagined > 0.0 and self.step % c.model.every == 0:
            more = self.retrain(False, 0.0)
        self.step += 1
        more |= sac.update(self.soft, c, self.mixed(batch, None, c.offline_imagined), move_actor=False)
        return more | (self.stay_near(batch) if self.step % c.actor_every == 0 else {})

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        c, done, more = self.config, int(self.extra["online"]), {}
        step = c.warmup + done / c.updates
        if done == 0:
            self._begin_online(fresh)
        if max(c.share.begin, c.share.end) > 0.0 and done % max(1, round(c.model.every * c.updates)) == 0:
            more = self.retrain(True, step)
        self.extra["online"] += 1
        self.step += 1
        batch = self.mixed(fresh, offline, c.share(step))
        return more | sac.update(self.soft, c, batch, self.step % c.actor_every == 0)

    def _begin_online(self, fresh: Transitions) -> None:
        self.extra["total"].zero_()  # what an offline part imagined has its penalty in it
        if not self.actor.normalizer.frozen:
            seen = self.real(False, True).obs if self.replay is not None else fresh.obs
            self.actor.normalizer.fit(seen)

    def stay_near(self, real: Transitions) -> Metrics:
        """The offline actor's step: Q − α log π, scaled to size one, less the squared distance to the data's actions.

        Fujimoto & Gu 2021, equation 3: nobody corrects what is believed about actions that the data do not have.
        """
        c, soft = self.config, self.soft
        z = self.actor.normalizer(real.obs)
        action, log_prob = soft.sample(z)
        q = sac.ensemble_value(soft.critic(z, action))
        soft_q = q - soft.temperature().detach() * log_prob
        size = q.detach().abs().mean(-1, keepdim=True).clamp_min(1e-6)
        apart = (action - real.action).square().mean(-1)
        loss = (c.cloning * apart - soft_q / size).mean(-1)
        loss.sum().backward(inputs=soft.opts["actor"].parameters)
        soft.opts["actor"].step()
        entropy = -log_prob.detach().mean(-1)
        sac.step_temperature(soft, entropy, c.entropy_per_action * real.act_dim)
        return {"actor_loss": loss.detach(), "entropy": entropy, "cloning": apart.detach().mean(-1)}

    def mixed(self, fresh: Transitions, offline: Transitions | None, share: float) -> Transitions:
        """Both batches with the part `share` of their rows (P, B) replaced by imagined ones."""
        real, held = joined(fresh, offline), min(int(self.extra["total"]), self.config.model.keep)
        rows = real.reward.shape[1]
        imagined = round(share * rows) if held else 0
        if not imagined:
            return real
        new = round((rows - imagined) * fresh.reward.shape[1] / rows)
        parts = [first(fresh, new), *([first(offline, rows - imagined - new)] if offline is not None else [])]
        picked = take(self.extra["imagined"], draw(held, imagined, self.rng))
        return Transitions.cat([*parts, Transitions.unpack(picked, self.obs_dim, self.act_dim)], 1)

    # -- the model ----------------------------------------------------------------------------------------------------

    def retrain(self, online: bool, step: float) -> Metrics:
        """Fit the model to the real data from the weights and moments it has, choose elites, and imagine."""
        m, before = self.config.model, int(self.extra["fits"])
        train, held = self.real(False, online), self.real(True, online)
        rows = train.reward.shape[1]
        if not before or rows >= 2 * float(self.model.input_norm.count):
            self.model.measure(train.obs, train.action, train.reward, train.next_obs)
        self.model.measure_range(train.obs, train.reward, train.next_obs)
        loss, flat = self.loss_on(train), flattened(train)
        for index in self.bootstraps(rows, m.steps if before else m.first).to(train.obs.device):
            self.model_step(loss, flat, index)
        score, error = self.judge(held)
        self.model.choose_elites(score)
        self.fit_ends(train)
        clamped = self.imagine(train, step, 0.0 if online else self.config.penalty)
        self.extra["fits"] += 1
        best = self.model.first + self.model.elites
        return {"model_loss": score[best].mean(1), "model_error": error[best].mean(1), "clamped": clamped}

    def real(self, held: bool, online: bool) -> Transitions:
        """(P, n), see `RealData`. Raises ValueError if there are none."""
        fresh = self.replay if online else None
        return RealData(self.data, fresh, self.config.offline_share, self.config.model.rows).rows(held, self.rng)

    def bootstraps(self, rows: int, steps: int) -> Tensor:
        """(steps, P·E, batch) rows of the flattened data: every network from its own resampling of its seed's rows."""
        E, batch, index = self.model.each.members, self.config.model.batch, []
        for p, rng in enumerate(self.rng):
            own = torch.randint(rows, (E, rows), generator=rng)
            picks = torch.randint(rows, (E, steps * batch), generator=rng)
            index.append(p * rows + own.gather(1, picks).view(E, steps, batch))
        return torch.cat(index).transpose(0, 1)

    def model_step(self, loss: Loss, flat: Transitions, index: Tensor) -> None:
        loss(member_errors(self.model, flat, index)).sum().backward()
        opt = self.opts["model"]
        values: list[Tensor] = list(opt.parameters)
        torch._foreach_add_([p.grad for p in values if p.grad is not None], values, alpha=self.config.model.decay)
        opt.step()

    def judge(self, held: Transitions) -> tuple[Tensor, Tensor]:
        """Every network's loss and normalised squared error on held-out rows of its seed, (P·E,) each."""
        P, rows = held.reward.shape
        index = torch.arange(P * rows, device=held.obs.device).view(P, rows)
        with torch.no_grad():
            e = member_errors(self.model, flattened(held), index.repeat_interleave(self.model.each.members, 0))
        return self.loss_on(held)(e), normalised_mse(e)

    def loss_on(self, rows: Transitions) -> Loss:
        """The loss for data made of these rows (P, n), flattened, with the critics as they are now."""
        m = self.config.model
        plain = self.step < m.plain
        if m.loss is ModelLoss.vagram:
            return VaGraM(GradientTable(self.value_gradients(rows.next_obs)), floor=m.floor, plain=plain)
        if m.loss is ModelLoss.value_difference:
            difference = ValueDifference(self.value_fns())
            return (lambda e: difference(e) + normalised_mse(e)) if plain else difference
        return LOSSES[m.loss]

    def value_fns(self) -> list[ValueFn]:
        """V(x) = Q(x, μ(x)) of every critic and target, on raw states (P·n, obs_dim), one seed after the other."""

        def value(critic: StackedQ, twin: int, x: Tensor) -> Tensor:
            x = x.view(self.seeds, -1, self.obs_dim)
            return critic(self.actor.normalizer(x), self.actor.mode(x).detach())[:, twin].flatten()

        nets = (self.soft.critic, self.soft.target)
        return [partial(value, critic, twin) for critic in nets for twin in range(critic.twins)]

    def value_gradients(self, states: Tensor, chunk: int = 4096) -> Tensor:
        """∂V_c/∂x at states (P, n, obs_dim) for each critic c, (C, P·n, obs_dim)."""
        parts = [
            torch.stack([value_gradient(fn, part.reshape(-1, self.obs_dim))[1] for fn in self.value_fns()])
            for part in states.split(chunk, 1)
        ]
        return torch.cat([part.unflatten(1, (self.seeds, -1)) for part in parts], 2).flatten(1, 2)

    def fit_ends(self, rows: Transitions, half: int = 64) -> None:
        """Logistic regression of `terminated` on the next state, batches half of ends; the odds are put back after."""
        ended = rows.terminated > 0.0
        count = ended.sum(1, keepdim=True).float()
        self.ends.log_odds.copy_((count / (rows.reward.shape[1] - count)).log())
        both, adam = (count > 0) & (count < rows.reward.shape[1]), self.opts["ends"].state
        if not both.any() and not adam["exp_avg"].any():
            adam["step"] += self.config.model.end_steps  # as beside members that have ends, where it moves nothing
            return
        order = torch.argsort(ended.float(), dim=1, descending=True, stable=True)  # ends first
        label = torch.cat([torch.ones(half), torch.zeros(half)]).to(rows.obs).expand(self.seeds, -1)
        for _ in range(self.config.model.end_steps):
            drawn = zip(count, self.rng, strict=True)
            place = torch.stack([_end_places(int(n), rows.reward.shape[1], half, g) for n, g in drawn])
            index = order.gather(1, place.to(order.device))
            logit = self.ends.logit(take(rows.next_obs, index))
            wrong = nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="none").mean(1)
            (wrong * both[:, 0]).sum().backward()
            self.opts["ends"].step()

    # -- imagination --------------------------------------------------------------------------------------------------

    def imagine(self, rows: Transitions, step: float, penalty: float) -> Tensor:
        """Fill the ring from rollouts that start at states of `rows` (P, n). Returns the share brought back, (P,)."""
        m, P = self.config.model, self.seeds
        horizon = int(m.horizon(step))
        count = max(1, min(round(m.rollouts * m.every), m.keep // horizon))
        start = take(rows.obs, draw(rows.reward.shape[1], count, self.rng).to(rows.obs.device))
        got = imagine(
            self.model,
            lambda obs: self.soft.sample(self.actor.normalizer(obs))[0],
            start,
            horizon,
            self.rng,
            ends=lambda obs, action, after: self.ends(after),
            margin=m.margin,
            sample=m.loss is ModelLoss.nll,
        )
        reward = got.reward
        if penalty:
            apart = torch.stack([self.model.disagreement(o, a) for o, a in zip(got.obs, got.action, strict=True)])
            reward = reward - penalty * apart * self.model.reward_scale.view(P, -1)[:, :1]
        none = torch.zeros_like(reward)
        made = Transitions(got.obs, got.action, reward, got.next_obs, got.terminated.float(), none).pack()
        made, alive = made.transpose(0, 1).flatten(1, 2), got.alive.transpose(0, 1).flatten(1)
        # Rollouts that ended leave gaps, which rows of the living fill: every seed has equally many.
        living = [torch.nonzero(a)[:, 0] for a in alive]
        index = torch.stack([rows[torch.arange(made.shape[1], device=rows.device) % len(rows)] for rows in living])
        self._remember(take(made, index))
        return got.clamped

    def _remember(self, rows: Tensor) -> None:
        total, keep = int(self.extra["total"]), self.config.model.keep
        place = (total + torch.arange(rows.shape[1], device=rows.device)) % keep
        self.extra["imagined"][:, place] = rows
        self.extra["total"] += rows.shape[1]


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Member by member: rows (P, N, width), index (P, n) -> (P, n, width)."""
    return rows.gather(1, index.to(rows.device).unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def flattened(rows: Transitions) -> Transitions:
    """(P, n) as (P·n,), one seed after the other."""
    return Transitions.unpack(rows.pack().flatten(0, 1), rows.obs_dim, rows.act_dim)


def _end_places(ends: int, rows: int, half: int, rng: torch.Generator) -> Tensor:
    """(2·half,) places in an order that has the ends first: half of them ends, if there are any of both."""
    if not 0 < ends < rows:
        return torch.zeros(2 * half, dtype=torch.int64)
    lots = ((0, ends), (ends, rows))
    return torch.cat([torch.randint(low, high, (half,), generator=rng) for low, high in lots])
