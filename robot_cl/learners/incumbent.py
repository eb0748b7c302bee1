"""What is published online: a policy that stays until another one has surely earned more, in the same world."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions

if TYPE_CHECKING:
    from robot_cl.learners.base import Learner

Candidates = Callable[[], Sequence[StackedGaussianActor]]
WORLDS = 4  # of so many one is kept for trials; where there are fewer, trials and exploring take turns
LAST = 2  # episodes more than a trial needs before the end of a run, from which on exploring no longer comes first


class Role(IntEnum):
    """Who plays the present episode of a world, and who did before it was replaced."""

    explores = 0  # the learner, with its noise
    incumbent = 1
    challenger = 2
    predecessor = 3  # of the incumbent; it plays no more


class Counts(IntEnum):
    """Columns of what is counted for each seed."""

    rested = 0  # exploring episodes since the last trial
    trying = 1  # whether a challenger is on trial
    tried = 2  # challengers so far
    won = 3  # of these, that became the incumbent
    played = 4  # episodes without noise so far


@dataclass
class IncumbentConfig:
    """Options of what is published online; see `Incumbent`."""

    trials: int = 0  # episodes of a challenger before it can take over, at most twice as many; 0: the last is published
    rest: int = 3  # exploring episodes between two challengers, where a seed has one world
    deviations: float = 2.0  # standard errors by which a challenger must have earned more
    lost: float | None = None  # share of the incumbent's return; where a challenger surely earns so much less, learning
    # goes on from the incumbent; none: from wherever it has come to

    def __post_init__(self) -> None:
        if self.lost is not None and not 0.0 < self.lost <= 1.0:
            raise ValueError(f"incumbent.lost is {self.lost}; expected a share above 0 and up to 1, or none")
        if self.trials < 0 or self.trials == 1 or self.rest < 0 or self.deviations < 0.0:
            raise ValueError(
                f"incumbent.trials is {self.trials}, rest {self.rest} and deviations {self.deviations}; expected 0 or "
                "more, trials not 1: a single episode does not tell how much they vary"
            )


class Incumbent:
    """The policy that a run came online with, or the last one that surely earned more than its predecessor.

    A learner that goes on from a good policy may lose it, and what it has come to cannot be told from its values. So
    some of the training's own episodes are played without noise, by the incumbent and by a challenger: a copy of one of
    the learner's candidates, in turn, as it was at that time. A challenger is given up as soon as it has earned less in
    the mean, and takes over when it has earned more by `deviations` standard errors; that is safe policy improvement in
    the sense of Thomas et al. 2015, "High Confidence Policy Improvement", on policy and with a t-statistic. Neither
    changes meanwhile and the world does not either, so their records stay true. That with which a challenger took over
    is a lucky one, and a few episodes do not show a policy that falls now and then. So the incumbent plays on, once
    after every challenger, and where it comes to have earned less than its predecessor had, that one is back.

    With one world per seed episodes take turns, and before a run ends once more: what it has learned since its last
    trial would never be published. With several worlds the last ones are kept for this, and what is collected there
    is no experience of the learner's policy (`learned_from`). Policies are on the host, where worlds are stepped.
    Remembers the policies, who plays in each world, and the records, all in the learner, so that they are saved with
    it.
    """

    def __init__(self, learner: Learner, config: IncumbentConfig, candidates: Candidates):
        """`candidates` gives what could be published; the first one was, before anything was learned online."""
        self.learner, self.config, self.candidates = learner, config, candidates
        kept = [role for role in Role if role is not Role.explores]
        self.policies: dict[Role, StackedGaussianActor] = {role: self._copy(role.name) for role in kept}
        P, extra = learner.seeds, learner.extra
        extra["trial_roles"] = torch.zeros(P, 0, dtype=torch.int64)  # (P, W), no worlds before the first step
        records = torch.zeros(P, len(self.policies), 3, dtype=torch.float64)
        extra["trial_records"] = records  # of each: episodes, Σ return, Σ return²
        extra["trial_counts"] = torch.zeros(P, len(Counts), dtype=torch.int64)

    def _copy(self, name: str) -> StackedGaussianActor:
        """A policy beside the learner's, whatever device that is on, with statistics of its own."""
        policy = copy.deepcopy(self.learner.actor).cpu().requires_grad_(False)
        self.learner.nets[name] = policy
        return policy

    @property
    def roles(self) -> Tensor:
        return self.learner.extra["trial_roles"]

    @property
    def records(self) -> Tensor:
        return self.learner.extra["trial_records"]

    @property
    def begun(self) -> bool:
        return self.roles.shape[1] > 0

    @property
    def played(self) -> Tensor:
        """Episodes without noise so far, (P,): what was spent to choose what is published."""
        return self.learner.extra["trial_counts"][:, Counts.played]

    @property
    def taken_over(self) -> Tensor:
        """Challengers that became the incumbent, (P,)."""
        return self.learner.extra["trial_counts"][:, Counts.won]

    @property
    def published(self) -> StackedGaussianActor:
        policy, device = self.policies[Role.incumbent], self.learner.device
        return policy if torch.device(device).type == "cpu" else copy.deepcopy(policy).to(device)

    def begin_anew(self) -> None:
        """Forget the trials of a run that is continued."""
        P = self.learner.seeds
        self.learner.extra["trial_roles"] = torch.zeros(P, 0, dtype=torch.int64)
        self.records.zero_()
        self.learner.extra["trial_counts"].zero_()

    # Acting

    def kept(self, worlds: int) -> int:
        """Of so many worlds per seed, the number of those at the end in which nothing else happens."""
        return min(self.config.trials, worlds // WORLDS)

    def learned_from(self, fresh: Transitions) -> Transitions:
        """Of a rollout (P, T, W) the part that the learner's policy played."""
        worlds = fresh.reward.shape[2]
        rows = fresh.pack()[:, :, : worlds - self.kept(worlds)]
        return Transitions.unpack(rows, fresh.obs_dim, fresh.act_dim)

    def act(self, obs: Tensor, action: Tensor) -> Tensor:
        """`action` (P, W, act_dim) at obs (P, W, obs_dim), in worlds on trial replaced by what is tried there."""
        if not self.begun:
            self._begin(obs.shape[1])
        for role in (Role.incumbent, Role.challenger):
            here = self.roles == role
            if here.any():
                tried = self.policies[role].mode(obs.cpu()).to(action.device)
                action = torch.where(here.unsqueeze(-1).to(action.device), tried, action)
        return action

    def _begin(self, worlds: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for p in range(self.learner.seeds):
                self._take(Role.incumbent, p, self.candidates()[0])
            self.learner.extra["trial_roles"] = torch.zeros(self.learner.seeds, worlds, dtype=torch.int64)
            self.roles[:, worlds - (self.kept(worlds) or 1) :] = Role.incumbent

    # Judging

    def heard(self, ended: np.ndarray, returns: np.ndarray) -> None:
        """Episodes that are over (P, W) bool, and what they earned."""
        over = [(int(p), int(w)) for p, w in np.argwhere(ended)]
        with torch.no_grad():
            last = [self._over(p, w, float(returns[p, w])) for p, w in over]
            for (p, w), role in zip(over, last, strict=True):
                self.roles[p, w] = self._next(p, w, role)

    def _over(self, p: int, w: int, earned: float) -> Role:
        """Note an episode and judge by it; who played it."""
        role, counts = Role(int(self.roles[p, w])), self.learner.extra["trial_counts"][p]
        if role is Role.explores:
            counts[Counts.rested] += 1
        else:
            self.records[p, role - 1] += torch.tensor([1.0, earned, earned * earned], dtype=torch.float64)
            counts[Counts.played] += 1
        self.roles[p, w] = Role.explores  # not yet playing anything else
        if role is Role.challenger:
            self._judge(p)
        elif role is Role.incumbent:
            self._doubt(p)
        return role

    def _judge(self, p: int) -> None:
        """Take over, give up, or go on."""
        counts = self.learner.extra["trial_counts"][p]
        gain, error = gained(*self.records[p, :2])
        tried = int(self.records[p, 1, 0])
        if tried >= self.config.trials and gain > self.config.deviations * error:
            self._succeed(p, Role.predecessor, Role.incumbent)
            self._succeed(p, Role.incumbent, Role.challenger)
            counts[Counts.won] += 1
        elif gain > 0.0 and tried < 2 * self.config.trials:
            return
        elif self.config.lost is not None and gain < -self.config.deviations * error:
            total, episodes = float(self.records[p, 0, 1]), float(self.records[p, 0, 0])
            if gain < -self.config.lost * abs(total / episodes):
                self._come_back(p)
        self._end_trial(p)

    def _doubt(self, p: int) -> None:
        """The predecessor is back where the incumbent turns out to earn less than it did."""
        (before, total, _), (played, earned, _) = (
            self.records[p, role - 1].tolist() for role in (Role.predecessor, Role.incumbent)
        )
        if before and earned / played < total / before:
            self._succeed(p, Role.incumbent, Role.predecessor)
            self.records[p, Role.predecessor - 1] = 0.0
            self._end_trial(p)

    def _succeed(self, p: int, role: Role, source: Role) -> None:
        self._take(role, p, self.policies[source])
        self.records[p, role - 1] = self.records[p, source - 1]

    def _end_trial(self, p: int) -> None:
        counts = self.learner.extra["trial_counts"][p]
        counts[Counts.trying], counts[Counts.rested] = 0, 0
        self.roles[p][self.roles[p] != Role.explores] = Role.explores  # what else is being played no longer counts

    def _come_back(self, p: int) -> None:
        """Learning goes on from the incumbent; what values have learned meanwhile, they keep."""
        for candidate in self.candidates():
            for mine, theirs in zip(candidate.parameters(), self.policies[Role.incumbent].parameters(), strict=True):
                mine[p].copy_(theirs[p])

    def _next(self, p: int, w: int, last: Role) -> Role:
        """Who plays the next episode of a world."""
        worlds, counts, least = self.roles.shape[1], self.learner.extra["trial_counts"][p], self.config.trials
        kept = self.kept(worlds)
        if w < worlds - (kept or 1):
            return Role.explores
        playing = [(self.roles[p] == role).sum() for role in (Role.incumbent, Role.challenger)]
        known, tried = (int(n + self.records[p, i, 0]) for i, n in enumerate(playing))
        if known < least or (last is Role.challenger and not counts[Counts.trying]):
            return Role.incumbent
        if not counts[Counts.trying]:
            ends = least <= self.learner.episodes_left < least + LAST
            if not kept and counts[Counts.rested] < self.config.rest and not ends:
                return Role.explores
            if not self._challenge(p):
                return Role.incumbent if kept else Role.explores
            return Role.challenger
        return Role.challenger if tried < 2 * least else Role.incumbent

    def _challenge(self, p: int) -> bool:
        """Whether there is something new to try, which is then on trial."""
        counts, candidates = self.learner.extra["trial_counts"][p], self.candidates()
        self._take(Role.challenger, p, candidates[int(counts[Counts.tried]) % len(candidates)])
        both = zip(*(self.policies[r].parameters() for r in (Role.incumbent, Role.challenger)), strict=True)
        if all(torch.equal(mine[p], theirs[p]) for mine, theirs in both):
            return False
        self.records[p, 1] = 0.0
        counts[Counts.trying] = 1
        counts[Counts.tried] += 1
        return True

    def _take(self, role: Role, p: int, source: StackedGaussianActor) -> None:
        """Member p of a policy becomes that of `source`, its statistics included where each member has its own."""
        policy = self.policies[role]
        policy.config = source.config
        for mine, theirs in zip(policy.parameters(), source.parameters(), strict=True):
            mine[p].copy_(theirs[p])
        for held, given in zip(policy.buffers(), source.buffers(), strict=True):
            if policy.normalizer.population is not None and held.dim() == 3:
                held[p].copy_(given[p])
            else:
                held.copy_(given)


def gained(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean return of the other less that of the one, and its standard error with a common variance (Student's t).

    Both are [episodes, Σ return, Σ return²]; with one episode each the error is infinite.
    """
    (n, total, squares), (m, others, other_squares) = one.tolist(), other.tolist()
    if min(n, m) < 1:
        return 0.0, math.inf
    gain = others / m - total / n
    if n + m < 3:
        return gain, math.inf
    spread = max(squares - total**2 / n, 0.0) + max(other_squares - others**2 / m, 0.0)
    return gain, math.sqrt(spread / (n + m - 2) * (1.0 / n + 1.0 / m))
