"""Runs side by side: how much better, how surely, and only where the numbers may stand in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_cl import stats
from robot_cl.scores import Entry


@dataclass(frozen=True)
class Comparison:
    """One run against the first. `improvement` is P(a random episode of this run beats one of the first), with its
    95 % interval; `difference` the mean difference of episodes that share a seed, None where the seeds differ.
    Intervals are over training seeds and the episodes within them; both are None for a single episode.
    """

    name: str
    entry: Entry
    improvement: stats.Interval | None
    difference: stats.Interval | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(named: Sequence[tuple[str, Entry]], mixed: bool = False, seed: int = 0) -> list[Comparison]:
    """Compare evaluations with the first one.

    Raises ValueError if they are of different tasks or shifts, or if different simulators made them and `mixed` is
    not set.
    """
    first = named[0][1]
    for name, entry in named[1:]:
        if (entry.task, entry.shift) != (first.task, first.shift):
            ours, theirs = (f"{e.task}{f' with {e.shift}' if e.shift else ''}" for e in (entry, first))
            raise ValueError(f"{name} was evaluated on {ours}, {named[0][0]} on {theirs}; evaluate both on the same")
        if entry.simulator != first.simulator and not mixed:
            raise ValueError(
                f"{name} was evaluated with simulator {entry.simulator}, {named[0][0]} with {first.simulator}: their "
                "physics differ; evaluate again here, or pass mixed=true"
            )
    return [_against(first, name, entry, k, seed) for k, (name, entry) in enumerate(named)]


def _against(first: Entry, name: str, entry: Entry, k: int, seed: int) -> Comparison:
    if k == 0:
        return Comparison(name, entry, None, None)
    rng = np.random.default_rng([seed, k])
    if min(len(entry.seeds), len(first.seeds)) < 2:
        return Comparison(name, entry, None, None)
    ours, theirs = np.array(entry.returns), np.array(first.returns)
    improvement = stats.nested_improvement(list(ours), list(theirs), rng)
    difference = stats.nested_difference(list(ours), list(theirs), rng) if entry.seeds == first.seeds else None
    return Comparison(name, entry, improvement, difference)
