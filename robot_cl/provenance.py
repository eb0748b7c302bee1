"""Where a result comes from: everything needed to say whether two runs may be compared."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("robot-cl", "torch", "numpy", "mujoco", "gymnasium", "stable-baselines3", "minari", "safetensors")
FINGERPRINT_STEPS = 25


def provenance(task: str | None, dataset: Any, seed: int, torch_threads: int, device: str) -> dict[str, Any]:
    """Plain JSON data; `dataset` is a StoredDataset or None."""
    commit, dirty = commit_and_dirty()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "simulator": simulator_fingerprint(task) if task else None,
        "dataset": {"id": dataset.meta.id, "hash": dataset.meta.hash} if dataset is not None else None,
        "seed": seed,
        "torch_threads": torch_threads,
        "device": device,
    }


def commit_and_dirty() -> tuple[str, bool]:
    """Commit of the checkout this package lies in and whether it was changed; "unknown" outside of one."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", False


def simulator_fingerprint(task: str) -> str:
    """MuJoCo's version and the hash of a short rollout: equal fingerprints compute the same physics to the last bit."""
    import sim

    world = sim.make(task, num_worlds=1, threads=1, seed=0)
    obs, act_dim = world.reset(seed=0), world.interface.act_dim
    digest = hashlib.sha256(np.ascontiguousarray(obs).tobytes())
    for t in range(FINGERPRINT_STEPS):
        obs, reward, *_ = world.step(np.sin(0.7 * t + np.arange(act_dim))[None])
        digest.update(np.ascontiguousarray(obs).tobytes() + np.ascontiguousarray(reward).tobytes())
    return f"{task} mujoco {_version('mujoco')} {digest.hexdigest()[:16]}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
