"""Where the time of a control loop goes: a ring of the last measurements per quantity, percentiles when asked."""

from __future__ import annotations

from collections import Counter

import numpy as np

QUANTITIES = ("late", "tick", "policy", "age")


class Statistics:
    """Remembers the last `size` values of each quantity in seconds, and counts of events.

    late: wake-up after the deadline; tick: the whole control step; policy: inference alone; age: of the state used.
    """

    def __init__(self, size: int = 100_000):
        self._rings = {q: np.zeros(size) for q in QUANTITIES}
        self._counts = dict.fromkeys(QUANTITIES, 0)
        self._size = size
        self.events: Counter[str] = Counter()

    def add(self, quantity: str, seconds: float) -> None:
        n = self._counts[quantity]
        self._rings[quantity][n % self._size] = seconds
        self._counts[quantity] = n + 1

    def values(self, quantity: str) -> np.ndarray:
        return self._rings[quantity][: min(self._counts[quantity], self._size)]

    def percentile(self, quantity: str, q: float) -> float:
        """Seconds; NaN before the first measurement."""
        values = self.values(quantity)
        return float(np.percentile(values, q)) if values.size else float("nan")

    def summary(self) -> dict[str, float]:
        """p50, p99 and max of every quantity in milliseconds, and the event counts."""
        found: dict[str, float] = {}
        for quantity in QUANTITIES:
            values = self.values(quantity)
            if values.size:
                p50, p99 = np.percentile(values, [50, 99])
                found |= {f"{quantity}_p50_ms": 1e3 * p50, f"{quantity}_p99_ms": 1e3 * p99}
                found[f"{quantity}_max_ms"] = 1e3 * float(values.max())
        return found | {name: float(count) for name, count in sorted(self.events.items())}
