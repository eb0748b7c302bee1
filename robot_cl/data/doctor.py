"""The dataset doctor: every check over one dataset, what it covers, and the learner that fits. It repairs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robot_cl.data.checks import flags, provenance, values
from robot_cl.data.checks.minari_copy import minari_copy
from robot_cl.data.checks.subject import Finding, Subject
from robot_cl.data.coverage import Coverage, Recommendation, coverage
from robot_cl.data.coverage import recommend as _recommend
from robot_cl.data.minari_io import Progress
from robot_cl.data.reference import find_reference
from robot_cl.data.store import StoredDataset, find_dataset

Check = Callable[[Subject], Finding | None]

CHECKS: dict[str, Check] = {
    "timeouts_as_terminals": flags.timeouts_as_terminals,
    "border_crossed": flags.border_crossed,
    "both_flags": flags.both_flags,
    "flags_inside": flags.flags_inside,
    "maze2d_goal_timeouts": flags.maze2d_goal_timeouts,
    "known_bad_set": provenance.known_bad_set,
    "antmaze_reward_shift": provenance.antmaze_reward_shift,
    "other_environment_version": provenance.other_environment_version,
    "adroit_reward_version": provenance.adroit_reward_version,
    "score_is_a_fraction": provenance.score_is_a_fraction,
    "foreign_reference": provenance.foreign_reference,
    "float64_kept": values.float64_kept,
    "statistics_of_held_out": provenance.statistics_of_held_out,
    "nan_or_inf": values.nan_or_inf,
    "actions_out_of_bounds": values.actions_out_of_bounds,
    "constant_dimensions": values.constant_dimensions,
    "duplicate_episodes": values.duplicate_episodes,
    "reward_is_noise": values.reward_is_noise,
    "content_changed": provenance.content_changed,
    "minari_copy": minari_copy,
}


@dataclass(frozen=True)
class Checkup:
    """What the doctor saw: findings (none for a clean dataset), coverage, and the learner that fits."""

    name: str
    findings: list[Finding]
    coverage: Coverage
    recommendation: Recommendation

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "fault"]


def examine(
    dataset: StoredDataset | str | Path, root: Path | None = None, progress: Progress | None = None
) -> Checkup:
    """Every check, coverage and recommendation. Raises LookupError, ValueError or OSError if it cannot be read."""
    opened = dataset if isinstance(dataset, StoredDataset) else find_dataset(dataset, root)
    subject = Subject(opened)
    findings = []
    for done, run in enumerate(CHECKS.values(), 1):
        finding = run(subject)
        if finding is not None:
            findings.append(finding)
        if progress is not None:
            progress(done, len(CHECKS))
    found = coverage(subject)
    informative = not any(finding.check == "reward_is_noise" for finding in findings)
    scale = find_reference(opened.meta.task, opened.meta.source) if opened.meta.task else None
    best = None if scale is None else scale.score(found.best_return)
    return Checkup(opened.name, findings, found, _recommend(found, opened.meta.score, informative, best))


def check(dataset: StoredDataset | str | Path, root: Path | None = None) -> list[Finding]:
    """The findings alone; an empty list for a clean dataset."""
    return examine(dataset, root).findings


def recommend(dataset: StoredDataset | str | Path, root: Path | None = None) -> Recommendation:
    """The learner that fits this data, and why."""
    return examine(dataset, root).recommendation
