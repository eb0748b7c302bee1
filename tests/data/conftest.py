"""Small real recordings: a linear system with noise, whose reward depends on its state."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_cl.data.recording import Recording

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
OBS_DIM, ACT_DIM = 5, 2


def simulate(episodes: int, length: int, seed: int = 0, terminate: float = 0.3) -> Recording:
    """Episodes of at most `length` steps; a share `terminate` of them ends early, by a terminal."""
    rng = np.random.default_rng(seed)
    drift = np.eye(OBS_DIM) * 0.97
    push = rng.normal(size=(ACT_DIM, OBS_DIM)) * 0.3
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("obs", "action", "reward", "next_obs", "end", "cut")}
    lengths = []
    for _ in range(episodes):
        early = rng.random() < terminate
        steps = int(rng.integers(length // 4, length - 1)) if early else length
        state = (1.0 + 0.01 * rng.normal(size=OBS_DIM)).astype(np.float32)
        for t in range(steps):
            action = np.clip(np.tanh(state[:ACT_DIM]) + 0.3 * rng.normal(size=ACT_DIM), -1, 1).astype(np.float32)
            after = (state @ drift + action @ push + 0.02 * rng.normal(size=OBS_DIM)).astype(np.float32)
            row = (state, action, after[0] - 0.1 * (action**2).sum(), after, early and t == steps - 1)
            for key, value in zip(columns, (*row, not early and t == steps - 1), strict=True):
                columns[key].append(np.asarray(value))
            state = after
        lengths.append(steps)
    stacked = {key: np.stack(value) for key, value in columns.items()}
    return Recording(
        obs=stacked["obs"], action=stacked["action"], reward=stacked["reward"], next_obs=stacked["next_obs"],
        terminated=stacked["end"], truncated=stacked["cut"], lengths=np.array(lengths), seeds=np.arange(episodes),
        ordinals=np.zeros(episodes),
    )  # fmt: skip


@pytest.fixture
def make_recording() -> Callable[..., Recording]:
    return simulate


@pytest.fixture(scope="session")
def clean() -> Recording:
    """30 episodes of at most 60 steps."""
    return simulate(30, 60)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data of others, where it lies beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the repository")
    return SHARED
