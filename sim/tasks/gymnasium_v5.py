"""What the four ported Gymnasium v5 tasks share: starts, the control cost and the model folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from sim.task import namespace

ASSETS = "envs/mujoco/assets/"
Starts = Callable[[Sequence[np.random.Generator], mujoco.MjModel], tuple[np.ndarray, np.ndarray]]


def noisy_start(noise: float, normal_velocity: bool) -> Starts:
    """Uniform ±noise on qpos0; velocities uniform ±noise, or normal with that standard deviation."""

    def reset_state(rngs: Sequence[np.random.Generator], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = np.empty((len(rngs), model.nq)), np.empty((len(rngs), model.nv))
        for k, rng in enumerate(rngs):  # each world draws in the original's order from its own generator
            qpos[k] = model.qpos0 + rng.uniform(low=-noise, high=noise, size=model.nq)
            if normal_velocity:
                qvel[k] = noise * rng.standard_normal(model.nv)
            else:
                qvel[k] = rng.uniform(low=-noise, high=noise, size=model.nv)
        return qpos, qvel

    return reset_state


def control_cost(action: np.ndarray, weight: float) -> np.ndarray:
    """weight · Σ action², in the action's own precision as in the original. (N, act_dim) -> (N,)"""
    return weight * namespace(action).sum(action * action, axis=-1)
