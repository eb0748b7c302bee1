"""evaluation.json: what the policies of a folder scored, one entry per policy, task, shift and seeds."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import stats
from robot_cl.data.reference import find_reference
from robot_cl.evaluate import Evaluation
from robot_cl.plain_files import write_whole

FILE, LOCK = "evaluation.json", ".evaluation.lock"
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One policy, with one evaluation (as plain data) per training seed, and the statistics over all episodes.

    `step` is the checkpoint's, None where there is none. Intervals are 95 %, bootstrapped over training seeds and the
    episodes within them. `returns` (members, episodes); `success` likewise, None where the environment does not tell.
    `film` is a path relative to the folder, or None.
    """

    label: str
    policy: str
    step: int | None
    task: str
    shift: str | None
    seeds: list[int]
    returns: list[list[float]]
    lengths: list[list[int]]
    fell: list[list[bool]]
    mean: float
    mean_interval: list[float] | None
    iqm: float
    iqm_interval: list[float] | None
    score: float | None
    score_interval: list[float] | None
    reference: str | None
    simulator: str
    interface: str
    wall_s: float
    film: str | None = None
    success: list[list[bool]] | None = None

    @property
    def members(self) -> int:
        return len(self.returns)

    @property
    def success_rate(self) -> stats.Interval | None:
        """Over all episodes, with the interval over training seeds and episodes; None where nobody tells."""
        return stats.success_rate(self.success, np.random.default_rng(self.seeds[0])) if self.success else None

    @property
    def same_as(self) -> tuple[Any, ...]:
        """Entries with equal keys replace each other."""
        return (self.policy, self.step, self.task, self.shift, tuple(self.seeds))


def combine(label: str, policy: str, step: int | None, members: Sequence[Evaluation], film: str | None = None) -> Entry:
    """The entry of one policy whose training seeds were evaluated on the same episodes."""
    first = members[0]
    returns = np.array([m.returns for m in members])
    reference = find_reference(first.task)
    mean, iqm = _interval(returns, first.seeds[0], stats.mean), _interval(returns, first.seeds[0], stats.iqm)
    average = float(returns.mean())
    return Entry(
        label=label,
        policy=policy,
        step=step,
        task=first.task,
        shift=first.shift,
        seeds=first.seeds,
        returns=returns.tolist(),
        lengths=[m.lengths for m in members],
        fell=[m.fell for m in members],
        mean=average,
        mean_interval=mean,
        iqm=float(stats.iqm(returns.ravel())),
        iqm_interval=iqm,
        score=reference.score(average) if reference else None,
        score_interval=[reference.score(end) for end in mean] if reference and mean else None,
        reference=reference.name if reference else None,
        simulator=first.simulator,
        interface=first.interface,
        wall_s=round(sum(m.wall_s for m in members), 3),
        film=film,
        success=[m.success for m in members if m.success is not None] or None,
    )


def _interval(returns: np.ndarray, seed: int, statistic: stats.Statistic) -> list[float] | None:
    if returns.shape[1] < 2:
        return None
    interval = stats.nested_bootstrap(list(returns), np.random.default_rng(seed), statistic)
    return [interval.low, interval.high]


def read_scores(folder: Path) -> list[Entry]:
    """The entries of a folder's evaluation.json in the order they were made; none if there is no such file.

    Raises ValueError if the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"{path} has format {data['format']}, this version reads {FORMAT}; evaluate again")
        return [Entry(**entry) for entry in data["entries"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); delete it and evaluate again") from None


def add_score(folder: Path, entry: Entry) -> Path:
    """Write `entry` into a folder's evaluation.json, in place of one with the same policy, task, shift and seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with _alone(folder):
        entries = [old for old in read_scores(folder) if old.same_as != entry.same_as]
        data = {"format": FORMAT, "entries": [asdict(e) for e in [*entries, entry]]}
        write_whole(path, json.dumps(data, indent=1, allow_nan=False))
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Whoever adds another entry meanwhile waits: each reads what the others have added before."""
    with (folder / LOCK).open("w") as lock:
        with suppress(OSError):  # a file system without locks; better no protection than no entry
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def headline_entry(entries: Sequence[Entry]) -> Entry:
    """The one to quote: of the unshifted entries (else of all) the latest checkpoint, of equals that of most training
    seeds, then the newest.

    Raises LookupError if there is none.
    """
    if not entries:
        raise LookupError("there is no evaluation yet; run robot-cl evaluate first")
    plain = [e for e in entries if e.shift is None] or list(entries)
    latest = max(e.step or 0 for e in plain)
    last = [e for e in plain if (e.step or 0) == latest]
    return [e for e in last if e.members == max(e.members for e in last)][-1]


def interval_text(value: float, ends: Sequence[float] | None, digits: int = 0) -> str:
    """'5231 [4990, 5380]', or the value alone."""
    text = f"{value:,.{digits}f}"
    return text if ends is None else f"{text} [{ends[0]:,.{digits}f}, {ends[1]:,.{digits}f}]"


def success_text(entry: Entry) -> str:
    """'85 % [64, 95]', or nothing where the environment does not tell."""
    rate = entry.success_rate
    return "" if rate is None else f"{100 * rate.estimate:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
