"""Steadier choices over time without touching weights: neighbours in a short window correct each other."""

from __future__ import annotations

import torch
from torch import Tensor


def lame(log_p: Tensor, features: Tensor, neighbours: int = 5, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """y_i ← softmax(log p_i + Σ_j w_ij y_j) until it stands still; (W, K) and (W, D) -> (W, K).

    w is the squared cosine of the features between nearest neighbours, 0 elsewhere, averaged over both directions: weak
    neighbours hardly count, which costs little where contexts are independent. Boudiaf et al. 2022 (LAME).
    """
    n = len(log_p)
    if n < 2:
        return torch.softmax(log_p, 1)
    z = torch.nn.functional.normalize(features.double(), dim=1)
    cosine = z @ z.T
    cosine.fill_diagonal_(-2.0)
    near = cosine.topk(min(neighbours, n - 1), 1)
    w = torch.zeros(n, n, dtype=torch.float64).scatter_(1, near.indices, near.values.clamp_min(0.0).square())
    w = 0.5 * (w + w.T)
    y = torch.softmax(log_p.double(), 1)
    for _ in range(steps):
        new = torch.softmax(log_p.double() + w @ y, 1)
        moved = float((new - y).abs().max())
        y = new
        if moved < tolerance:
            break
    return y.to(log_p)


class Smoother:
    """LAME over a causal window: each call gives the newest row's probabilities from the last `window` rows.

    Remembers the window's log probabilities and features; `reset` forgets them when an episode ends.
    """

    def __init__(self, window: int = 32, neighbours: int = 5):
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1")
        self.window, self.neighbours = window, neighbours
        self.reset()

    def reset(self) -> None:
        self._log_p: list[Tensor] = []
        self._features: list[Tensor] = []

    def __call__(self, log_p: Tensor, features: Tensor) -> Tensor:
        """log_p (K,), features (D,) of now -> probabilities (K,)."""
        self._log_p = [*self._log_p, log_p][-self.window :]
        self._features = [*self._features, features][-self.window :]
        return lame(torch.stack(self._log_p), torch.stack(self._features), self.neighbours)[-1]
