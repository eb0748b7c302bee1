"""Collection in shards: each a small dataset of its own with seeds of its own, joined into one at the end.

What comes out depends on the number of shards and not on how many workers recorded them, nor on which died.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_cl.data.collect import MAX_WORLDS, shares
from robot_cl.data.recording import Recording
from robot_cl.data.store import StoredDataset, new_folder, open_dataset, write_dataset
from robot_cl.paths import data_root
from robot_cl.scale.launchers import Launching, check
from robot_cl.scale.sweep import Progress, Sweep

HIDDEN = ".shards"  # below the data root, until they are joined
SHARD = "shard-v0"


def shard_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """`robot-cl data collect` with the options job["options"], into the job's folder."""
    from robot_cl.commands.data import CollectOptions, mixture
    from robot_cl.data.collect import collect

    options = CollectOptions(**job["options"])
    dataset = collect(
        options.task, mixture(options), options.steps, SHARD, seed=options.seed, threads=job["threads"],
        storage=options.storage, root=folder, overwrite=True,
    )  # fmt: skip
    meta = dataset.meta
    return {"dataset": str(dataset.path), "steps": meta.steps, "return_mean": round(meta.return_mean, 3)}


def shard_jobs(options: dict[str, Any], parts: int, count: int, threads: int) -> list[dict[str, Any]]:
    """`count` jobs that share options["steps"]; the worlds of no two of them draw from the same seed.

    `options` as of `data collect`, plain data; `parts` how many policies are mixed. Raises ValueError for more shards
    than steps.
    """
    if not 1 <= count <= options["steps"]:
        raise ValueError(f"shards is {count}; expected 1 to {options['steps']}, the number of steps")
    apart = MAX_WORLDS * parts
    return [
        {"options": {**options, "steps": steps, "seed": options["seed"] + k * apart}, "threads": threads}
        for k, steps in enumerate(shares(options["steps"], [1.0] * count))
    ]


def collect_in_shards(
    options: dict[str, Any], parts: int, count: int, launching: Launching, progress: Progress | None = None
) -> StoredDataset:
    """Record the shards that are not there yet, join them, and remove them.

    The same call goes on with what a killed one left. Raises RuntimeError naming the first shard that failed, and as
    `collect` does for a name that is no name or taken, and `check` where nothing can be launched.
    """
    name, root = options["name"], data_root()
    new_folder(name, "collect", root, options["overwrite"])
    check(launching)
    folder = root / HIDDEN / name.replace("/", "--")
    jobs = shard_jobs(options, parts, count, launching.cpus)
    if (folder / "jobs.json").exists() and Sweep(folder).jobs() != jobs:
        shutil.rmtree(folder)  # of another recording of this name
    sweep = Sweep.at(folder, "shard", jobs, launching).go(launching, progress)
    for number, problem in sweep.failures().items():
        raise RuntimeError(f"shard {number} of {name} failed: {problem}; the same command tries it again")
    paths = [found["dataset"] for _, found in sorted(sweep.results().items())]
    joined = join(paths, name, options["storage"], options["overwrite"])
    shutil.rmtree(folder)
    if not any((root / HIDDEN).iterdir()):
        (root / HIDDEN).rmdir()
    return joined


def join(paths: Sequence[str], name: str, storage: str = "hdf5", overwrite: bool = False) -> StoredDataset:
    """Datasets of one interface as one new dataset, one after the other."""
    shards = [open_dataset(path) for path in paths]
    first = shards[0]
    for shard in shards[1:]:
        clause = first.interface.difference(shard.interface)
        if clause:
            raise ValueError(f"{first.path} and {shard.path} cannot be joined: {clause}")
    source = first.meta.source | {"shards": [{"seed": s.meta.source["seed"], "hash": s.meta.hash} for s in shards]}
    return write_dataset(
        name, Recording.cat([shard.recording() for shard in shards]), first.interface, task=first.meta.task,
        source=source, simulator=first.meta.simulator, storage=storage, overwrite=overwrite,
    )  # fmt: skip
