"""Learners on a GPU: captured updates against the plain ones in numbers and in speed, alone and with others beside.

    python benchmarks/gpu.py            every learner, 3 stacked seeds, networks of 256 x 2, batch 256
    python benchmarks/gpu.py --quick    fewer updates per measurement
    python benchmarks/gpu.py --together 13      all learners at the same time: quick, their speeds mean little
    python benchmarks/gpu.py --learners ''      only how many updates 1, 4 and 16 processes make side by side

Each learner is checked in a process of its own, so that one that fails leaves the others alone, and its error is in
the table. Data is random with HalfCheetah's widths; a replay buffer of 100k rows is full. Speeds are the median of
three blocks, timed from an idle device to an idle device.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from common import Claim, arguments, report, table
from offline_cells import SIZES, sized

from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners import config_class, learner_class
from robot_cl.learners.base import Learner
from robot_cl.learners.graph import Acting, Captured, Updates
from robot_cl.learners.moorl import Tasks
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import UniO4Config

OBS, ACT, ROWS, BATCH, SEEDS = 17, 6, 100_000, 256, 3
WORK = {  # learner -> its phases and options that differ from the defaults
    "bc": (("offline",), {}),
    "percent_bc": (("offline",), {}),
    "iql": (("offline", "online"), {}),
    "rebrac": (("offline",), {}),
    "lcb": (("offline",), {}),
    "sac": (("online",), {}),
    "rlpd": (("online",), {"critics": 5}),
    "moorl": (("online",), {}),
    "moorl joined": (("online",), {"tasks": Tasks.joined}),
    "cal_ql": (("offline", "online"), {}),
    "wsrl": (("offline", "online"), {}),
    "ppo": (("rollout",), {"minibatch": 128}),
    "uni_o4": (("offline", "improve", "rollout"), {}),
}
LIMIT = 240  # seconds that a learner's process may take
CHECKED = 25  # updates after which the captured learner is compared with the plain one


def random_data(device: str) -> Transitions:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    over = torch.rand(ROWS, generator=rng)
    ends = (over < 0.001).float(), ((over > 0.001) & (over < 0.002)).float()
    return Transitions(normal(ROWS, OBS), normal(ROWS, ACT).clamp(-1, 1), normal(ROWS), normal(ROWS, OBS), *ends).to(
        device
    )


def build(name: str, data: Transitions, captured: bool, device: str) -> tuple[Learner, Updates]:
    cls = name.split()[0]
    config = sized(replace(config_class(cls)(), **WORK[name][1]), SIZES["full"])
    learner = learner_class(cls)(config, OBS, ACT, SEEDS, 0, device)
    learner.captured = Captured(learner, captured)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng, device)
    buffer = ReplayBuffer(ROWS, SEEDS, OBS, ACT, device)
    buffer.add_packed(sampler.rows.expand(SEEDS, -1, -1))
    return learner, Updates(learner, sampler if learner.plan().offline_share or "offline" in WORK[name][0] else None,
                            buffer, BATCH)  # fmt: skip


def step_of(phase: str, learner: Learner, updates: Updates, data: Transitions) -> Callable[[], Any]:
    """One update of a phase: for `rollout` one of PPO's on 8 worlds x 256 steps and seed."""
    if phase == "rollout":
        rows = data[: SEEDS * 2048]
        fresh = Transitions.unpack(rows.pack().view(SEEDS, 256, 8, -1), OBS, ACT)
        return lambda: learner.update_online(fresh, None)
    return updates.offline if phase in ("offline", "improve") else updates.online


def begin(phase: str, learner: Learner) -> None:
    """To where a phase begins: Uni-O4's improvement comes after its fits."""
    if phase == "improve" and isinstance(learner, UniO4):
        c = learner.config
        c.critic_steps = c.behaviour_steps = learner.step
        c.improve_steps, c.gate = 200, replace(c.gate, every=10_000)
        learner.gate.config = c.gate
        c.fit.max_steps = 60
        learner.gate.ends.fit = lambda *_: None  # type: ignore[method-assign]


def difference(one: Learner, other: Learner) -> float:
    """Largest difference of any parameter, over the largest parameter of its network."""
    theirs = dict(other.nets.named_parameters())
    return max(
        float((p - theirs[name]).detach().abs().max() / p.detach().abs().max().clamp_min(1e-3))
        for name, p in one.nets.named_parameters()
    )


def speed(work: Callable[[], Any], calls: int, device: str) -> float:
    """Calls per second, the median of three blocks."""
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(calls / (time.perf_counter() - began))
    return statistics.median(rates)


def examine(name: str, calls: int, device: str) -> dict[str, Any]:
    """Errors, difference and speeds of a learner's phases."""
    data, found = random_data(device), dict[str, Any]()
    (plain, plain_updates), (fixed, fixed_updates) = (build(name, data, c, device) for c in (False, True))
    for phase in WORK[name][0]:
        begun = time.monotonic()
        try:
            begin(phase, plain), begin(phase, fixed)
            steps = [step_of(phase, *pair, data) for pair in ((plain, plain_updates), (fixed, fixed_updates))]
            few = 2 if phase == "rollout" else CHECKED
            for _ in range(few):
                for step in steps:
                    step()
            gap = difference(plain, fixed)
            rates = [speed(step, max(1, calls // (100 if phase == "rollout" else 1)), device) for step in steps]
            found[phase] = {"difference": gap, "plain": rates[0], "captured": rates[1]}
        except Exception as problem:
            found[phase] = {"error": f"{type(problem).__name__}: {problem}".partition("\n")[0]}
            traceback.print_exc()
        found[phase]["refused"] = {str(key): why for key, why in fixed.captured.refused.items()}
        found[phase]["seconds"] = time.monotonic() - begun
    found["acting"] = acting(fixed, device)
    return found


def acting(learner: Learner, device: str) -> dict[str, Any]:
    """Actions per second for one world per seed, on the host."""
    acts, obs = Acting(learner), torch.randn(SEEDS, 1, OBS)
    noise = acts.noise(1, ACT)
    return {"captured": speed(lambda: acts.explore(obs, noise), 300, device)}


def judging(device: str) -> float:
    """Seconds of one gate test at the CPU profile's sizes, 3 seeds x 4 policies."""
    config = sized(UniO4Config(), SIZES["full"])
    assert isinstance(config, UniO4Config)
    learner = UniO4(config, OBS, ACT, SEEDS, 0, device)
    return 1.0 / speed(lambda: learner.gate.judge(learner.accepted.mode, learner.value), 1, device)


def crowd(count: int, calls: int, device: str) -> float:
    """Captured updates per second of `count` processes with soft actor-critic each, all together."""
    command = [sys.executable, __file__, "--rate", "sac", "--calls", str(calls), "--device", device]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for _ in range(count)]
    for process in processes:  # all are warm before the first is let go
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0] or 0.0) for process in processes)


def rate(name: str, calls: int, device: str) -> None:
    """Warm up, say so, wait to be let go, and print updates per second."""
    data = random_data(device)
    learner, updates = build(name, data, True, device)
    step = step_of(WORK[name][0][0], learner, updates, data)
    for _ in range(50):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    print(speed(step, calls, device))


def one(name: str, args: Any) -> dict[str, Any]:
    """`examine` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--calls", str(args.calls), "--device", args.device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"process": {"error": f"not done after {LIMIT} s"}}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"process": {"error": (done.stderr.strip() or "no output").splitlines()[-1]}}


def main() -> None:
    flags = [("--one", {"help": "a learner, checked in this process"}), ("--rate", {"help": "used by the crowd"}),
             ("--calls", {"type": int, "default": 0}), ("--device", {"default": "cuda"}),
             ("--crowd", {"default": "1,4,16", "help": "processes side by side"}),
             ("--learners", {"default": ",".join(WORK), "help": "to check, with commas between"}),
             ("--together", {"type": int, "default": 1, "help": "learners at the same time"})]  # fmt: skip
    args = arguments(__doc__ or "", flags)
    args.calls = args.calls or (300 if args.quick else 2000)
    torch.set_num_threads(1)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu tries the script on the processor")
    if args.rate:
        return rate(args.rate, args.calls, args.device)
    if args.one:
        warnings.simplefilter("always")
        print(json.dumps(examine(args.one, args.calls, args.device)))
        return
    where = torch.cuda.get_device_name() if args.device == "cuda" else "this processor"
    print(f"torch {torch.__version__}, {where}, {os.cpu_count()} cores, MPS {shutil.which('nvidia-cuda-mps-control')}")
    names = [name for name in args.learners.split(",") if name]
    with ThreadPoolExecutor(args.together) as pool:
        found = dict(zip(names, pool.map(lambda name: one(name, args), names), strict=True))
    head = ("learner", "phase", "plain /s", "captured /s", "difference", "what went wrong")
    rows = [_row(name, phase, f) for name, parts in found.items() for phase, f in parts.items()]
    print(table(head, rows), flush=True)
    if names:
        print(f"one gate test: {judging(args.device):.2f} s", flush=True)
    together = {n: crowd(n, args.calls, args.device) for n in map(int, args.crowd.split(","))}
    print(table(("processes", "updates/s together"), list(together.items())))
    if not names:
        return
    phases = [f for parts in found.values() for f in parts.values() if "plain" in f]
    faster = statistics.median(f["captured"] / f["plain"] for f in phases)
    report(
        "gpu",
        [
            Claim("phases that failed or were not captured", float(_wrong(found)), 0.0, at_least=False),
            Claim("largest difference of a captured learner", max(f["difference"] for f in phases), 1e-3, False),
            Claim("captured over plain updates, median", faster, 2.0),
        ],
        args.json,
        {"found": found, "together": together},
    )


def _row(name: str, phase: str, found: dict[str, Any]) -> tuple[Any, ...]:
    wrong = found.get("error") or "; ".join(f"{key}: {why}" for key, why in found.get("refused", {}).items())
    return (name, phase, *(found.get(column, "") for column in ("plain", "captured", "difference")), wrong)


def _wrong(found: dict[str, dict[str, Any]]) -> int:
    parts = [f for learner in found.values() for f in learner.values()]
    return sum(bool(f.get("error") or f.get("refused")) for f in parts)


if __name__ == "__main__":
    main()
