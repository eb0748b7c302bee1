"""Runs of seconds: their options, their data, and all that they remember at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.run_config import TrainConfig


def options(out: Path, **changes: Any) -> TrainConfig:
    small = {"task": "hopper", "batch": 16, "num_worlds": 2, "log_every": 20, "eval_every": 0, "checkpoint_every": 40}
    fixed = {"threads": 1, "torch_threads": 1, "out": str(out), "device": "cpu", "tensorboard": False}
    return TrainConfig(**(small | fixed | changes))


def random_hopper(root: Path) -> str:
    """Where 400 transitions of uniform actions are."""
    return str(collect("hopper", UniformPolicy(11, 3), 400, "hopper/random-v0", root=root, stochastic=True).path)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that is remembered at the end of a run."""
    state, arrays, _ = load_resume(checkpoint_folder(run))
    return state | {name: torch.from_numpy(value.astype(np.float64)) for name, value in arrays.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
