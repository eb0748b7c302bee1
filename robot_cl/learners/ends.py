"""Where episodes end, learned from data: imagined rollouts stop there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.networks import StackedMLP
from robot_cl.batch import Transitions


class EndModel(nn.Module):
    """Whether a state ends the episode, learned from the data: raw obs (P, R, obs_dim) -> bool (P, R)."""

    log_odds: Tensor

    def __init__(self, obs_dim: int, rngs: Sequence[torch.Generator], normalizer: nn.Module):
        super().__init__()
        self.net = StackedMLP(obs_dim, (64, 64), 1, rngs)
        self.normalizer = normalizer
        self.register_buffer("log_odds", torch.tensor(-torch.inf))  # of an end in the data; none seen: never

    def logit(self, obs: Tensor) -> Tensor:
        return self.net(self.normalizer(obs)).squeeze(-1)

    def forward(self, obs: Tensor) -> Tensor:
        return self.logit(obs) + self.log_odds > 0.0

    def fit(self, data: Transitions, rngs: Sequence[torch.Generator], steps: int, half: int = 128) -> None:
        """Logistic regression of `terminated` on next_obs, with batches half of ends; the odds are put back after."""
        pools = [torch.nonzero(data.terminated == flag)[:, 0] for flag in (1.0, 0.0)]
        if not len(pools[0]) or not len(pools[1]):
            return
        self.net.requires_grad_(True)
        opt = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        label = torch.cat([torch.ones(half), torch.zeros(half)]).to(data.obs).expand(len(rngs), -1)
        for _ in range(steps):
            drawn = [torch.cat([p[torch.randint(len(p), (half,), generator=g)] for p in pools]) for g in rngs]
            logit = self.logit(data.next_obs[torch.stack(drawn)])
            opt.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="sum").div(2 * half).backward()
            opt.step()
        self.net.requires_grad_(False)
        self.log_odds.fill_(len(pools[0]) / len(pools[1])).log_()
