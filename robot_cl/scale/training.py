"""Training as a job: a run like any other, taken up from its newest checkpoint, and where asked for a skill of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_cl.scale.launchers import Launching

SHOWN = ("eval_return", "return")  # of a run's metrics, in the table


def train_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """`robot-cl train` with the words job["overrides"]; the run lies in the job's folder."""
    from robot_cl.commands.train import read_train
    from robot_cl.learners.sb3 import SB3Config
    from robot_cl.train import resume, train

    _, config, learner = read_train(job["overrides"])
    run = begun(folder, resumable=not isinstance(learner, SB3Config))
    run = train(replace(config, out=str(folder)), learner) if run is None else resume(run)
    return {"run": str(run), **last_metrics(run)}


def begun(folder: Path, resumable: bool = True) -> Path | None:
    """The run that a killed process left in a job's folder, if it can go on; what cannot is removed."""
    for left in [path for path in folder.iterdir() if path.is_dir()]:
        if resumable and (left / "config.yaml").exists():
            return left
        shutil.rmtree(left)
    return None


def last_metrics(run: Path) -> dict[str, Any]:
    """The last values of what people look at first, a number per seed."""
    from robot_cl.curves import load_metrics

    metrics, found = load_metrics(run), dict[str, Any]()
    for name in SHOWN:
        if name in metrics.names:
            steps, values = metrics.series(name)
            if len(steps):
                found |= {"step": int(steps[-1]), name: [round(float(v), 3) for v in values[-1]]}
    return found


def skill_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """As `train_job`, and then the run's skill goes into the library of its base as job["skill"].

    A process that died between the two publishes the same skill once more, as its own next version.
    """
    from robot_cl.skills import add_run

    result = train_job(folder, job)
    library, published = add_run(result["run"], job["skill"], description=job["about"], overwrite=True)
    return result | {"skill": job["skill"], "base": library.folder.name, "content": published.card.content}


def train_jobs(combinations: Sequence[Sequence[str]], launching: Launching) -> list[dict[str, Any]]:
    """A job per list of overrides, each with as many threads as it has cores.

    Raises ValueError, LookupError if one of them does not fit together, before anything is launched.
    """
    from robot_cl.commands.train import read_train

    jobs = []
    for overrides in combinations:
        read_train(overrides)
        given = {word.split("=")[0] for word in overrides}
        if "out" in given:
            raise ValueError("out= cannot be chosen here: every run of a sweep lies in the sweep's folder")
        threads = [f"{key}={launching.cpus}" for key in ("threads", "torch_threads") if key not in given]
        jobs.append({"overrides": [*overrides, *threads]})
    return jobs


def skill_jobs(
    stream: str, overrides: Sequence[str], launching: Launching, prefix: str = "", tasks: int | None = None
) -> list[dict[str, Any]]:
    """A job per task of a stream: the overrides of its training, and the name its skill gets.

    Raises ValueError for a stream whose tasks `robot-cl train` does not have, or for names that are taken.
    """
    from robot_cl.continual.methods.library import slug
    from robot_cl.skills import open_libraries
    from robot_cl.suite_worlds import is_suite
    from sim.stream import get_stream

    stages, given = get_stream(stream).stages[:tasks], {word.split("=")[0] for word in overrides}
    strange = [stage.name for stage in stages if is_suite(stage.task) or stage.action_repeat > 1]
    if strange:
        raise ValueError(f"stream {stream}: {strange[0]!r} is only in robot-cl continual, which repeats its actions")
    words = []
    for stage in stages:
        own = {"task": stage.task, "shift": stage.shift, "online_steps": str(stage.steps), "eval_every": "0"}
        if stage.shift == "none":
            del own["shift"]
        words.append([*(f"{k}={v}" for k, v in own.items() if k not in given), "trainable=adapter", *overrides])
    names = [prefix + slug(stage.name) for stage in stages]
    taken = sorted({name for library in open_libraries() for name in library.names()} & set(names))
    if taken:
        raise ValueError(f"there is a skill {taken[0]!r} already; give prefix=, or remove it first")
    jobs = train_jobs(words, launching)
    about = [f"{stage.task} under {stage.shift}" for stage in stages]
    return [job | {"skill": name, "about": line} for job, name, line in zip(jobs, names, about, strict=True)]
