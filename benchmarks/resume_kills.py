"""Kill -9 at random moments of offline and online training; resume must give the weights of an uninterrupted run.

    python benchmarks/resume_kills.py [--quick] [--json] [--kills 20] [--seed 0]

A run of IQL (two seeds stacked; an offline part, then an online part with a replay buffer) and one of PPO are each
trained once without interruption. Then each is trained again in processes of its own, killed at random moments, half of
the kills in either run, and resumed in a new process until it is done. Every tensor of the final state is compared bit
for bit: weights, targets, moments, generators, statistics, worlds; and the rows of metrics.csv but for the wall time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.metrics import read_metrics
from robot_cl.train import TrainConfig, resume, train

ROOT = Path(__file__).resolve().parents[1]
SCALE = 4000  # steps of each part; long enough for several kills, short enough for minutes


def options(name: str, out: Path, data: str) -> tuple[TrainConfig, LearnerConfig]:
    shared = {"task": "hopper", "threads": 1, "torch_threads": 1, "eval_every": 0, "tensorboard": False,
              "device": "cpu", "out": str(out), "seeds": 2}  # fmt: skip
    if name == "iql":
        tiny = IQLConfig(actor=ActorConfig(hidden=(32,)), critic=CriticConfig(hidden=(32,)), warmup=200, capacity=2500)
        config = TrainConfig(data=data, offline_steps=SCALE, online_steps=SCALE, batch=64, log_every=100,
                             checkpoint_every=250, **shared)  # fmt: skip
        return config, tiny
    config = TrainConfig(online_steps=8 * SCALE, num_worlds=8, log_every=512, checkpoint_every=1024, **shared)
    return config, PPOConfig(horizon=32, minibatch=128, epochs=4)


def child(arguments: list[str]) -> None:
    """What the killed processes run: `train NAME OUT DATA` or `resume RUN`."""
    if arguments[0] == "resume":
        resume(arguments[1])
    else:
        train(*options(arguments[1], Path(arguments[2]), arguments[3]))


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def killed_run(name: str, out: Path, data: str, kills: int, rng: np.random.Generator) -> tuple[Path, list[int]]:
    """Train with up to `kills` kills -> the finished run and the newest checkpoint's step at each kill."""
    process, moments, run = spawn("train", name, str(out), data), list[int](), None
    while True:
        while process.poll() is None and not list(out.glob("*/config.yaml")):
            time.sleep(0.01)
        run = next(out.iterdir())
        progress = _lines(run)
        target = progress + int(rng.integers(1, 8))  # at least one row further, so that every process does some work
        while process.poll() is None and _lines(run) < target:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0.0, 0.05)))
        if process.poll() is None and len(moments) < kills:
            process.send_signal(signal.SIGKILL)
            moments.append(_newest(run))
        else:
            process.wait()
        if process.wait() == 0:
            return run, moments
        process = spawn("resume", str(run))


def _lines(run: Path) -> int:
    file = run / "metrics.csv"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _newest(run: Path) -> int:
    pointer = run / "checkpoints" / "last"
    return int(pointer.read_text()) if pointer.exists() else -1


def differences(a: Path, b: Path) -> list[str]:
    """Names of everything that is not the same in the final states of two runs."""
    (mine, worlds, _), (theirs, other_worlds, _) = (load_resume(checkpoint_folder(run)) for run in (a, b))
    found = [name for name in mine.keys() | theirs.keys() if not _equal(mine.get(name), theirs.get(name))]
    names = worlds.keys() | other_worlds.keys()
    found += [name for name in names if not np.array_equal(worlds.get(name, np.nan), other_worlds.get(name, np.nan))]
    rows, others = read_metrics(a), read_metrics(b)
    kept = (rows.keys() | others.keys()) - {"time_s"}
    text = {name: (str(rows.get(name, "").tolist()), str(others.get(name, "").tolist())) for name in kept}
    return found + [f"metrics.csv {name}" for name, (x, y) in text.items() if x != y]


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def main() -> None:
    flags = [("--kills", {"type": int, "default": 20}), ("--seed", {"type": int, "default": 0})]
    args = common.arguments(__doc__ or "", flags)
    rng, total = np.random.default_rng(args.seed), min(args.kills, 6) if args.quick else args.kills
    rows, wrong, done = [], 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = str(collect("hopper", UniformPolicy(11, 3), 2000, "hopper/random-v0", root=root, stochastic=True).path)
        for name, kills in (("iql", total - total // 2), ("ppo", total // 2)):
            whole = train(*options(name, root / f"{name}-whole", data))
            run, moments = killed_run(name, root / f"{name}-killed", data, kills, rng)
            found = differences(run, whole)
            rows.append((name, len(moments), " ".join(map(str, moments)), ", ".join(found[:4]) or "none"))
            wrong, done = wrong + len(found), done + len(moments)
    print(common.table(("run", "kills", "newest checkpoint at each", "differences"), rows))
    claims = [
        common.Claim("tensors and metrics that differ from the uninterrupted run", wrong, 0, at_least=False),
        common.Claim("kills", done, total),
    ]
    common.report("resume_kills", claims, args.json, {"moments": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
