"""A task: the data of one control problem and its pure batched functions.

The functions read a `State`, the fields gathered from N simulations by name, each (N, width) float64: "qpos", "qvel"
and whatever else the task's `gather` names. They are written in array-API operations (`namespace`), keep no memory and
touch no simulator, so that they equal the original environment row by row and may one day be given a GPU's tensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mujoco
import numpy as np

from sim.spec import Channel

State = Mapping[str, np.ndarray]
INSTALL = {"gymnasium": "pip install gymnasium", "dm_control": 'pip install "robot-cl[suites]"'}


@dataclass(frozen=True)
class Task:
    """One control problem; every callable is pure and works on N states at once.

    `model_file` is (installed package, path inside it). `gather(model, data)` names the arrays of one simulation that
    the other functions read (views, concatenated over worlds along their first axis). `reward(before, after, action)`
    gets the states around one control step and the action (N, act_dim) in [-1, 1]. `reset_state(rngs, model)` draws
    one start per generator: qpos (K, nq), qvel (K, nv). `describe(model)` names the observation channels. `time_limit`
    is in control steps of `control_dt` seconds, `frame_skip` physics steps each. `stepping` is the original's order of
    simulator calls ("gymnasium" or "dm_control"), which decides the generator of a start and which fields lag.
    """

    name: str
    original: str
    model_file: tuple[str, str]
    frame_skip: int
    control_dt: float
    gather: Callable[[mujoco.MjModel, mujoco.MjData], dict[str, np.ndarray]]
    observe: Callable[[State], np.ndarray]
    reward: Callable[[State, State, np.ndarray], np.ndarray]
    terminated: Callable[[State], np.ndarray]
    reset_state: Callable[[Sequence[Any], mujoco.MjModel], tuple[np.ndarray, np.ndarray]]
    describe: Callable[[mujoco.MjModel], tuple[Channel, ...]]
    time_limit: int = 1000
    stepping: str = "gymnasium"
    contact_forces: bool = False
    settle_steps: int = 0

    def __post_init__(self) -> None:
        if self.stepping not in ("gymnasium", "dm_control"):
            raise ValueError(f"task {self.name!r}: stepping must be gymnasium or dm_control, got {self.stepping!r}")
        if self.frame_skip < 1 or self.time_limit < 1 or not self.control_dt > 0:
            raise ValueError(f"task {self.name!r}: frame_skip, time_limit and control_dt must be positive")

    def load_model(self) -> mujoco.MjModel:
        """A fresh model from the installed package. Raises LookupError naming the extra that is missing."""
        model = mujoco.MjModel.from_xml_path(str(package_file(*self.model_file)))
        if not np.isclose(model.opt.timestep * self.frame_skip, self.control_dt, rtol=1e-12):
            raise ValueError(
                f"task {self.name!r} counts on {self.control_dt} s per step, but its installed model has "
                f"{model.opt.timestep} s × {self.frame_skip}; install the pinned version of {self.model_file[0]}"
            )
        return model


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        how = INSTALL.get(package, f"pip install {package}")
        raise LookupError(f"this task needs the package {package}, which is not installed; run: {how}")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.exists():
        raise LookupError(f"{package} is installed but has no {path}; install the version named in constraints.txt")
    return file


# Namespaces of arrays that do not say theirs; whoever brings such arrays adds a line (robot_cl/warp_worlds.py).
NAMESPACES: dict[type, ModuleType] = {np.ndarray: np}


def namespace(x: Any) -> ModuleType:
    """The array-API namespace of x (numpy for arrays of numpy)."""
    return NAMESPACES.get(type(x)) or x.__array_namespace__()


def no_termination(state: State) -> np.ndarray:
    qpos = state["qpos"]
    return namespace(qpos).zeros(qpos.shape[0], dtype=bool)
