"""The originals' orders of simulator calls, on which equality bit for bit hangs (warm starts, lagging fields)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import starmap
from typing import Protocol

import mujoco
import numpy as np
from mujoco import mj_forward, mj_resetData, mj_rnePostConstraint, mj_step, mj_step1, mj_step2

from sim.task import Task

RK4 = int(mujoco.mjtIntegrator.mjINT_RK4)
MANY_SHAPES = 8  # geometries of one body, beyond which bounding-volume trees begin to pay
Job = tuple[mujoco.MjModel, mujoco.MjData, int]


def prepare(model: mujoco.MjModel) -> None:
    """Set the options of the engine that change no number of a healthy simulation.

    A simulation that MuJoCo silently resets when it diverges would hide the fault from the guard. Bounding-volume trees
    cost more than they save where bodies have a few shapes each; contacts are found in the same order without them.
    """
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    if model.body_geomnum.max() <= MANY_SHAPES:
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)


def stop_profiler() -> None:
    """Take the engine's clock away, with which it fills `MjData.timer`; a clock set by the user stays.

    MuJoCo's Python package sets it again with every MjData made anywhere in the process, and reading it takes up to a
    fifth of the time of a small robot's step.
    """
    if mujoco.get_mjcb_time() is None:
        mujoco.set_mjcb_time(None)


class Stepper(Protocol):
    """How simulations are stepped, started, put to a state and made consistent after their state was restored."""

    def step(self, jobs: Iterator[Job]) -> None: ...
    def start(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None: ...
    def place(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None: ...
    def refresh(self, model: mujoco.MjModel, data: mujoco.MjData) -> None: ...


class GymnasiumStepper:
    """Gymnasium: mj_step with all substeps; derived fields are those of the last substep's start."""

    def __init__(self, task: Task):
        self._forces = task.contact_forces

    def step(self, jobs: Iterator[Job]) -> None:
        """One control step of each job (model, data, physics steps) that this thread gets hold of."""
        if not self._forces:
            # No line of Python runs between two simulations, so that threads rarely wait for the interpreter lock.
            deque(starmap(mj_step, jobs), maxlen=0)
            return
        for model, data, skip in jobs:
            mj_step(model, data, skip)
            mj_rnePostConstraint(model, data)

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Exactly this state, with no memory of an earlier one."""
        mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mj_forward(model, data)

    start = place

    def refresh(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Nothing: mj_step starts from qpos, qvel and the warm start alone."""


class DmControlStepper:
    """dm_control's legacy order: positions, velocities and sensors are up to date after each step.

    A start is mj_forward at qpos0, the drawn state, `settle_steps` in the same order (the first one still uses the
    fields of qpos0, as the original does), and mj_forward again. The original disables actuation in those two
    mj_forward; with ctrl at zero after a reset the motors give none anyway.
    """

    def __init__(self, task: Task):
        self._settle = task.settle_steps

    def step(self, jobs: Iterator[Job]) -> None:
        for model, data, skip in jobs:
            self._steps(model, data, skip)

    def _steps(self, model: mujoco.MjModel, data: mujoco.MjData, count: int) -> None:
        if model.opt.integrator == RK4:
            mj_step(model, data, count)
        else:
            mj_step2(model, data)
            if count > 1:
                mj_step(model, data, count - 1)
        mj_step1(model, data)

    def start(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None:
        mj_resetData(model, data)
        mj_forward(model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        if self._settle:
            self._steps(model, data, self._settle)
            data.time = 0.0
        mj_forward(model, data)

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None:
        mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mj_forward(model, data)

    def refresh(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        mj_step1(model, data)


STEPPERS: dict[str, type[GymnasiumStepper] | type[DmControlStepper]] = {
    "gymnasium": GymnasiumStepper,
    "dm_control": DmControlStepper,
}
