"""A world as others know environments: gymnasium's Env and VectorEnv, and Stable-Baselines3's VecEnv."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sim import render, suites
from sim.registration import register_envs
from sim.spec import Interface
from sim.suites import SuiteEnv
from sim.tasks import ALIASES, get_task
from sim.world import World, make

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

def observation_space(interface: Interface, dtype: type = np.float64) -> spaces.Box:
    """Unbounded, as the originals have it: sensor noise may leave the channels' limits."""
    return spaces.Box(-np.inf, np.inf, (interface.obs_dim,), dtype)  # type: ignore[arg-type]


def action_space(interface: Interface) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (interface.act_dim,), np.float32)


class WorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One world as a gymnasium.Env. Remembers the world and whether its next episode has already begun.

    Same seeds and actions give the originals' observations, rewards and ends, over resets too. `interface` and `world`
    are the world's own. Made by its id the time limit is gymnasium's (`max_episode_steps`), which may be longer than
    the task's or none; with an action_repeat the task's, in control steps, holds as well.
    """

    _spec: EnvSpec | None = None

    def __init__(self, world: World, render_mode: str | None = None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1.0 / world.interface.control_dt)}
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not known; one of rgb_array, None")
        self.world, self.interface, self.render_mode = world, world.interface, render_mode
        self.observation_space: spaces.Space[np.ndarray] = observation_space(self.interface)
        self.action_space: spaces.Space[np.ndarray] = action_space(self.interface)
        self._begun: np.ndarray | None = None  # first observation of the next episode, where this one is over
        self._renderer: render.Renderer | None = None

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """How gymnasium made it, None where it did not."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec
        if spec is not None and self.world.action_repeat == 1:
            self.world.task = replace(self.world.task, time_limit=sys.maxsize)  # gymnasium wraps it in its own

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        # The world resets itself when an episode ends; that start must not be drawn twice.
        obs = self._begun if seed is None and self._begun is not None else self.world.reset(seed)[0]
        self._begun = None
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.world.step(np.asarray(action)[None])
        over = bool(terminated[0] or truncated[0])
        self._begun = obs[0] if over else None
        facts = {"episode_return": float(info["episode_return"][0]), "episode_length": int(info["episode_length"][0])}
        return info["final_obs"][0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), facts

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """(H, W, 3) uint8 of the state now, or None without render_mode "rgb_array"."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = render.Renderer(self.world.model)
        qpos = self.world.get_qpos() if self._begun is None else self.world.final_qpos
        return self._renderer.frame(qpos[0])

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class WorldVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N worlds as a gymnasium VectorEnv that resets in the same step: `infos["final_obs"]` where `_final_obs`."""

    def __init__(self, world: World):
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.world, self.interface, self.num_envs = world, world.interface, world.num_worlds
        self.single_observation_space = observation_space(self.interface)
        self.single_action_space = action_space(self.interface)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        return self.world.reset(seed), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.world.step(actions)
        over = terminated | truncated
        infos: dict[str, Any] = {}
        if over.any():
            ends = {name: info[name] for name in ("episode_return", "episode_length")}
            ended = {name: over for name in ("_final_obs", "_final_info")}
            rows: np.ndarray = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(over):
                rows[i] = info["final_obs"][i]
            infos = {"final_obs": rows, "final_info": ends | {f"_{k}": over for k in ends}, **ended}
        return obs, reward, terminated, truncated, infos


def make_env(task: str, render_mode: str | None = None, **options: Any) -> WorldEnv | SuiteEnv:
    """One world of a task as a gymnasium.Env, or an environment "suite/id" of an existing suite (see sim.suites).

    Options of a task are those of `sim.make` (seed, shift, action_repeat, guard); those of a suite are its own.
    """
    if task.split("/")[0] in suites.SUITES and task not in ALIASES:
        return suites.make(task, render_mode, **options)
    return WorldEnv(make(task, num_worlds=1, threads=1, **options), render_mode)


def make_vector_env(
    task: str, num_envs: int = 1, max_episode_steps: int | None = None, **options: Any
) -> WorldVectorEnv:
    """N worlds of a task as a gymnasium VectorEnv; options as in `sim.make`, `max_episode_steps` as in gymnasium."""
    known = get_task(task)
    limited = replace(known, time_limit=max_episode_steps or known.time_limit)
    return WorldVectorEnv(make(limited, num_worlds=num_envs, **options))


def make_sb3_env(task: str, num_envs: int = 1, **options: Any) -> VecEnv:
    """N worlds of a task as Stable-Baselines3 expects them (float32 observations); options as in `sim.make`."""
    from stable_baselines3.common.vec_env import VecEnv

    class WorldVecEnv(VecEnv):
        """Resets in the same step; infos carry terminal_observation, TimeLimit.truncated and episode (r, l)."""

        def __init__(self, world: World):
            self.world, self.interface, self.render_mode = world, world.interface, None
            super().__init__(
                world.num_worlds, observation_space(world.interface, np.float32), action_space(world.interface)
            )
            self._action = np.zeros((world.num_worlds, world.interface.act_dim), dtype=np.float32)

        def reset(self) -> np.ndarray:
            seed, self._seeds = self._seeds[0], [None] * self.num_envs
            return self.world.reset(seed).astype(np.float32)

        def step_async(self, actions: np.ndarray) -> None:
            self._action = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            obs, reward, terminated, truncated, info = self.world.step(self._action)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            over = terminated | truncated
            for i in np.flatnonzero(over):
                infos[i]["terminal_observation"] = info["final_obs"][i].astype(np.float32)
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                infos[i]["episode"] = {"r": float(info["episode_return"][i]), "l": int(info["episode_length"][i])}
            return obs.astype(np.float32), reward.astype(np.float32), over, infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise ValueError(f"all worlds are one object; {attr_name!r} cannot be set for some of them")

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise ValueError(f"all worlds are one object; call {method_name!r} on .world instead")

        def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
            # Episode sums are reported in infos as Monitor would, so SB3 need not warn that it is missing.
            monitored = wrapper_class.__name__ == "Monitor"
            return [monitored] * len(list(self._get_indices(indices)))

    return WorldVecEnv(make(task, num_worlds=num_envs, **options))


register_envs()
