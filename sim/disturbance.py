"""Shifts at work in N worlds: which model each world steps with, how late actions come, how noisy observations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from sim import rng
from sim.shift import NONE, Plan, Shift, check_joints, combined, shifted_model


class Disturbance:
    """Remembers each world's age in steps, the shift in force, past actions and the noise generators.

    `models` is a list with the model of each world; worlds in the same shift share one, and it is changed in place.
    """

    def __init__(self, plans: Sequence[Plan], base: mujoco.MjModel, act_dim: int):
        self.plans, self._base = list(plans), base
        for _, shift in (point for plan in plans for schedule in plan for point in schedule.points):
            check_joints(base, shift)  # a wrong name is told now, not at step 5000
        count, depth = len(self.plans), 1 + max(map(_longest_latency, self.plans))
        self.models = [base] * count
        self._age = np.zeros(count, dtype=np.int64)
        self._past = np.zeros((count, depth, act_dim))
        self._due = np.zeros(count)
        self._now: list[Shift] = [NONE] * count
        self._made: dict[tuple, mujoco.MjModel] = {NONE.physics_key(): base}
        self._rngs: list[Any] = [None] * count
        self.reset(range(count))

    @property
    def now(self) -> list[Shift]:
        """The shift in force in each world."""
        return list(self._now)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """As newly made: age zero, noise from one seed per world; where that is None the world goes on."""
        anew = [i for i, seed in enumerate(seeds) if seed is not None]
        for i in anew:
            self._rngs[i] = rng.noise_rng(int(seeds[i]))  # type: ignore[arg-type]
        self._age[anew] = 0
        self._past[anew] = 0.0
        self._enforce(anew)

    def forget(self, worlds: Sequence[int]) -> None:
        """An episode starts in these worlds: no action of the last one arrives in it."""
        self._past[list(worlds)] = 0.0

    def begin_step(self) -> list[int]:
        """Bring the shifts of this step into force -> worlds whose model changed."""
        due = np.flatnonzero(self._due <= self._age)
        return self._enforce(due.tolist()) if due.size else []

    def arriving(self, action: np.ndarray) -> np.ndarray:
        """The action (N, act_dim) that reaches the motors when this one is sent; counts one step."""
        self._age += 1
        if self._past.shape[1] == 1:
            return action
        self._past[:, 1:] = self._past[:, :-1].copy()
        self._past[:, 0] = action
        delays = [s.latency for s in self._now]
        return self._past[np.arange(len(delays)), delays]

    def sense(self, obs: np.ndarray, worlds: Sequence[int]) -> np.ndarray:
        """obs (K, obs_dim) of these worlds with their noise added."""
        noisy = [(k, i) for k, i in enumerate(worlds) if self._now[i].noise > 0]
        if not noisy:
            return obs
        obs = obs.copy()
        for k, i in noisy:
            obs[k] += self._now[i].noise * self._rngs[i].standard_normal(obs.shape[1])
        return obs

    def get_state(self) -> dict[str, np.ndarray]:
        return {
            "shift.age": self._age.copy(),
            "shift.past": self._past.copy(),
            "shift.rng": np.stack([rng.pack(r) for r in self._rngs]),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._past, self._age = state["shift.past"].copy(), state["shift.age"].copy()
        for r, packed in zip(self._rngs, state["shift.rng"], strict=True):
            rng.unpack(r, packed)
        self._enforce(range(len(self.plans)))

    def _enforce(self, worlds: Sequence[int]) -> list[int]:
        changed = []
        for i in worlds:
            step = int(self._age[i])
            shift = combined(schedule.at(step) for schedule in self.plans[i])
            self._due[i] = min((s.next_change(step) for s in self.plans[i]), default=np.inf)
            if shift.physics_key() != self._now[i].physics_key():
                self.models[i] = self._model(shift)
                changed.append(i)
            self._now[i] = shift
        if changed:
            used = {s.physics_key() for s in self._now} | {NONE.physics_key()}
            self._made = {key: model for key, model in self._made.items() if key in used}
        return changed

    def _model(self, shift: Shift) -> mujoco.MjModel:
        key = shift.physics_key()
        if key not in self._made:
            self._made[key] = shifted_model(self._base, shift)
        return self._made[key]


def _longest_latency(plan: Plan) -> int:
    return sum(max(shift.latency for _, shift in schedule.points) for schedule in plan)
