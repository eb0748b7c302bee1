"""Which episodes of a dataset are as good as its best ones."""

from __future__ import annotations

import numpy as np


def near_best(returns: np.ndarray, lengths: np.ndarray, share: float = 0.1, within: float = 0.1) -> np.ndarray:
    """Episodes (E,) bool whose return falls short of the best ones' mean by at most a tenth.

    `returns` (E,) are finite, `lengths` (E,) in steps. The best ones hold `share` of the steps, and each counts by its
    length; what a return falls short is counted from the lowest one or zero, whichever is less.
    """
    order = np.argsort(-returns, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    top = order[before < share * lengths.sum()]
    mean, low = np.average(returns[top], weights=lengths[top]), min(0.0, float(returns.min()))
    return returns >= mean - within * (mean - low)
