"""Two maps of waypoints (m) on open ground, drawn for this project: a loop through a yard and a field mown in rows."""

from __future__ import annotations

import numpy as np

YARD = np.array([
    [1.5, 0.0], [3.0, 0.3], [4.4, 1.0], [5.2, 2.3], [5.0, 3.9], [3.9, 5.0], [2.4, 5.2], [1.2, 4.3], [1.0, 2.8],
    [-0.3, 2.0], [-1.8, 2.4], [-2.6, 3.7], [-3.9, 4.4], [-5.2, 3.6], [-5.4, 2.1], [-4.4, 0.9], [-2.9, 0.4], [-1.4, 0.1],
])  # fmt: skip


def _rows() -> np.ndarray:
    """Eleven rows of three waypoints, 1.6 m apart, there and back again."""
    across = np.array([1.6, 3.2, 4.8])
    lines = [np.stack([across if k % 2 == 0 else across[::-1], np.full(3, 1.2 * k)], axis=1) for k in range(11)]
    return np.concatenate(lines)


FIELD = _rows()
MAPS: dict[str, np.ndarray] = {"yard": YARD, "field": FIELD}  # 18 and 33 waypoints, (W, 2)


def with_heights(points: np.ndarray, low: float = 1.0, high: float = 2.0) -> np.ndarray:
    """(W, 2) -> (W, 3): the same map for something that flies, up and down along the way."""
    phase = np.linspace(0.0, 4.0 * np.pi, len(points))
    return np.column_stack([points, low + (high - low) * (0.5 - 0.5 * np.cos(phase))])
