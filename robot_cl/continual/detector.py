"""Noticing that the task changed when nobody says so, from the loss of a model or critic that knew the old one.

The idea of TAME (Zhu et al. 2022): a jump of the loss beyond its own mean and deviation means another regime. The jump
is judged here by a one-sided cumulative sum of the standardised log-loss (Page 1954), which trades delay against false
alarms with one number and is not set off by a single outlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass
class DetectorConfig:
    """Delay against false alarms: a larger `threshold` or `drift` is slower and quieter."""

    window: int = 25  # losses averaged into one reading, so that steps of one episode count as one
    warmup: int = 40  # readings that define the regime after a start or an alarm
    drift: float = 1.0  # standard deviations a reading may exceed the mean without counting
    threshold: float = 20.0  # alarm when the counted excess reaches this many standard deviations
    clip: float = 5.0  # most standard deviations one reading can add
    memory: float = 0.98  # share of the regime's mean and variance kept at each later reading

    def __post_init__(self) -> None:
        if self.window < 1 or self.warmup < 2:
            raise ValueError(f"window ≥ 1 and warmup ≥ 2 readings are needed, got {self.window} and {self.warmup}")
        if not (self.threshold > 0 and 0 <= self.drift < self.clip and 0 < self.memory < 1):
            raise ValueError("threshold must be positive, 0 ≤ drift < clip, and memory between 0 and 1")


class ShiftDetector:
    """Remembers the regime's mean and variance of the log-loss, the excess counted so far and the unfinished window."""

    def __init__(self, config: DetectorConfig | None = None):
        self.config = config or DetectorConfig()
        self.restart()

    def restart(self) -> None:
        """Learn the regime anew: the next `warmup` readings define it."""
        self._pending: list[float] = []
        self._warmup: list[float] = []
        self.excess, self._mean, self._var = 0.0, 0.0, 0.0

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered, float64."""
        regime = [self.excess, self._mean, self._var]
        found = {"pending": self._pending, "warmup": self._warmup, "regime": regime}
        return {name: np.array(values, dtype=np.float64) for name, values in found.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`."""
        self._pending, self._warmup = state["pending"].tolist(), state["warmup"].tolist()
        self.excess, self._mean, self._var = state["regime"].tolist()

    @property
    def ready(self) -> bool:
        """Whether a regime is known, so that an alarm is possible."""
        return len(self._warmup) >= self.config.warmup

    def observe(self, losses: np.ndarray) -> int | None:
        """Losses (T,) ≥ 0 in time order -> index of the loss at which the alarm rang, or None; an alarm restarts.

        A loss that is not finite counts as the largest excess. Raises ValueError for a negative loss.
        """
        losses = np.asarray(losses, dtype=np.float64).ravel()
        if (losses < 0).any():
            raise ValueError("losses must not be negative; pass squared errors or magnitudes, not log-likelihoods")
        for t, loss in enumerate(losses):
            self._pending.append(float(np.log(loss + 1e-12)) if np.isfinite(loss) else np.inf)
            if len(self._pending) == self.config.window:
                reading, self._pending = float(np.mean(self._pending)), []
                if self._alarm(reading):
                    self.restart()
                    return t
        return None

    def _alarm(self, reading: float) -> bool:
        c = self.config
        if not self.ready:
            if np.isfinite(reading):
                self._warmup.append(reading)
                self._mean = float(np.mean(self._warmup))
                self._var = float(np.var(self._warmup, ddof=1)) if len(self._warmup) > 1 else 0.0
            return False
        z = (reading - self._mean) / np.sqrt(self._var + 1e-12)
        self.excess = max(0.0, self.excess + min(z, c.clip) - c.drift)
        if self.excess >= c.threshold:
            return True
        # Learning lowers the loss and is followed; an outlier moves the regime by no more than three deviations.
        near = self._mean + float(np.clip(z, -3.0, 3.0)) * np.sqrt(self._var)
        self._var = c.memory * self._var + (1 - c.memory) * (near - self._mean) ** 2
        self._mean = c.memory * self._mean + (1 - c.memory) * near
        return False
