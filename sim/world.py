"""N worlds of one task, stepped together: one MjData per world, a few threads, pure batched functions on top.

A simulation per world carries the solver's warm start and every derived field, so that a world equals the original
environment bit for bit; docs/decisions/0001-stepping-worlds.md has the comparison with mujoco.rollout.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from sim import channels, rng
from sim.disturbance import Disturbance
from sim.pool import Pool
from sim.shift import ShiftLike, plans
from sim.spec import Interface
from sim.state_guard import StateGuard
from sim.stepping import STEPPERS, Stepper, prepare, stop_profiler
from sim.task import Task

FULL_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


class World:
    """Remembers: the simulations, episode counters and sums, random generators.

    World i draws from seed + i. `action_repeat` control steps are made per `step` with one action and their rewards
    added; episode lengths count control steps. Not for use by several threads at once.
    """

    def __init__(
        self,
        task: Task,
        num_worlds: int = 1,
        threads: int | None = None,
        seed: int = 0,
        shift: ShiftLike | Sequence[ShiftLike] = None,
        action_repeat: int = 1,
        guard: StateGuard | None = None,
    ):
        for name, value in (("num_worlds", num_worlds), ("action_repeat", action_repeat)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.task, self.num_worlds, self.action_repeat = task, num_worlds, action_repeat
        self.model = task.load_model()
        prepare(self.model)
        self.interface = Interface(
            task.describe(self.model), channels.efforts(self.model), task.control_dt * action_repeat
        )
        self.guard = guard or StateGuard()
        self._names = [c.name for c in self.interface.obs]
        self._stepper: Stepper = STEPPERS[task.stepping](task)
        self._pool = Pool(min(num_worlds, available_cores() if threads is None else threads))
        self.disturbance = (
            None if shift is None else Disturbance(plans(shift, num_worlds), self.model, self.interface.act_dim)
        )
        self._models = self.disturbance.models if self.disturbance else [self.model] * num_worlds
        self._datas = [mujoco.MjData(self.model) for _ in range(num_worlds)]
        views = [task.gather(self.model, data) for data in self._datas]
        self._views = {name: [view[name] for view in views] for name in views[0]}
        self._ctrl = [data.ctrl for data in self._datas]
        self._all = range(num_worlds)
        self._elapsed = np.zeros(num_worlds, dtype=np.int64)
        self._return = np.zeros(num_worlds)
        self._rngs: list[Any] = [None] * num_worlds
        self._fields: dict[str, np.ndarray] = {}
        self.final_qpos = np.empty((num_worlds, self.model.nq))  # before the last reset of a step, to draw the end
        self._obs = self.reset(seed)

    def reset(self, seed: int | Sequence[int | None] | None = None) -> np.ndarray:
        """Start an episode in every world -> obs (N, obs_dim).

        World i is seeded with seed + i, or with seed[i] of a sequence; without a seed, or where it is None, its
        generator goes on.
        """
        if seed is not None:
            seeds = [seed + i for i in self._all] if isinstance(seed, (int, np.integer)) else list(seed)
            if len(seeds) != self.num_worlds:
                raise ValueError(f"{len(seeds)} seeds for {self.num_worlds} worlds; give one number or one per world")
            for i, s in enumerate(seeds):
                if s is not None:
                    self._rngs[i] = rng.MAKE_RNG[self.task.stepping](int(s))
            if self.disturbance:
                self.disturbance.reset(seeds)
        self._start(self._all)
        return self._begin()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """action (N, act_dim) in [-1, 1] (clipped) -> obs, reward, terminated, truncated, info.

        Ended worlds are reset in the same call. info: "final_obs" (N, obs_dim) before that reset, "episode_return" and
        "episode_length" (N,), running or, where ended, final. Raises ValueError for a wrong shape or a NaN action,
        SimulationError if a simulation diverges.
        """
        unit = self._checked(action)
        command = self.interface.command(self._disturbed(unit))
        reward, terminated = self._advance(self._all, command, unit)
        self._elapsed += 1
        truncated = self._elapsed >= self.task.time_limit
        for _ in range(self.action_repeat - 1):
            going = ~(terminated | truncated)
            more, ended = self._advance(np.flatnonzero(going).tolist(), command, unit)
            reward += np.where(going, more, 0.0)
            self._elapsed += going
            terminated |= ended
            truncated |= self._elapsed >= self.task.time_limit
        obs = self._sensed(self.task.observe(self._fields), self._all)
        self.guard.check(self.task.name, self._names, self._elapsed, obs, reward)
        self._return += reward
        info = {"final_obs": obs, "episode_return": self._return.copy(), "episode_length": self._elapsed.copy()}
        over = terminated | truncated
        self._obs = self._restart(np.flatnonzero(over), obs) if over.any() else obs
        return self._obs, reward, terminated, truncated, info

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Start an episode in every world at qpos (N, nq), qvel (N, nv) -> obs. What follows depends on these alone."""
        want = {"qpos": (self.num_worlds, self.model.nq), "qvel": (self.num_worlds, self.model.nv)}
        for name, value in (("qpos", qpos), ("qvel", qvel)):
            if np.shape(value) != want[name]:
                raise ValueError(f"{name} has shape {np.shape(value)}, {self.task.name} needs {want[name]}")
        for i in self._all:
            self._stepper.place(self._models[i], self._datas[i], qpos[i], qvel[i])
        self._forget(self._all)
        return self._begin()

    def get_state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on bit for bit, as plain numeric arrays with a leading world axis."""
        physics = np.empty((self.num_worlds, mujoco.mj_stateSize(self.model, FULL_STATE)))
        for i in self._all:
            mujoco.mj_getState(self._models[i], self._datas[i], physics[i], FULL_STATE)
        state = {
            "physics": physics,
            "rng": np.stack([rng.pack(r) for r in self._rngs]),
            "elapsed": self._elapsed.copy(),
            "return": self._return.copy(),
            "obs": self._obs.copy(),
        }
        state |= self.disturbance.get_state() if self.disturbance else {}
        return state | {f"field.{name}": value.copy() for name, value in self._fields.items()}

    def restore(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Go on from a `get_state` of the same task and number of worlds -> obs. ValueError if it does not fit."""
        now = self.get_state()
        for name in now:
            if name not in state or state[name].shape != now[name].shape:
                has = state[name].shape if name in state else "nothing"
                raise ValueError(
                    f"this state does not fit {self.num_worlds} worlds of {self.task.name}: "
                    f"{name} needs {now[name].shape}, the state has {has}"
                )
        if self.disturbance:
            self.disturbance.restore(state)
        for i in self._all:
            mujoco.mj_setState(self._models[i], self._datas[i], state["physics"][i], FULL_STATE)
            self._stepper.refresh(self._models[i], self._datas[i])
            rng.unpack(self._rngs[i], state["rng"][i])
        self._elapsed, self._return = state["elapsed"].copy(), state["return"].copy()
        self._fields = {name: state[f"field.{name}"].copy() for name in self._fields}
        self._obs = state["obs"].copy()
        self.guard.forget()
        return self._obs

    def get_qpos(self) -> np.ndarray:
        """Joint positions now (N, nq), a copy."""
        return np.stack([data.qpos for data in self._datas])

    def get_qvel(self) -> np.ndarray:
        """Joint velocities now (N, nv), a copy."""
        return np.stack([data.qvel for data in self._datas])

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action)
        want = (self.num_worlds, self.interface.act_dim)
        if action.shape != want:
            raise ValueError(f"action has shape {action.shape}, {self.task.name} needs {want}")
        if not np.isfinite(action).all():
            row, column = np.argwhere(~np.isfinite(action))[0]
            raise ValueError(f"action {self.interface.action[column].name!r} of world {row} is {action[row, column]}")
        return np.minimum(np.maximum(action, -1.0), 1.0)

    def _advance(
        self, worlds: Iterable[int], command: np.ndarray, unit: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One control step of `worlds` -> reward (N,), terminated (N,); other rows mean nothing."""
        before = self._fields
        self.guard.record(before, command)
        for ctrl, row in zip(self._ctrl, command, strict=True):
            ctrl[:] = row
        stop_profiler()
        models, datas, skip = self._models, self._datas, self.task.frame_skip
        self._pool.each(self._stepper.step, [(models[i], datas[i], skip) for i in worlds])
        self._fields = self._gather()
        return self.task.reward(before, self._fields, unit), self.task.terminated(self._fields)

    def _gather(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(views).reshape(self.num_worlds, -1) for name, views in self._views.items()}

    def _start(self, worlds: Iterable[int]) -> None:
        """Draw a start for each of `worlds` and put its simulation there."""
        rows = list(worlds)
        qpos, qvel = self.task.reset_state([self._rngs[i] for i in rows], self.model)

        def work(indices: Iterator[int]) -> None:
            for k in indices:
                i = rows[k]
                self._stepper.start(self._models[i], self._datas[i], qpos[k], qvel[k])

        self._pool.each(work, range(len(rows)))
        self._forget(rows)

    def _forget(self, worlds: Iterable[int]) -> None:
        rows = list(worlds)
        self._elapsed[rows] = 0
        self._return[rows] = 0.0
        if self.disturbance:
            self.disturbance.forget(rows)

    def _begin(self) -> np.ndarray:
        """First observation after all worlds were put to a state."""
        self.guard.forget()
        self._fields = self._gather()
        self._obs = self._sensed(self.task.observe(self._fields), self._all)
        return self._obs

    def _disturbed(self, action: np.ndarray) -> np.ndarray:
        """Bring this step's shifts into force -> the action that reaches the motors."""
        if self.disturbance is None:
            return action
        for i in self.disturbance.begin_step():
            self._stepper.refresh(self._models[i], self._datas[i])
        return self.disturbance.arriving(action)

    def _sensed(self, obs: np.ndarray, worlds: Sequence[int]) -> np.ndarray:
        return self.disturbance.sense(obs, worlds) if self.disturbance else obs

    def _restart(self, over: np.ndarray, obs: np.ndarray) -> np.ndarray:
        """Reset the ended worlds -> obs with their rows replaced; the rows before stay in the caller's obs."""
        self.final_qpos = self._fields["qpos"].copy()
        self._start(over.tolist())
        for name, views in self._views.items():
            self._fields[name][over] = [views[i].ravel() for i in over]
        obs = obs.copy()
        fresh = self.task.observe({name: value[over] for name, value in self._fields.items()})
        obs[over] = self._sensed(fresh, over.tolist())
        return obs


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(
    task: str | Task,
    num_worlds: int = 1,
    threads: int | None = None,
    seed: int = 0,
    shift: ShiftLike | Sequence[ShiftLike] = None,
    **options: Any,
) -> World:
    """A world of a task by name; `threads` None uses all cores, `shift` is one for all worlds or a list of one each.

    Options: `action_repeat`, `guard`. Raises LookupError for an unknown task or joint, ValueError for a bad shift.
    """
    from sim.tasks import get_task

    return World(task if isinstance(task, Task) else get_task(task), num_worlds, threads, seed, shift, **options)
