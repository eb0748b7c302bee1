"""Learners and worlds on a GPU: equal numbers, updates/s of stacked seeds, steps/s of thousands of worlds.

    python benchmarks/gpu.py                       all parts, in under three minutes beside 16 cores
    python benchmarks/gpu.py --parts stacked       only speeds of stacks; others: captured, devices, near, worlds, crowd
    python benchmarks/gpu.py --parts captured --together 1      and how fast each learner is, captured and plain
    python benchmarks/gpu.py --device cpu --quick  tries the script on the processor

captured: updates replayed as CUDA graphs against plain ones, every learner. devices: a learner on the GPU against the
same one on the processor, from one start with the same draws. near: Warp's worlds against MuJoCo's. stacked: captured
updates of 1, 8 and 64 stacked seeds against plain updates of one seed at a time. worlds: steps/s of 1k, 4k and 16k
half-cheetahs on the GPU, beside the processor's worlds on all cores. crowd (on request): processes side by side.
Every measurement is a process of its own, so that one that fails leaves the others alone. The first three compare
numbers and run side by side; speeds are measured one after the other with nothing beside them, each the median of three
blocks. Data is random with HalfCheetah's widths, networks are 256 x 2, batches 256 per seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from common import Claim, arguments, report, table
from gpu_parts.crowd import crowd, member
from gpu_parts.learners import CHECKED, WORK, Row, captured, devices, stacked

PARTS = ("captured", "devices", "near", "stacked", "worlds")
EQUALITY = ("captured", "devices", "near")  # compare numbers: may run beside each other
TIMED = ("sac", "iql", "bc")  # whose stacks are timed
LEARNERS_TOLERANCE, WORLDS_TOLERANCE = 1e-3, 1e-3  # largest differences
DEVICES_TOLERANCE = 1e-4  # norm of the difference over the norm: what rounding becomes in 25 updates, ten times over
Found = dict[str, list[Row]]  # part:name -> what it found, or {"error": ...}


def work(part: str, name: str, args: Any) -> Iterator[Row]:
    """The rows of one measurement, in this process."""
    if part == "captured":
        return captured(name, args.rows, 0.0 if args.together > 1 else args.block, args.device)
    if part == "devices":
        return devices(name, args.rows, args.device)
    if part == "stacked":
        return stacked(name, args.rows, _numbers(args.seeds), args.block, args.device)
    if part == "crowd":
        return crowd(_numbers(args.crowd), _command("member", "sac", args))
    from gpu_parts import worlds  # the others do without Warp

    return worlds.near(args.device) if part == "near" else worlds.rates(_numbers(args.worlds), args.block, args.device)


def apart(part: str, name: str, args: Any, deadline: float) -> list[Row]:
    """`work` in a process of its own: the rows it printed before it ended, failed or ran out of time."""
    limit, began = max(5.0, min(args.limit, deadline - time.monotonic())), time.monotonic()
    try:
        done = subprocess.run(_command(part, name, args), capture_output=True, text=True, check=False, timeout=limit)
        printed, problem = done.stdout, (done.stderr.strip() or "no word").splitlines()[-1] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        printed, problem = (late.stdout or b"").decode(), f"not done after {limit:.0f} s"
    print(f"{time.monotonic() - began:6.0f} s  {part}:{name} {problem}", file=sys.stderr, flush=True)
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return rows + ([{"error": problem}] if problem else [])


def _command(part: str, name: str, args: Any) -> list[str]:
    options = ("rows", "seeds", "worlds", "block", "device", "together", "crowd")
    words = [word for option in options for word in (f"--{option}", str(getattr(args, option)))]
    return [sys.executable, __file__, "--one", f"{part}:{name}", *words]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def measure(args: Any) -> Found:
    """All parts asked for: equality side by side, then speeds one by one."""
    names = [name for name in args.learners.split(",") if name]
    jobs = [(p, n) for p in args.parts.split(",") for n in _names(p, names)]
    jobs.sort(key=lambda job: (job[0] != "near", job[1] != "uni_o4"))  # the longest first: near compiles kernels
    deadline, found = time.monotonic() + args.seconds, Found()
    together = [job for job in jobs if job[0] in EQUALITY]
    with ThreadPoolExecutor(args.together) as pool:
        for job, rows in zip(together, pool.map(lambda job: apart(*job, args, deadline), together), strict=True):
            found[":".join(job)] = rows
    for job in [job for job in jobs if job not in together]:
        found[":".join(job)] = apart(*job, args, deadline)
    return found


def _names(part: str, learners: list[str]) -> list[str]:
    if part in ("captured", "devices"):
        return learners
    return [n for n in TIMED if n in learners] if part == "stacked" else ["halfcheetah" if part != "crowd" else "sac"]


# -- printing ---------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, ...]] = {
    "captured": ("phase", "difference", "plain", "captured", "refused"),
    "devices": ("phase", "updates", "distance", "difference"),
    "near": ("worlds", "steps", "difference", "median world"),
    "stacked": ("phase", "how", "seeds", "rate", "over_eager"),
    "worlds": ("where", "worlds", "physics", "given", "acting", "start"),
    "crowd": ("processes", "rate"),
}


def print_tables(found: Found) -> None:
    for part, columns in COLUMNS.items():
        rows = [
            [name.partition(":")[2], *(row[c] if row.get(c, {}) != {} else "" for c in columns), row.get("error", "")]
            for name, rows in found.items()
            for row in rows
            if name.startswith(f"{part}:")
        ]
        if rows:
            print("\n" + table((part, *columns, "what went wrong"), rows), flush=True)


def claims(found: Found) -> list[Claim]:
    """Of what has been measured; errors count as failures."""

    def rows(part: str, *needed: str) -> Iterator[Row]:
        listed = [row for name, rows in found.items() if name.startswith(f"{part}:") for row in rows]
        return (row for row in listed if all(n in row for n in needed))

    wrong = sum("error" in row or bool(row.get("refused")) for rows in found.values() for row in rows)
    listed = [Claim("measurements that failed, or updates that were not captured", float(wrong), 0.0, at_least=False)]

    def worst(said: str, gaps: list[float], tolerance: float) -> None:
        if gaps:
            listed.append(Claim(said, max(gaps), tolerance, at_least=False))

    worst("captured against plain, largest difference", [r["difference"] for r in rows("captured", "difference")],
          LEARNERS_TOLERANCE)  # fmt: skip
    few = [r["distance"] for r in rows("devices", "distance") if r["updates"] <= CHECKED]
    worst(f"GPU against processor, parameters apart within {CHECKED} updates", few, DEVICES_TOLERANCE)
    gaps = [r["difference"] for r in rows("near", "difference")]
    worst("Warp against MuJoCo, largest difference after five control steps", gaps, WORLDS_TOLERANCE)
    for count, least in ((1, 2.0), (8, 8.0), (64, 30.0)):
        gains = [r["over_eager"] for r in rows("stacked", "over_eager") if r["seeds"] == count]
        if gains:
            said = f"{count} stacked over the eager loop, least of {len(gains)} learners"
            listed.append(Claim(said, min(gains), least))
    by_place = list(rows("worlds", "acting"))
    for row in by_place[1:]:
        over = row["acting"] / by_place[0]["acting"]
        listed.append(Claim(f"{row['worlds']} worlds with a policy over the processor's cores", over, 1.0))
    return listed


def main() -> None:
    number: Callable[[float], dict[str, Any]] = lambda default: {"type": type(default), "default": default}  # noqa: E731
    flags = [("--one", {"help": "PART:NAME, measured in this process"}),
             ("--parts", {"default": ",".join(PARTS)}), ("--learners", {"default": ",".join(WORK)}),
             ("--device", {"default": "cuda"}), ("--rows", number(100_000)), ("--seeds", {"default": "1,8,64"}),
             ("--worlds", {"default": "1024,4096,16384"}), ("--crowd", {"default": "1,4,16"}),
             ("--block", {"type": float, "default": 0.6, "help": "seconds of a block that is timed"}),
             ("--together", number(16)), ("--limit", {"type": float, "default": 120, "help": "seconds of a process"}),
             ("--seconds", {"type": float, "default": 170, "help": "of all together"})]  # fmt: skip
    args = arguments(__doc__ or "", flags)
    if args.quick:
        args.rows, args.seeds, args.worlds, args.block, args.seconds = 7_000, "1,2", "4,8", 0.05, 600.0
    torch.set_num_threads(1)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu --quick tries the script on the processor")
    if args.one:
        part, _, name = args.one.partition(":")
        if part == "member":
            return member(args.rows, args.block, args.device)
        warnings.simplefilter("always")
        for row in work(part, name, args):
            print(json.dumps(row), flush=True)
        return
    where = torch.cuda.get_device_name() if args.device == "cuda" else "this processor"
    print(f"torch {torch.__version__}, {where}, {os.cpu_count()} cores")
    found = measure(args)
    print_tables(found)
    report("gpu", claims(found), args.json, found)


if __name__ == "__main__":
    main()
