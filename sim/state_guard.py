"""The NaN guard: when a simulation leaves the finite numbers, its last states go to a file and the error says where."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sim.task import State


class SimulationError(FloatingPointError):
    """A world produced a number that is not finite; the message names world, step, channel and the dump."""


@dataclass
class StateGuard:
    """Remembers the last `keep` control steps of all worlds (by reference, without copying).

    `check` costs one pass over observation and reward. A dump is `<folder>/nan-<task>-world<i>-step<k>.npz` with the
    fields before each remembered step ("qpos" (K, nq), "qvel", ...), "command" (K, act_dim) and the bad "obs"
    (obs_dim,).
    """

    folder: Path | str = "."
    keep: int = 16
    _last: deque[tuple[State, np.ndarray]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")
        self._last = deque(maxlen=self.keep)

    def record(self, before: State, command: np.ndarray) -> None:
        """Called before each control step with the fields of all worlds and the command (N, act_dim)."""
        self._last.append((before, command))

    def forget(self) -> None:
        self._last.clear()

    def check(self, task: str, names: Sequence[str], steps: np.ndarray, obs: np.ndarray, reward: np.ndarray) -> None:
        """obs (N, obs_dim), reward (N,), steps (N,) of the episode. Raises SimulationError after writing the dump."""
        if math.isfinite(float(obs.sum()) + float(reward.sum())):
            return  # by far the quickest look; a sum of large numbers may still overflow
        if np.isfinite(obs).all() and np.isfinite(reward).all():
            return
        bad = ~np.isfinite(obs).all(axis=1) | ~np.isfinite(reward)
        world = int(np.flatnonzero(bad)[0])
        step = int(steps[world])
        channels = [names[int(c)] for c in np.flatnonzero(~np.isfinite(obs[world]))]
        path = Path(self.folder) / f"nan-{task}-world{world}-step{step}.npz"
        self._dump(path, world, obs[world])
        where = f"observation {channels[0]!r} ({len(channels)} of {len(names)} channels)" if channels else "the reward"
        raise SimulationError(
            f"{task}: world {world} is not finite at step {step} of its episode, in {where}; {int(bad.sum())} of "
            f"{len(bad)} worlds are affected. The last {len(self._last)} states and commands are in {path}"
        )

    def _dump(self, path: Path, world: int, obs: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = self._last[-1][0].keys() if self._last else ()
        arrays = {name: np.stack([state[name][world] for state, _ in self._last]) for name in fields}
        if self._last:
            arrays["command"] = np.stack([command[world] for _, command in self._last])
        np.savez(path, allow_pickle=False, obs=obs, **arrays)
