"""Every method on two streams: what it knows at the end, what it forgot, what it carried over, what it costs.

    python benchmarks/continual.py [--quick] [--json] [--workers 4] [--seed 0 3] [--steps N] [--only STREAM/METHOD ...]

Streams: halfcheetah_shifts (six dynamics shifts) and walker2d_shifts (six of another body). All methods start from the
same base policy (PPO on the stream's base task) and have the same budget of control steps per task; what the library
spends on trying skills counts. Seeds are trained side by side. Scores are scaled per task: 0 untrained, 1 solved, as
sim/stream.py defines them. Forward transfer is against `reset`, which learns each task alone from the base.

A cell (stream/method) is kept as JSON in runs/benchmarks/continual/ and not measured again; a cell in progress goes on
where it was killed. Without `--only` everything missing is measured, then the table is printed from what is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np

from robot_cl import seeding, stats
from robot_cl.continual import summary
from robot_cl.continual.life import joined, run_hidden
from robot_cl.continual.loop import Measuring, run_method
from robot_cl.continual.method import MethodConfig
from robot_cl.continual.methods import METHODS, REFERENCE
from robot_cl.continual.run import HIDDEN, ContinualConfig, prepare, read_facts
from robot_cl.data.atomic import write_json
from robot_cl.learners.ppo import PPOConfig
from robot_cl.provenance import provenance, simulator_fingerprint
from sim.stream import Stream

KEPT = common.ROOT / "runs" / "benchmarks" / "continual"
BASE = "base"
LEVEL, LONGER = "level-", 4  # level-2: the third task alone with four times its budget, whence the stream's `solved`
SLOWEST = (HIDDEN, "multitask", "library", "clonex", "replay", "ewc", "packnet", "fresh", "reset", "finetune")


@dataclass(frozen=True)
class Sizes:
    """How large one stream is measured; the base is trained with twice the `worlds`. The base begins with e^`log_std`
    of noise, and so does every method in every task."""

    steps: int
    base_steps: int
    log_std: float
    episodes: int = 4  # per seed, of each entry of R
    points: int = 6  # of each curve, besides its start
    curve_episodes: int = 4  # per seed and point
    seeds: int = 3
    seed: int = 0
    tasks: int | None = None
    worlds: int = 16
    trial_worlds: int = 4  # in which the library tries what it has
    trial_share: float = 0.05  # of a task's budget, spent on trials at most
    checks: int = 0  # trials on the way, after which a skill that has become worse is played as it was before
    fit: float = 0.25  # share of what its skills gain at home that a composition must gain to be begun with
    caution: float = 0.0  # standard errors of its trial, by which it must do so

    @property
    def learner(self) -> PPOConfig:
        """Three passes over each rollout instead of ten: on seeds 100 to 102 from the base alone the mean area was .39
        instead of .30 on the first two tasks, and in low gravity no policy fell for good any more."""
        return PPOConfig(actor=replace(PPOConfig().actor, log_std_init=self.log_std), epochs=3)


FULL = {
    "halfcheetah_shifts": Sizes(150_000, 300_000, -1.0),
    # A walker that falls does so after some hundred steps: its trials are whole episodes, of half as many worlds. It
    # falls after one rollout and not after the next: curves have many points, and what is kept is not just the last.
    "walker2d_shifts": Sizes(
        150_000,
        600_000,
        -1.0,
        points=24,
        curve_episodes=2,
        trial_worlds=2,
        trial_share=0.1,
        checks=5,
        fit=0.6,
        caution=1.0,
    ),
}
QUICK = {"halfcheetah_shifts": Sizes(20_480, 122_880, -1.0, seeds=2, tasks=3)}


def config_of(stream: str, quick: bool) -> ContinualConfig:
    size = (QUICK if quick else FULL)[stream]
    measuring = Measuring(size.episodes, size.points, size.curve_episodes, save_every=20_480)
    options = MethodConfig(
        trial_worlds=size.trial_worlds,
        trial_steps=60,
        trial_share=size.trial_share,
        checks=size.checks,
        fit=size.fit,
        caution=size.caution,
        explore=size.log_std,
    )
    return ContinualConfig(
        stream, tuple(METHODS), size.seeds, size.seed, size.steps, size.base_steps, size.tasks,
        num_worlds=2 * size.worlds, threads=1, measuring=measuring, options=options,
    )  # fmt: skip


def cells(quick: bool) -> list[str]:
    """Every stream's base first, then the cells, the slowest first."""
    streams = list(QUICK if quick else FULL)
    return [f"{s}/{BASE}" for s in streams] + [f"{s}/{m}" for s in streams for m in SLOWEST]


def folder_of(stream: str, quick: bool, seed: int | None = None) -> Path:
    """Cells of other sizes are other cells."""
    size = (QUICK if quick else FULL)[stream]
    first = size.seed if seed is None else seed
    return KEPT / f"{stream}-{size.steps}-{size.seeds}{f'-from{first}' if first else ''}"


def kept(cell: str, quick: bool, seed: int | None = None) -> Path:
    stream, name = cell.split("/")
    return folder_of(stream, quick, seed) / f"{name}.json"


def measure(cell: str, quick: bool) -> None:
    """Run one cell in this process and keep it."""
    seeding.use_torch_threads(1)
    stream, name = cell.split("/")
    config, began = config_of(stream, quick), time.process_time()
    folder, size = folder_of(stream, quick) / "work", (QUICK if quick else FULL)[stream]
    setup, untrained = prepare(folder, config, size.learner)
    record: dict[str, Any] = {"cell": cell, "untrained": untrained.tolist()}
    record["simulator"] = simulator_fingerprint(setup.stream.base.task)
    setup = replace(setup, folder=folder / name, num_worlds=size.worlds)
    if name.startswith(LEVEL):
        setup = replace(setup, stream=one_task(setup.stream, int(name.removeprefix(LEVEL))))
        record["rows"] = run_method(REFERENCE, setup, config.measuring)
    elif name == HIDDEN:
        record["rows"], record["facts"] = run_hidden(replace(setup, stream=setup.stream.hidden()), config.measuring)
    elif name != BASE:
        record["rows"] = run_method(name, setup, config.measuring)
        record["facts"] = read_facts(setup.folder, len(record["rows"]))
    about = provenance(setup.stream.base.task, None, config.seed, 1, "cpu")
    record |= {"cpu_s": round(time.process_time() - began, 1), "provenance": about}
    kept(cell, quick).parent.mkdir(parents=True, exist_ok=True)
    write_json(kept(cell, quick), record)


def one_task(stream: Stream, k: int) -> Stream:
    """Only task k, with `LONGER` times its budget."""
    return replace(stream, stages=(replace(stream.stages[k], steps=LONGER * stream.stages[k].steps),))


def measure_all(wanted: list[str], quick: bool, workers: int) -> None:
    """Cells that are missing, in processes of their own; each after its stream's base."""
    missing = [cell for cell in wanted if not kept(cell, quick).exists()]
    bases = {f"{cell.split('/')[0]}/{BASE}": threading.Event() for cell in missing}

    def one(cell: str) -> None:
        base = f"{cell.split('/')[0]}/{BASE}"
        if cell == base:
            if not kept(cell, quick).exists():
                spawn(cell, quick)
            bases[base].set()
        else:
            bases[base].wait()
            spawn(cell, quick)

    with ThreadPoolExecutor(workers) as pool:  # bases come first, so that no cell waits for one that cannot begin
        list(pool.map(one, [*bases, *(cell for cell in missing if cell not in bases)]))


def spawn(cell: str, quick: bool) -> None:
    size = (QUICK if quick else FULL)[cell.split("/")[0]]
    command = [sys.executable, __file__, "--cell", cell, "--seed", str(size.seed), "--steps", str(size.steps)]
    command += ["--quick"] if quick else []
    began = time.monotonic()
    done = subprocess.run(command, cwd=common.ROOT, check=False)
    print(f"{cell}: {'done' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)


def entries(stream: str, quick: bool, firsts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What is kept of a stream: method -> entry of continual.json, with each number's terms (seeds, tasks); the seeds
    that begin at each of `firsts` are joined, as far as a method was measured with them."""
    stages, made = config_of(stream, quick).scaled_stream().stages, {}
    for name in SLOWEST:
        here = [seed for seed in firsts if kept(f"{stream}/{name}", quick, seed).exists()]
        if not here:
            continue
        parts = [read(f"{stream}/{name}", quick, seed) for seed in here]
        rows, untrained = joined_rows(parts), np.concatenate([part["untrained"] for part in parts])
        alone = None
        if all(kept(f"{stream}/{REFERENCE}", quick, seed).exists() for seed in here):
            alone = summary.curves(joined_rows([read(f"{stream}/{REFERENCE}", quick, seed) for seed in here]))
        made[name] = summary.method_entry(
            rows, untrained, stages, alone, {}, name != HIDDEN and METHODS[name].knows_task
        )
        made[name]["terms"] = summary.contributions(summary.matrix(rows, untrained), summary.curves(rows), alone)
        made[name] |= {"seeds": len(untrained), "firsts": here, "cpu_s": sum(part["cpu_s"] for part in parts)}
        made[name] |= {key: [part["facts"].get(key) for part in parts] for key in ("alarms", "routes")}
    return made


def read(cell: str, quick: bool, seed: int) -> dict[str, Any]:
    return json.loads(kept(cell, quick, seed).read_text())


def joined_rows(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several seeds' rows of one method as one."""
    return [joined([part["rows"][k] for part in parts]) for k in range(len(parts[0]["rows"]))]


def row(name: str, entry: dict[str, Any]) -> list[object]:
    def text(number: str) -> str:
        m = entry["metrics"].get(number)
        return "" if m is None else f"{m['estimate']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"

    return [
        name, *(text(number) for number in summary.NUMBERS), f"{entry['bytes_per_task'] / 1000:.1f}",
        f"{entry['cpu_s'] / entry['seeds']:.0f}", entry["seeds"], "yes" if entry["knows_task"] else "no",
    ]  # fmt: skip


def claims_of(stream: str, found: dict[str, dict[str, Any]]) -> list[common.Claim]:
    """What is expected of the library, as far as the cells are there."""
    claims: list[common.Claim] = []
    if "library" not in found:
        return claims
    ours = found["library"]["metrics"]
    claims.append(common.Claim(f"{stream}: library's forgetting", ours["forgetting"]["estimate"], 0.0, at_least=False))
    for other, least in (("packnet", 1.0), ("finetune", 1.3)):
        if other in found:
            mine, theirs = same_seeds(found, "library", other, "acc")
            ratio = float(mine.mean() / theirs.mean())
            claims.append(common.Claim(f"{stream}: ACC of library / {other}", ratio, least))
    if "forward_transfer" in ours:
        low = ours["forward_transfer"]["low"]
        claims.append(common.Claim(f"{stream}: forward transfer of library, low end", low, 0))
    if "fresh" in found and "forward_transfer" in ours:
        mine, theirs = same_seeds(found, "library", "fresh", "forward_transfer")
        gap = stats.stratified_bootstrap((mine - theirs).mean(-1), np.random.default_rng(0), stats.mean)
        claims.append(common.Claim(f"{stream}: forward transfer of library − fresh, low end", gap.low, 0))
    if HIDDEN in found:
        mine, theirs = same_seeds(found, HIDDEN, "library", "acc")
        ratio = float(mine.mean() / theirs.mean())
        claims.append(common.Claim(f"{stream}: ACC without announced borders / with", ratio, 0.95))
    return claims


def same_seeds(found: dict[str, dict[str, Any]], one: str, other: str, number: str) -> tuple[np.ndarray, np.ndarray]:
    """A number's terms (seeds, tasks) of two methods, of the seeds both were measured with."""
    parts = [dict(zip(found[m]["firsts"], np.split(found[m]["terms"][number], len(found[m]["firsts"])), strict=True))
             for m in (one, other)]  # fmt: skip
    both = [first for first in parts[0] if first in parts[1]]
    return tuple(np.concatenate([part[first] for first in both]) for part in parts)


def main() -> None:
    flags = [
        ("--only", {"nargs": "*", "default": None, "help": "cells such as walker2d_shifts/packnet"}),
        ("--workers", {"type": int, "default": 1, "help": "cells measured at once"}),
        ("--cell", {"default": None, "help": "measure this one in this process, print nothing"}),
        ("--seed", {"type": int, "nargs": "*", "default": [0], "help": "the first of the seeds; several are joined"}),
        ("--steps", {"type": int, "default": None, "help": "per task, in place of the sizes given here"}),
    ]
    args = common.arguments(__doc__ or "", flags)
    sizes = QUICK if args.quick else FULL
    for seed in args.seed:
        for stream, size in sizes.items():
            sizes[stream] = replace(size, seed=seed, steps=args.steps or size.steps)
        if args.cell:
            measure(args.cell, args.quick)
            return
        measure_all(args.only or cells(args.quick), args.quick, args.workers)
    claims, details = [], {}
    for stream, size in sizes.items():
        found = entries(stream, args.quick, args.seed)
        if not found:
            continue
        numbers = ("ACC", "forgetting", "BWT", "forward transfer", "jump-start")
        header = ("method", *numbers, "kB per task", "CPU s per seed", "seeds", "told task")
        print(f"\n{stream}: {size.steps:,} steps per task, {size.base_steps:,} for the base")
        print(common.table(header, [row(name, found[name]) for name in SLOWEST if name in found]))
        claims += claims_of(stream, found)
        told = ("metrics", "R", "curves", "bytes_per_task", "cpu_s", "seeds", "alarms", "routes")
        details[stream] = {name: {key: entry[key] for key in told} for name, entry in found.items()}
    common.report("continual", claims, args.json, details)


if __name__ == "__main__":
    main()
