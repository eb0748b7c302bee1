"""robot-cl evaluate"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from policies.policy import Policy
    from robot_cl.scores import Entry


@dataclass
class EvaluateOptions:
    """Options of `evaluate`."""

    task: str | None = None  # none: the one the policy was trained on
    episodes: int = 20  # per training seed; episode k starts from seed + k
    seed: int = 1000  # of the first episode
    shift: str | None = None  # a change of the world, such as gravity0.6 or friction0.5+latency2
    step: int | None = None  # checkpoint of a run; none: the newest
    member: int | None = None  # one of a run's training seeds; none: all of them
    adapt: str | None = None  # folder that robot-cl adapt wrote: its flow around the policy
    film: float = 4.0  # seconds of film of the median episode, 0: none
    worlds: int = 64  # episodes played at once, which does not change their returns
    threads: int | None = None  # none: all cores
    label: str | None = None  # what tables and the report call it
    out: str | None = None  # folder for evaluation.json and the film; none: the run's own


@dataclass(frozen=True)
class Subject:
    """What is evaluated: `load(member)` gives the policy of one training seed."""

    name: str
    label: str
    step: int | None
    members: int
    load: Callable[[int | None], Policy]
    folder: Path


def run(call: Call, options: EvaluateOptions) -> Outcome:
    subject = find_subject(call.words[0], options)
    if options.adapt:
        from robot_cl.commands.adapt import around

        subject = around(call, subject, options.adapt)
    entry = evaluate_subject(call, subject, options)
    show(call, [entry])
    owner = subject.folder if (subject.folder / "config.yaml").exists() else None
    following = f"report {typed(owner)}" if owner else "list"
    data = {key: value for key, value in vars(entry).items()}
    return Outcome({"evaluation": data}, wrote=subject.folder, next=following)


def evaluate_subject(
    call: Call, subject: Subject, options: EvaluateOptions, films: list[Any] | None = None
) -> Entry:
    """Every member on the same episodes, one film, and the entry written into the folder's evaluation.json.

    What was filmed is also added to `films`.
    """
    from robot_cl.evaluate import evaluate
    from robot_cl.scores import add_score, combine

    members = [options.member] if options.member is not None else list(range(subject.members))
    results = []
    with call.progress(f"evaluating {subject.label}") as bar:
        for k, member in enumerate(members):
            done, total = k * options.episodes, len(members) * options.episodes
            results.append(
                evaluate(
                    subject.load(member if subject.members > 1 else None),
                    options.task,
                    options.episodes,
                    options.seed,
                    options.shift,
                    worlds=options.worlds,
                    threads=options.threads,
                    film_seconds=options.film if k == 0 else 0.0,
                    progress=lambda now, _, done=done, total=total: bar(done + now, total),  # type: ignore[misc]
                )
            )
    if films is not None and results[0].film is not None:
        films.append(results[0].film)
    entry = combine(options.label or subject.label, subject.name, subject.step, results, None)
    add_score(subject.folder, entry)  # before the film, which may fail
    film = write_film(call, subject, results[0].film, options, members[0]) if options.film else None
    if film is not None:
        entry = replace(entry, film=film)
        add_score(subject.folder, entry)
    return entry


def write_film(call: Call, subject: Subject, film: Any, options: EvaluateOptions, member: int) -> str | None:
    """videos/<what>.mp4 in the subject's folder -> its path relative to that folder, None where none can be made."""
    from robot_cl import film as films
    from robot_cl.activity import activity, write_activity

    if film is None:
        return None
    file = film_file(options.label or subject.label, options)
    with call.progress("filming") as bar:
        films.write_film(film, subject.folder / file, progress=bar)
    active = activity(subject.load(member if subject.members > 1 else None), film)
    if active is not None:
        write_activity(active, subject.folder / file)
    return file


def film_file(label: str, options: EvaluateOptions) -> str:
    """Of each evaluation its own: other episodes have another median one, and another caption in the report."""
    usual = EvaluateOptions()
    what = [label, options.shift, options.task]
    what += [f"{options.episodes} episodes"] if options.episodes != usual.episodes else []
    what += [f"from {options.seed}"] if options.seed != usual.seed else []
    name = re.sub(r"[^A-Za-z0-9.+]+", "-", " ".join(part for part in what if part)).strip("-")
    return f"videos/{name}.mp4"


def find_subject(word: str, options: EvaluateOptions) -> Subject:
    """Raises LookupError, ValueError or OSError if the word names no policy or the checkpoint does not exist."""
    from robot_cl.commands.runs import find_source

    source, owner = find_source(word)
    if owner is not None:
        return _run_subject(Path(source), owner, options)
    if options.step is not None:
        raise ValueError(f"step={options.step} picks a checkpoint of a run, and {word} is not one")
    name = Path(word).stem or str(word)
    folder = Path(options.out) if options.out else _own_folder(name)
    if Path(source).is_dir() and (Path(source) / "contract.json").exists():
        from robot_cl.deploy.bundle import PolicyBundle

        bundle: Any = PolicyBundle.load(source)
        return Subject(name, f"bundle {name}", None, 1, lambda member: bundle, folder)
    from robot_cl.checkpoint import load_policy

    policy = load_policy(source)
    return Subject(name, name, None, 1, lambda member: policy, folder)


def _run_subject(source: Path, owner: Path, options: EvaluateOptions) -> Subject:
    from robot_cl.checkpoint import checkpoint_folder, load_policy, read_card

    if options.step is not None:
        source = owner / "checkpoints" / str(options.step)
        if not (source / "policy.json").exists():
            steps = sorted(int(p.name) for p in (owner / "checkpoints").glob("[0-9]*"))
            raise LookupError(f"{owner} has no checkpoint {options.step}; there are: {', '.join(map(str, steps))}")
    folder = checkpoint_folder(source)
    card = read_card(folder)
    members = int(card["actor"]["population"])
    if options.member is not None and not 0 <= options.member < members:
        raise ValueError(f"member={options.member}, but {owner} has training seeds 0 to {members - 1}")
    out = Path(options.out) if options.out else owner
    step = int(card["step"])
    name, label = owner.name, _stage(owner, card, step)
    if options.member is not None and members > 1:  # a row of its own, beside that of all seeds
        name, label = f"{name} seed {options.member}", f"{label}, seed {options.member}"
    return Subject(name, label, step, members, lambda m: load_policy(folder, m), out)


def _stage(owner: Path, card: dict[str, Any], step: int) -> str:
    """'iql offline, 20,000 updates' or 'iql online, 5,000 steps'; a composition says itself what it is."""
    if "label" in card:
        return str(card["label"])
    from robot_cl.learners import name_of
    from robot_cl.run_config import read_config

    config, learner = read_config(owner)
    offline = config.offline
    if step <= offline:
        return f"{name_of(learner)} offline, {step:,} updates"
    return f"{name_of(learner)} online, {step - offline:,} steps"


def _own_folder(name: str) -> Path:
    from robot_cl.paths import runs_root

    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    root = runs_root()
    folder = root / f"{date.today().isoformat()}-evaluate-{safe}"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def show(call: Call, entries: list[Entry]) -> None:
    """The table of one or several entries, and what the numbers are."""
    from robot_cl.scores import interval_text, success_text

    told, wide = any(entry.success_rate for entry in entries), call.console.width >= 110
    columns = ["policy", "episodes ", "mean [95 %] ", "IQM [95 %] ", "score "]
    columns += (["length ", "fell "] if wide else []) + (["success [95 %] "] if told else [])
    table = call.table(*columns)
    for entry in entries:
        lengths = [n for member in entry.lengths for n in member]
        fell = [f for member in entry.fell for f in member]
        score = "" if entry.score is None else interval_text(entry.score, entry.score_interval if wide else None, 1)
        table.add_row(
            f"{entry.label}{f' · {entry.shift}' if entry.shift else ''}",
            f"{entry.members} × {len(entry.seeds)}" if entry.members > 1 else str(len(entry.seeds)),
            interval_text(entry.mean, entry.mean_interval),
            interval_text(entry.iqm, entry.iqm_interval),
            score,
            *([f"{sum(lengths) / len(lengths):.0f}", f"{100 * sum(fell) / len(fell):.0f} %"] if wide else []),
            *([success_text(entry)] if told else []),
        )
    call.console.print(table)
    for reference in sorted({e.reference for e in entries if e.reference}):
        call.say(f"score: 0 to 100 on the {reference}")
    call.say(f"simulator: {', '.join(sorted({e.simulator for e in entries}))}")


EVALUATE = Verb(
    run=run,
    usage="RUN|CHECKPOINT|BUNDLE|FILE|BEHAVIOUR [key=value ...]",
    about="Play episodes with a policy and say how sure the result is: mean and interquartile mean with bootstrap\n"
    "95 % intervals, the normalised score with its reference, and a film of the median episode. Episode k is the one\n"
    "a plain Gymnasium loop plays from seed + k, whatever the number of worlds and threads.",
    examples=(
        "robot-cl evaluate last",
        "robot-cl evaluate runs/2026-01-31-iql episodes=100 seed=5000",
        "robot-cl evaluate halfcheetah-medium task=halfcheetah shift=gravity0.6 film=0",
        "robot-cl evaluate agent.zip task=hopper --json",
    ),
    options=lambda: EvaluateOptions,
    words=(1, 1),
)
