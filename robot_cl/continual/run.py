"""One continual run: its options, its folder, and the methods in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from policies.actor import StackedGaussianActor
from robot_cl import seeding
from robot_cl.checkpoint import checkpoint_folder, load_actor, load_learner, read_card
from robot_cl.continual import summary
from robot_cl.continual.actors import State
from robot_cl.continual.base_policy import load_base, save_base, train_base
from robot_cl.continual.life import run_hidden
from robot_cl.continual.loop import Measuring, Progress, read_row, run_method
from robot_cl.continual.method import MethodConfig, Setup
from robot_cl.continual.methods import METHODS, REFERENCE, method_class
from robot_cl.continual.stage_worlds import score, stage_world
from robot_cl.data.atomic import claim, write_json
from robot_cl.learners import config_class, name_of
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.stacks import repeated
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.plain_files import read_yaml, write_whole
from robot_cl.provenance import provenance, simulator_fingerprint
from robot_cl.run_config import filled, plain
from robot_cl.suite_worlds import SuiteWorlds, is_suite
from sim.spec import Interface
from sim.stream import Stage, Stream, get_stream

HIDDEN = "library_hidden"  # what the library is called where borders are not announced


@dataclass
class ContinualConfig:
    """Options of a continual run, besides its learner's."""

    stream: str = "halfcheetah_shifts"  # which tasks, in which order (robot-cl list streams)
    methods: tuple[str, ...] = ("library", "finetune", "reset")  # each learns the stream from the same base
    seeds: int = 3  # trained side by side, with seeds seed, seed + 1, ...
    seed: int = 0  # of everything random
    steps: int | None = None  # per task and seed; none: the stream's own budgets
    base_steps: int | None = None  # of the base policy; none: the stream's own
    tasks: int | None = None  # only the first ones; none: all
    hidden: bool = False  # also run the library without announced borders
    base: str | None = None  # run or checkpoint to start from; none: train one on the stream's base task
    num_worlds: int = 64  # per seed
    threads: int | None = None  # threads that step worlds; none: all cores
    options: MethodConfig = field(default_factory=MethodConfig)  # of the methods
    measuring: Measuring = field(default_factory=Measuring)  # what is measured
    out: str | None = None  # folder for the run folder; none: runs
    name: str | None = None  # of the run folder after its date; none: the stream's

    def __post_init__(self) -> None:
        for key in ("seeds", "num_worlds", "steps", "base_steps", "tasks", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; expected at least 1")
        if not self.methods:
            raise ValueError(f"methods is empty; name at least one of {', '.join(METHODS)}")

    def scaled_stream(self) -> Stream:
        """The stream with this run's budgets. Raises LookupError for an unknown one."""
        return get_stream(self.stream).scaled(self.steps, self.base_steps, self.tasks)


def start(
    config: ContinualConfig,
    learner: LearnerConfig,
    progress: Progress | None = None,
    began: Callable[[Path], None] | None = None,
) -> Path:
    """A new run folder, told to `began` and learned to the end. Raises ValueError or LookupError before it is
    written."""
    stream = config.scaled_stream()
    for name in config.methods:
        method_class(name)
    face = _interface(stream.base)
    if config.base is not None:
        check_base(config.base, stream.base.task, face, config.seeds)
    root = Path(config.out) if config.out else runs_root()
    folder = new_run_folder(root, config.name or f"continual-{config.stream}")
    write_json(folder / "interface.json", face.to_dict())
    task = None if is_suite(stream.base.task) else stream.base.task
    write_json(folder / "provenance.json", provenance(task, None, config.seed, 1, "cpu"))
    about = {"kind": "continual", **plain(config), "learner": {"name": name_of(learner)} | plain(learner)}
    write_whole(folder / "config.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    if began is not None:
        began(folder)
    return proceed(folder, progress)


def check_base(base: str, task: str, face: Interface, seeds: int) -> None:
    """Raises LookupError, OSError where there is no such policy, ValueError for one that cannot begin this stream."""
    folder = checkpoint_folder(base)
    said, actor = read_card(folder).get("interface"), load_actor(folder)
    if not isinstance(actor, StackedGaussianActor):
        raise ValueError(f"base {base} is a {read_card(folder)['kind']} policy; expected a Gaussian one")
    if actor.population not in (1, seeds):
        raise ValueError(f"base {base} has {actor.population} members, of seeds={seeds}; expected 1 or as many")
    if said is not None:  # how long a step takes may differ: streams may repeat actions
        difference = replace(Interface.from_dict(said), control_dt=face.control_dt).difference(face)
    else:
        dims, wanted = (actor.obs_dim, actor.act_dim), (face.obs_dim, face.act_dim)
        difference = None if dims == wanted else f"{dims} observations and actions against {wanted}"
    if difference is not None:
        raise ValueError(f"base {base} does not fit {task}, with which the stream begins: {difference}")


def is_continual(folder: Path) -> bool:
    """Whether a run folder is one of this kind."""
    path = folder / "config.yaml"
    return path.exists() and path.read_bytes().startswith(b"kind: continual")


def read_continual(folder: Path) -> tuple[ContinualConfig, LearnerConfig]:
    """The options of a run folder. Raises ValueError, FileNotFoundError, LookupError."""
    path = folder / "config.yaml"
    if not is_continual(folder):
        raise ValueError(f"{folder} is not a continual run; robot-cl continual makes one")
    data = read_yaml(path)
    data.pop("kind")
    learner = data.pop("learner")
    chosen = config_class(learner.pop("name"))
    return filled(ContinualConfig, data, str(path)), filled(chosen, learner, str(path))


def proceed(folder: Path, progress: Progress | None = None) -> Path:
    """Do what of a run is not done yet; the result is that of a run never interrupted. Returns the folder."""
    config, learner = read_continual(folder)
    claim(folder)
    seeding.use_torch_threads(1)
    setup, untrained = prepare(folder, config, learner, progress)
    finished: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    order = sorted(config.methods, key=lambda name: name != REFERENCE)  # the reference of forward transfer first
    for name in order:
        mine = replace(setup, folder=folder / "methods" / name)
        rows = run_method(name, mine, config.measuring, progress)
        finished[name] = (rows, read_facts(mine.folder, len(rows)))
        record(folder, config, setup.stream, untrained, finished)
    if config.hidden:
        mine = replace(setup, stream=setup.stream.hidden(), folder=folder / "methods" / HIDDEN)
        finished[HIDDEN] = run_hidden(mine, config.measuring, progress)
        record(folder, config, setup.stream, untrained, finished)
    return folder


def prepare(
    folder: Path, config: ContinualConfig, learner: LearnerConfig, progress: Progress | None = None
) -> tuple[Setup, np.ndarray]:
    """The base (trained where there is none yet) and its scores on all tasks (seeds, tasks)."""
    stream, threads = config.scaled_stream(), config.threads or seeding.cores()
    face, base = _interface(stream.base), folder / "base"
    if not (base / "policy.json").exists():
        actor, values = _base(config, learner, threads, progress)
        save_base(base, actor, values, stream.base.task, face.to_dict())
    actor, values = load_base(base)
    setup = Setup(
        stream, actor, values, learner, name_of(learner), folder, config.seed, config.num_worlds, threads,
        config.options, face,
    )  # fmt: skip
    stages = stream.stages
    scores = score([actor] * len(stages), stages, config.measuring.episodes, seeding.EVALUATION_SEED, threads)
    return setup, scores.mean(-1)


def _base(
    config: ContinualConfig, learner: LearnerConfig, threads: int, progress: Progress | None
) -> tuple[StackedGaussianActor, State]:
    """From the run named, or trained."""
    stage = config.scaled_stream().base
    if config.base is None:

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress("base policy", done, total)

        worlds = config.num_worlds
        return train_base(stage, learner, name_of(learner), config.seeds, config.seed, worlds, threads, told)
    source = checkpoint_folder(config.base)
    actor = repeated(load_actor(source), config.seeds)
    state = load_learner(source)
    values = {n: v for n, v in state.items() if n.startswith("nets.") and not n.startswith("nets.actor.")}
    return actor, values if load_actor(source).population == config.seeds else {}


def record(
    folder: Path, config: ContinualConfig, stream: Stream, untrained: np.ndarray,
    finished: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]],
) -> None:  # fmt: skip
    """continual.json from what is finished."""
    alone = None
    if REFERENCE in finished and len(finished[REFERENCE][0]) == len(stream.stages):
        alone = summary.curves(finished[REFERENCE][0])
    entries = {}
    for name, (rows, facts) in finished.items():
        knows = name != HIDDEN and method_class(name).knows_task
        entries[name] = summary.method_entry(rows, untrained, stream.stages, alone, facts, knows)
        entries[name] |= {"alarms": facts["alarms"], "contexts": facts["contexts"]} if name == HIDDEN else {}
    seeds = range(config.seed, config.seed + config.seeds)
    task = stream.base.task
    simulator = SuiteWorlds(task, 1).fingerprint if is_suite(task) else simulator_fingerprint(task)
    summary.write(folder, stream, seeds, untrained, entries, config.measuring.points, simulator)


def rows_so_far(folder: Path, tasks: int) -> list[dict[str, Any]]:
    """Finished tasks of one method's folder."""
    found = []
    for k in range(tasks):
        if not (folder / f"{k:02d}" / "row.json").exists():
            break
        found.append(read_row(folder / f"{k:02d}"))
    return found


def read_facts(folder: Path, tasks: int) -> dict[str, Any]:
    return json.loads((folder / f"{tasks - 1:02d}" / "facts.json").read_text(encoding="utf-8"))


def _interface(stage: Stage) -> Any:
    return stage_world([stage], threads=1).interface
