"""Which tasks met before are like a new one, told from how it begins: what the bare base meets in its first steps.

The base always plays the same starts in a trial, so that what differs between tasks is the tasks' doing: their dynamics
in the observations, their aims in the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME = 1e-3  # observations and rewards that differ by less than this, absolutely and relatively, are the same
LOOKS = (1, 2, 4, 8, 16)  # control steps after which the base's situation is noted; small differences grow later


def sketch_of(opening: np.ndarray) -> np.ndarray:
    """What M members met, (M, starts, T, W) -> (M, F): the mean over starts after each of `LOOKS` steps (the last one
    there is, where fewer were played)."""
    steps = [min(look, opening.shape[2]) - 1 for look in LOOKS]
    return opening[:, :, steps].mean(1).reshape(len(opening), -1).astype(np.float32)


def same(known: np.ndarray, now: np.ndarray) -> bool:
    """Whether two sketches (F,) are of one task: from the same starts the base comes to the same places, which it never
    does in a world with noise of its own."""
    return np.allclose(now, known, SAME, SAME)


def nearest(known: Sequence[np.ndarray], now: np.ndarray) -> np.ndarray:
    """Sketches (F,) of T tasks, oldest first, and one of a new task -> their indices, the most alike first.

    Each number counts in units of its deviation over all of them; the later of two equally alike comes first.
    """
    table = np.stack([*known, now])
    scaled = table / (table.std(0) + 1e-9)
    distance = np.square(scaled[:-1] - scaled[-1]).sum(-1)
    return np.lexsort((-np.arange(len(known)), distance))
