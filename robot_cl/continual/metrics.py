"""Continual-learning numbers from the matrix R and the learning curves of one stream.

R[i, j] is the score on task j after training on task i, scaled so that 0 is untrained and 1 is solved; R may carry
leading axes (seeds). Definitions: Lopez-Paz & Ranzato 2017 (ACC, BWT); Wołczyk et al. 2021, Continual World
(forgetting, forward transfer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def accuracy(R: np.ndarray) -> np.ndarray:
    """ACC = mean_j R[N, j]: score over all tasks after the last one. (..., N, N) -> (...)."""
    return checked(R)[..., -1, :].mean(-1)


def backward_transfer(R: np.ndarray) -> np.ndarray:
    """BWT = mean_{j<N} (R[N, j] − R[j, j]): what later learning did to earlier tasks. (..., N, N) -> (...)."""
    R = checked(R)
    if R.shape[-1] < 2:
        raise ValueError("backward transfer needs at least two tasks")
    return (R[..., -1, :-1] - diagonal(R)[..., :-1]).mean(-1)


def forgetting(R: np.ndarray) -> np.ndarray:
    """mean_j (R[j, j] − R[N, j]); the last task counts and adds zero. (..., N, N) -> (...)."""
    R = checked(R)
    return (diagonal(R) - R[..., -1, :]).mean(-1)


def jump_start(R: np.ndarray, untrained: np.ndarray) -> np.ndarray:
    """mean_j (R[j−1, j] − untrained_j): zero-shot gain from earlier tasks, j ≥ 2. untrained (..., N) -> (...)."""
    R = checked(R)
    before = np.diagonal(R, offset=1, axis1=-2, axis2=-1)  # R[j−1, j] for j = 2..N
    return (before - np.asarray(untrained, dtype=np.float64)[..., 1:]).mean(-1)


def area(curve: np.ndarray) -> np.ndarray:
    """Mean height of a learning curve over the task's own budget (trapezoid, equal spacing). (..., T) -> (...)."""
    curve = np.asarray(curve, dtype=np.float64)
    if curve.shape[-1] < 2 or not np.isfinite(curve).all():
        raise ValueError(f"a learning curve needs at least two finite points, got shape {curve.shape}")
    return (0.5 * (curve[..., 1:] + curve[..., :-1])).mean(-1)


def forward_transfer(curves: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """mean_j (AUC_j − AUC^b_j) / (1 − AUC^b_j). curves and reference (..., N, T) with scores in [0, 1] -> (...).

    `reference` holds the same task learned alone under the same budget. Where a task alone is already learned at once
    (AUC^b ≥ 1) nothing can be transferred and the ratio is undefined: ValueError.
    """
    ours, alone = area(curves), area(reference)
    if (alone >= 1.0).any():
        raise ValueError("a reference curve has area 1 or more; scale scores so that 1 is the best that can be had")
    return ((ours - alone) / (1.0 - alone)).mean(-1)


def steps_to(curve: np.ndarray, steps: np.ndarray, level: float) -> np.ndarray:
    """First entry of steps (T,) at which each curve (..., T) is at least `level`; infinity where it never is."""
    curve, steps = np.asarray(curve, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    there = curve >= level
    return np.where(there.any(-1), steps[there.argmax(-1)], np.inf)


def scaled(scores: np.ndarray, untrained: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """Raw returns (..., N) to 0 = untrained, 1 = solved, per task; not clipped, so that better than solved shows."""
    untrained, solved = np.asarray(untrained, dtype=np.float64), np.asarray(solved, dtype=np.float64)
    if (solved <= untrained).any():
        worst = int(np.argmin(solved - untrained))
        raise ValueError(f"task {worst}: solved ({solved[worst]}) must be above untrained ({untrained[worst]})")
    return (np.asarray(scores, dtype=np.float64) - untrained) / (solved - untrained)


def diagonal(R: np.ndarray) -> np.ndarray:
    """R[j, j] as (..., N)."""
    return np.diagonal(R, axis1=-2, axis2=-1)


def checked(R: np.ndarray) -> np.ndarray:
    R = np.asarray(R, dtype=np.float64)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2]:
        raise ValueError(f"R needs shape (..., tasks, tasks), got {R.shape}")
    if not np.isfinite(R).all():
        raise ValueError("R has entries that are not finite; evaluate every task after every task")
    return R


@dataclass(frozen=True)
class Summary:
    """The numbers of one stream, one entry per seed: each (seeds,)."""

    acc: np.ndarray
    bwt: np.ndarray
    forgetting: np.ndarray
    jump_start: np.ndarray
    forward_transfer: np.ndarray


def summarise(R: np.ndarray, curves: np.ndarray, reference: np.ndarray, untrained: np.ndarray) -> Summary:
    """R (seeds, N, N), curves and reference (seeds, N, T), untrained (N,), all on the 0..1 scale."""
    return Summary(
        accuracy(R), backward_transfer(R), forgetting(R), jump_start(R, untrained), forward_transfer(curves, reference)
    )
