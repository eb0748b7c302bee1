"""A transfer study as a run folder: returns are kept as soon as they are known, so that a study killed at any moment
goes on to the same table.

Run folder: config.yaml, provenance.json, parts.json while it goes on, transfer.json at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from robot_cl import transfer
from robot_cl.at_once import AtOnce
from robot_cl.compose_run import CHOICE_SEED, ComposeOptions, Job, as_list, read
from robot_cl.coverage import coverage, describe_skill_shifts
from robot_cl.data.atomic import claim, write_json
from robot_cl.demonstrations import Demonstrations, picked
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.plain_files import read_json, read_yaml, write_whole
from robot_cl.provenance import provenance
from robot_cl.routes import Route
from robot_cl.run_config import filled, plain

KIND, FILE, PARTS = "transfer", "transfer.json", "parts.json"
AUDITION_SEED = 600_000  # first of the episodes by which the best single skill is chosen: none that a row is played on
BY_DEMONSTRATIONS = (transfer.GATE, "residual", "fresh adapter")  # rows of the curve over demonstrations
Progress = Callable[[float, float, str], None]


@dataclass
class TransferOptions(ComposeOptions):
    """Options of `transfer`; those that choose between routes are not used."""

    episodes: int = 10  # roll-outs of each row and draw, from the same starts
    draws: int = 3  # disjoint draws of the demonstrations, each row fitted to each
    counts: Any = None  # numbers of demonstrations for the curve, such as [1,3,10]; none: only demos
    rows: Any = None  # rows of the table; none: all eight and the residual
    interventions: bool = True  # the four controls as well
    expert: float | None = None  # return that counts as 1; none: the mean of the demonstrations
    tasks: Any = None  # for the matrix: tasks (TASK or TASK:SHIFT) on which the base and every skill are played

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.episodes < 2:
            raise ValueError(f"draws={self.draws} and episodes={self.episodes}; expected at least 1 and 2")
        if min(self.by_count) < 1 or max(self.by_count) > self.demos:
            raise ValueError(f"counts={self.by_count} reach beyond demos={self.demos}; raise demos")
        for name in self.names:
            transfer.described(name)

    @property
    def by_count(self) -> list[int]:
        """Numbers of demonstrations, ascending; the last is `demos`."""
        return sorted({int(count) for count in as_list(self.counts)} | {self.demos})

    @property
    def names(self) -> list[str]:
        """Rows and interventions of the table."""
        controls = transfer.INTERVENTIONS if self.interventions else ()
        return [*(str(name) for name in as_list(self.rows) or transfer.ROWS), *controls]


class Parts:
    """Returns by key, on disk after each (a `transfer.Keep`). Remembers them, and how far the study has come."""

    def __init__(self, folder: Path, wanted: set[str], progress: Progress | None):
        self.path, self.wanted, self.progress = folder / PARTS, wanted, progress
        self.found: dict[str, list[float]] = {}
        if self.path.exists():
            self.found = read_json(self.path)

    def __call__(self, key: str, find: Callable[[], np.ndarray]) -> np.ndarray:
        self._tell(key)
        if key not in self.found:
            self.found[key] = [float(value) for value in find()]
            write_whole(self.path, json.dumps(self.found) + "\n")
        self._tell(key)
        return np.array(self.found[key])

    def _tell(self, key: str) -> None:
        if self.progress is not None:
            self.progress(len(self.wanted & set(self.found)), len(self.wanted), key.rpartition("/")[0])


def start(
    options: TransferOptions, progress: Progress | None = None, began: Callable[[Path], None] | None = None
) -> Path:
    """A new study, told to `began`, to its end -> its folder. Raises ValueError, LookupError or OSError before anything
    is written."""
    job = opened(options)
    label = options.name or f"transfer-{job.task}".replace("/", "-")
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), label)
    record = provenance(job.task, job.dataset, options.seed, torch.get_num_threads(), "cpu")
    write_json(folder / "provenance.json", record)
    config = {"kind": KIND, **plain(options), "task": job.task}
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if began is not None:
        began(folder)
    return finish(folder, options, job, progress)


def is_study(folder: Path) -> bool:
    """Whether a run folder is one of this kind."""
    path = folder / "config.yaml"
    return path.exists() and path.read_bytes().startswith(f"kind: {KIND}\n".encode())


def proceed(folder: Path, progress: Progress | None = None) -> Path:
    """Do what of a study is not done yet; the result is that of a study never interrupted. Returns the folder."""
    if not is_study(folder):
        raise ValueError(f"{folder} is not a transfer study; robot-cl transfer makes one")
    if (folder / FILE).exists():
        return folder
    path = folder / "config.yaml"
    data = read_yaml(path)
    data.pop("kind")
    options = filled(TransferOptions, data, str(path))
    return finish(folder, options, opened(options), progress)


def opened(options: TransferOptions) -> Job:
    """The job with the demonstrations of all draws together."""
    demos = options.demos
    options.demos = demos * options.draws
    try:
        return read(options)
    finally:
        options.demos = demos


def finish(folder: Path, options: TransferOptions, job: Job, progress: Progress | None) -> Path:
    """transfer.json from what is kept and what is missing."""
    claim(folder)
    draws, play, settings = divided(job.demos, options.draws), player(job, options), options.settings()
    expert = options.expert or expert_return(job, options)
    parts = Parts(folder, planned(options, job), progress)
    audition = player(job, options, AUDITION_SEED)
    rows = transfer.table(job.known, draws, settings, play, expert, options.names, parts, audition)
    curves = learning(job, draws, options, play, expert, parts)
    left = transfer.leave_one_out(job.known, draws[0], settings, play, parts)
    cards = {name: job.library.card(name) for name in job.known.skills}
    said = coverage(options.shift, describe_skill_shifts(cards), job.demos, job.base.actor)
    data = {
        "task": job.task, "shift": options.shift, "expert": expert, "rows": [asdict(row) for row in rows],
        "by_demonstrations": curves, "left_out": {name: r.tolist() for name, r in left.items()},
        "matrix": crossed(job, options, parts), "coverage": said, "demonstrations": options.demos,
        "draws": options.draws,
    }  # fmt: skip
    write_whole(folder / FILE, json.dumps(data, indent=1, allow_nan=False) + "\n")
    (folder / PARTS).unlink(missing_ok=True)
    return folder


def planned(options: TransferOptions, job: Job) -> set[str]:
    """The keys of everything that will be played."""
    key, draws = transfer.key_of, range(options.draws)
    keys = {key(name, options.demos, k) for name in options.names for k in draws}
    keys |= {key(name, count, k) for name in BY_DEMONSTRATIONS for count in options.by_count for k in draws}
    if len(job.known.skills) > 1:
        keys |= {key(f"without {name}", options.demos, 0) for name in job.known.skills}
    keys |= {transfer.audition_key(name) for name in job.known.skills if transfer.BEST in options.names}
    names, tasks = ("", *job.known.skills), matrix_tasks(options)
    return keys | {transfer.crossed_key(name, task) for name in names for task in tasks}


def divided(demos: Demonstrations, draws: int) -> list[Demonstrations]:
    """Disjoint sets of whole episodes, equally many each."""
    each, found = demos.episodes // draws, []
    for k in range(draws):
        part = demos.where((demos.episode >= k * each) & (demos.episode < (k + 1) * each))
        found.append(Demonstrations(part.obs, part.action, part.episode - k * each))
    return found


def expert_return(job: Job, options: TransferOptions) -> float:
    """Mean return of the demonstrations themselves."""
    taken = picked(job.dataset, options.demos * options.draws, options.pick)
    return sum(episode.ret for episode in taken) / len(taken)


def player(job: Job, options: TransferOptions, seed: int = CHOICE_SEED) -> transfer.Play:
    """Plays a module, always from the same starts and all episodes at once."""
    from robot_cl.evaluate import evaluate

    def play(module: Any) -> np.ndarray:
        policy = AtOnce(Route("row", module, None).policy(job.base.interface, job.task))
        return np.array(evaluate(policy, job.task, options.episodes, seed, options.shift).returns)

    return play


def learning(
    job: Job, draws: list[Demonstrations], options: TransferOptions, play: transfer.Play, expert: float, parts: Parts
) -> dict[str, Any]:
    """For α(s), the residual and a fresh adapter: mean return by number of demonstrations, to-80 % and area; these two
    are None where the expert's return is not above 0, of which there is no share."""
    found: dict[str, dict[int, float]] = {}
    for count in options.by_count:
        fewer = [d.where(d.episode < count) for d in draws]
        for row in transfer.table(job.known, fewer, options.settings(), play, expert, BY_DEMONSTRATIONS, parts):
            found.setdefault(row.name, {})[count] = row.mean
    return {
        name: {
            "mean": {str(c): m for c, m in means.items()},
            "to_80": reached(means, expert) if expert > 0 else None,
            "area": transfer.area_over_demonstrations(means, expert) if expert > 0 else None,
        }
        for name, means in found.items()
    }


def reached(means: dict[int, float], expert: float) -> float | None:
    """Demonstrations to 80 % of the expert, None if that was not reached."""
    count = transfer.demonstrations_to(means, expert)
    return None if count == float("inf") else count


def matrix_tasks(options: TransferOptions) -> list[str]:
    return [str(task) for task in as_list(options.tasks)]


def crossed(job: Job, options: TransferOptions, parts: Parts) -> dict[str, Any]:
    """Mean return and its interval of the base ("") and each skill on each task."""
    from policies.actor import ActorPolicy
    from robot_cl import stats
    from robot_cl.continual.promotion import paired_returns

    def play_on(actor: Any, task: str) -> np.ndarray:
        policy = AtOnce(ActorPolicy(actor, 0, job.base.interface, job.task))
        return paired_returns(policy, [task], options.episodes, CHOICE_SEED)[task]

    def interval(returns: np.ndarray) -> dict[str, float]:
        return asdict(stats.stratified_bootstrap(returns, np.random.default_rng(0), stats.mean))

    tasks = matrix_tasks(options)
    found = transfer.cross_matrix(job.known, tasks, play_on, parts) if tasks else {}
    return {name: {task: interval(r) for task, r in of.items()} for name, of in found.items()}
