"""Where randomness, threads and devices are decided, once per run, so that nothing below asks the machine.

Member p of a run with `seed` draws everything from one generator seeded seed + p (policies.networks.generators), and
its worlds from (seed + p) · worlds on (robot_cl.learners.rollout). Evaluation draws from seeds far away from both.
"""

from __future__ import annotations

import os

import torch

EVALUATION_SEED = 1_000_000_000  # first episode of an evaluation during training
DEVICES = ("auto", "cpu", "cuda")


def resolve_device(device: str) -> str:
    """"auto" is a GPU where there is one. Raises ValueError for an unknown name or a GPU that is not there."""
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu, or install torch with CUDA")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def use_torch_threads(threads: int) -> None:
    """Fix torch's threads for this process: sums round differently with another number."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
