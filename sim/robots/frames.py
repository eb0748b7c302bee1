"""Orientation as arrays: quaternions (N, 4), w first, to headings, rotation matrices and roll-pitch-yaw angles."""

from __future__ import annotations

import numpy as np

from sim.task import namespace


def heading(quat: np.ndarray) -> np.ndarray:
    """Rotation about the vertical, radians in [-π, π]; (N, 4) -> (N,)."""
    xp = namespace(quat)
    w, x, y, z = (quat[:, k] for k in range(4))
    return xp.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def rotation(quat: np.ndarray) -> np.ndarray:
    """Matrices that turn body into world coordinates, (N, 4) -> (N, 3, 3)."""
    xp = namespace(quat)
    w, x, y, z = (quat[:, k] for k in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def roll_pitch_yaw(quat: np.ndarray) -> np.ndarray:
    """Angles about x, then y, then z, radians; (N, 4) -> (N, 3). Pitch is cut at ±π/2."""
    xp = namespace(quat)
    w, x, y, z = (quat[:, k] for k in range(4))
    roll = xp.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = xp.asin(xp.clip(2 * (w * y - z * x), -1.0, 1.0))
    return xp.stack([roll, pitch, heading(quat)], axis=-1)


def quaternion(roll: np.ndarray, pitch: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Inverse of `roll_pitch_yaw`; angles (N,) -> (N, 4)."""
    cr, sr, cp, sp, cy, sy = (f(a / 2) for a in (roll, pitch, yaw) for f in (np.cos, np.sin))
    parts = (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )
    return np.stack(parts, axis=-1)


def in_body(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """World vectors (N, 3) in body coordinates (N, 3)."""
    return (rotation(quat) * vector[:, :, None]).sum(axis=1)
