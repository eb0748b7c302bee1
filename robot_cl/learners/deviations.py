"""Advantages read off the data's own trajectories: what it brought to deviate from the clone's action.

A value Q(s, a) learned on one narrow behaviour mostly reads the state in the action, because a state explains nearly
all of what follows. Here the state's share is fitted apart, and the action's share is linear in its deviation from the
clone's action, which under exploration noise no state predicts: the compatible function of a policy gradient (Sutton
et al. 2000, "Policy Gradient Methods for Reinforcement Learning with Function Approximation", theorem 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.networks import StackedMLP
from robot_cl.batch import Transitions
from robot_cl.learners.evidence import follows, trust
from robot_cl.learners.optim import FlatAdam, cosine
from robot_cl.learners.ppo import gae

WIDEST = 3.0  # deviations, in every action: farther away it was another behaviour
ONE, SEVERAL = 1.5, 2.0  # times what independent deviations' means have: measured 1.0 to 1.3, and 2.3 and more
MEDIAN = 0.4549  # of χ² with one degree of freedom, whose mean is 1
KNOWN, FOREIGN = 0.9, 0.8  # share of the actions within WIDEST: measured 0.95 and 0.96, and 0.32


class DeviationAdvantage(nn.Module):
    """A(s, a) = g(s) · (a − μ(s)) / σ(s) in units of the values; μ and σ are those of each policy's own clone.

    g is the mean of M networks per policy, network m fitted to all rows but those of fold m, so that a claim can be
    held against rows that the one who makes it has not seen. No slope is longer than the median one: the few states
    where much is at stake, as the first of an episode, would else move a policy everywhere. Remembers the networks of
    P·n policies, their units and these lengths.
    """

    unit: Tensor
    longest: Tensor

    def __init__(
        self, obs_dim: int, act_dim: int, rngs: Sequence[torch.Generator], hidden: tuple[int, ...], folds: int
    ):
        super().__init__()
        self.policies, self.folds, self.act_dim = len(rngs), folds, act_dim
        each = [rng for rng in rngs for _ in range(folds)]
        self.net = StackedMLP(obs_dim, hidden, act_dim + 1, each, init="orthogonal", out_gain=0.01)
        self.register_buffer("unit", torch.zeros(self.policies))
        self.register_buffer("longest", torch.full((self.policies,), torch.inf))
        self.requires_grad_(False)

    def forward(self, z: Tensor, deviation: Tensor) -> Tensor:
        """z (P·n, B, obs_dim), deviation (P·n, B, act_dim) -> (P·n, B)."""
        slope = self.slopes(z).mean(1)
        shorter = (self.longest.view(-1, 1, 1) / slope.norm(dim=-1, keepdim=True)).clamp(max=1.0)
        return (slope * shorter * deviation).sum(-1)

    def each(self, z: Tensor, deviation: Tensor) -> Tensor:
        """What each of the M networks claims, (P·n, M, B)."""
        return (self.slopes(z) * deviation.unsqueeze(1)).sum(-1)

    def slopes(self, z: Tensor) -> Tensor:
        """g of each network, (P·n, M, B, act_dim)."""
        out = self.net(z.repeat_interleave(self.folds, 0))[..., : self.act_dim]
        return out.view(self.policies, self.folds, -1, self.act_dim) * self.unit.view(-1, 1, 1, 1)

    @torch.no_grad()
    def borne_out(self, z: Tensor, deviations: Tensor, found: Tensor, fold: Tensor, rows: int = 20_000) -> Tensor:
        """`trust` in what each policy's networks claim of rows that they were not fitted to, (P·n,).

        Arguments as for `fit`, `rows` at a time; `found` is what came of the actions. A clone that is nowhere near the
        data claims nothing, and nothing of it is trusted.
        """
        parts = zip(z.split(rows), deviations.split(rows, 1), strict=True)
        said = torch.cat([self.each(zz.expand(len(d), -1, -1), d) for zz, d in parts], -1)
        claims = said.gather(1, fold.expand(len(said), 1, -1))[:, 0]
        each = zip(claims, found, within(deviations), strict=True)
        return torch.cat([trust(x[ok][None], y[ok][None]) if ok.any() else x.new_zeros(1) for x, y, ok in each])

    def fit(
        self, z: Tensor, deviations: Tensor, found: Tensor, fold: Tensor, rngs: Sequence[torch.Generator], steps: int,
        batch: int = 256, lr: float = 1e-3,
    ) -> None:  # fmt: skip
        """Least squares of the advantages `found` (P·n, N) on z (N, obs_dim) and deviations (P·n, N, act_dim).

        Only rows within WIDEST deviations count, `fold` (N,) says which network does not see a row, one generator per
        policy draws; the learning rate falls to zero.
        """
        near = within(deviations)
        pools = [torch.nonzero(near[i] & (fold != m))[:, 0] for i in range(self.policies) for m in range(self.folds)]
        owner = torch.arange(self.policies, device=z.device).repeat_interleave(self.folds)
        counts = torch.tensor([len(pool) for pool in pools]).view(self.policies, self.folds)
        fitted = (counts > 0).all(1)  # not those of a clone that is nowhere near the data, which claims nothing
        self.unit.zero_()
        for i in torch.nonzero(fitted)[:, 0].tolist():
            self.unit[i] = found[i][near[i]].std() + 1e-8
        if not fitted.any():
            return
        known = fitted.to(z.device)
        self.net.requires_grad_(True)
        opt = FlatAdam(self.net.parameters(), len(pools), lr)
        for step in range(steps):
            opt.lr = cosine(lr, step, steps)
            rows = torch.zeros(len(pools), batch, dtype=torch.int64, device=z.device)
            for k, pool in enumerate(pools):
                if fitted[k // self.folds]:
                    drawn = torch.randint(len(pool), (batch,), generator=rngs[k // self.folds])
                    rows[k] = pool[drawn.to(pool.device)]
            out = self.net(z[rows])
            deviation = deviations[owner.unsqueeze(1), rows]
            said = (out[..., : self.act_dim] * deviation).sum(-1) + out[..., self.act_dim]
            wanted = found[owner.unsqueeze(1), rows] / self.unit[owner].clamp(min=1e-8).unsqueeze(1)
            (said - wanted).square().mean(-1)[known[owner]].sum().backward()
            opt.step()
        self.net.requires_grad_(False)
        with torch.no_grad():
            seen = z[torch.linspace(0, len(z) - 1, min(len(z), 10_000), device=z.device).long()]
            lengths = self.slopes(seen.expand(self.policies, -1, -1)).mean(1).norm(dim=-1).median(1).values
            self.longest.copy_(torch.where(known, lengths, torch.inf))


def trajectory_advantages(
    data: Transitions, value: Tensor, next_value: Tensor, discount: float, trace: float
) -> Tensor:
    """Generalised advantage estimates of all rows, (P, N); values (P, N) are in the unit of data.reward.

    The trace is cut where the following row is not of the same episode.
    """
    cut = 1.0 - follows(data).float()

    def one(v: Tensor, after: Tensor) -> Tensor:
        reward, value, following, terminated, ended = (
            x.view(1, -1, 1) for x in (data.reward, v, after, data.terminated, cut)
        )
        return gae(reward, value, following, terminated, ended, discount, trace)[0, :, 0]

    return torch.stack([one(v, after) for v, after in zip(value, next_value, strict=True)])


def blocks(rows: int, folds: int, device: torch.device, each: int = 20) -> Tensor:
    """The fold of every row, (N,): stretches of the data, of which every fold has `each`."""
    return torch.arange(rows, device=device) * (each * folds) // rows % folds


def deviation(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """(a − μ) / σ."""
    return (action - mean) * torch.exp(-log_std)


def sameness(deviations: Tensor, episode: Tensor) -> Tensor:
    """How far the data is of one behaviour: 0 to 1 for (P·n, N, act_dim) and the number of each row's episode (N,).

    The action's share is told from the state's only where deviations are noise, drawn anew at every step. Where several
    behaviours acted they also say who acts from here on, and stay alike over an episode: its mean varies more than that
    of independent draws. Up to ONE times as much it is one behaviour, from SEVERAL times on it is not. That is asked of
    the median episode: some in which the behaviour stumbled, to where its clone has seen little, make it no other one.
    Nor is it one where the clone does not know most of the actions at all.
    """
    near = within(deviations).unsqueeze(-1).float()
    sums = deviations.new_zeros(len(deviations), int(episode[-1]) + 1, deviations.shape[-1])
    totals, counts = sums.index_add(1, episode, deviations * near), sums[..., :1].index_add(1, episode, near)
    between = (totals.square() / counts.clamp(min=1.0)).median(1).values / MEDIAN
    within_them = (deviations * near).square().sum(1) / near.sum(1).clamp(min=1.0)
    ratio, known = (between / within_them.clamp(min=1e-12)).mean(-1), near.mean((1, 2))
    return _between(ratio, SEVERAL, ONE) * _between(known, FOREIGN, KNOWN)


def _between(x: Tensor, none: float, all_: float) -> Tensor:
    """0 at `none`, 1 at `all_`, a straight line between them."""
    return ((x - none) / (all_ - none)).clamp(0.0, 1.0)


def within(deviations: Tensor) -> Tensor:
    """Which actions the clone may have taken: (..., act_dim) -> (...)."""
    return deviations.abs().amax(-1) <= WIDEST
