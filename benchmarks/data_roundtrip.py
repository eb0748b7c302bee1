"""One million transitions: a D4RL file becomes a dataset and is read back, number for number, in both forms.

Two sets of HalfCheetah's widths: episodes of 1000 steps in both Minari storages and, unless --quick, of 100 steps.
Reading back is done by `open_dataset`, by Minari itself, and by importing the Minari form again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import numpy as np

from robot_cl.data.importers.detect import import_dataset
from robot_cl.data.importers.minari import read_stored
from robot_cl.data.recording import STEP_FIELDS, Recording
from robot_cl.data.store import open_dataset

STEPS, OBS_DIM, ACT_DIM = 1_000_000, 17, 6


def recording(length: int) -> Recording:
    """STEPS steps in episodes of `length`, every second one ending by a terminal."""
    rng, episodes = np.random.default_rng(0), STEPS // length
    obs = rng.standard_normal((episodes, length + 1, OBS_DIM), dtype=np.float32)
    ends = np.zeros((2, episodes, length), bool)
    ends[0, ::2, -1], ends[1, 1::2, -1] = True, True
    return Recording(
        obs=obs[:, :-1].reshape(STEPS, OBS_DIM),
        action=rng.uniform(-1, 1, (STEPS, ACT_DIM)),
        reward=rng.standard_normal(STEPS),
        next_obs=obs[:, 1:].reshape(STEPS, OBS_DIM),
        terminated=ends[0].ravel(),
        truncated=ends[1].ravel(),
        lengths=np.full(episodes, length),
    )


def write_d4rl(path: Path, data: Recording) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for key, name in (("observations", "obs"), ("actions", "action"), ("rewards", "reward"),
                          ("next_observations", "next_obs"), ("terminals", "terminated"), ("timeouts", "truncated")):
            file[key] = getattr(data, name)


def equal_share(stored: Recording, data: Recording) -> float:
    """Share of the fields, episode lengths included, that are equal number for number."""
    names = (*STEP_FIELDS, "lengths")
    return sum(np.array_equal(getattr(stored, name), getattr(data, name)) for name in names) / len(names)


def minari_equal_share(root: Path, name: str, data: Recording) -> float:
    """As `equal_share`, read by Minari's own loader."""
    import os

    import minari

    os.environ["MINARI_DATASETS_PATH"] = str(root)
    episodes = list(minari.load_dataset(name))
    columns = {
        "obs": [e.observations[:-1] for e in episodes],
        "next_obs": [e.observations[1:] for e in episodes],
        "action": [e.actions for e in episodes],
        "reward": [e.rewards for e in episodes],
        "terminated": [e.terminations for e in episodes],
        "truncated": [e.truncations for e in episodes],
    }
    same = [np.array_equal(np.concatenate(parts), getattr(data, key)) for key, parts in columns.items()]
    return sum([*same, np.array_equal([len(e) for e in episodes], data.lengths)]) / (len(same) + 1)


@contextmanager
def clocked(times: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[what] = round(time.perf_counter() - start, 2)


def convert(root: Path, data: Recording, length: int, storage: str) -> tuple[list[common.Claim], dict[str, object]]:
    times: dict[str, float] = {}
    source, name = root / f"source-{length}.hdf5", f"bench/{storage}{length}-v0"
    if not source.exists():
        write_d4rl(source, data)
    with clocked(times, "convert"):
        import_dataset(source, name, storage=storage, root=root)
    with clocked(times, "open"):
        stored = open_dataset(name, root)
    flat = equal_share(stored.recording(), data)
    with clocked(times, "read by Minari"):
        by_minari = minari_equal_share(root, name, data)
    with clocked(times, "import the Minari form"):
        again = equal_share(read_stored(stored.path / "data"), data)
    what = f"1M transitions in episodes of {length}, {storage}"
    claims = [
        common.Claim(f"{what}: share of fields equal, memory-mapped form", flat, 1.0),
        common.Claim(f"{what}: share of fields equal, read by Minari", by_minari, 1.0),
        common.Claim(f"{what}: share of fields equal, imported again", again, 1.0),
    ]
    size = sum(path.stat().st_size for path in stored.path.rglob("*") if path.is_file()) / 1e6
    return claims, {"what": what, "megabytes": round(size), **times}


def main() -> None:
    options = common.arguments(__doc__ or "")
    claims, details = [], []
    for length in (1000,) if options.quick else (1000, 100):
        data = recording(length)
        with tempfile.TemporaryDirectory() as folder:
            for storage in ("hdf5", "arrow"):
                more, row = convert(Path(folder), data, length, storage)
                claims += more
                details.append(row)
    print(common.table(tuple(details[0]), [tuple(row.values()) for row in details]))
    common.report("data_roundtrip", claims, options.json, details)


if __name__ == "__main__":
    main()
