"""What keeps a command inside its box: pure functions of arrays, outside the weights, last before the wire."""

from __future__ import annotations

import numpy as np


def all_finite(*arrays: np.ndarray) -> bool:
    return all(bool(np.isfinite(a).all()) for a in arrays)


def limit_box(command: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """command held in [low, high], elementwise."""
    return np.minimum(np.maximum(command, low), high)


def limit_command(
    command: np.ndarray,
    previous: np.ndarray,
    measured: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    max_step: np.ndarray,
    lead: np.ndarray,
) -> np.ndarray:
    """The nearest command that obeys, in this order: the box, the step from `previous`, the lead over `measured`.

    All (n,), in the channels' units. `previous` must lie in the box. The box and the step always hold; the lead
    (|command − measured| ≤ lead) holds as far as they permit, and is ignored where `measured` is NaN.
    """
    least, most = np.maximum(low, previous - max_step), np.minimum(high, previous + max_step)
    heard = np.isfinite(measured)
    centre = np.where(heard, measured, 0.0)
    floor = np.where(heard, limit_box(centre - lead, least, most), least)
    ceiling = np.where(heard, limit_box(centre + lead, least, most), most)
    return limit_box(command, floor, ceiling)


def brake_overspeed(command: np.ndarray, speed: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Efforts that would push a joint already faster than its limit become zero; braking efforts stay. NaN: unknown."""
    too_fast = np.abs(np.where(np.isfinite(speed), speed, 0.0)) > limit
    return np.where(too_fast & (command * speed > 0), 0.0, command)


def limit_travel(
    command: np.ndarray, position: np.ndarray, lowest: np.ndarray, highest: np.ndarray, horizon: float = 0.2
) -> np.ndarray:
    """Velocities that would carry a joint past [lowest, highest] within `horizon` seconds, reduced so that they do not.

    Beyond a limit only the way back is open. NaN positions are unknown and leave the velocity as it is.
    """
    heard = np.isfinite(position)
    up = np.where(heard, np.maximum((highest - position) / horizon, 0.0), np.inf)
    down = np.where(heard, np.minimum((lowest - position) / horizon, 0.0), -np.inf)
    return np.minimum(np.maximum(command, down), up)


def blend(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """(1 − share) · start + share · end, share clipped to [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    return (1.0 - share) * start + share * end


def slew(value: np.ndarray, target: np.ndarray, max_step: float) -> np.ndarray:
    """value moved towards target by at most max_step per element."""
    return value + np.clip(target - value, -max_step, max_step)


def pd_effort(kp: np.ndarray, kd: np.ndarray, goal: np.ndarray, position: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """kp (goal − position) − kd speed, zero where position or speed is NaN. N m."""
    known = np.isfinite(goal) & np.isfinite(position) & np.isfinite(speed)
    goal, position, speed = (np.where(known, x, 0.0) for x in (goal, position, speed))
    return kp * (goal - position) - kd * speed
