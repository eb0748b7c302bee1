"""The whole journey on the embedded default: a dataset, a policy from it, a better one from practice, film and report.

Every number it prints is read from the evaluation.json files it leaves behind.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_cl.commands.evaluate import EvaluateOptions, evaluate_subject, find_subject
from robot_cl.commands.train import shown, train_one
from robot_cl.commands.verb import Call
from robot_cl.scores import Entry, interval_text

TASK = "halfcheetah"
BEHAVIOURS = ("halfcheetah-low", "halfcheetah-medium")
NOISE = 0.2
DATASET = "halfcheetah/demo-v0"


@dataclass
class DemoOptions:
    """Options of `demo`."""

    out: str = "demo"  # folder for everything it writes
    seeds: int = 2  # training seeds, side by side
    steps: int = 80_000  # transitions in the dataset
    offline_steps: int = 6_000  # updates on the dataset
    online_steps: int = 500_000  # environment steps per seed
    episodes: int = 10  # per evaluation and seed
    film: float = 4.0  # seconds of film
    quick: bool = False  # a rehearsal in seconds: everything runs, nothing is learned

    def __post_init__(self) -> None:
        if self.quick:
            self.steps, self.offline_steps, self.online_steps = 4_000, 60, 8_192
            self.episodes, self.film = 2, 1.0


@dataclass(frozen=True)
class DemoResult:
    """What the demo made. `peak_gb` is the largest resident memory; the first film stood after `first_film_s`."""

    report: Path
    film: Path
    behaviour: float
    offline: Entry
    online: Entry
    seconds: float
    first_film_s: float
    peak_gb: float

    @property
    def improves(self) -> bool:
        return self.online.mean > self.offline.mean > self.behaviour

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and paths."""
        return {
            "behaviour_mean": self.behaviour,
            "offline_mean": self.offline.mean,
            "offline_interval": self.offline.mean_interval,
            "online_mean": self.online.mean,
            "online_interval": self.online.mean_interval,
            "improves": self.improves,
            "seconds": round(self.seconds, 1),
            "first_film_s": round(self.first_film_s, 1),
            "peak_gb": round(self.peak_gb, 2),
            "report": str(self.report),
            "film": str(self.film),
        }


@dataclass
class Story:
    """Says what happens, step by step; remembers when it began and which films were recorded."""

    call: Call
    began: float = field(default_factory=time.monotonic)
    films: list[tuple[str, Any]] = field(default_factory=list)

    def chapter(self, number: int, text: str) -> None:
        self.call.mark(f"[bold]{number}/5[/] {text}")

    def note(self, text: str) -> None:
        self.call.mark(f"    [dim]{self.seconds:5.0f} s[/]  {text}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def run_demo(call: Call, options: DemoOptions) -> DemoResult:
    """Everything, into `options.out`. A later call replaces the dataset and adds runs."""
    story, out = Story(call), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    first_film = film_behaviour(story, options, out)
    first_film_s = story.seconds
    dataset = collect_dataset(story, options, out)
    offline_run, offline = train_offline(story, options, out, dataset)
    shutil.copy(first_film, offline_run / "videos" / "behaviour-in-the-data.mp4")
    online_run, online = train_online(story, options, out, offline_run, offline)
    film, report = tell(story, options, out, dataset, (offline_run, online_run), (offline, online))
    return DemoResult(
        report, film, dataset.meta.return_mean, offline, online, story.seconds, first_film_s, peak_memory_gb()
    )


def film_behaviour(story: Story, options: DemoOptions, out: Path) -> Path:
    """The better of the embedded behaviours, moving."""
    from robot_cl.evaluate import evaluate
    from robot_cl.film import write_film

    story.chapter(1, f"a behaviour that ships with the package: {BEHAVIOURS[-1]}")
    played = evaluate(BEHAVIOURS[-1], TASK, 1, film_seconds=options.film)
    assert played.film is not None
    story.films.append(("behaviour", played.film))
    made = write_film(played.film, out / "behaviour.mp4")
    story.note(f"film ({made.backend}): {shown(made.path)}")
    return made.path


def collect_dataset(story: Story, options: DemoOptions, out: Path) -> Any:
    """A mixture of a worse and a better behaviour, both with noise, and what the doctor says about it."""
    from robot_cl.commands.data import show_checkup
    from robot_cl.data.behaviours import load_behaviour
    from robot_cl.data.collect import Part, collect
    from robot_cl.data.doctor import examine

    story.chapter(2, f"a dataset: {options.steps:,} steps of {' and '.join(BEHAVIOURS)}, with noise {NOISE:g}")
    parts = [Part(load_behaviour(name), NOISE) for name in BEHAVIOURS]
    with story.call.progress("recording") as bar:
        root = (out / "datasets").absolute()
        dataset = collect(TASK, parts, options.steps, DATASET, root=root, overwrite=True, progress=bar)
    show_checkup(story.call, examine(dataset))
    story.note(f"mean return in the data {dataset.meta.return_mean:,.0f}")
    return dataset


def train_offline(story: Story, options: DemoOptions, out: Path, dataset: Any) -> tuple[Path, Entry]:
    """IQL on the dataset alone."""
    story.chapter(3, f"a policy from the data alone: {options.offline_steps:,} updates of iql, {options.seeds} seeds")
    words = ["experiment=demo_offline", f"data={dataset.path}", f"task={TASK}", f"seeds={options.seeds}"]
    words += [f"out={out / 'runs'}", f"offline_steps={options.offline_steps}"]
    return _train_and_evaluate(story, options, words, "offline")


def train_online(
    story: Story, options: DemoOptions, out: Path, offline_run: Path, offline: Entry
) -> tuple[Path, Entry]:
    """PPO from the offline policy."""
    story.chapter(4, f"the same policy practising: {options.online_steps:,} steps of ppo per seed on parallel worlds")
    words = ["experiment=demo_online", f"init_from={offline_run}", f"task={TASK}", f"seeds={options.seeds}"]
    words += [f"out={out / 'runs'}", f"online_steps={options.online_steps}"]
    return _train_and_evaluate(story, options, words, "online")


def _train_and_evaluate(story: Story, options: DemoOptions, words: list[str], name: str) -> tuple[Path, Entry]:
    if options.quick:
        words = [*words, "eval_every=0", "tensorboard=false"]
    run = train_one(story.call, words)
    wanted = EvaluateOptions(episodes=options.episodes, film=options.film)
    films: list[Any] = []
    entry = evaluate_subject(story.call, find_subject(str(run), wanted), wanted, films)
    story.films += [(name, film) for film in films]
    story.note(f"mean return {interval_text(entry.mean, entry.mean_interval)} over {entry.members} seeds")
    return run, entry


def tell(
    story: Story, options: DemoOptions, out: Path, dataset: Any, runs: tuple[Path, Path], entries: tuple[Entry, Entry]
) -> tuple[Path, Path]:
    """The film of all three side by side, and the page."""
    from robot_cl.film import write_side_by_side
    from robot_cl.report import write_report

    story.chapter(5, "film and report")
    with story.call.progress("filming") as bar:
        film = write_side_by_side(story.films, out / "demo.mp4", 320, 240, progress=bar).path
    offline, online = entries
    lead = (
        f"Mean return in the data {dataset.meta.return_mean:,.0f}; learned from it alone "
        f"{interval_text(offline.mean, offline.mean_interval)}; after practice "
        f"{interval_text(online.mean, online.mean_interval)}."
    )
    report = write_report(list(runs), out / "report.html", "From a dataset to a better, moving robot", lead)
    return film, report


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
