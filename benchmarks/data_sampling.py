"""What drawing a batch costs on the CPU: one gather of packed rows against indexing every field on its own.

One million transitions of HalfCheetah's widths, one thread, batches of 256. Each number is the median over rounds of
the mean over 200 draws; the ways take turns within one run. Claims are about processor time of the drawing thread; the
wall clock stands beside it and equals it on an idle machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch

from policies.networks import generators
from robot_cl.batch import Transitions, row_width
from robot_cl.data.sampler import Sampler

STEPS, OBS_DIM, ACT_DIM, BATCH, DRAWS = 1_000_000, 17, 6, 256, 200


def mapped_rows(folder: Path) -> torch.Tensor:
    """Packed rows as the store maps them from its file."""
    path = folder / "transitions.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.standard_normal((STEPS, row_width(OBS_DIM, ACT_DIM)), dtype=np.float32))
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def per_field(data: Transitions, rng: torch.Generator) -> Callable[[], object]:
    """The plain way: six tensors, each indexed with the same random rows."""
    columns = {name: getattr(data, name).contiguous() for name in vars(data)}

    def draw() -> dict[str, torch.Tensor]:
        rows = torch.randint(0, STEPS, (BATCH,), generator=rng)
        return {name: column[rows] for name, column in columns.items()}

    return draw


def per_field_numpy(data: Transitions, seed: int) -> Callable[[], object]:
    """The usual replay buffer: six numpy arrays, each indexed, then made tensors."""
    columns = {name: getattr(data, name).contiguous().numpy() for name in vars(data)}
    rng = np.random.default_rng(seed)

    def draw() -> dict[str, torch.Tensor]:
        rows = rng.integers(0, STEPS, BATCH)
        return {name: torch.from_numpy(column[rows]) for name, column in columns.items()}

    return draw


def microseconds(draw: Callable[[], object]) -> tuple[float, float]:
    """Processor time and wall clock of one draw."""
    processor, wall = time.thread_time(), time.perf_counter()
    for _ in range(DRAWS):
        draw()
    return (time.thread_time() - processor) / DRAWS * 1e6, (time.perf_counter() - wall) / DRAWS * 1e6


def main() -> None:
    options = common.arguments(__doc__ or "")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mapped = mapped_rows(Path(folder))
        data = Transitions.unpack(mapped, OBS_DIM, ACT_DIM)
        one, five = (Sampler.over(data, generators(0, seeds)) for seeds in (1, 5))
        from_file = Sampler(mapped, OBS_DIM, ACT_DIM, generators(0, 1))
        ways: dict[str, Callable[[], object]] = {
            "packed rows in memory": lambda: one.sample(BATCH),
            "packed rows, mapped file": lambda: from_file.sample(BATCH),
            "packed rows, 5 seeds at once": lambda: five.sample(BATCH),
            "field by field, torch": per_field(data, torch.Generator().manual_seed(0)),
            "field by field, numpy": per_field_numpy(data, 0),
        }
        rounds = 9 if options.quick else 25
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, draw in ways.items():
                times[name].append(microseconds(draw))
    medians = {name: statistics.median(cpu for cpu, _ in pairs) for name, pairs in times.items()}
    walls = {name: statistics.median(wall for _, wall in pairs) for name, pairs in times.items()}
    rows = [(name, medians[name], walls[name]) for name in ways]
    print(common.table((f"a batch of {BATCH}", "processor µs", "wall-clock µs"), rows))
    ours = medians["packed rows in memory"]
    claims = [
        common.Claim("µs of processor time for a batch of 256", ours, 50.0, at_least=False),
        common.Claim("times as fast as indexing six torch tensors", medians["field by field, torch"] / ours, 1.5),
        common.Claim("times as fast as indexing six numpy arrays", medians["field by field, numpy"] / ours, 1.5),
    ]
    common.report("data_sampling", claims, options.json, {"processor_us": medians, "wall_us": walls})


if __name__ == "__main__":
    main()
