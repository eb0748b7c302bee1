"""Running statistics that robots can exchange in any order, any number of times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and summed squared deviation (d,) of one skill's contexts, float64."""

    count: float
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """rows (N, d)."""
        mean = rows.double().mean(0)
        return cls(float(len(rows)), mean, (rows.double() - mean).square().sum(0))

    def __add__(self, other: Moments) -> Moments:
        """Chan et al. 1979."""
        total, shift = self.count + other.count, other.mean - self.mean
        mean = self.mean + shift * (other.count / total)
        return Moments(total, mean, self.m2 + other.m2 + shift.square() * (self.count * other.count / total))


@dataclass(frozen=True)
class Contribution:
    """What one robot has seen: moments per skill, the sum of x xᵀ (d, d) over all its contexts, and whatever a router
    adds per skill. `counter` grows with every observation: of two states of one robot the later one holds the earlier.
    """

    counter: int = 0
    moments: Mapping[str, Moments] = field(default_factory=dict)
    gram: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def observe(self, skill: str, rows: Tensor) -> Contribution:
        new = Moments.of(rows)
        known = self.moments.get(skill)
        gram = rows.double().T @ rows.double()
        return replace(
            self,
            counter=self.counter + len(rows),
            moments={**self.moments, skill: new if known is None else known + new},
            gram=gram if self.gram is None else self.gram + gram,
        )


def newest(mine: Mapping[str, Contribution], theirs: Mapping[str, Contribution]) -> dict[str, Contribution]:
    """Per robot the contribution with the larger counter: commutative, associative, idempotent."""
    merged = dict(mine)
    for robot, contribution in theirs.items():
        if robot not in merged or contribution.counter > merged[robot].counter:
            merged[robot] = contribution
    return merged


def total(contributions: Mapping[str, Contribution]) -> Contribution:
    """Everything all robots have seen, summed in the order of their names, so that all of them get the same bits."""
    moments: dict[str, Moments] = {}
    grams, extra = [], dict[str, list[tuple[float, Tensor]]]()
    for robot in sorted(contributions):
        part = contributions[robot]
        for skill, own in part.moments.items():
            moments[skill] = moments[skill] + own if skill in moments else own
        for skill, value in part.extra.items():
            extra.setdefault(skill, []).append((part.moments[skill].count, value))
        if part.gram is not None:
            grams.append(part.gram)
    return Contribution(
        sum(c.counter for c in contributions.values()),
        {skill: moments[skill] for skill in sorted(moments)},
        torch.stack(grams).sum(0) if grams else None,
        {s: sum((n * v for n, v in parts), torch.zeros_like(parts[0][1])) / sum(n for n, _ in parts)
         for s, parts in sorted(extra.items())},
    )  # fmt: skip
