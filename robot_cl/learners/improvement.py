"""Phase 4 of Uni-O4, one step: what the clipped objective is made of, from the data or from imagination.

A source begins once values, clones and the gate's models are there, and then gives losses. How far its policies may go
is the gate's reach times the trust that it has in its own advantages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from policies.critics import polyak
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.deviations import DeviationAdvantage, blocks, deviation, sameness, trajectory_advantages
from robot_cl.learners.evaluation import Evaluation
from robot_cl.learners.evidence import realised, trust
from robot_cl.learners.imagined import Imagination
from robot_cl.learners.optim import FlatAdam, cosine
from robot_cl.learners.returns import episode_returns, fit_returns
from robot_cl.learners.uni_o4_config import Advantage

if TYPE_CHECKING:
    from robot_cl.learners.uni_o4 import UniO4

# Weight of what a candidate's squared distance from its clone has above that of 0.8 of its reach; a heuristic.
HOLD, INSIDE = 10.0, 0.8
ROWS = 20_000  # of the data at a time, where all of it is looked at


class Source(Protocol):
    """Where advantages come from."""

    def begin(self, data: Transitions) -> Tensor:
        """Learn of the data (N,) what advantages take. Returns the trust in them, (P, n)."""
        ...

    def eager(self, done: int) -> bool:
        """Whether the gradient step after `done` ones does more than that, and is not to be captured."""
        ...

    def loss(self, batch: Transitions, done: int) -> tuple[Tensor, Tensor]:
        """What P·n policies minimise (P·n,), and how far (P·n,) they are beyond their reach; batch (P, B)."""
        ...

    def schedule(self, done: int) -> None:
        """Learning rates of its own, before the gradient step after `done` ones."""
        ...

    def step(self) -> None:
        """The optimisers of its own, after the policies'."""
        ...


def source_of(learner: UniO4) -> Source:
    kinds: dict[Advantage, Callable[[UniO4], Source]]
    kinds = {Advantage.imagined: FromImagination, Advantage.evaluated: FromEvaluation}
    return kinds.get(learner.config.advantage, FromData)(learner)


# -- at states of the data --------------------------------------------------------------------------------------------


class AtData:
    """The clipped objective at states of the data, for actions that the accepted policy would take there."""

    def __init__(self, learner: UniO4):
        self.learner = learner

    def loss(self, batch: Transitions, done: int) -> tuple[Tensor, Tensor]:
        """a ~ π_old, the accepted policy."""
        me = self.learner
        z = me.actor.normalizer(batch.obs)
        with torch.no_grad():
            many = me.policies.spread(z)
            old_mean, old_log_std = me.accepted.heads(many)
            noise = me.noise(me.config.behaviours, z.shape[1], me.act_dim).flatten(0, 1)
            action, old_log_prob = me.accepted.sample(old_mean, old_log_std, noise)
            advantage = self.advantage(z, action).flatten(0, 1)
        mean, log_std = me.members.heads(many)
        loss = me.credited(me.members.log_prob(mean, log_std, action) - old_log_prob, advantage)
        beyond = me.policies.distance(many, mean) - (INSIDE * me.gate.reach.view(-1, 1)).square()
        return loss, beyond.clamp(min=0.0).mean(-1)  # state by state: rare ones count most

    def advantage(self, z: Tensor, action: Tensor) -> Tensor:
        """z (P, B, obs_dim), action (P·n, B, act_dim) -> (P, n, B)."""
        raise NotImplementedError

    def eager(self, done: int) -> bool:
        return False

    def schedule(self, done: int) -> None:
        """Nothing: what was learned of the data stays."""

    def step(self) -> None:
        """Nothing, as above."""


class FromData(AtData):
    """Advantages along the data's trajectories, linear in the deviation from the clone; or min Q − V, as published."""

    def __init__(self, learner: UniO4):
        super().__init__(learner)
        c = learner.config
        shape = (learner.obs_dim, learner.act_dim, learner.each(), c.critic.hidden, c.folds)
        self.slopes = learner.add("slopes", DeviationAdvantage(*shape))

    def begin(self, data: Transitions, steps: int | None = None) -> Tensor:
        """The trust is how far the data bears them out where they have not been fitted."""
        me, c, n = self.learner, self.learner.config, self.learner.config.behaviours
        steps = c.advantage_steps if steps is None else steps
        scaled = replace(data, reward=data.reward * me.extra["reward_scale"])
        z, value, after, deviations, claimed = self._looked_at(data)
        found = realised(scaled, value, after, c.discount).repeat_interleave(n, 0)
        if c.advantage is Advantage.values:
            return trust(claimed.repeat_interleave(n, 0), found).view(-1, n)
        advantage = trajectory_advantages(scaled, value, after, c.discount, c.trace).repeat_interleave(n, 0)
        fold = blocks(len(data), c.folds, z.device)
        self.slopes.fit(z, deviations, advantage, fold, me.each(), steps)
        shares = self.slopes.borne_out(z, deviations, found, fold, ROWS)
        return (shares * sameness(deviations, episode_returns(data)[1])).view(-1, n)

    @torch.no_grad()
    def _looked_at(self, data: Transitions) -> tuple[Tensor, ...]:
        """Of all rows z (N, ·), V and V of what followed (P, N), deviations from the clones (P·n, N, ·), and min Q of
        the action less that of the clones' mean (P, N)."""
        me, n, parts = self.learner, self.learner.config.behaviours, []
        for part in data.pack().split(ROWS):
            rows = Transitions.unpack(part, me.obs_dim, me.act_dim)
            z = me.actor.normalizer(rows.obs)
            many = z.expand(me.seeds, -1, -1)
            mean, log_std = me.clones.heads(me.policies.spread(many))
            middle = mean.view(me.seeds, n, -1, me.act_dim).mean(1).clamp(-1.0, 1.0)
            taken, cloned = (me.q(many, a).amin(1) for a in (rows.action.expand_as(middle), middle))
            after = me.v(me.actor.normalizer(rows.next_obs).expand(me.seeds, -1, -1))
            parts.append((z, me.v(many), after, deviation(rows.action, mean, log_std), taken - cloned))
        z, value, after, deviations, claimed = zip(*parts, strict=True)
        return torch.cat(z), torch.cat(value, 1), torch.cat(after, 1), torch.cat(deviations, 1), torch.cat(claimed, 1)

    def advantage(self, z: Tensor, action: Tensor) -> Tensor:
        """z (P, B, obs_dim), action (P·n, B, act_dim) -> (P, n, B), by trajectories or as min Q(s, a) − V(s)."""
        me, n = self.learner, self.learner.config.behaviours
        if me.config.advantage is Advantage.trajectories:
            many = me.policies.spread(z)
            return self.slopes(many, deviation(action, *me.clones.heads(many))).view(me.seeds, n, -1)
        q = me.q(z.repeat(1, n, 1), me.policies.gathered(action.clamp(-1.0, 1.0))).amin(1)
        return q.view(me.seeds, n, -1) - me.v(z).unsqueeze(1)


# -- imagined ---------------------------------------------------------------------------------------------------------


class FromImagination:
    """Advantages of the policy's own rollouts in models that the gate does not judge with.

    Keeps the last rollouts in `extra`, so that a run that is resumed goes on with them.
    """

    def __init__(self, learner: UniO4):
        self.learner, c = learner, learner.config
        sizes = (learner.obs_dim, learner.act_dim, learner.rng, c.behaviours)
        self.imagination = learner.add("imagination", Imagination(*sizes, c.imagined, c.dynamics, c.critic))
        members = learner.seeds * c.behaviours
        lr, clip = c.imagined.value_lr, c.max_grad_norm
        learner.opts["lack"] = FlatAdam(self.imagination.lack.parameters(), members, lr, clip)
        rows, width = c.imagined.horizon * c.imagined.rollouts, learner.obs_dim + learner.act_dim + 4
        learner.extra["imagined"] = torch.zeros(members, rows, width, device=learner.device)

    def begin(self, data: Transitions) -> Tensor:
        """Fits the models; nothing measures yet how far they may be trusted, but where."""
        me = self.learner
        self.imagination.fit(data, me.config.fit, me.rng)
        return torch.ones_like(me.gate.trust)

    def eager(self, done: int) -> bool:
        return done % self.learner.config.imagined.every == 0

    def schedule(self, done: int) -> None:
        """Nothing: the rate stays."""

    def loss(self, batch: Transitions, done: int) -> tuple[Tensor, Tensor]:
        """π_old is the policy whose rollouts these are."""
        me, c = self.learner, self.learner.config.imagined
        if self.eager(done):
            self.imagine()
        kept = me.extra["imagined"]
        index = me.draws.rows(kept[0], c.minibatch).repeat_interleave(me.config.behaviours, 0)
        rows = kept.gather(1, index.unsqueeze(-1).expand(-1, -1, kept.shape[-1]))
        z, action, told = (x.contiguous() for x in rows.split([me.obs_dim, me.act_dim, 4], -1))  # as products want it
        old_log_prob, advantage, target, room = told.unbind(-1)
        mean, log_std = me.members.heads(z)
        loss = me.credited(me.members.log_prob(mean, log_std, action) - old_log_prob, advantage)
        beyond = me.policies.distance(z, mean) - (INSIDE * me.gate.reach.view(-1, 1) * room).square()
        unit = self.imagination.unit.unsqueeze(1)
        wrong = (self.imagination.lack(z).squeeze(-1) - target / unit).square().mean(-1)
        return loss + wrong, beyond.clamp(min=0.0).mean(-1)

    def imagine(self) -> None:
        me = self.learner
        assert me.data is not None
        ends = me.gate.ends if bool(me.gate.ends.log_odds.isfinite()) else None
        scale, discount = me.extra["reward_scale"], me.config.discount
        how = (me.members, me.data, me.draws, me.state_value, scale, discount, ends)
        me.extra["imagined"].copy_(self.imagination.rollouts(*how))

    def step(self) -> None:
        self.learner.opts["lack"].step()


# -- evaluated --------------------------------------------------------------------------------------------------------


class FromEvaluation(AtData):
    """Advantages of the accepted policy itself, from critics that are fitted to it as it moves; see evaluation.py."""

    def __init__(self, learner: UniO4):
        super().__init__(learner)
        c, each = learner.config, learner.each()
        shape = (learner.obs_dim, learner.act_dim, each, c.evaluated, c.critic)
        self.critics = learner.add("evaluation", Evaluation(*shape))
        learner.opts["evaluation"] = FlatAdam(self.critics.q.parameters(), len(each), c.evaluated.lr)
        self._rows: Sampler | None = None

    def begin(self, data: Transitions) -> Tensor:
        """Critics begin at the data's returns and are then fitted to the clones.

        The trust is how far the data is of one behaviour: where several acted, a deviation says who acts from here on.
        """
        me, c = self.learner, self.learner.config
        opt, norm = me.opts["evaluation"], me.actor.normalizer
        scaled = replace(data, reward=data.reward * me.extra["reward_scale"])

        def value(batch: Transitions) -> Tensor:
            many = me.policies.spread(norm(batch.obs))
            return self.critics.q(many, me.policies.spread(batch.action)).unflatten(0, (me.seeds, -1))

        fit_returns(value, self.critics.q.net, opt, scaled, c.discount, me, c.returns_steps)
        polyak(self.critics.target, self.critics.q, 1.0)
        opt.lr = c.evaluated.lr
        self._rows = Sampler.over(data, me.rng, me.device)
        for _ in range(c.evaluated.before):
            self.evaluate()
        deviations = torch.cat([self._deviations(rows) for rows in data.pack().split(ROWS)], 1)
        return sameness(deviations, episode_returns(data)[1]).view(-1, c.behaviours)

    @torch.no_grad()
    def _deviations(self, packed: Tensor) -> Tensor:
        """Of packed rows from each policy's clone, (P·n, R, act_dim)."""
        me = self.learner
        rows = Transitions.unpack(packed, me.obs_dim, me.act_dim)
        z = me.actor.normalizer(rows.obs)
        return deviation(rows.action, *me.clones.heads(z.expand(len(me.each()), -1, -1)))

    def schedule(self, done: int) -> None:
        c = self.learner.config
        self.learner.opts["evaluation"].lr = cosine(c.evaluated.lr, done, c.improve_steps or 1)

    def loss(self, batch: Transitions, done: int) -> tuple[Tensor, Tensor]:
        for _ in range(self.learner.config.evaluated.updates):
            self.evaluate(batch.reward.shape[1])
        return super().loss(batch, done)

    def evaluate(self, rows: int = 256) -> None:
        """One update of the critics, on rows of their own."""
        me = self.learner
        sampler = self._sampler()
        batch = sampler.take(me.draws.rows(sampler, rows))
        z, after = (me.policies.spread(me.actor.normalizer(x)) for x in (batch.obs, batch.next_obs))
        with torch.no_grad():
            noise = me.noise(me.config.behaviours, rows, me.act_dim).flatten(0, 1)
            action = me.accepted.sample(*me.accepted.heads(after), noise)[0].clamp(-1.0, 1.0)
        scaled = replace(batch, reward=batch.reward * me.extra["reward_scale"])
        each = [me.policies.spread(x) for x in (scaled.action, scaled.reward, scaled.terminated)]
        self.critics.loss(z, each[0], each[1], each[2], after, action, me.config.discount).sum().backward()
        me.opts["evaluation"].step()
        self.critics.follow()

    def _sampler(self) -> Sampler:
        if self._rows is None:  # a run that was resumed
            assert self.learner.data is not None
            self._rows = Sampler.over(self.learner.data, self.learner.rng, self.learner.device)
        return self._rows

    def advantage(self, z: Tensor, action: Tensor) -> Tensor:
        """What the action brings beside the accepted policy's mean."""
        me = self.learner
        many = me.policies.spread(z)
        mean = me.accepted.heads(many)[0]
        brings, usual = (self.critics(many, a.clamp(-1.0, 1.0)) for a in (action, mean))
        return (brings - usual).view(me.seeds, me.config.behaviours, -1)
