"""robot-cl data list | collect | import | check"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from robot_cl.commands.helptext import REQUIRED
from robot_cl.commands.verb import Call, Outcome, Verb
from robot_cl.scale.launchers import Launching


def run_list(call: Call, options: Any) -> Outcome:
    from rich.markup import escape

    from robot_cl.data.store import damaged_datasets, list_datasets
    from robot_cl.paths import data_root

    found, damaged = list_datasets(), damaged_datasets()
    table = call.table("dataset", "task", "steps ", "episodes ", "return ", "score ", "from")
    for name, meta in found.items():
        score = "" if meta.score is None else f"{meta.score:.1f}"
        returns = f"{meta.return_mean:.0f} ± {meta.return_std:.0f}"
        kind = str(meta.source.get("kind", ""))
        table.add_row(name, meta.task or "?", f"{meta.steps:,}", f"{meta.episodes:,}", returns, score, kind)
    if found:
        call.console.print(table)
    elif not damaged:
        call.say(f"no datasets in {data_root()} yet")
    for name, why in damaged.items():
        call.mark(f"[red]✗[/] {escape(name)}: {escape(why)}")
    following = f"data check {next(iter(found))}" if found else "data collect --help"
    data = {"datasets": {name: meta.to_dict() for name, meta in found.items()}, "damaged": damaged}
    return Outcome(data, next=following)


@dataclass
class CollectOptions:
    """Options of `data collect`."""

    task: str = REQUIRED  # as in `robot-cl list tasks`
    policy: Any = REQUIRED  # a behaviour's name, random, a run, an SB3 zip, an npz; a list [a,b] mixes several
    name: str = REQUIRED  # of the new dataset, such as hopper/medium-v0
    steps: int = 100_000  # transitions to record
    noise: Any = 0.0  # standard deviation added to each action; a list gives one for each policy
    shares: list[float] = field(default_factory=list)  # of the steps, one for each policy; none: equal
    replay: bool = False  # like a replay buffer: uniform actions first, then the policies with falling noise
    stochastic: bool = False  # draw from the policy's own distribution instead of taking its mean
    seed: int = 0  # of the worlds and of the noise
    storage: str = "hdf5"  # Minari's storage: hdf5 or arrow
    overwrite: bool = False  # replace a dataset of this name
    shards: int | None = None  # record so many pieces apart and join them; none: in one piece, or one for each job
    launch: Launching = field(default_factory=Launching)


def run_collect(call: Call, options: CollectOptions) -> Outcome:
    from robot_cl.data.collect import collect

    parts = mixture(options)
    if options.shards is not None or options.launch != Launching():
        return recorded(call, in_shards(call, options, len(parts)))
    with call.progress(f"recording {options.name}") as bar:
        dataset = collect(
            options.task,
            parts,
            options.steps,
            options.name,
            seed=options.seed,
            storage=options.storage,
            overwrite=options.overwrite,
            progress=bar,
        )
    return recorded(call, dataset)


def in_shards(call: Call, options: CollectOptions, parts: int) -> Any:
    """The dataset, recorded by several workers."""
    from robot_cl.scale.shards import collect_in_shards

    plain = {key: value for key, value in vars(options).items() if key not in ("shards", "launch")}
    with call.progress(f"recording {options.name}") as bar:
        return collect_in_shards(plain, parts, options.shards or options.launch.jobs, options.launch, bar)


def recorded(call: Call, dataset: Any) -> Outcome:
    _describe(call, dataset.meta)
    return Outcome({"dataset": dataset.meta.to_dict()}, wrote=dataset.path, next=f"data check {dataset.name}")


def mixture(options: CollectOptions) -> list[Any]:
    """The parts that the options name. Raises ValueError where lists differ in length."""
    from robot_cl.commands.runs import find_source
    from robot_cl.data.collect import Part, UniformPolicy, random_part, replay_like
    from robot_cl.evaluate import load

    names = options.policy if isinstance(options.policy, list) else [options.policy]
    uniform = random_part(options.task).policy
    policies = [uniform if name == UniformPolicy.name else load(find_source(str(name))[0]) for name in names]
    if options.replay:
        return replay_like(policies)
    noises = options.noise if isinstance(options.noise, list) else [options.noise] * len(names)
    for noise in noises:
        if isinstance(noise, bool) or not isinstance(noise, (int, float)):
            raise ValueError(f"noise expects a number, or a list with one for each policy, got {noise!r}")
    shares = options.shares or [1.0] * len(names)
    for what, given in (("noise", noises), ("shares", shares)):
        if len(given) != len(names):
            raise ValueError(f"{what} has {len(given)} entries for {len(names)} policies; give one for each")
    rows = zip(policies, noises, shares, strict=True)
    return [
        Part(policy, float(noise), float(share), options.stochastic or isinstance(policy, UniformPolicy))
        for policy, noise, share in rows
    ]


@dataclass
class ImportOptions:
    """Options of `data import`."""

    name: str | None = None  # of the new dataset; none: made from the file's name
    task: str | None = None  # gives channel names and limits; none: guessed from the file's name
    horizon: int | None = None  # steps after which an episode ends by time, for files without timeouts
    clip: bool = False  # clip actions beyond the limits, as the simulator did, instead of refusing them
    keep_terminals: bool = False  # keep terminal steps without a next observation
    limit: int | None = None  # terminals after exactly this many steps are timeouts; store them as such
    storage: str = "hdf5"  # Minari's storage: hdf5 or arrow
    overwrite: bool = False  # replace a dataset of this name


def run_import(call: Call, options: ImportOptions) -> Outcome:
    from robot_cl.data.importers.detect import import_dataset

    with call.progress(f"reading {call.words[0]}") as bar:
        report = import_dataset(call.words[0], progress=bar, more=call.words[1:], **vars(options))
    meta = report.dataset.meta
    _describe(call, meta)
    for sentence in report.sentences()[1:]:
        call.say(f"  {sentence}")
    said = {"dataset": meta.to_dict(), "kind": report.kind, "notes": report.sentences()}
    return Outcome(said, wrote=report.dataset.path, next=f"data check {report.dataset.name}")


def run_check(call: Call, options: Any) -> Outcome:
    from dataclasses import asdict

    from robot_cl.data.doctor import examine

    with call.progress(f"checking {call.words[0]}") as bar:
        checkup = examine(call.words[0], progress=bar)
    show_checkup(call, checkup)
    data = {
        "dataset": checkup.name,
        "findings": [asdict(finding) for finding in checkup.findings],
        "coverage": known(asdict(checkup.coverage)),
        "learner": checkup.recommendation.learner,
        "evidence": checkup.recommendation.evidence,
    }
    learner = checkup.recommendation.learner
    return Outcome(data, next=f"train learner={learner} data={checkup.name}", code=1 if checkup.faults else 0)


def known(value: Any) -> Any:
    """Plain data as JSON can hold it: null for numbers that are not known."""
    if isinstance(value, dict):
        return {key: known(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_checkup(call: Call, checkup: Any) -> None:
    """Findings, coverage in three lines, and the learner that fits."""
    from rich.markup import escape

    from robot_cl.data.doctor import CHECKS

    for finding in checkup.findings:
        mark = "[red]✗[/]" if finding.severity == "fault" else "[yellow]•[/]"
        call.mark(f"{mark} {escape(finding.check.replace('_', ' '))}: {escape(finding.sentence)}")
    if not checkup.findings:
        call.mark(f"[green]✓[/] {len(CHECKS)} checks, nothing found")
    found = checkup.coverage
    low, middle, high = found.return_quantiles
    call.say(f"  returns: 10 % below {low:,.0f}, half below {middle:,.0f}, 10 % above {high:,.0f}")
    differ = "unknown" if math.isnan(found.action_disagreement) else f"{found.action_disagreement:.2f}"
    call.say(f"  actions: spread {found.action_spread:.2f} of uniform, disagreement {differ}")
    call.say(f"  observations: {found.effective_dimensions:.1f} effective dimensions")
    call.say(f"fits: {checkup.recommendation.learner}, because {'; '.join(checkup.recommendation.evidence)}")


def _describe(call: Call, meta: Any) -> None:
    score = "" if meta.score is None else f", score {meta.score:.1f} ({meta.reference})"
    call.say(f"{meta.id}: {meta.steps:,} steps in {meta.episodes:,} episodes of {meta.task or 'an unknown task'}")
    call.say(f"  return {meta.return_mean:.1f} ± {meta.return_std:.1f}{score}")
    call.say(f"  {meta.terminals:,} terminals, {meta.timeouts:,} timeouts, {meta.cuts:,} cut by the recorder")


LIST = Verb(
    run=run_list,
    usage="",
    about="The datasets under ./datasets, or under $ROBOT_CL_DATA if that is set.",
    examples=("robot-cl data list", "robot-cl data list --json"),
)
COLLECT = Verb(
    run=run_collect,
    usage="task=TASK policy=POLICY name=NAME [key=value ...]",
    about="Record a dataset: one policy, with noise or without, or a mixture of several. The same words give the same\n"
    "dataset, bit for bit.",
    examples=(
        "robot-cl data collect task=hopper policy=hopper-medium name=hopper/medium-v0 steps=100000",
        "robot-cl data collect task=halfcheetah policy=agent.zip name=halfcheetah/mine-v0 noise=0.1",
        "robot-cl data collect task=hopper policy=hopper-medium name=hopper/replay-v0 replay=true",
        "robot-cl data collect task=arm-reach policy=random name=arm/random-v0 steps=20000",
        "robot-cl data collect task=hopper policy=hopper-medium name=hopper/large-v0 steps=5e6 shards=16 launch.jobs=4",
    ),
    options=lambda: CollectOptions,
)
IMPORT = Verb(
    run=run_import,
    usage="FILE [FILE ...] [key=value ...]",
    about="Take in a D4RL HDF5 file, an .npz with obs, action, reward, ..., recordings of a robot (.mcap), a Minari\n"
    "or a LeRobot folder; content tells which. Several recordings of one robot become one dataset. Counts of\n"
    "terminals and timeouts are printed, and nothing is repaired silently.",
    examples=(
        "robot-cl data import hopper_medium-v2.hdf5",
        "robot-cl data import recorded.npz task=hopper name=hopper/mine-v0",
        "robot-cl data import logs/*.mcap name=robot/arm-v0",
    ),
    options=lambda: ImportOptions,
    words=(1, 1000),
)
CHECK = Verb(
    run=run_check,
    usage="DATASET",
    about="Look for the mistakes that offline datasets are known for, and say which learner fits this one and why.\n"
    "✗ misleads whoever trains on it (exit code 1), • is worth knowing. Nothing is changed.",
    examples=("robot-cl data check hopper/medium-v0", "robot-cl data check hopper/medium-v0 --json"),
    words=(1, 1),
)
