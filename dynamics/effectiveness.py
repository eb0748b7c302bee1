"""Which effect the commands of a changed robot have: its control effectiveness, by recursive least squares.

A flow learns from a few hundred regimes what evidence means, and reads from it how strong a command is far better than
what one command brings along of another. That is linear, and least squares need no training for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.ensemble import Ensemble


@torch.no_grad()
def effective_action(model: Ensemble, obs: Tensor, executed: Tensor, next_obs: Tensor, width: float = 0.05) -> Tensor:
    """The action (B, act_dim) that explains the step by the model, linearised at the executed one by central
    differences of `width`; NaN in rows where no action does.

    float32 is enough: on a vehicle 100 m from the origin it differs from float64 by 5e-4 at most, where the
    linearisation errs by 3e-2; at 10 km, where a step is lost in the position's own rounding, by as much as that.
    """
    scale, act_dim = model.delta_scale, executed.shape[-1]
    columns = []
    for d in range(act_dim):
        nudge = torch.zeros_like(executed)
        nudge[:, d] = width
        ahead, behind = (model.belief(obs, executed + sign * nudge)[0] for sign in (1.0, -1.0))
        columns.append(model.wrap_angles(ahead - behind) / (2 * width) / scale)
    jacobian = torch.stack(columns, -1)  # (B, obs_dim, act_dim)
    rest = model.wrap_angles(next_obs - model.belief(obs, executed)[0]) / scale
    square = jacobian.transpose(1, 2) @ jacobian + 1e-4 * torch.eye(act_dim)
    step, singular = torch.linalg.solve_ex(square, jacobian.transpose(1, 2) @ rest.unsqueeze(-1))
    step = torch.where(singular.view(-1, 1) == 0, step.squeeze(-1), torch.nan)
    return executed + step.clamp(-5.0, 5.0)


@dataclass
class EffectivenessConfig:
    """Least squares on a full matrix of gains, and how far an answer is moved by what they say."""

    forgetting: float = 0.8  # factor on the weight of the past at each step
    prior: float = 0.05  # trust in the unchanged robot, in transitions of full action
    pull: float = 0.1  # squared distance from the answer, against the squared miss
    sweeps: int = 8  # of coordinate descent

    def __post_init__(self) -> None:
        if not 0.0 < self.forgetting <= 1.0 or min(self.prior, self.pull) <= 0.0 or self.sweeps < 1:
            raise ValueError("forgetting must be in (0, 1], prior and pull positive and sweeps at least 1")


class Effectiveness:
    """Per row the matrix A of effective ≈ A · executed, by least squares with exponential forgetting.

    Remembers the weighted sums of the regression over the steps observed.
    """

    def __init__(self, rows: int, act_dim: int, config: EffectivenessConfig):
        self.config = config
        self._gram, self._moment = torch.zeros(rows, act_dim, act_dim), torch.zeros(rows, act_dim, act_dim)

    def forget(self, rows: Tensor) -> None:
        """These rows (bool mask or indices) are of a robot that nothing is known about."""
        self._gram[rows], self._moment[rows] = 0.0, 0.0

    def observe(self, executed: Tensor, amounted: Tensor, fresh: Tensor) -> None:
        """What executed actions (B, act_dim) amounted to (B, act_dim), in the rows that are `fresh` (B,) and finite."""
        keep = (fresh & amounted.isfinite().all(-1)).view(-1, 1, 1)
        seen, beside = executed.unsqueeze(-1), (amounted - executed).unsqueeze(-2)
        past = self.config.forgetting
        self._gram = torch.where(keep, past * self._gram + seen * executed.unsqueeze(-2), self._gram)
        self._moment = torch.where(keep, past * self._moment + seen * beside, self._moment)

    def matrix(self) -> Tensor:
        """A (B, act_dim, act_dim), the identity where nothing was observed."""
        one = torch.eye(self._gram.shape[-1])
        return one + torch.linalg.solve(self._gram + self.config.prior * one, self._moment).transpose(1, 2)

    def corrected(self, planned: Tensor, answer: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """argmin_a |A a − planned|² + pull |a − answer|² within the bounds; all (B, act_dim), by coordinate descent."""
        a, pull = self.matrix(), self.config.pull
        square = a.transpose(1, 2) @ a + pull * torch.eye(a.shape[-1])
        wanted = (a.transpose(1, 2) @ planned.unsqueeze(-1)).squeeze(-1) + pull * answer
        action = answer.clamp(low, high)
        for _ in range(self.config.sweeps):
            for d in range(action.shape[-1]):
                here = square[:, d, d]
                best = action[:, d] + (wanted[:, d] - (square[:, d] * action).sum(-1)) / here
                action = action.clone()
                action[:, d] = best.clamp(low[:, d], high[:, d])
        return action
