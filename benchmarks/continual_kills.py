"""A continual run killed at random moments resumes to the same matrix, bit for bit.

    python benchmarks/continual_kills.py [--quick] [--json] [--kills 20] [--seed 0]

For each of four methods (the library with its skills on disk, the same where borders are hidden, PackNet with its
masks, behavioural cloning with its stored states) a small run on the vehicle's regimes is made twice: once in one go,
once by processes that are killed with SIGKILL at random moments (while learning, scoring, or writing) and started
again. Compared are all scores after each task, all learning curves, the bytes kept, for the library the skills'
contents, and its alarms and contexts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import yaml

from robot_cl.continual import summary
from robot_cl.continual.run import HIDDEN, proceed

METHODS = ("library", HIDDEN, "packnet", "clonex")
OPTIONS = {
    "kind": "continual", "stream": "vehicle_regimes", "seeds": 2, "steps": 2048, "base_steps": 1024, "tasks": 4,
    "num_worlds": 16, "threads": 1,
    "options": {"trial_worlds": 1, "trial_steps": 20, "look": 512},
    "measuring": {"episodes": 2, "points": 2, "curve_episodes": 1, "save_every": 256},
    "learner": {
        "name": "ppo", "horizon": 16, "minibatch": 128, "epochs": 2,
        "actor": {"hidden": [16, 16], "activation": "tanh", "squash_mean": False, "init": "orthogonal"},
        "critic": {"hidden": [16], "activation": "tanh"},
    },
}  # fmt: skip


def folder_for(root: Path, method: str) -> Path:
    root.mkdir(parents=True)
    chosen = {"methods": ["finetune"], "hidden": True} if method == HIDDEN else {"methods": [method]}
    (root / "config.yaml").write_text(yaml.safe_dump({**OPTIONS, **chosen}, sort_keys=False))
    return root


def spawn(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", str(folder)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(common.ROOT)})


def killed(folder: Path, kills: int, longest: float, rng: random.Random) -> list[str]:
    """Kill and start again -> what had been written at each kill."""
    moments: list[str] = []
    while True:
        process = spawn(folder)
        while process.poll() is None and not (folder / "base" / "policy.json").exists():
            time.sleep(0.01)
        if len(moments) < kills:
            try:
                process.wait(timeout=rng.uniform(0.3, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done = [p for kind in ("[0-9]*/row.json", "seed-*/rows.json") for p in folder.glob(f"methods/*/{kind}")]
                within = [int(p.name) for p in folder.glob("methods/*/progress/*/[0-9]*")]
                moments.append(f"{len(done)}+{max(within, default=0)}")
                continue
        if process.wait() == 0:
            return moments


def outcome(folder: Path, method: str) -> dict[str, object]:
    """Everything that must be equal."""
    entry = summary.read(folder)["methods"][method]
    cards = sorted(folder.glob("methods/*/library/*/*/card.json"))
    skills = {f"{p.parents[1].name}/{p.parent.name}": json.loads(p.read_text())["content"] for p in cards}
    names = ("R", "curves", "steps", "bytes_per_task", "alarms", "contexts")
    return {name: entry.get(name) for name in names} | {"skills": skills}


def main() -> None:
    flags = [("--kills", {"type": int, "default": 20}), ("--seed", {"type": int, "default": 0})]
    args = common.arguments(__doc__ or "", flags)
    total = min(args.kills, 6) if args.quick else args.kills
    rng, rows, wrong, done = random.Random(args.seed), [], 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for i, method in enumerate(METHODS):
            share = total // len(METHODS) + (i < total % len(METHODS))
            began = time.monotonic()
            whole = outcome(proceed(folder_for(Path(scratch) / f"{method}-whole", method)), method)
            longest = max(2.0, time.monotonic() - began)
            moments, different, runs = list[str](), set[str](), 0
            while len(moments) < share:  # a run may end before it has been killed often enough
                folder, runs = folder_for(Path(scratch) / f"{method}-killed-{runs}", method), runs + 1
                moments += killed(folder, share - len(moments), longest / 2, rng)
                again = outcome(folder, method)
                different |= {name for name in whole if whole[name] != again[name]}
            rows.append((method, len(moments), " ".join(moments), ", ".join(sorted(different)) or "none"))
            wrong, done = wrong + len(different), done + len(moments)
    columns = ("method", "kills", "tasks (hidden: seeds) finished + steps kept of the next, at each", "differences")
    print(common.table(columns, rows))
    claims = [
        common.Claim("matrices, curves and skills that differ from the uninterrupted run", wrong, 0, at_least=False),
        common.Claim("kills", done, total),
    ]
    common.report("continual_kills", claims, args.json, {"moments": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        proceed(Path(sys.argv[2]))
    else:
        main()
