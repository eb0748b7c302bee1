"""Missions: many robots of one kind, each on its own way along a map, each changed for part of the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from sim import channels
from sim.robots.maps import MAPS, with_heights
from sim.robots.regimes import UNCHANGED, Regime
from sim.spec import Interface
from sim.task import Task

BEGINS, ENDS = 0.15, 0.8  # share of the waypoints between which the regime holds


@dataclass(frozen=True)
class Robot:
    """What a mission needs to know: the task whose model, poses and crash test are used, and when a waypoint counts."""

    task: Task
    flies: bool
    reached: float  # m
    near: float  # m: waypoints are drawn this far from their place, so that no two missions are the same

    def pose(self, fields: dict[str, np.ndarray]) -> np.ndarray:
        from sim.tasks import quadrotor, vehicle

        return quadrotor.pose(fields) if self.flies else vehicle.pose(fields)

    def lost(self, fields: dict[str, np.ndarray]) -> np.ndarray:
        """Robots that have crashed, (N,)."""
        from sim.tasks import quadrotor

        return quadrotor.crashed(fields) if self.flies else np.zeros(len(fields["qpos"]), dtype=bool)

    def place(self, model: mujoco.MjModel, way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A start half a leg before the first waypoint, roughly facing it; qpos (nq,)."""
        from sim.robots.frames import quaternion
        from sim.tasks import vehicle

        qpos = model.qpos0.copy()
        qpos[2] = way[0, 2] if self.flies else vehicle.HEIGHT
        yaw = np.array([rng.uniform(-0.5, 0.5)])
        qpos[3:7] = quaternion(np.zeros(1), np.zeros(1), yaw)[0]
        qpos[:2] = rng.uniform(-0.2, 0.2, 2)
        return qpos


def vehicle_robot() -> Robot:
    from sim.tasks import vehicle

    return Robot(vehicle.TASK, False, vehicle.REACHED, 0.15)


def quadrotor_robot() -> Robot:
    from sim.tasks import quadrotor

    return Robot(quadrotor.WAYPOINT, True, quadrotor.REACHED, 0.1)


class Fleet:
    """N robots, robot i under regimes[i] between the shares `holds` of its waypoints (15 % and 80 %).

    Remembers the simulations, how many waypoints each has reached and who has crashed. `goal` (N, 2 or 3) is the next
    waypoint in metres, `changed` (N,) says whose regime holds, `over` (N,) who has arrived or crashed; the action of
    such a robot is ignored. Commands beyond an actuator's range pass when a regime amplifies them.
    """

    def __init__(
        self,
        robot: Robot,
        map_name: str,
        regimes: Sequence[Regime],
        seed: int = 0,
        holds: tuple[float, float] = (BEGINS, ENDS),
    ):
        if map_name not in MAPS:
            raise LookupError(f"no map {map_name!r}; maps: {', '.join(MAPS)}")
        self.robot, self.regimes, self.count, self.holds = robot, list(regimes), len(regimes), holds
        base = robot.task.load_model()
        base.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL)
        self.interface = Interface(robot.task.describe(base), channels.efforts(base), robot.task.control_dt)
        models = {id(r): r.model(base) for r in self.regimes}
        self._models = [(base, models[id(r)]) for r in self.regimes]
        self._datas = [mujoco.MjData(base) for _ in self.regimes]
        points = with_heights(MAPS[map_name]) if robot.flies else MAPS[map_name]
        rng = np.random.default_rng(seed)
        self.way = points + rng.uniform(-robot.near, robot.near, (self.count, *points.shape))
        self.reached = np.zeros(self.count, dtype=np.int64)
        self.crashed = np.zeros(self.count, dtype=bool)
        for data, way in zip(self._datas, self.way, strict=True):
            data.qpos[:] = robot.place(base, np.column_stack([way, np.zeros(len(way))])[:, :3], rng)
            mujoco.mj_forward(base, data)
        self._goals()

    @property
    def goal(self) -> np.ndarray:
        last = self.way.shape[1] - 1
        return self.way[np.arange(self.count), np.minimum(self.reached, last)]

    @property
    def changed(self) -> np.ndarray:
        share = self.reached / self.way.shape[1]
        return (share >= self.holds[0]) & (share < self.holds[1])

    @property
    def arrived(self) -> np.ndarray:
        return self.reached == self.way.shape[1]

    @property
    def over(self) -> np.ndarray:
        return self.arrived | self.crashed

    def pose(self) -> np.ndarray:
        """State of each robot as its dynamics models see it, (N, obs_dim)."""
        return self.robot.pose(self._fields())

    def step(self, action: np.ndarray) -> np.ndarray:
        """action (N, act_dim) in [-1, 1] -> pose (N, obs_dim) after one control step."""
        command, changed, over = self.interface.command(action), self.changed, self.over
        for i in np.flatnonzero(~over):
            self._step_one(int(i), command[i], bool(changed[i]))
        away = np.linalg.norm(self.pose()[:, : self.goal.shape[1]] - self.goal, axis=1)
        self.reached += ~over & (away < self.robot.reached)
        self._goals()
        self.crashed |= self.robot.lost(self._fields()) & ~self.arrived
        return self.pose()

    def peek(self, action: np.ndarray, regimes: Sequence[Regime] | None = None) -> np.ndarray:
        """Where the robots would be after this action under other regimes (none: unchanged), leaving all as it is."""
        command, own = self.interface.command(action), regimes is self.regimes
        before = self._states()
        for i, regime in enumerate(regimes or [UNCHANGED] * self.count):
            base, shifted = self._models[i]
            self._run(shifted if own else regime.model(base), self._datas[i], regime, command[i])
        after = self.pose()
        for (base, _), data, state in zip(self._models, self._datas, before, strict=True):
            mujoco.mj_setState(base, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return after

    def _states(self) -> list[np.ndarray]:
        kind, states = mujoco.mjtState.mjSTATE_INTEGRATION, []
        for (base, _), data in zip(self._models, self._datas, strict=True):
            states.append(np.empty(mujoco.mj_stateSize(base, kind)))
            mujoco.mj_getState(base, data, states[-1], kind)
        return states

    def _step_one(self, i: int, command: np.ndarray, changed: bool) -> None:
        base, shifted = self._models[i]
        model, regime = (shifted, self.regimes[i]) if changed else (base, UNCHANGED)
        self._run(model, self._datas[i], regime, command)

    def _run(self, model: mujoco.MjModel, data: mujoco.MjData, regime: Regime, command: np.ndarray) -> None:
        data.ctrl[:] = regime.command(command)
        data.xfrc_applied[1, :3] = regime.wind
        mujoco.mj_step(model, data, self.robot.task.frame_skip)

    def _fields(self) -> dict[str, np.ndarray]:
        return {"qpos": np.stack([d.qpos for d in self._datas]), "qvel": np.stack([d.qvel for d in self._datas])}

    def _goals(self) -> None:
        """Move the goal marker of each simulation, which the task's observation and crash test read."""
        width = self.goal.shape[1]
        for data, goal in zip(self._datas, self.goal, strict=True):
            data.qpos[-width:] = goal
