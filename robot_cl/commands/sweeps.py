"""What the verbs that launch many jobs share, and robot-cl skills train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb
from robot_cl.scale.launchers import Launching

if TYPE_CHECKING:
    from robot_cl.scale.sweep import Sweep

PREFIX = "launch."


@dataclass
class LaunchOptions:
    """Options of how jobs are launched, as they stand beside others."""

    launch: Launching = field(default_factory=Launching)


def launching_of(overrides: list[str]) -> tuple[Launching, list[str]]:
    """The launch.* words read, and the other words."""
    from robot_cl.config import read_options

    mine = [word for word in overrides if word.startswith(PREFIX)]
    return read_options(LaunchOptions, mine).launch, [word for word in overrides if word not in mine]


def go(call: Call, sweep: Sweep, launching: Launching | None = None) -> Outcome:
    """Do a sweep's jobs with a bar, and say what came out. Exit code 1 if some failed."""
    total, shown = len(sweep.jobs()), short(sweep.folder)
    call.resume = f"continue with: robot-cl resume {typed(shown)}"
    with call.progress(f"{total} jobs") as bar:
        sweep.go(launching, bar)
    results, failures = sweep.results(), sweep.failures()
    again = sum(max(0, sweep.attempts(number) - 1) for number in results)
    more = f", {again} taken up again" if again else ""
    call.say(f"{shown.name}: {len(results)} of {total} jobs done{more}; results in {shown / 'table.csv'}")
    for number, problem in list(failures.items())[:10]:
        call.say(f"  job {number} failed: {problem}")
    runs = [str(short(Path(found["run"]))) for found in results.values() if "run" in found]
    following = f"resume {typed(shown)}" if failures else f"report {typed(shown)}"
    data = {"jobs": total, "done": len(results), "taken_up_again": again, "runs": runs}
    failed = {str(number): problem for number, problem in failures.items()}
    return Outcome(data | {"failed": failed}, wrote=sweep.folder, next=following, code=1 if failures else 0)


def short(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@dataclass
class SkillsTrainOptions(LaunchOptions):
    """Options of `skills train`, besides those of `train`."""

    stream: str = "???"  # whose tasks become skills (robot-cl list streams)
    tasks: int | None = None  # only the first ones; none: all
    prefix: str = ""  # before the names of the skills, which are those of the tasks


def run_skills_train(call: Call, options: Any) -> Outcome:
    from robot_cl.commands.train import absolute_start
    from robot_cl.config import read_options
    from robot_cl.paths import runs_root
    from robot_cl.scale.sweep import Sweep
    from robot_cl.scale.training import skill_jobs

    names = ("stream", "tasks", "prefix")
    mine = [word for word in call.overrides if word.split("=")[0] in names or word.startswith(PREFIX)]
    chosen = read_options(SkillsTrainOptions, mine)
    words = absolute_start([word for word in call.overrides if word not in mine])
    jobs = skill_jobs(chosen.stream, words, chosen.launch, chosen.prefix, chosen.tasks)
    sweep = Sweep.create(runs_root(), f"skills-{chosen.stream}", "skill", jobs, chosen.launch)
    return go(call, sweep)


SKILLS_TRAIN = Verb(
    run=run_skills_train,
    usage="stream=NAME base=RUN learner=NAME [key=value ...]",
    about="Train a skill for every task of a stream, all on the same frozen base and none waiting for another, and\n"
    "publish each. Takes the options of train as well. Each skill is a run that goes on from its checkpoint when its\n"
    "process dies; robot-cl resume goes on with all of them.",
    examples=(
        "robot-cl skills train stream=halfcheetah_shifts base=RUN learner=ppo launch.jobs=2",
        "robot-cl skills train stream=halfcheetah_shifts base=RUN learner=ppo launch.on=ray launch.jobs=6",
        "robot-cl skills train stream=walker2d_shifts base=RUN learner=ppo launch.on=submitit launch.jobs=6",
    ),
    options=lambda: SkillsTrainOptions,
    free=True,
)
