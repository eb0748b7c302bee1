"""What is known about every run of a folder, read once and then again only where something changed."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

LIVE_S = 90.0  # a run whose metrics grew within this many seconds is being trained
FULL = 10  # of so many looks at the folder, one looks into every run; the others into those that may be training
LARGE = 4_000_000  # bytes of a text file, beyond which the index does not read it
TAIL = 8192  # bytes at the end of metrics.csv that hold its last row
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads ten thousand configurations in seconds


@dataclass(frozen=True)
class Line:
    """One run in the list. `step` of `steps` planned, `score` the mean return of its newest evaluation with its 95 %
    interval; None where nothing is known. `changed` is seconds since 1970. `problem` says what could not be read."""

    name: str
    kind: str = ""
    learner: str = ""
    task: str = ""
    data: str = ""
    step: int | None = None
    steps: int | None = None
    score: float | None = None
    interval: tuple[float, float] | None = None
    simulator: str = ""
    changed: float = 0.0
    report: bool = False
    problem: str = ""

    @property
    def label(self) -> str:
        """The name without its date."""
        return re.sub(r"^\d{4}-\d\d-\d\d-(\d{6}-)?", "", self.name)

    @cached_property
    def text(self) -> str:
        """What a search looks through."""
        return f"{self.name} {self.kind} {self.learner} {self.task} {self.data}".lower()

    def live(self, now: float) -> bool:
        unfinished = self.step is not None and (self.steps is None or self.step < self.steps)
        return unfinished and now - self.changed < LIVE_S


@dataclass(frozen=True)
class Snapshot:
    """All runs, newest first, as they were at one moment; `version` grows with every change."""

    version: int
    lines: tuple[Line, ...]
    complete: bool  # False while the folder is read for the first time


class RunIndex:
    """Remembers a line per run and the times of the files it was read from; `now` gives seconds since 1970.

    `refresh` looks at one stamp per run and reads again what changed; `watch` does so on a thread of its own, so that
    no reader waits for the disk.
    """

    def __init__(self, root: Path, now: Callable[[], float] = time.time):
        self.root, self.now = root, now
        self.snapshot = Snapshot(0, (), False)
        self._lines: dict[str, Line] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._folders: dict[str, int] = {}  # times of the run folders themselves
        self._stop = threading.Event()

    def watch(self, seconds: float = 1.0) -> threading.Thread:
        """Refresh every `seconds` until `close`."""

        def loop() -> None:
            for k in itertools.count():
                if self._stop.is_set():
                    return
                began = time.monotonic()
                self.refresh(full=k % FULL == 0)
                # A folder that takes long to look through is looked through less often.
                self._stop.wait(max(seconds, 4.0 * (time.monotonic() - began)))

        thread = threading.Thread(target=loop, name="run-index", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._stop.set()

    def line(self, name: str) -> Line | None:
        """What is known about one run; None if it has not been read yet."""
        return self._lines.get(name)

    def refresh(self, full: bool = True) -> Snapshot:
        """Look at the folder now. Not `full`: only into runs whose folder changed or that were training lately."""
        changed, seen, now = False, set(), self.now()
        for k, entry in enumerate(_folders(self.root)):
            try:
                made = entry.stat(follow_symlinks=False).st_mtime_ns
            except OSError:  # removed while we looked
                continue
            line = self._lines.get(entry.name)
            if not full and line and self._folders.get(entry.name) == made and now - line.changed > LIVE_S:
                seen.add(entry.name)
                continue
            stamp = _stamp(entry)
            if stamp is None:
                continue
            seen.add(entry.name)
            self._folders[entry.name] = made
            if self._stamps.get(entry.name) != stamp:
                self._stamps[entry.name], changed = stamp, True
                self._lines[entry.name] = read_line(Path(entry.path))
                _ = self._lines[entry.name].text  # made here rather than while somebody waits for a search
            if not self.snapshot.complete and changed and k % 500 == 499:
                self._publish(False)
        for name in self._stamps.keys() - seen:
            del self._stamps[name], self._lines[name], self._folders[name]
            changed = True
        if changed or not self.snapshot.complete:
            self._publish(True)
        return self.snapshot

    def _publish(self, complete: bool) -> None:
        lines = tuple(sorted(self._lines.values(), key=lambda line: (line.changed, line.name), reverse=True))
        self.snapshot = Snapshot(self.snapshot.version + 1, lines, complete)


def _folders(root: Path) -> Iterable[os.DirEntry[str]]:
    """Folders inside `root` itself; a link that leads elsewhere is not one."""
    try:
        with os.scandir(root) as entries:
            yield from (e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    except OSError:
        return


def _stamp(entry: os.DirEntry[str]) -> tuple[int, ...] | None:
    """Times and sizes that change with what a line is read from; None where this is no run."""
    stamp = []
    for name in ("config.yaml", "metrics.csv", "evaluation.json", "continual.json", "report.html"):
        try:
            found = os.stat(f"{entry.path}/{name}", follow_symlinks=False)  # noqa: PTH116 (fifty thousand of them)
            stamp += [found.st_mtime_ns, found.st_size]
        except OSError:
            if name == "config.yaml":
                return None
            stamp += [0, 0]
    return tuple(stamp)


def read_line(run: Path) -> Line:
    """What the list says about a run; a damaged file becomes the line's `problem`, never an error."""
    line = Line(run.name)
    try:
        line = replace(line, changed=_changed(run), report=(run / "report.html").is_file())
        line = _configured(line, run)
        return _scored(replace(line, step=last_step(run / "metrics.csv")), run)
    except Exception as problem:  # whatever one file holds, the other runs are still to be shown
        said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        return replace(line, problem=said[:200])


def _changed(run: Path) -> float:
    """When its training last wrote metrics; of a run without, when anything was last written."""
    if (run / "metrics.csv").is_file():
        return (run / "metrics.csv").stat().st_mtime
    written = (f.stat().st_mtime for n in ("evaluation.json", "config.yaml") if (f := run / n).is_file())
    return max(written, default=run.stat().st_mtime)


def _configured(line: Line, run: Path) -> Line:
    config = yaml.load(small_text(run / "config.yaml"), Loader)
    if not isinstance(config, dict):
        raise ValueError("config.yaml is not a mapping")
    learner = config.get("learner") or {}
    planned = [config.get(key) for key in ("offline_steps", "online_steps")]
    steps = sum(int(n) for n in planned if n) if any(planned) else None
    return replace(
        line,
        kind=str(config.get("kind") or "train"),
        learner=str(learner.get("name", "") if isinstance(learner, dict) else learner),
        task=str(config.get("task") or config.get("stream") or ""),
        data=str(config.get("data") or ""),
        steps=steps,
    )


def _scored(line: Line, run: Path) -> Line:
    path = run / "evaluation.json"
    if not path.is_file():
        return line
    entries = json.loads(small_text(path)).get("entries", [])
    if not entries:
        return line
    last = entries[-1]
    interval = last.get("mean_interval")
    pair = (float(interval[0]), float(interval[1])) if interval else None
    score = float(last["mean"])
    if not all(map(math.isfinite, (score, *(pair or ())))):
        raise ValueError("evaluation.json has numbers that are not finite")
    return replace(line, score=score, interval=pair, simulator=str(last.get("simulator", "")))


def last_step(path: Path) -> int | None:
    """The step of the last whole row of metrics.csv, reading its end only; None where there is none."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        header = file.readline(TAIL).decode("utf-8", "replace").strip().split(",")
        file.seek(0, os.SEEK_END)
        file.seek(max(len(",".join(header)) + 1, file.tell() - TAIL))
        rows = file.read().decode("utf-8", "replace").splitlines()
    for row in reversed(list(csv.reader(rows))):
        if len(row) == len(header) and "step" in header and row[header.index("step")].isdigit():
            return int(row[header.index("step")])
    return None


def small_text(path: Path) -> str:
    """Raises ValueError for a link, or a file larger than anything the index should read."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link; links are not followed")
    if path.stat().st_size > LARGE:
        raise ValueError(f"{path.name} is larger than {LARGE // 1_000_000} MB")
    return path.read_text(encoding="utf-8")


def search(lines: Iterable[Line], words: str) -> list[Line]:
    """Lines that contain every word, in any of their texts."""
    wanted = words.lower().split()
    return [line for line in lines if all(word in line.text for word in wanted)]


SORTS: dict[str, Callable[[Line], Any]] = {
    "changed": lambda line: line.changed,
    "name": lambda line: line.label.lower(),
    "learner": lambda line: line.learner,
    "task": lambda line: line.task,
    "return": lambda line: float("-inf") if line.score is None else line.score,
}


def ordered(lines: list[Line], sort: str) -> list[Line]:
    """By a key of SORTS, largest first after a "-". Raises ValueError for another."""
    key = sort.removeprefix("-")
    if key not in SORTS:
        raise ValueError(f"cannot sort by {key!r}; one of {', '.join(SORTS)}")
    return sorted(lines, key=SORTS[key], reverse=sort.startswith("-"))
