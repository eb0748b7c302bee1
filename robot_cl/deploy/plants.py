"""Simulated worlds as robots: plants for loopbacks and bridges, and a robot file made from a contract alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.loopback import JointPlant
from robot_cl.deploy.names import near
from robot_cl.deploy.observe import channel_order
from robot_cl.deploy.robot import CommandChannel, CommandTopic, RobotSpec, StateTopic, Term

FROM_CONTRACT = "contract"


def spec_from_contract(contract: Contract) -> RobotSpec:
    """A robot that measures every term by its own name and obeys every action: for rehearsing without a robot file.

    All its channels stop at zero (or the nearest limit), at the speed the contract knows or none.
    """
    names = tuple(t.name for t in contract.observation)
    state = StateTopic(
        "robot", "/robot_cl/robot", "std_msgs/msg/Float64MultiArray", names=names,
        units=tuple(t.unit for t in contract.observation),
    )  # fmt: skip
    channels = []
    for t in contract.action:
        still = min(max(0.0, t.low), t.high)
        rate = t.velocity if t.velocity is not None else math.inf
        channels.append(
            CommandChannel(t.name, t.unit, t.low, t.high, rate, hold=still, damp=still, stop=still, kp=t.kp, kd=t.kd)
        )
    command = CommandTopic("/robot_cl/commands", "std_msgs/msg/Float64MultiArray", tuple(channels))
    terms = {t.name: Term(t.unit, f"robot.{t.name}") for t in contract.observation}
    return RobotSpec(FROM_CONTRACT, contract.control_dt, (state,), (command,), terms)


def simulated_plant(
    task: str | None, contract: Contract, spec: RobotSpec, seed: int = 0, shift: str | None = None,
    goes_on: bool = False,
) -> Any:  # fmt: skip
    """The plant behind a robot file: its task's physics measured by the file's sensors; the world itself for a robot
    made from the contract; joints that merely follow where there is no task. With `goes_on` it moves on, as a robot
    does, where the task's episode would end. Raises LookupError, ValueError."""
    if task is None:
        return JointPlant(spec)
    import sim

    if spec.name == FROM_CONTRACT:
        return WorldPlant(sim.make(task, threads=1, seed=seed, shift=shift), contract, spec, seed)
    return TaskPlant(sim.get_task(task), contract, spec, seed, shift, goes_on)


class WorldPlant:
    """A world whose observation is published as it is: for a robot made from the contract alone.

    Remembers the world's last observation, the return so far, steps, and whether an episode ended (`fell`: by
    termination). Raises ValueError if the world's interface is not the contract's.
    """

    def __init__(self, world: Any, contract: Contract, spec: RobotSpec, seed: int = 0):
        difference = world.interface.difference(contract.interface)
        if difference:
            raise ValueError(f"the policy was not made for {world.task.name}: {difference}")
        self.world, self.goals = world, dict[str, float]()
        self._actuation = Actuation(contract, spec)
        self.obs = self.world.reset(seed)[0]
        self.total, self.steps, self.ended, self.fell = 0.0, 0, False, False

    def signals(self) -> np.ndarray:
        return self.obs.copy()

    def step(self, command: np.ndarray) -> None:
        """One control period. A world that ended stays where it is: a fallen robot does not get up by itself."""
        if self.ended:
            return
        obs, reward, terminated, truncated, info = self.world.step(self._actuation.to_action(command)[None])
        self.fell = bool(terminated[0])
        self.ended = self.fell or bool(truncated[0])
        self.obs = info["final_obs"][0] if self.ended else obs[0]
        self.total += float(reward[0])
        self.steps += 1


class TaskPlant:
    """A task's physics at the robot's own pace, measured by the robot file's sensors instead of the task's observation.

    JointState reads the model's joints of those names; Odometry, PoseStamped and Imu read the body or site that the
    topic's `body` names; commands go to the actuators their actions belong to. Rewards and falls are the task's, judged
    once per policy period; after the first end nothing more is judged, and only what `goes_on` still moves. Remembers
    the simulation, return, steps of the loop, and `goals` (its goal_* joints).
    Raises LookupError if the model lacks a joint, body or actuator, ValueError if the loop's period does not fit.
    """

    def __init__(
        self, task: Any, contract: Contract, spec: RobotSpec, seed: int = 0, shift: str | None = None,
        goes_on: bool = False,
    ):  # fmt: skip
        import mujoco

        self.task, self.spec, self.goes_on, self._mj = task, spec, goes_on, mujoco
        self.model = task.load_model()
        if shift:
            from sim.shift import combined, parse, shifted_model

            self.model = shifted_model(self.model, combined(plan.at(0) for plan in parse(shift)))
        self.data = mujoco.MjData(self.model)
        self.substeps = round(spec.control_dt / self.model.opt.timestep)
        self.every = round(contract.control_dt / spec.control_dt)
        if abs(self.substeps * self.model.opt.timestep - spec.control_dt) > 1e-9:
            step = f"{1e3 * self.model.opt.timestep:g} ms"
            raise ValueError(f"a loop of {1e3 * spec.control_dt:g} ms is no multiple of the simulation's {step}")
        self._actuator = self._actuators(contract)
        self._sensors = [self._sensor(topic) for topic in spec.state]
        qpos, qvel = task.reset_state([np.random.default_rng(seed)], self.model)
        self.data.qpos[:], self.data.qvel[:] = qpos[0], qvel[0]
        mujoco.mj_forward(self.model, self.data)
        self.total, self.steps, self.ended, self.fell = 0.0, 0, False, False
        self._before = self._fields()
        self._asked = np.zeros(self.model.nu)

    @property
    def goals(self) -> dict[str, float]:
        joints = {self.model.joint(j).name: j for j in range(self.model.njnt)}
        places = {g: joints.get(f"goal_{g}") for g in self.spec.goals}
        return {g: float(self.data.qpos[self.model.jnt_qposadr[j]]) for g, j in places.items() if j is not None}

    def observation(self) -> np.ndarray:
        """What the task itself observes now (obs_dim,)."""
        return np.asarray(self.task.observe(self._fields())[0])

    def signals(self) -> np.ndarray:
        # A step leaves poses and body velocities one substep behind the joints.
        for refresh in (self._mj.mj_kinematics, self._mj.mj_comPos, self._mj.mj_comVel):
            refresh(self.model, self.data)
        return np.concatenate([read() for read in self._sensors])

    def step(self, command: np.ndarray) -> None:
        """One period of the control loop."""
        if self.ended and not self.goes_on:
            return
        self.data.ctrl[self._actuator] = command
        self._mj.mj_step(self.model, self.data, self.substeps)
        self._asked[self._actuator] += command / self.every
        self.steps += 1
        if self.steps % self.every == 0 and not self.ended:
            after, unit = self._fields(), self._interface_action()
            self.total += float(self.task.reward(self._before, after, unit[None])[0])
            self.fell = self.ended = bool(self.task.terminated(after)[0])
            self._before, self._asked = after, np.zeros(self.model.nu)

    def _interface_action(self) -> np.ndarray:
        low, high = self.model.actuator_ctrlrange.T
        return np.clip((self._asked - 0.5 * (low + high)) / (0.5 * (high - low)), -1.0, 1.0)

    def _fields(self) -> dict[str, np.ndarray]:
        return {k: np.array(v, dtype=np.float64)[None] for k, v in self.task.gather(self.model, self.data).items()}

    def _actuators(self, contract: Contract) -> np.ndarray:
        """Index of the actuator of each robot channel: a world's actions are its model's actuators in order."""
        if len(contract.action) != self.model.nu:
            counts = f"{self.model.nu} actuators, the policy {len(contract.action)} actions"
            raise LookupError(f"{self.task.name} has {counts}")
        return np.array(channel_order(contract, self.spec), dtype=np.intp)

    def _sensor(self, topic: StateTopic) -> Any:
        if topic.joints:
            return self._joint_sensor(topic)
        if not topic.body:
            raise LookupError(f"state topic {topic.key!r} does not say which body of {self.task.name} it measures")
        bodies = [self.model.body(k).name for k in range(self.model.nbody)]
        sites = [self.model.site(k).name for k in range(self.model.nsite)]
        if topic.body not in bodies + sites:
            hint = near(topic.body, bodies + sites)
            raise LookupError(f"{self.task.name} has no body or site {topic.body!r}, {hint}")
        return lambda: self._pose(topic, topic.body in sites)

    def _joint_sensor(self, topic: StateTopic) -> Any:
        names = [self.model.joint(j).name for j in range(self.model.njnt)]
        for name in topic.joints:
            if name not in names:
                raise LookupError(f"{self.task.name} has no joint {name!r}, {near(name, names)}")
        joints = [self.model.joint(n).id for n in topic.joints]
        places = {"position": self.model.jnt_qposadr[joints], "velocity": self.model.jnt_dofadr[joints]}

        def read() -> np.ndarray:
            d = self.data
            source = {"position": d.qpos, "velocity": d.qvel, "effort": d.qfrc_actuator}
            return np.concatenate([source[f][places.get(f, places["velocity"])] for f in topic.fields])

        return read

    def _pose(self, topic: StateTopic, is_site: bool) -> np.ndarray:
        """Position, orientation (x, y, z, w) and, in the body's axes, velocities and acceleration, as listed."""
        mj, kind = self._mj, self._mj.mjtObj.mjOBJ_SITE if is_site else self._mj.mjtObj.mjOBJ_XBODY
        at = (self.model.site if is_site else self.model.body)(topic.body).id
        where = (self.data.site_xpos if is_site else self.data.xpos)[at]
        turn = (self.data.site_xmat if is_site else self.data.xmat)[at].reshape(9)
        quat, motion, force = np.zeros(4), np.zeros(6), np.zeros(6)
        mj.mju_mat2Quat(quat, turn)
        mj.mj_objectVelocity(self.model, self.data, kind, at, motion, 1)
        if topic.type.endswith("Imu"):
            mj.mj_rnePostConstraint(self.model, self.data)
            mj.mj_objectAcceleration(self.model, self.data, kind, at, force, 1)
        named = {
            "position": where, "orientation": np.roll(quat, -1), "linear": motion[3:], "angular": motion[:3],
            "angular_velocity": motion[:3], "linear_acceleration": force[3:],
        }  # fmt: skip
        parts = [name.removeprefix(f"{topic.key}.").partition(".") for name in topic.signals]
        return np.array([named[group]["xyzw".index(axis)] for group, _, axis in parts])
