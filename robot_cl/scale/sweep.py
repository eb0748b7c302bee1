"""A sweep: many jobs in one folder, each done once whatever is killed on the way, and a table of them all.

<sweep>/ holds config.yaml (what kind of job, and how they are launched), jobs.json (the jobs as plain data), table.csv,
and jobs/<number>/ for each: its run, attempts.jsonl (a line per process that took it up), done.json or failed.json. A
job is done when done.json exists, which appears in one step; the number is the identity of a job, so that no row of the
table can be there twice.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robot_cl.data.atomic import claim
from robot_cl.paths import DATA_VARIABLE, LIBRARY_VARIABLE, data_root, library_root, new_run_folder
from robot_cl.plain_files import read_json, read_yaml, write_whole
from robot_cl.run_config import filled, plain
from robot_cl.scale.kinds import kind_of_job
from robot_cl.scale.launchers import Launching, check, launcher

Job = dict[str, Any]  # plain JSON data
Progress = Callable[[int, int], None]  # jobs finished, jobs in all
STILLBORN = "no process could be started that takes it up: see whether memory is left, and what workers print"
ATTEMPTS, DONE, FAILED, TRACE = "attempts.jsonl", "done.json", "failed.json", "failed.txt"


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder. Remembers nothing: the folder does."""

    folder: Path

    @classmethod
    def create(cls, root: Path, label: str, kind: str, jobs: Sequence[Job], launching: Launching) -> Sweep:
        """A new one below `root`. Raises LookupError for an unknown kind, ValueError for no jobs, and as `check` does:
        nothing is written then."""
        kind_of_job(kind)
        if not jobs:
            raise ValueError("a sweep needs at least one job")
        check(launching)
        return cls.at(new_run_folder(root, label), kind, jobs, launching)

    @classmethod
    def at(cls, folder: Path, kind: str, jobs: Sequence[Job], launching: Launching) -> Sweep:
        """A sweep in a folder of the caller's choice; what is done there already stays done."""
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "jobs.json", json.dumps(list(jobs), indent=1, allow_nan=False) + "\n")
        about = {"kind": "sweep", "job": kind, "jobs": len(jobs), "launch": plain(launching)}
        write_whole(folder / "config.yaml", yaml.safe_dump(about, sort_keys=False))
        return cls(folder)

    @property
    def about(self) -> dict[str, Any]:
        """config.yaml. Raises ValueError if the folder is no sweep."""
        path = self.folder / "config.yaml"
        if not is_sweep(self.folder):
            raise ValueError(f"{self.folder} is not a sweep; its config.yaml should begin with kind: sweep")
        return read_yaml(path)

    @property
    def launching(self) -> Launching:
        return filled(Launching, self.about["launch"], str(self.folder / "config.yaml"))

    def jobs(self) -> list[Job]:
        return read_json(self.folder / "jobs.json", list)

    def job_folder(self, number: int) -> Path:
        return self.folder / "jobs" / f"{number:04d}"

    def done(self, number: int) -> bool:
        return (self.job_folder(number) / DONE).exists()

    def settled(self, number: int) -> bool:
        """Done, or failed in a way that another try would meet again."""
        return self.done(number) or (self.job_folder(number) / FAILED).exists()

    def attempts(self, number: int) -> int:
        """How many processes have taken it up so far."""
        path = self.job_folder(number) / ATTEMPTS
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def results(self) -> dict[int, dict[str, Any]]:
        """Number -> what done.json says, of the jobs that are done."""
        return self._read(DONE)

    def failures(self) -> dict[int, str]:
        """Number -> one sentence, of the jobs that failed."""
        return {number: said["problem"] for number, said in self._read(FAILED).items() if not self.done(number)}

    def _read(self, name: str) -> dict[int, dict[str, Any]]:
        found = sorted((self.folder / "jobs").glob(f"*/{name}"))
        return {int(path.parent.name): read_json(path) for path in found}

    def go(self, launching: Launching | None = None, progress: Progress | None = None) -> Sweep:
        """Do what is not done yet, also what failed or was killed before, and write the table. Raises as `check`."""
        claim(self.folder)
        launching = launching or self.launching
        total = len(self.jobs())
        left = [number for number in range(total) if not self.done(number)]
        if left:
            check(launching)
        for number in left:
            (self.job_folder(number) / FAILED).unlink(missing_ok=True)

        def tell() -> None:
            if progress is not None:
                progress(sum(self.settled(n) for n in range(total)), total)

        tell()
        if left:
            dead = launcher(launching.chosen)(self, Work.of(self.folder), left, launching, tell)
            for number in dead:
                tried = self.attempts(number)
                died = f"its process died before it was done, taken up {tried} times by now" if tried else STILLBORN
                give_up(self.job_folder(number), died)
        write_whole(self.folder / "table.csv", self.table())
        return self

    def table(self) -> str:
        """A row per job that is done, as CSV: number, its words, attempts, seconds and results."""
        jobs, found = self.jobs(), self.results()
        rows = [
            {"job": number, **_columns(jobs[number]), "attempts": self.attempts(number), **_columns(result)}
            for number, result in found.items()
        ]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names or ["job"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


@dataclass(frozen=True)
class Work:
    """`work(number)` does one job, in whatever process it is called; plain text, so that it can be sent anywhere.

    `place` is where relative names begin, `roots` where datasets and skills lie: on several machines, shared storage.
    """

    sweep: str
    place: str
    roots: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, folder: Path) -> Work:
        return cls(str(folder.absolute()), str(Path.cwd()), _roots())

    def __call__(self, number: int) -> None:
        """Take a job up where the last process left it; return when it is done or has failed.

        Whoever comes while another process has the job waits for it, and then finds it done.
        """
        if str(Path.cwd()) != self.place:
            os.chdir(self.place)
        os.environ.update(dict(self.roots) if _roots() != self.roots else {})
        sweep = Sweep(Path(self.sweep))
        folder = sweep.job_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not sweep.settled(number):
                attempt(folder, kind_of_job(sweep.about["job"]), sweep.jobs()[number])


def _roots() -> tuple[tuple[str, str], ...]:
    """Where datasets and skills lie for this process."""
    return (DATA_VARIABLE, str(data_root())), (LIBRARY_VARIABLE, str(library_root()))


def attempt(folder: Path, do: Callable[[Path, Job], dict[str, Any]], job: Job) -> None:
    """Once through a job; what it raises becomes failed.json, for the other jobs do not depend on it."""
    taken = {"at": round(time.time(), 3), "host": platform.node(), "pid": os.getpid()}
    with (folder / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(taken) + "\n")
    began = time.monotonic()
    try:
        result = do(folder, job)
    except Exception as problem:
        write_whole(folder / TRACE, traceback.format_exc())
        give_up(folder, " ".join(str(problem).split()) or type(problem).__name__)
    else:
        result = {"seconds": round(time.monotonic() - began, 2), **result}
        write_whole(folder / DONE, json.dumps(result, indent=1, allow_nan=False) + "\n")


def give_up(folder: Path, problem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FAILED, json.dumps({"problem": problem}) + "\n")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a job's lock, which the system releases when its holder dies; needs storage that knows flock."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_sweep(folder: Path) -> bool:
    """Whether a run folder is one of many jobs."""
    path = folder / "config.yaml"
    return path.exists() and path.read_bytes().startswith(b"kind: sweep")


def _columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as columns of text: overrides one by one, other lists with blanks."""
    columns: dict[str, Any] = {}
    for name, value in data.items():
        if name == "overrides":
            columns |= dict(word.split("=", 1) for word in value)
        elif isinstance(value, dict):
            columns |= {key: _cell(inner) for key, inner in value.items()}
        else:
            columns[name] = _cell(value)
    return columns


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value

