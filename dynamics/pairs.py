"""Pairs of planned and answering actions for a flow, from a simulated family of regimes or from data by hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.action_flow import Coder, RegimePool

# obs (N, obs_dim), action (N, act_dim) in [-1, 1] -> next obs (N, obs_dim)
Step = Callable[[Tensor, Tensor], Tensor]
# difference of two states (N, obs_dim) -> the same with angles wrapped
Wrap = Callable[[Tensor], Tensor]


def best_response(
    reach: Callable[[Tensor], Tensor],
    target: Tensor,
    starts: Sequence[Tensor],
    scale: Tensor,
    wrap: Wrap = lambda x: x,
    bounded: bool = True,
    rounds: int = 4,
    width: float = 1e-2,
) -> tuple[Tensor, Tensor]:
    """argmin_a |(reach(a) − target) / scale| by damped Gauss-Newton with finite differences, row by row.

    reach maps (N, act_dim) to states (N, obs_dim); `starts` are first guesses (N, act_dim), the best end is kept.
    Returns actions (N, act_dim), in [-1, 1] if `bounded`, and their misses (N,) in units of `scale`.
    """
    best, best_miss = starts[0], torch.full((len(target),), torch.inf)

    def error(action: Tensor) -> Tensor:
        return wrap(reach(action) - target) / scale

    for start in starts:
        action = start.clamp(-1.0, 1.0) if bounded else start
        for last in range(rounds + 1):
            now = error(action)
            miss = now.norm(dim=-1)
            better = miss < best_miss
            best, best_miss = torch.where(better.unsqueeze(-1), action, best), torch.where(better, miss, best_miss)
            if last == rounds:
                break
            action = action - _gauss_newton(error, action, now, width)
            action = action.clamp(-1.0, 1.0) if bounded else action.clamp(-10.0, 10.0)
    return best, best_miss


def _gauss_newton(error: Callable[[Tensor], Tensor], action: Tensor, now: Tensor, width: float) -> Tensor:
    """The step (N, act_dim) that zeroes the linearised error; nearly blind directions are left alone."""
    inside = torch.where(action + width > 1.0, -width, width)  # difference quotients inside the bounds
    columns = []
    for d in range(action.shape[1]):
        moved = action.clone()
        moved[:, d] += inside[:, d]
        columns.append((error(moved) - now) / inside[:, d : d + 1])
    jacobian = torch.stack(columns, -1)  # (N, obs_dim, act_dim)
    square = jacobian.transpose(1, 2) @ jacobian
    damping = 1e-6 * square.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-12)
    square = square + damping.view(-1, 1, 1) * torch.eye(action.shape[1])
    return torch.linalg.solve(square, (jacobian.transpose(1, 2) @ now.unsqueeze(-1))).squeeze(-1)


def beyond(
    reach: Callable[[Tensor], Tensor], target: Tensor, answer: Tensor, scale: Tensor, wrap: Wrap = lambda x: x,
    limit: float = 2.0, width: float = 0.05,
) -> Tensor:  # fmt: skip
    """Answers (N, act_dim) whose dimensions at a bound are moved to where they would go without it, ±`limit` at most.

    For a flow whose action is clipped afterwards. Of what its evidence leaves open it gives the mean, and a mean of
    answers that end at the bound lies inside it. Each dimension by itself, by the slope of the effect inside.
    """

    def error(action: Tensor) -> Tensor:
        return wrap(reach(action) - target) / scale

    now, moved = error(answer), answer.clone()
    for d in range(answer.shape[1]):
        sign, inside = answer[:, d].sign(), answer.clone()
        inside[:, d] -= width * sign
        slope = (now - error(inside)) / width  # of the error, outward
        further = -(slope * now).sum(-1) / slope.square().sum(-1).clamp_min(1e-9)
        at_bound = answer[:, d].abs() >= 0.999
        moved[:, d] += torch.where(at_bound, sign * further.clamp(0.0, limit - 1.0), 0.0)
    return moved


@dataclass(frozen=True)
class Family:
    """A robot under many regimes, as far as pairs need it.

    `nominal` is the model f the planner plans with; `regimes` are the robot as it may become, the unchanged robot
    among them; `scale` (obs_dim,) weighs the dimensions of a miss; `wrap` brings angles of a difference to ±π.
    """

    nominal: Step
    regimes: Sequence[Step]
    scale: Tensor
    wrap: Wrap = lambda x: x


def simulate(
    family: Family, obs: Tensor, coder: Coder, transitions: int, queries: int, rng: torch.Generator, act_dim: int
) -> RegimePool:
    """Evidence and answers of every regime from states drawn out of obs (N, obs_dim) and uniform actions.

    The answer to a0 is the action within bounds whose effect in the regime comes closest to f's prediction for a0.
    """
    parts = []
    for step in family.regimes:
        seen, executed = obs[_rows(obs, transitions, rng)], _uniform(transitions, act_dim, rng)
        difference = family.wrap(step(seen, executed) - family.nominal(seen, executed))
        asked, planned = obs[_rows(obs, queries, rng)], _uniform(queries, act_dim, rng)
        answer = answers(family, step, asked, planned)
        parts.append((coder.evidence(seen, executed, difference), coder.features(asked), planned, answer))
    return RegimePool(*(torch.stack(column) for column in zip(*parts, strict=True)))


def answers(family: Family, step: Step, obs: Tensor, planned: Tensor) -> Tensor:
    """a1 (N, act_dim) within bounds for planned a0 (N, act_dim) at obs (N, obs_dim) under one regime."""
    target = family.nominal(obs, planned)
    starts = (planned, -planned, torch.zeros_like(planned))
    return best_response(lambda a: step(obs, a), target, starts, family.scale, family.wrap)[0]


def hindsight(
    nominal: Step, obs: Tensor, executed: Tensor, next_obs: Tensor, scale: Tensor, wrap: Wrap = lambda x: x
) -> tuple[Tensor, Tensor]:
    """Pairs from data alone: what was done, a1, answers the a0 that f would have planned for what then happened.

    Returns a0 (N, act_dim), which need not be within bounds, and f's miss (N,) in units of `scale`: rows with a large
    one have no such a0.
    """
    start = (executed, torch.zeros_like(executed))
    return best_response(lambda a: nominal(obs, a), next_obs, start, scale, wrap, bounded=False)


def _rows(obs: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return torch.randint(len(obs), (count,), generator=rng)


def _uniform(rows: int, act_dim: int, rng: torch.Generator) -> Tensor:
    return torch.rand(rows, act_dim, generator=rng) * 2.0 - 1.0
