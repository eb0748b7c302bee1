"""When a router may answer, and when it must say "none of these".

A gate is fitted on exemplars whose right answer is known, one half as the bank that new cases are compared with, the
other to set thresholds. Scores are compared with thresholds per predicted class, so that what is admitted was right
often enough for that class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """For B cases: predicted class (B,), its probability (B,), admitted (B,) bool, nearest exemplar (B,) index."""

    predicted: Tensor
    score: Tensor
    admitted: Tensor
    exemplar: Tensor


class SoftmaxGate:
    """Admit by the softmax probability of the prediction: the baseline. Remembers temperature and thresholds."""

    name: ClassVar[str] = "softmax"

    def __init__(self, target: float = 0.95, least: int = 10):
        """`target`: accuracy asked for among the admitted of each class; `least`: cases needed to believe it."""
        if not 0.0 < target < 1.0:
            raise ValueError(f"target accuracy is {target}; expected a share between 0 and 1")
        self.target, self.least = target, least
        self.thresholds = torch.empty(0)
        self.temperature = 1.0

    def fit(self, features: Tensor, logits: Tensor, label: Tensor) -> SoftmaxGate:
        """Exemplars features (N, D), logits (N, K) and right classes label (N,); every second one calibrates.

        Raises ValueError for fewer than four exemplars.
        """
        if len(label) < 4:
            raise ValueError(f"a gate needs four exemplars or more, got {len(label)}")
        self.temperature = fit_temperature(logits[1::2], label[1::2])
        self._remember(features, logits, label)
        score, predicted = self.probability(features[1::2], logits[1::2]).max(1)
        self.thresholds = class_thresholds(score, predicted, label[1::2], logits.shape[1], self.target, self.least)
        return self

    def _remember(self, features: Tensor, logits: Tensor, label: Tensor) -> None:
        self.bank, self.bank_label = features[::2].double(), label[::2]
        self.bank_predicted = logits[::2].argmax(1)

    def probability(self, features: Tensor, logits: Tensor) -> Tensor:
        """(B, K)."""
        return torch.softmax(logits.double() / self.temperature, 1)

    def __call__(self, features: Tensor, logits: Tensor) -> Verdict:
        score, predicted = self.probability(features, logits).max(1)
        nearest = torch.cdist(features.double(), self.bank).argmin(1)
        return Verdict(predicted, score, score >= self.thresholds[predicted], nearest)


class SDMGate(SoftmaxGate):
    """Similarity, distance, magnitude (Schmaltz 2025): p_i ∝ (2 + q)^(d · z_i).

    q is the length of the run of nearest exemplars whose prediction and truth both equal this prediction; d is one
    minus the share of calibration cases whose nearest exemplar is closer; z are the logits, largest subtracted. With
    q = e − 2 and d = 1 this is the softmax. Far from all exemplars d = 0 and nothing is probable.
    """

    name: ClassVar[str] = "sdm"

    def __init__(self, target: float = 0.95, least: int = 10, longest: int = 50):
        super().__init__(target, least)
        self.longest = longest

    def _remember(self, features: Tensor, logits: Tensor, label: Tensor) -> None:
        super()._remember(features, logits, label)
        self.distances = torch.cdist(features[1::2].double(), self.bank).min(1).values.sort().values

    def probability(self, features: Tensor, logits: Tensor) -> Tensor:
        z = logits.double() / self.temperature
        z = z - z.max(1, keepdim=True).values
        predicted = z.argmax(1)
        apart = torch.cdist(features.double(), self.bank)
        distance, order = apart.topk(min(self.longest, len(self.bank)), largest=False)
        agrees = (self.bank_predicted[order] == predicted[:, None]) & (self.bank_label[order] == predicted[:, None])
        q = agrees.long().cumprod(1).sum(1)
        closer = torch.searchsorted(self.distances, distance[:, 0].contiguous())
        d = 1.0 - closer / len(self.distances)
        return torch.softmax(torch.log(2.0 + q)[:, None] * d[:, None] * z, 1)


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """Temperature that makes the right classes most likely, from a logarithmic grid (Guo et al. 2017)."""
    grid = torch.logspace(-3, 2, 61, dtype=torch.float64)
    losses = [float(torch.nn.functional.cross_entropy(logits.double() / t, label)) for t in grid]
    return float(grid[losses.index(min(losses))])


def class_thresholds(
    score: Tensor, predicted: Tensor, label: Tensor, classes: int, target: float, least: int
) -> Tensor:
    """(K,) smallest score above which a class's predictions were right with at least `target`; infinite if never.

    A threshold must rest on `least` calibration cases at or above it.
    """
    thresholds = torch.full((classes,), math.inf, dtype=torch.float64)
    for c in range(classes):
        of_class = predicted == c
        order = score[of_class].argsort(descending=True)
        s, right = score[of_class][order], (label[of_class][order] == c).double()
        accuracy = right.cumsum(0) / torch.arange(1, len(s) + 1)
        last = torch.ones_like(s, dtype=torch.bool)
        last[:-1] = s[1:] < s[:-1]  # equal scores are admitted together
        enough = (accuracy >= target) & (torch.arange(1, len(s) + 1) >= least) & last
        if enough.any():
            thresholds[c] = s[enough.nonzero()[-1, 0]]
    return thresholds


@dataclass(frozen=True)
class WeibullTail:
    """Extreme-value model of the largest `share` of known distances: how surprising is a new one?

    Bendale and Boult 2016 (open-set recognition), fitted by the moments of log distance above the tail's start.
    """

    start: float
    scale: float
    shape: float

    @classmethod
    def fit(cls, distances: Tensor, share: float = 0.1) -> WeibullTail:
        """Distances (N,) of known cases. Raises ValueError for fewer than ten."""
        if len(distances) < 10:
            raise ValueError(f"a tail needs ten known distances or more, got {len(distances)}")
        sorted_ = distances.double().sort().values
        start = float(sorted_[int((1 - share) * (len(sorted_) - 1))])
        excess = (sorted_[sorted_ > start] - start).clamp_min(1e-12)
        if not len(excess):
            return cls(start, 1e-12, 1.0)
        logs = excess.log()
        # log of a Weibull variable is Gumbel: deviation π / (shape √6), mean log(scale) − 0.5772 / shape
        deviation = float(logs.std()) if len(logs) > 1 else math.pi / math.sqrt(6.0)
        shape = math.pi / (math.sqrt(6.0) * max(deviation, 1e-3))
        return cls(start, math.exp(float(logs.mean()) + 0.5772156649 / shape), shape)

    def __call__(self, distance: Tensor) -> Tensor:
        """Probability that a case at this distance is unknown, 0 up to where the tail starts."""
        excess = (distance.double() - self.start).clamp_min(0.0)
        return 1.0 - torch.exp(-((excess / self.scale) ** self.shape))
