"""Imagined experience: short rollouts of a policy through an ensemble, from states of the data (MBPO, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, Rng

Act = Callable[[Tensor], Tensor]
# obs, action, next_obs, each (B, ...) -> (B,) bool
Ends = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Imagined:
    """H steps of B rollouts: obs, next_obs (H, B, obs_dim), action (H, B, act_dim), reward, terminated, alive (H, B).

    `alive` (bool) is False after a rollout has ended; those rows mean nothing. `clamped` () is the share of living
    steps whose next state had to be brought back to the range of the data: a model that is trusted too far shows here
    first. Of a stack of P ensembles every B is (P, B), and `clamped` (P,).
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    alive: Tensor
    clamped: Tensor

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(obs, action, reward, next_obs, terminated) of all living steps, (N, ...), terminated as 0/1 float."""
        a = self.alive
        return self.obs[a], self.action[a], self.reward[a], self.next_obs[a], self.terminated[a].float()

    def returns(self, discount: float = 1.0) -> Tensor:
        """Discounted sum of the rewards until the end of each rollout, (B,)."""
        weights = discount ** torch.arange(len(self.reward), dtype=self.reward.dtype)
        return (weights.to(self.reward).unsqueeze(-1) * self.reward * self.alive).sum(0)


@torch.no_grad()
def imagine(
    model: Ensemble,
    act: Act,
    start: Tensor,
    horizon: int,
    rng: Rng,
    ends: Ends | None = None,
    margin: float = 0.1,
    sample: bool = True,
    new_member_each_step: bool = True,
) -> Imagined:
    """Roll `act` (B, obs_dim) -> (B, act_dim) through random elites for `horizon` steps from start (B, obs_dim).

    States and rewards are kept within the data's range widened by `margin` of its width on both sides. `sample` draws
    from Gaussian members instead of taking their mean; `new_member_each_step` is MBPO's way, otherwise each rollout
    stays with one member. A stack of P ensembles takes start (P, B, obs_dim) and P generators.
    Raises ValueError for an empty start or a horizon below 1.
    """
    if horizon < 1 or start.numel() == 0:
        raise ValueError(f"imagining needs a start and a horizon of at least 1, got {len(start)} rows and {horizon}")
    low, high = widened(model.obs_low, model.obs_high, margin)
    r_low, r_high = widened(model.reward_range[0], model.reward_range[1], margin)
    obs, alive = start, torch.ones(start.shape[:-1], dtype=torch.bool, device=start.device)
    member, steps, clamped = model.route(start.shape[-2], rng), [], torch.zeros(start.shape[:-2], device=start.device)
    for _ in range(horizon):
        if new_member_each_step:
            member = model.route(start.shape[-2], rng)
        action = act(obs)
        raw, reward = model.predict(obs, action, member, rng if sample else None)
        # A prediction that is not finite stays where it was: it must not poison the rollouts beside it.
        raw = torch.where(raw.isfinite(), raw, obs)
        after = torch.maximum(torch.minimum(raw, high), low)
        clamped = clamped + ((after != raw).any(-1) & alive).sum(-1)
        reward = reward.nan_to_num(0.0, 0.0, 0.0).clamp(r_low, r_high)
        over = ends(obs, action, after) if ends else torch.zeros_like(alive)
        steps.append((obs, action, reward, after, over, alive))
        obs, alive = after, alive & ~over
    o, a, r, n, t, living = (torch.stack(column) for column in zip(*steps, strict=True))
    return Imagined(o, a, r, n, t, living, clamped / living.sum((0, -1)).clamp_min(1))


def widened(low: Tensor, high: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """[low, high] with `margin` of its width added on both sides; an infinite range stays infinite."""
    width = torch.where((high - low).isfinite(), high - low, 0.0)
    return low - margin * width, high + margin * width
