"""Synthetic transitions for the tests of learners."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robot_cl.batch import Transitions

sys.path.insert(0, str(Path(__file__).parent))  # for small_runs
OBS, ACT = 4, 2


@pytest.fixture
def transitions() -> Callable[..., Transitions]:
    """transitions(*lead, seed=0): random ones with this leading shape, about one in five terminated."""

    def make(*lead: int, seed: int = 0) -> Transitions:
        rng = torch.Generator().manual_seed(seed)

        def normal(*tail: int) -> torch.Tensor:
            return torch.randn(*lead, *tail, generator=rng)

        over = torch.rand(*lead, generator=rng)
        terminated, truncated = (over < 0.2).float(), ((over > 0.2) & (over < 0.3)).float()
        action = normal(ACT).clamp(-1, 1)
        return Transitions(normal(OBS) * 2 + 1, action, normal(), normal(OBS) * 2 + 1, terminated, truncated)

    return make
