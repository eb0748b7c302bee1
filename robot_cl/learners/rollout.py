"""Experience from batched worlds: P members with W worlds each, stepped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from policies.policy import Policy
from robot_cl.batch import Transitions, row_width

Listener = Callable[[np.ndarray, np.ndarray], None]


class Explorer(Protocol):
    """What the collector needs of a learner."""

    seeds: int
    device: str

    def noise(self, *shape: int) -> Tensor: ...
    def explore(self, obs: Tensor, noise: Tensor) -> Tensor: ...


class Returns:
    """Remembers the returns of each member's episodes that ended since they were last asked for."""

    def __init__(self, seeds: int):
        self.returns: list[list[float]] = [[] for _ in range(seeds)]

    def finished(self) -> Tensor | None:
        """Mean return (P,) of the episodes ended since the last call, NaN for a member without one; None if none."""
        if not any(self.returns):
            return None
        means = torch.tensor([float(np.mean(r)) if r else np.nan for r in self.returns])
        self.returns = [[] for _ in self.returns]
        return means


class Collector(Returns):
    """Steps a world of P·W rows, member p owning rows p·W to (p+1)·W.

    Remembers the world, its last observation, and the returns of episodes that ended.
    World i of the run draws from seed·W + i: a stack's member p meets the worlds that a lone run seeded seed + p meets.
    """

    def __init__(self, world: Any, seeds: int, seed: int, listener: Listener | None = None):
        """`listener` is told which episodes are over (P, W) bool, and the returns, whenever some are."""
        self.world, self.seeds, self.worlds = world, seeds, world.num_worlds // seeds
        self.listener = listener
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """All worlds anew, from the seeds of a collector made with `seed`."""
        self.obs: np.ndarray = self.world.reset(seed=seed * self.worlds)
        super().__init__(self.seeds)

    def collect(self, learner: Explorer, horizon: int) -> Transitions:
        """`horizon` control steps in every world -> (P, horizon, W) on the CPU, actions as `explore` gave them."""
        face, rows = self.world.interface, self.world.num_worlds
        obs_dim, act_dim = face.obs_dim, face.act_dim
        acted = slice(obs_dim, obs_dim + act_dim)
        packed = np.empty((horizon, rows, row_width(obs_dim, act_dim)), dtype=np.float32)
        noise = learner.noise(horizon, self.worlds, act_dim)  # (P, T, W, act_dim)
        for t, row in enumerate(packed):
            row[:, :obs_dim] = self.obs
            obs = torch.from_numpy(row[:, :obs_dim]).view(self.seeds, self.worlds, obs_dim)
            action = learner.explore(obs.to(learner.device), noise[:, t])
            row[:, acted] = action.reshape(rows, act_dim).cpu().numpy()
            self.obs, reward, terminated, truncated, info = self.world.step(row[:, acted])
            row[:, acted.stop] = reward
            row[:, acted.stop + 1 : -2] = info["final_obs"]
            row[:, -2], row[:, -1] = terminated, truncated
            ended = terminated | truncated
            if ended.any():
                self._note(np.flatnonzero(ended), info["episode_return"])
                if self.listener is not None:
                    by_seed = self.seeds, self.worlds
                    self.listener(ended.reshape(by_seed), info["episode_return"].reshape(by_seed))
        stacked = torch.from_numpy(packed).view(horizon, self.seeds, self.worlds, -1).transpose(0, 1)
        return Transitions.unpack(stacked, obs_dim, act_dim)

    def episodes(self, steps: int) -> float:
        """Episodes in each world within so many steps per seed, if they all last as long as they can."""
        return steps / self.worlds / self.world.task.time_limit

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on bit for bit."""
        return {f"world.{name}": value for name, value in self.world.get_state().items()} | {"obs": self.obs}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        prefix = "world."
        self.world.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.obs = state["obs"].copy()

    def _note(self, ended: np.ndarray, totals: np.ndarray) -> None:
        for i in ended:
            self.returns[i // self.worlds].append(float(totals[i]))


class Elsewhere(Returns):
    """Of worlds that other processes step: remembers the returns, and the last state that was sent, {} before it."""

    def __init__(self, seeds: int):
        super().__init__(seeds)
        self._state: dict[str, np.ndarray] = {}

    def hear(self, returns: list[list[float]], state: dict[str, np.ndarray]) -> None:
        """What ended since the last call, for each member, and the worlds' state if it is there."""
        self.returns = [before + more for before, more in zip(self.returns, returns, strict=True)]
        self._state = state or self._state

    def state(self) -> dict[str, np.ndarray]:
        return self._state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._state = state


def play(policy: Policy, world: Any, seed: int) -> np.ndarray:
    """Returns (N,) of the first episode of each world after `reset(seed)`."""
    obs = world.reset(seed=seed)
    policy.reset()
    returns, going = np.zeros(world.num_worlds), np.ones(world.num_worlds, dtype=bool)
    while going.any():
        obs, _, terminated, truncated, info = world.step(policy.act(obs.astype(np.float32)))
        ended = going & (terminated | truncated)
        returns[ended] = info["episode_return"][ended]
        going &= ~ended
    return returns
