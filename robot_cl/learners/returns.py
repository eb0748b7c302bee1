"""Returns of the data itself: per episode, and from every step on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robot_cl.batch import Transitions


def episode_returns(data: Transitions) -> tuple[Tensor, Tensor]:
    """Undiscounted return of each episode (E,) float64, and the episode of each transition (N,) int64.

    An episode ends at `terminated` or `truncated`, the last one with the data.
    """
    ended = (data.terminated + data.truncated) > 0
    owner = ended.long().cumsum(0) - ended.long()
    totals = torch.zeros(int(owner[-1]) + 1, dtype=torch.float64, device=owner.device)
    return totals.index_add(0, owner, data.reward.double()), owner


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
