"""Environments of existing suites as far as evaluation needs a world: one episode each, stepped one after the other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from sim.env import make_env
from sim.suites import SUITES, simulation
from sim.tasks import ALIASES

PACKAGES = {"gymnasium_robotics": "gymnasium-robotics"}


def is_suite(task: str) -> bool:
    """Whether `task` names an environment of a suite, such as metaworld/reach-v3, and not one of our own tasks."""
    return task.split("/")[0] in SUITES and task not in ALIASES


class SuiteWorlds:
    """`count` environments; `reset(seed)` gives environment i the seed seed + i. One that has ended is left alone.

    Remembers the environments, their last observations, and whether each has ended or has ever succeeded.
    """

    def __init__(self, task: str, count: int):
        self.name, self.num_worlds = task, count
        self._envs: list[Any] = [make_env(task) for _ in range(count)]
        self.interface = self._envs[0].interface

    @property
    def fingerprint(self) -> str:
        suite = self.name.split("/")[0]
        try:
            made = version(PACKAGES.get(suite, suite))
        except PackageNotFoundError:
            made = "unknown"
        return f"{self.name} mujoco {version('mujoco')} {suite} {made}"

    @property
    def model(self) -> Any:
        """MuJoCo's model of the first environment, None where there is none to draw."""
        try:
            found = simulation(self._envs[0].inner)[0]
        except (ValueError, AttributeError):
            return None
        return getattr(found, "_model", found)

    def reset(self, seed: int) -> np.ndarray:
        self._obs = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(self._envs)])
        self._over = np.zeros(self.num_worlds, dtype=bool)
        self._info: dict[str, np.ndarray] = {
            "episode_return": np.zeros(self.num_worlds),
            "episode_length": np.zeros(self.num_worlds, dtype=np.int64),
            "success": np.full(self.num_worlds, -1),
        }
        return self._obs

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """As a world's; `info["success"]` (N,) is 1 or 0 where the suite says it, else −1."""
        reward = np.zeros(self.num_worlds)
        ends = np.zeros((2, self.num_worlds), dtype=bool)
        for i in np.flatnonzero(~self._over):
            self._obs[i], reward[i], *ends[:, i], info = self._envs[i].step(action[i])
            for name in ("episode_return", "episode_length"):
                self._info[name][i] = info[name]
            said = info.get("success", info.get("is_success"))
            if said is not None:
                self._info["success"][i] = max(self._info["success"][i], int(bool(said)))
        self._over |= ends.any(0)
        return self._obs, reward, ends[0], ends[1], self._info

    def get_qpos(self) -> np.ndarray:
        """(N, nq), for films. Raises ValueError for a suite that MuJoCo does not simulate."""
        return np.stack([np.array(simulation(env.inner)[1].qpos) for env in self._envs])

    def close(self) -> None:
        for env in self._envs:
            env.close()
