"""Returns of the data itself: per episode, from every step on, and values that begin there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from policies.networks import StackedLinear, StackedMLP
from robot_cl.batch import Transitions
from robot_cl.data.near_best import near_best
from robot_cl.learners.graph import Captured
from robot_cl.learners.optim import FlatAdam

if TYPE_CHECKING:
    from robot_cl.learners.base import Learner


def episode_returns(data: Transitions) -> tuple[Tensor, Tensor]:
    """Undiscounted return of each episode (E,) float64, and the episode of each transition (N,) int64.

    An episode ends at `terminated` or `truncated`, the last one with the data.
    """
    ended = (data.terminated + data.truncated) > 0
    owner = ended.long().cumsum(0) - ended.long()
    totals = torch.zeros(int(owner[-1]) + 1, dtype=torch.float64, device=owner.device)
    return totals.index_add(0, owner, data.reward.double()), owner


def best_rows(data: Transitions, share: float) -> Tensor:
    """Rows of the episodes with the highest returns, whole episodes until they hold `share` of the transitions."""
    totals, owner = episode_returns(data)
    lengths = torch.bincount(owner, minlength=len(totals))
    order = totals.argsort(descending=True)
    before = lengths[order].cumsum(0) - lengths[order]
    kept = order[before < share * len(data)]
    return torch.isin(owner, kept).nonzero()[:, 0]


def near_best_rows(data: Transitions, share: float = 0.1, within: float = 0.1) -> Tensor:
    """Rows of the episodes near the best ones, see `near_best`."""
    totals, owner = episode_returns(data)
    lengths = torch.bincount(owner, minlength=len(totals))
    kept = near_best(totals.cpu().numpy(), lengths.cpu().numpy(), share, within)
    return torch.from_numpy(kept).to(owner.device)[owner].nonzero()[:, 0]


def good_rows(data: Transitions, share: float | None) -> Tensor:
    """The best `share` of the transitions in whole episodes; None: all episodes near the best."""
    return near_best_rows(data) if share is None else best_rows(data, share)


def returns_to_go(data: Transitions, discount: float) -> Tensor:
    """Discounted return from every step to the end of its episode, (N,) float32.

    What comes after a cut (time limit, end of the data) is unknown: it is taken to go on with the episode's mean
    reward, a heuristic; after `terminated` there is nothing.
    """
    totals, owner = episode_returns(data)
    mean = (totals / torch.bincount(owner, minlength=len(totals))).cpu().numpy()
    reward, episode = data.reward.double().cpu().numpy(), owner.cpu().numpy()
    terminated, truncated = data.terminated.bool().cpu().numpy(), data.truncated.bool().cpu().numpy()
    out, running = np.empty(len(reward)), mean[-1] / (1.0 - discount)
    for t in range(len(reward) - 1, -1, -1):
        if terminated[t]:
            running = 0.0
        elif truncated[t]:
            running = mean[episode[t]] / (1.0 - discount)
        running = out[t] = reward[t] + discount * running
    return torch.from_numpy(out).float().to(data.reward.device)


def fit_returns(
    value: Callable[[Transitions], Tensor], net: StackedMLP, opt: FlatAdam, data: Transitions, discount: float,
    learner: Learner, steps: int = 3000, batch: int = 256, lr: float = 1e-3,
) -> None:  # fmt: skip
    """Least squares of `value` (P, ..., B), which `net` gives, on the data's returns-to-go; `opt` is as new afterwards.

    Learned with mean 0 and deviation 1, then brought to the returns' unit in the last layer. Each member draws its own
    batches; on a GPU the update is captured. Without steps nothing changes.
    """
    if not steps:
        return
    target, before = returns_to_go(data, discount), opt.lr
    mean, scale = target.mean(), (target.std() if len(target) > 1 else target.new_zeros(())) + 1e-6
    standard, packed, opt.lr = (target - mean) / scale, data.pack(), lr

    def update() -> dict[str, Tensor]:
        rows = learner.draws.rows(data, batch)
        found = value(Transitions.unpack(packed[rows], data.obs_dim, data.act_dim))
        wanted = standard[rows].view(len(rows), *[1] * (found.dim() - 2), batch)
        loss = (found - wanted).square().mean(-1).sum()
        loss.backward()
        opt.step()
        return {"loss": loss.detach()}

    captured = Captured(learner, learner.captured.fixed)
    for _ in range(min(steps, 20 * len(data) // batch + 1)):
        captured("returns", update)
    opt.lr = before
    for moment in opt.state.values():
        moment.zero_()
    last = net.layers[-1]
    assert isinstance(last, StackedLinear)
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)
