"""The one shape of everything that acts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Policy(Protocol):
    """obs (B, obs_dim) float32 -> action (B, act_dim) float32 in [-1, 1].

    Actor, composed actor, flow-corrected actor, Stable-Baselines3 agent and exported bundle all are one, so that
    evaluation and deployment never ask which it is. Row i of the answer depends on row i of the observation (and
    on what the policy remembers of row i), never on the other rows.
    """

    obs_dim: int
    act_dim: int

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Deterministic action for each row."""
        ...

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Forget what was remembered of `rows` (bool mask or indices; None: all), because their episodes ended."""
        ...
