"""Training: an offline part, an online part, either of zero length; resumable after any kill, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import sim
from policies.actor import StackedGaussianActor
from robot_cl import seeding
from robot_cl.apart import processes_for
from robot_cl.checkpoint import CHECKPOINTS, LAST, checkpoint_folder, load_actor, load_learner
from robot_cl.data.atomic import write_json
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.learners import learner_class, name_of
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.compiled import check_compiler
from robot_cl.learners.incumbent import WORLDS
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.sb3 import SB3, SB3Config
from robot_cl.metrics import import_wandb
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.plain_files import read_json
from robot_cl.provenance import provenance
from robot_cl.run import DIGESTS, Progress, Run, agreed_interface
from robot_cl.run_config import TrainConfig, critic_of, read_config, write_config
from robot_cl.train_sb3 import REFUSAL, train_sb3
from sim.spec import Interface

DEFAULT_OFFLINE, DEFAULT_ONLINE = 100_000, 1_000_000


def train(
    config: TrainConfig,
    learner: LearnerConfig | SB3Config,
    progress: Progress | None = None,
    began: Callable[[Path], None] | None = None,
) -> Path:
    """Train and return the run folder. `progress(phase, step, total, metrics)` is called now and then, `began(folder)`
    as soon as there is a folder.

    Raises ValueError, LookupError or OSError, in one sentence and before anything is written, for options that do not
    fit together; DivergedError (a ValueError) if training produces NaN. An interrupted run can be resumed.
    """
    if isinstance(learner, SB3Config):
        config = resolve(config, learner)
        seeding.use_torch_threads(config.torch_threads or 1)
        interface = agreed_interface(config.task, None)
        SB3(learner, str(config.task), config.seed, config.threads or 1, config.device)  # or it is refused here
        folder = _new_folder(config, learner, interface, None)
        if began is not None:
            began(folder)
        train_sb3(folder, config, learner, interface, progress)
        return folder
    run, folder = begin(config, learner, progress, began)
    run.go()
    return folder


def begin(
    config: TrainConfig,
    learner: LearnerConfig,
    progress: Progress | None = None,
    began: Callable[[Path], None] | None = None,
) -> tuple[Run, Path]:
    """A run before its first update, its folder written. For errors see `train`."""
    config = resolve(config, learner)
    seeding.use_torch_threads(config.torch_threads or 1)
    run, config, learner = _new_run(config, learner, progress)
    folder = _new_folder(config, learner, run.interface, run.dataset)
    if began is not None:
        began(folder)
    run.begin(folder)
    return run, folder


def resume(run: Path | str, progress: Progress | None = None) -> Path:
    """Continue a run from its newest checkpoint; the result is that of a run never interrupted. Returns the folder.

    Raises FileNotFoundError, LookupError or ValueError if it is not a run, or its dataset has changed.
    """
    again, folder = take_up(run, progress)
    again.go()
    return folder


def take_up(run: Path | str, progress: Progress | None = None) -> tuple[Run, Path]:
    """An interrupted run as it was at its newest checkpoint. For errors see `resume`."""
    folder = Path(run)
    config, learner = _ours(folder)
    _check_dataset(folder, config)
    seeding.use_torch_threads(config.torch_threads or 1)
    if (folder / CHECKPOINTS / LAST).exists():
        checkpoint = checkpoint_folder(folder)
        again = Run(config, learner, load_actor(checkpoint), progress)
        again.restore(folder, checkpoint)
    else:  # killed before the first one: from the start
        again, *_ = _new_run(config, learner, progress)
        again.begin(folder)
    return again, folder


@dataclass(frozen=True)
class Verification:
    """Whether the first updates came out the same; else the first update that did not."""

    updates: int
    diverged_at: int | None

    @property
    def identical(self) -> bool:
        return self.diverged_at is None

    def __str__(self) -> str:
        return f"identical for {self.updates} updates" if self.identical else f"diverged at step {self.diverged_at}"


def verify(run: Path | str, updates: int = 20) -> Verification:
    """Run the first `updates` updates again (at most those recorded) and compare all weights after each, bit for bit.

    Raises FileNotFoundError or ValueError if there is nothing to compare with.
    """
    folder = Path(run)
    config, learner = _ours(folder)
    recorded = (folder / DIGESTS).read_text(encoding="utf-8").split("\n") if (folder / DIGESTS).exists() else []
    wanted = [line for line in recorded if line][:updates]
    if not wanted:
        raise ValueError(f"{folder} has no updates to compare with; it stopped before the first one")
    seeding.use_torch_threads(config.torch_threads or 1)
    again, *_ = _new_run(config, learner, None)
    again.go(updates=len(wanted))
    for now, then in zip(again.digests, wanted, strict=False):
        if now != then:
            return Verification(len(wanted), int(then.split()[0]))
    return Verification(len(wanted), None)


def resolve(config: TrainConfig, learner: LearnerConfig | SB3Config) -> TrainConfig:
    """Defaults that depend on learner, data and machine, filled in. Raises ValueError for what cannot be trained."""
    name = name_of(learner)
    phases = learner_class(name).phases
    task = config.task or (open_dataset(config.data).meta.task if config.data else None)
    offline, online = config.offline_steps, config.online_steps
    if offline is None:
        wanted = getattr(learner, "offline_steps", DEFAULT_OFFLINE)  # a method of several phases knows their sum
        offline = wanted if "offline" in phases and config.data else 0
    if online is None:
        online = DEFAULT_ONLINE if "offline" not in phases else 0
    parts = (offline, "offline"), (online, "online")
    for steps, phase in parts:
        if steps and phase not in phases:
            raise ValueError(f"{name} does not learn {phase}; set {phase}_steps=0 or choose another learner")
    if offline and not config.data:
        raise ValueError(f"{name} with offline_steps={offline} needs a dataset; give data=NAME")
    if online and not task:
        raise ValueError(f"{name} with online_steps={online} needs a world; give task=NAME")
    beside = getattr(learner_class(name), "beside", ())
    if online and beside and not any(getattr(config, option) for option in beside):
        raise ValueError(f"{name} does not learn from a world alone; give {' or '.join(f'{x}=NAME' for x in beside)}")
    trials = online and isinstance(learner, PPOConfig) and learner.incumbent.trials
    if trials and (config.num_worlds or WORLDS) < WORLDS:
        raise ValueError(
            f"{name} plays trials in a quarter of its worlds, and num_worlds is {config.num_worlds}; give at least "
            f"{WORLDS}, or incumbent.trials=0 to publish what was learned last"
        )
    if config.shift is not None:
        if not task:
            raise ValueError(f"shift={config.shift} changes a world; give task=NAME")
        if isinstance(learner, SB3Config):
            raise ValueError("learner=sb3 trains in the world as it is; leave out shift=, or choose another learner")
        sim.make(task, num_worlds=1, threads=1, shift=config.shift)  # what it does not know is refused here
    if config.init_from and isinstance(learner, SB3Config):
        raise ValueError("learner=sb3 begins with its own network; leave out init_from=, or choose another learner")
    if not offline + online:
        raise ValueError(f"{name} has nothing to do; give data=NAME and offline_steps, or task=NAME and online_steps")
    device = seeding.resolve_device(config.device)
    processes = processes_for(config, learner, [name for steps, name in parts if steps], device)
    if config.compile:
        _check_compile(learner, device)
    if config.wandb:
        import_wandb()  # refused before there is a folder
    return replace(
        config,
        task=task,
        offline_steps=offline,
        online_steps=online,
        device=device,
        threads=config.threads or seeding.cores(),
        torch_threads=config.torch_threads or (1 if processes > 1 else _torch_threads(learner)),
        processes=processes,
    )


def _check_compile(learner: LearnerConfig | SB3Config, device: str) -> None:
    """Raises ValueError where updates cannot be compiled."""
    if isinstance(learner, SB3Config):
        raise ValueError("learner=sb3 updates as Stable-Baselines3 does; leave out compile=")
    if device != "cpu":
        raise ValueError("compile=true is for a CPU; on a GPU updates are replayed as CUDA graphs, so leave it out")
    check_compiler()


def _ours(folder: Path) -> tuple[TrainConfig, LearnerConfig]:
    """The options of a run of our own learners. Raises ValueError for one of Stable-Baselines3."""
    config, learner = read_config(folder)
    if isinstance(learner, SB3Config):
        raise ValueError(f"{folder}: {REFUSAL}")
    return config, learner


def _torch_threads(learner: LearnerConfig | SB3Config) -> int:
    """Networks of 64 units gain nothing from a second thread."""
    if isinstance(learner, SB3Config):
        return 1
    critic = getattr(learner, "critic", None)
    hidden = learner.actor.hidden
    widths = [*((hidden,) if isinstance(hidden, int) else hidden), *(critic.hidden if critic else ())]
    return 1 if max(widths) <= 128 else seeding.cores()


def _new_run(
    config: TrainConfig, learner: LearnerConfig, progress: Progress | None
) -> tuple[Run, TrainConfig, LearnerConfig]:
    """A run before its first step, and the options it really has."""
    actor, learner = _initial_policy(config, learner)
    run = Run(config, learner, actor, progress)
    if run.dataset is not None:
        run.learner.prepare(run.data)
    if config.init_from:
        known = load_learner(checkpoint_folder(config.init_from))
        if known:
            run.learner.adopt(known)
    return run, run.config, learner


def _initial_policy(config: TrainConfig, learner: LearnerConfig) -> tuple[StackedGaussianActor | None, LearnerConfig]:
    """The policy named by init_from, and the learner's options with the shapes of its networks."""
    if not config.init_from:
        return None, learner
    source = checkpoint_folder(config.init_from)
    actor = load_actor(source)
    actor.normalizer.freeze()  # a policy that learned online is saved with statistics that still moved on
    learner = replace(learner, actor=actor.config)
    critic = critic_of(source.parents[1])
    if critic is not None and hasattr(learner, "critic"):
        learner = replace(learner, critic=critic)  # type: ignore[call-arg]
    return actor, learner


def _check_dataset(folder: Path, config: TrainConfig) -> None:
    """Raises ValueError if the dataset under the run's name is not the one it began with."""
    if not config.data:
        return
    then = read_json(folder / "provenance.json")["dataset"]
    now = open_dataset(config.data).meta
    if now.hash != then["hash"]:
        raise ValueError(f"dataset {now.id} has changed since {folder} began; restore it, or start a new run")


def _new_folder(
    config: TrainConfig, learner: LearnerConfig | SB3Config, interface: Interface, dataset: StoredDataset | None
) -> Path:
    """runs/<date>-<name>, with a number where that is taken, and what can be said before the first step."""
    root = Path(config.out) if config.out else runs_root()
    subject = dataset.name if dataset is not None and config.offline else config.task
    label = config.name or f"{name_of(learner)}-{subject}".replace("/", "-").replace("*", "x")
    folder = new_run_folder(root, label)
    write_json(folder / "interface.json", interface.to_dict())
    record = provenance(config.task, dataset, config.seed, config.torch_threads or 1, config.device)
    write_json(folder / "provenance.json", record)
    write_config(folder, config, learner)  # last, because a folder with it can be resumed
    return folder
