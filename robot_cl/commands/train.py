"""robot-cl train | resume | verify"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.verb import Call, Outcome, Progress, Verb

if TYPE_CHECKING:
    from robot_cl.scale.launchers import Launching

SMOKE_DATA, SMOKE_TASK = "smoke/hopper-v0", "hopper"  # as in configs/experiment/smoke.yaml
SHOWN = ("eval_return", "return")
SHORT = {"trainable": "learner.trainable", "rank": "learner.rank", "base": "init_from"}  # how a skill is asked for


def run_train(call: Call, options: Any) -> Outcome:
    """One run, or one for every combination of values given with commas: one after the other, or launched."""
    from robot_cl.commands.sweeps import launching_of
    from robot_cl.config import expand
    from robot_cl.learners import LEARNERS

    launching, words = launching_of(call.overrides)
    overrides = smoke(call, words) if "experiment=smoke" in words else words
    every = f"learner={','.join(LEARNERS)}"
    combinations = expand([every if word == "learner=all" else word for word in overrides])
    if len(words) < len(call.overrides):
        return launched(call, combinations, launching)
    runs = []
    for k, overrides in enumerate(combinations):
        if len(combinations) > 1:
            call.say(f"{k + 1} of {len(combinations)}: {' '.join(overrides)}")
        runs.append(train_one(call, overrides))
    return _trained(call, runs)


def launched(call: Call, combinations: list[list[str]], launching: Launching) -> Outcome:
    """A sweep of them all, wherever launch.* says."""
    from robot_cl.commands.sweeps import go
    from robot_cl.paths import runs_root
    from robot_cl.scale.sweep import Sweep
    from robot_cl.scale.training import train_jobs

    name = next((word.partition("=")[2] for word in combinations[0] if word.startswith("name=")), "sweep")
    jobs = train_jobs([absolute_start(words) for words in combinations], launching)
    return go(call, Sweep.create(runs_root(), name, "train", jobs, launching))


def smoke(call: Call, words: list[str]) -> list[str]:
    """experiment=smoke alone means every learner, on a small dataset that is made where it is missing."""
    from robot_cl.data.behaviours import list_behaviours, load_behaviour
    from robot_cl.data.collect import collect
    from robot_cl.data.store import list_datasets

    given = {word.split("=")[0] for word in words}
    if "data" not in given and SMOKE_DATA not in list_datasets():
        name = next(name for name, card in list_behaviours().items() if card.task == SMOKE_TASK)
        call.say(f"recording {SMOKE_DATA} with {name}")
        collect(SMOKE_TASK, load_behaviour(name), 4000, SMOKE_DATA, noise=0.2)
    return [*words, *(["learner=all"] if "learner" not in given else [])]


def train_one(call: Call, overrides: list[str]) -> Path:
    from robot_cl.checkpoint import checkpoint_folder, holds_learner
    from robot_cl.commands.runs import typed
    from robot_cl.train import train

    name, config, learner = read_train(overrides)
    if config.init_from and not holds_learner(checkpoint_folder(config.init_from)):
        call.say(f"{config.init_from} holds a policy but not what its learner knew: values and the like begin anew")

    def began(folder: Path) -> None:
        if name == "sb3":
            call.resume = f"{shown(folder)} ends here: Stable-Baselines3 cannot continue a run"
        else:
            call.resume = f"continue with: robot-cl resume {typed(folder)}"

    return watched(call, f"training {name}", lambda progress: train(config, learner, progress, began))


def read_train(overrides: Sequence[str]) -> tuple[str, Any, Any]:
    """The learner's name, the run's options and the learner's. Raises ValueError or LookupError in one sentence."""
    from robot_cl.config import read_groups
    from robot_cl.learners import config_classes
    from robot_cl.run_config import TrainConfig

    words = [_long(word) for word in overrides]
    config, chosen = read_groups(TrainConfig, {"learner": config_classes()}, "train", words)
    name, learner = chosen["learner"]
    return name, replace(only_its_parts(config, name, words), init_from=start_of(config.init_from)), learner


def _long(word: str) -> str:
    """A word of SHORT in full."""
    key, equals, value = word.partition("=")
    return SHORT.get(key, key) + equals + value


def absolute_start(overrides: Sequence[str]) -> list[str]:
    """With init_from as an absolute path, as whoever runs them elsewhere needs it."""
    pairs = [_long(word).partition("=") for word in overrides]
    return [
        f"{key}={Path(str(start_of(value))).absolute()}"
        if key == "init_from" and value not in ("none", "null")
        else f"{key}{equals}{value}"
        for key, equals, value in pairs
    ]


def start_of(word: str | None) -> str | None:
    """The run or checkpoint to begin from: a path, a run's name, or "last"."""
    if word is None or Path(word).exists():
        return word
    from robot_cl.commands.runs import find_run

    return str(find_run(word))


def only_its_parts(config: Any, learner: str, overrides: list[str]) -> Any:
    """Without the steps of a part that the learner does not have, where a file set them and not the user.

    So an experiment such as smoke serves learners that learn offline, online or both.
    """
    from robot_cl.learners import learner_class

    phases = learner_class(learner).phases
    asked = {word.split("=")[0] for word in overrides}
    strange = [part for part in ("offline", "online") if part not in phases and f"{part}_steps" not in asked]
    return replace(config, **{f"{part}_steps": 0 for part in strange if getattr(config, f"{part}_steps")})


def watched(call: Call, title: str, work: Callable[[Any], Path]) -> Path:
    """`work(progress)` with a bar -> the run folder as one would type it."""
    with call.progress(title) as bar:
        folder = shown(work(narrated(bar)))
    call.resume = ""
    return folder


def narrated(bar: Progress) -> Callable[[str, int, int, dict[str, float]], None]:
    """What the training loop calls: moves the bar and keeps the latest return beside it."""
    note = ""

    def report(phase: str, step: int, total: int, values: dict[str, float]) -> None:
        nonlocal note
        for name in SHOWN:
            if name in values:
                note = f"{name.replace('_', ' ')} {values[name]:,.0f}"
                break
        bar(step, total, f"{phase}  {note}")

    return report


def shown(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    absolute = path.resolve()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path


def _trained(call: Call, runs: list[Path]) -> Outcome:
    from robot_cl.commands.runs import typed
    from robot_cl.curves import load_metrics

    data = {}
    for run in runs:
        metrics = load_metrics(run)
        last = {}
        for name in metrics.names:
            step, values = metrics.series(name)
            if len(step):
                last[name] = values[-1].tolist()
        data[str(run)] = last
        parts = [f"{name.replace('_', ' ')} {_numbers(last[name])}" for name in SHOWN if name in last]
        call.say(f"{run.name}: {', '.join(parts) or 'done'}")
    following = f"evaluate {typed(runs[-1])}" if len(runs) == 1 else f"compare {' '.join(map(typed, runs))}"
    return Outcome({"runs": data}, wrote=runs[-1], next=following)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:,.0f}" for value in values)


def learner_help(words: list[str]) -> str:
    """The options of the learner named by learner=..., and what may be named."""
    from robot_cl.commands.helptext import option_lines
    from robot_cl.config import choices, read_groups
    from robot_cl.learners import config_class, config_classes
    from robot_cl.run_config import TrainConfig

    given = [word for word in words if word.startswith(("learner=", "experiment="))]
    _, chosen = read_groups(TrainConfig, {"learner": config_classes()}, "train", given)
    name = chosen["learner"][0]
    return (
        f"learners:     {', '.join(choices('learner', config_classes()))}\n"
        f"experiments:  {', '.join(choices('experiment'))}\n"
        f"in short:     {', '.join(f'{short}= for {long}=' for short, long in SHORT.items())}\n\n"
        f"options of {name} (see those of another with robot-cl train --help learner=NAME):\n"
        + option_lines(config_class(name), prefix="learner.")
    )


def _train_options() -> type:
    from robot_cl.commands.sweeps import LaunchOptions
    from robot_cl.run_config import TrainConfig

    return make_dataclass("TrainOptions", [], bases=(LaunchOptions, TrainConfig))


def run_resume(call: Call, options: Any) -> Outcome:
    from robot_cl.commands.runs import find_run, typed
    from robot_cl.continual.run import is_continual
    from robot_cl.scale.sweep import Sweep, is_sweep
    from robot_cl.train import resume
    from robot_cl.transfer_run import is_study

    folder = find_run(call.words[0])
    if is_sweep(folder):
        from robot_cl.commands.sweeps import go

        return go(call, Sweep(folder))
    if is_continual(folder):
        from robot_cl.commands.continual import run as run_continual

        return run_continual(call, None)
    if is_study(folder):
        from robot_cl.commands.transfer import run as run_transfer

        return run_transfer(call, None)
    call.resume = f"continue with: robot-cl resume {typed(folder)}"
    return _trained(call, [watched(call, f"continuing {folder.name}", lambda progress: resume(folder, progress))])


@dataclass
class VerifyOptions:
    """Options of `verify`."""

    updates: int = 20  # first updates to run again, at most those whose weights were recorded


def run_verify(call: Call, options: VerifyOptions) -> Outcome:
    from robot_cl.commands.runs import find_run, typed
    from robot_cl.train import verify

    folder = find_run(call.words[0])
    with call.working(f"running the first {options.updates} updates again"):
        result = verify(folder, options.updates)
    call.say(f"{folder.name}: {result}")
    data = {"identical": result.identical, "updates": result.updates, "diverged_at": result.diverged_at}
    following = f"report {typed(folder)}" if result.identical else "doctor"
    return Outcome(data, next=following, code=0 if result.identical else 1)


TRAIN = Verb(
    run=run_train,
    usage="learner=NAME [data=NAME] [task=NAME] [key=value ...]",
    about="Train a policy: offline on a dataset, online in worlds, or first one and then the other. seeds=N trains N\n"
    "runs in one stacked pass. Values with commas run one after the other, or with launch.jobs=N side by side, here\n"
    "or on other machines (launch.on=joblib, submitit, ray). Ctrl-C leaves a run that can be resumed.",
    examples=(
        "robot-cl train learner=iql data=hopper/medium-v0 task=hopper seeds=3",
        "robot-cl train learner=iql data=hopper/medium-v0 task=hopper offline_steps=50000 online_steps=20000",
        "robot-cl train learner=ppo_halfcheetah task=halfcheetah online_steps=2000000",
        "robot-cl train learner=ppo_warm task=halfcheetah init_from=runs/2026-01-31-iql online_steps=500000",
        "robot-cl train learner=wsrl_old_data task=hopper data=NAME init_from=RUN offline_steps=0 online_steps=100000",
        "robot-cl train learner=bc,iql learner.lr=1e-4 data=hopper/medium-v0",
        "robot-cl train learner=psec data=hopper/medium-v0 trainable=adapter base=RUN  # a skill on a frozen base",
        "robot-cl train learner=bc,iql seed=0,1,2 data=hopper/medium-v0 launch.jobs=2  # six runs, two at a time",
        "robot-cl train experiment=smoke  # every learner, a few updates",
    ),
    options=_train_options,
    free=True,
    more_help=learner_help,
)
RESUME = Verb(
    run=run_resume,
    usage="RUN",
    about="Continue a run from its newest checkpoint, or what of a sweep is not done. The result is, bit for bit,\n"
    "that of a run never interrupted.",
    examples=("robot-cl resume last", "robot-cl resume runs/2026-01-31-iql"),
    words=(1, 1),
)
VERIFY = Verb(
    run=run_verify,
    usage="RUN [updates=20]",
    about="Run the first updates of a run again and compare all weights after each, bit for bit. Exit code 1 if they\n"
    "differ: another version, another machine, or changed data.",
    examples=("robot-cl verify last", "robot-cl verify runs/2026-01-31-iql updates=50"),
    options=lambda: VerifyOptions,
    words=(1, 1),
)
