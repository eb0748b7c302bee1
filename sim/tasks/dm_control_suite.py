"""What the ported dm_control tasks share: the tolerance reward, random joint starts and the model folder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mujoco
import numpy as np

from sim.task import namespace

SUITE = "suite/"
LIMITLESS_HINGE = (-math.pi, math.pi)


def at_least(x: np.ndarray, bound: float, margin: float, shape: str, value_at_margin: float) -> np.ndarray:
    """1 where x ≥ bound; below it falls off to `value_at_margin` at bound − margin. (N,) -> (N,)

    `shape` is "gaussian" or "linear" (which ends at 0). Tassa et al. 2018, "DeepMind Control Suite", reward functions.
    """
    xp = namespace(x)
    below = (bound - x) / margin
    if shape == "gaussian":
        scaled = below * math.sqrt(-2.0 * math.log(value_at_margin))
        fall = xp.exp(-0.5 * scaled**2)
    elif shape == "linear":
        scaled = below * (1.0 - value_at_margin)
        fall = xp.where(abs(scaled) < 1.0, 1.0 - scaled, 0.0)
    else:
        raise ValueError(f"tolerance shape {shape!r} is unknown; one of gaussian, linear")
    return xp.where(x >= bound, 1.0, fall)


def random_joints(rngs: Sequence[np.random.RandomState], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Limited joints uniform in their range, unlimited hinges in ±π, drawn joint by joint in the model's order."""
    qpos, qvel = np.tile(model.qpos0, (len(rngs), 1)), np.zeros((len(rngs), model.nv))
    for k, rng in enumerate(rngs):
        for j in range(model.njnt):
            if model.jnt_limited[j]:
                qpos[k, model.jnt_qposadr[j]] = rng.uniform(*model.jnt_range[j])
            elif model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE:
                qpos[k, model.jnt_qposadr[j]] = rng.uniform(*LIMITLESS_HINGE)
    return qpos, qvel


def limited_joints(rngs: Sequence[np.random.RandomState], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Limited joints uniform in their range in one draw; the others at qpos0."""
    qpos, qvel = np.tile(model.qpos0, (len(rngs), 1)), np.zeros((len(rngs), model.nv))
    limited = model.jnt_limited == 1
    low, high = model.jnt_range[limited].T
    for k, rng in enumerate(rngs):
        qpos[k, model.jnt_qposadr[limited]] = rng.uniform(low, high)
    return qpos, qvel


def sensor(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> np.ndarray:
    """The readings of one sensor as a view."""
    start, width = int(model.sensor(name).adr[0]), int(model.sensor(name).dim[0])
    return data.sensordata[start : start + width]
