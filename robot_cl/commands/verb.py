"""What a verb of the command line is made of: its help, its options, and what it may do to the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PATIENCE = 2.0  # seconds after which work shows a bar


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back: plain data for --json, the folder it wrote, the next sensible command, the exit code."""

    data: dict[str, Any] = field(default_factory=dict)
    wrote: Path | None = None
    next: str | None = None
    code: int = 0


@dataclass
class Call:
    """One use of a verb. Remembers the console and, for Ctrl-C, how to resume."""

    words: list[str]
    overrides: list[str]
    as_json: bool = False
    quiet: bool = False
    resume: str = ""

    @cached_property
    def console(self) -> Console:
        """Where people read: standard output, or standard error when standard output is JSON."""
        from rich.console import Console

        class Piped(Console):
            def on_broken_pipe(self) -> None:
                """A reader who has seen enough is no error; rich would end the process."""
                raise BrokenPipeError

        console = Piped(stderr=self.as_json, quiet=self.quiet, highlight=False)
        if not console.is_terminal:
            console.width = 140  # a file or a pipe has no edge, and rich would assume 80 columns
        return console

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def mark(self, text: str) -> None:
        """As `say`, for text with rich's markup in it; what comes from outside must be escaped."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner while something of unknown length goes on."""
        with self.console.status(f"{what} ..."):
            yield

    def table(self, *columns: str, title: str | None = None) -> Table:
        """An empty table in the house style; numbers go to the right when the column name ends in a blank."""
        from rich import box
        from rich.table import Table

        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
        for column in columns:
            number = column.endswith(" ")
            justify: Any = "right" if number else "left"
            least = None if number else 14
            table.add_column(column.strip(), justify=justify, no_wrap=number, overflow="fold", min_width=least)
        return table

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A bar with the time left, drawn only once the work has taken two seconds."""
        bar = Progress(self.console, title)
        try:
            yield bar
        finally:
            bar.close()


class Progress:
    """`progress(done, total, note)`: a bar with the time left, drawn once the work has taken `patience` seconds.

    It appears even if nothing was reported by then, as something that moves. Remembers the latest report and the bar.
    """

    def __init__(self, console: Console, title: str, patience: float = PATIENCE):
        self.console, self.title = console, title
        self.bar: Any = None
        self._task: Any = None
        self._latest: dict[str, Any] = {"total": None, "note": ""}
        self._lock, self._closed = threading.Lock(), False
        self._timer = threading.Timer(patience, self._open)
        self._timer.daemon = True
        if console.is_terminal and not console.quiet:
            self._timer.start()

    def __call__(self, done: float, total: float, note: str = "") -> None:
        with self._lock:
            self._latest = {"completed": done, "total": total, "note": note}
            if self.bar is not None:
                self.bar.update(self._task, **self._latest)

    def _open(self) -> None:
        from rich import progress as rich_progress

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=28),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}", style="dim"),
        )
        with self._lock:
            if self._closed:
                return
            self.bar = rich_progress.Progress(*columns, console=self.console, transient=True)
            self._task = self.bar.add_task(self.title, **self._latest)
            self.bar.start()

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self.bar is not None:
                self.bar.stop()


@dataclass(frozen=True)
class Verb:
    """A verb's page of help and the function behind it.

    `options` returns the dataclass that key=value words fill (a function, because importing it may be slow); `words`
    is how few and how many plain words, such as RUN, may stand before them.
    """

    run: Callable[[Call, Any], Outcome]
    usage: str
    about: str
    examples: tuple[str, ...]
    options: Callable[[], type] | None = None
    words: tuple[int, int] = (0, 0)
    free: bool = False  # the verb reads key=value words itself
    more_help: Callable[[list[str]], str] | None = None


def to_json(data: Any) -> str:
    """One line of JSON; what JSON cannot hold is refused, not written as NaN."""
    return json.dumps(data, default=str, allow_nan=False)
