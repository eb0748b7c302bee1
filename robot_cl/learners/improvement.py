"""Phase 4 of Uni-O4, one step: what the clipped objective is made of, from the data or from imagination.

A source begins once values, clones and the gate's models are there, and then gives losses. How far its policies may go
is the gate's reach times the trust that it has in its own advantages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from robot_cl.batch import Transitions
from robot_cl.learners.deviations import DeviationAdvantage, blocks, deviation, sameness, trajectory_advantages
from robot_cl.learners.evidence import realised, trust
from robot_cl.learners.imagined import Imagination
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.returns import episode_returns
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

    def step(self) -> None:
        """The optimisers of its own, after the policies'."""
        ...


def source_of(learner: UniO4) -> Source:
    imagined = learner.config.advantage is Advantage.imagined
    return FromImagination(learner) if imagined else FromData(learner)


# -- read off the data ------------------------------------------------------------------------------------------------


class FromData:
    """Advantages along the data's trajectories, linear in the deviation from the clone; or min Q − V, as published."""

    def __init__(self, learner: UniO4):
        self.learner, c = learner, learner.config
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

    def eager(self, done: int) -> bool:
        return False

    def loss(self, batch: Transitions, done: int) -> tuple[Tensor, Tensor]:
        """a ~ π_old, the accepted policy, at states of the data."""
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
        """z (P, B, obs_dim), action (P·n, B, act_dim) -> (P, n, B), by trajectories or as min Q(s, a) − V(s)."""
        me, n = self.learner, self.learner.config.behaviours
        if me.config.advantage is Advantage.trajectories:
            many = me.policies.spread(z)
            return self.slopes(many, deviation(action, *me.clones.heads(many))).view(me.seeds, n, -1)
        q = me.q(z.repeat(1, n, 1), me.policies.gathered(action.clamp(-1.0, 1.0))).amin(1)
        return q.view(me.seeds, n, -1) - me.v(z).unsqueeze(1)

    def step(self) -> None:
        """Nothing: what was learned of the data stays."""


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
