"""N worlds of one task in MuJoCo Warp, with states, observations, rewards and resets as torch tensors on one device.

The task's functions are those of sim/tasks, called with tensors: Warp and torch share the memory of qpos and qvel, so
that nothing is copied between the physics and a policy on the same GPU. Warp computes in 32 bits and orders its sums
differently, so its worlds are near the others (docs/decisions/0011-mujoco-warp.md says how near), not bit for bit.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim import get_task, rng
from sim.spec import Interface
from sim.task import NAMESPACES, Task

MISSING = "worlds of MuJoCo Warp need mujoco-warp; install it with: pip install 'robot-cl[gpu]'"
CONTACTS, CONSTRAINTS = 64, 256  # room per world; Warp says so where a world needs more
NAMESPACES[torch.Tensor] = torch


class WarpWorld:
    """Remembers the simulations, episode counters and sums on `device`, and a random generator per world on the host.

    World i draws its starts from seed + i, the same as sim.make's. `step_tensors` stays on the device; `reset` and
    `step` speak numpy as sim's worlds do, for everything that expects one of those. Raises ImportError without
    mujoco-warp, ValueError for a task that reads more of the simulation than positions and velocities.
    """

    def __init__(self, task: str | Task, num_worlds: int = 1, seed: int = 0, device: str = "cuda"):
        try:
            import mujoco_warp
            import warp
        except ImportError:
            raise ImportError(MISSING) from None
        from sim import channels

        warp.config.quiet = True
        self._warp, self._engine = warp, mujoco_warp
        self.task = task if isinstance(task, Task) else get_task(task)
        self.num_worlds, self.device = num_worlds, torch.device(device)
        self.model = self.task.load_model()
        self.interface = Interface(self.task.describe(self.model), channels.efforts(self.model), self.task.control_dt)
        with warp.ScopedDevice(device):
            self._model = mujoco_warp.put_model(self.model)
            self._data = mujoco_warp.make_data(self.model, nworld=num_worlds, nconmax=CONTACTS, njmax=CONSTRAINTS)
        names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "time")
        self._arrays = {name: warp.to_torch(getattr(self._data, name)) for name in names}
        self._readable = SimpleNamespace(qpos=self._arrays["qpos"], qvel=self._arrays["qvel"])
        low, high = (self.interface.command(np.full((1, self.model.nu), unit)) for unit in (-1.0, 1.0))
        self._middle, self._half = (self._tensor(x[0]) for x in ((high + low) / 2, (high - low) / 2))
        self._elapsed = torch.zeros(num_worlds, dtype=torch.int64, device=self.device)
        self._return = torch.zeros(num_worlds, device=self.device)
        self._rngs: list[Any] = []
        self._graph: Any = None
        self._fields = self._gather()
        self.reset(seed)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start an episode in every world -> obs (N, obs_dim) float64."""
        return self.reset_tensors(seed).double().cpu().numpy()

    def reset_tensors(self, seed: int | None = None) -> Tensor:
        """As `reset`, on the device."""
        if seed is not None:
            self._rngs = [rng.MAKE_RNG[self.task.stepping](seed + i) for i in range(self.num_worlds)]
        self._start(torch.arange(self.num_worlds, device=self.device))
        self._fields = self._gather()
        return self.task.observe(self._fields)  # type: ignore[return-value, arg-type]

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Start an episode in every world at qpos (N, nq), qvel (N, nv) -> obs."""
        self._place(torch.arange(self.num_worlds, device=self.device), qpos, qvel)
        self._fields = self._gather()
        obs: Any = self.task.observe(self._fields)  # type: ignore[arg-type]
        return obs.double().cpu().numpy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """As sim.world.World.step: action (N, act_dim) in [-1, 1] -> obs, reward, terminated, truncated, info."""
        if np.shape(action) != (self.num_worlds, self.interface.act_dim):
            want = (self.num_worlds, self.interface.act_dim)
            raise ValueError(f"action has shape {np.shape(action)}, {self.task.name} needs {want}")
        obs, reward, terminated, truncated, info = self.step_tensors(self._tensor(action))
        numbers = {name: value.cpu().numpy() for name, value in info.items()}
        numbers["final_obs"] = info["final_obs"].double().cpu().numpy()
        flags = terminated.cpu().numpy(), truncated.cpu().numpy()
        return obs.double().cpu().numpy(), reward.double().cpu().numpy(), *flags, numbers

    def step_tensors(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """action (N, act_dim) on the device, clipped to [-1, 1] -> the same as `step`, on the device.

        Raises ValueError naming the first world whose state is no longer finite.
        """
        unit, before = action.clamp(-1.0, 1.0), self._fields
        self._arrays["ctrl"].copy_(self._middle + self._half * unit)
        self._advance()
        self._fields = self._gather()
        reward: Any = self.task.reward(before, self._fields, unit)  # type: ignore[arg-type]
        terminated: Any = self.task.terminated(self._fields)  # type: ignore[arg-type]
        obs: Any = self.task.observe(self._fields)  # type: ignore[arg-type]
        if not torch.isfinite(obs).all():
            world = int((~torch.isfinite(obs).all(1)).nonzero()[0])
            raise ValueError(f"the simulation of world {world} of {self.task.name} diverged in MuJoCo Warp")
        terminated = terminated.to(self.device)
        self._elapsed += 1
        self._return += reward
        truncated = self._elapsed >= self.task.time_limit
        info = {"final_obs": obs, "episode_return": self._return.clone(), "episode_length": self._elapsed.clone()}
        over = (terminated | truncated).nonzero().flatten()
        if len(over):
            self._start(over)
            self._fields = self._gather()
            obs = obs.clone()
            fresh: Any = self.task.observe(self._fields)  # type: ignore[arg-type]
            obs[over] = fresh[over]
        return obs, reward, terminated, truncated, info

    def get_state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on, as plain numeric arrays with a leading world axis."""
        state = {name: value.cpu().numpy().copy() for name, value in self._arrays.items()}
        state |= {"rng": np.stack([rng.pack(r) for r in self._rngs])}
        return state | {"elapsed": self._elapsed.cpu().numpy().copy(), "return": self._return.cpu().numpy().copy()}

    def restore(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Go on from a `get_state` of the same task and number of worlds -> obs. ValueError if it does not fit."""
        now = self.get_state()
        wrong = [name for name in now if name not in state or state[name].shape != now[name].shape]
        if wrong:
            where = f"{self.num_worlds} worlds of {self.task.name}"
            raise ValueError(f"this state does not fit {where}: {wrong[0]} differs")
        for name, value in self._arrays.items():
            value.copy_(torch.from_numpy(state[name]))
        for r, packed in zip(self._rngs, state["rng"], strict=True):
            rng.unpack(r, packed)
        self._elapsed.copy_(torch.from_numpy(state["elapsed"]))
        self._return.copy_(torch.from_numpy(state["return"]))
        self._fields = self._gather()
        obs: Any = self.task.observe(self._fields)  # type: ignore[arg-type]
        return obs.double().cpu().numpy()

    def _advance(self) -> None:
        """`frame_skip` physics steps: on a GPU one captured graph."""
        if self.device.type != "cuda":
            return self._physics()
        if self._graph is None:
            with self._warp.ScopedDevice(str(self.device)):
                self._physics()  # compiles; then the state that this step has moved is put back
                state = {name: value.clone() for name, value in self._arrays.items()}
                with self._warp.ScopedCapture() as capture:
                    self._physics()
                self._graph = capture.graph
                for name, value in state.items():
                    self._arrays[name].copy_(value)
            return None
        return self._warp.capture_launch(self._graph)

    def _physics(self) -> None:
        for _ in range(self.task.frame_skip):
            self._engine.step(self._model, self._data)

    def _gather(self) -> dict[str, Tensor]:
        try:
            found: Any = self.task.gather(self.model, self._readable)  # type: ignore[arg-type]
        except AttributeError as problem:
            known = "worlds of MuJoCo Warp give qpos and qvel"
            raise ValueError(f"task {self.task.name} reads {problem.name} of a simulation; {known}") from None
        return {name: value.clone() for name, value in found.items()}

    def _start(self, worlds: Tensor) -> None:
        """Draw a start for each of `worlds`, from its own generator."""
        qpos, qvel = self.task.reset_state([self._rngs[int(i)] for i in worlds], self.model)
        self._place(worlds, qpos, qvel)

    def _place(self, worlds: Tensor, qpos: np.ndarray, qvel: np.ndarray) -> None:
        a = self._arrays
        a["qpos"][worlds], a["qvel"][worlds] = self._tensor(qpos), self._tensor(qvel)
        for name in ("qacc_warmstart", "ctrl", "time"):
            a[name][worlds] = 0.0
        self._elapsed[worlds], self._return[worlds] = 0, 0.0

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32).to(self.device)
