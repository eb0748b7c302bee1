"""Rehearsal before a robot is armed: the bundle drives a simulated robot behind the same bridge, then faults come.

Needs no ROS and no robot. A passed rehearsal leaves a receipt in the bundle, without which nothing can be armed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.faults import Fault
from robot_cl.deploy.flow_stage import FlowStage, load_flow
from robot_cl.deploy.guard import guard_of
from robot_cl.deploy.loopback import JointPlant, Loopback
from robot_cl.deploy.modes import DRIVING, Guard, Mode, RunnerConfig, Step
from robot_cl.deploy.observe import compare
from robot_cl.deploy.plants import simulated_plant, spec_from_contract
from robot_cl.deploy.receipt import bundle_digest, file_digest, write_receipt
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import load_robot
from robot_cl.deploy.runner import ENABLED, Runner

START = 0.5  # seconds into a drill after which its fault begins
DRILLS_S = 6.5  # of all drills together, about
Progress = Callable[[float, float, str], None]  # (done, total, note)


@dataclass
class RehearseOptions:
    """The weather of the rehearsal: latency and jitter in seconds, drop a probability, noise in each signal's unit."""

    latency: float = 0.0
    jitter: float = 0.0
    drop: float = 0.0
    noise: float = 0.0
    seconds: float = 10.0  # of the drive
    ramp: float = 0.5  # seconds from holding to the policy
    task: str | None = None  # world to drive in; None: the one the bundle names, else joints that follow
    shift: str | None = None  # of that world, e.g. friction0.5
    keep: float = 0.5  # share of the calm return that the drive must keep, where there is a world with rewards
    seed: int = 0
    max_speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1 or min(self.latency, self.jitter, self.noise, self.ramp) < 0 or self.seconds < 1:
            raise ValueError("drop is in [0, 1], latency, jitter, noise and ramp not negative, seconds at least 1")

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Applied from the beginning of the drive on."""
        listed = {"delay": self.latency, "jitter": self.jitter, "drop": self.drop, "noise": self.noise}
        found = [Fault(kind, amount) for kind, amount in listed.items() if amount]
        return (*found, Fault("delay_command", self.latency)) if self.latency else tuple(found)


@dataclass(frozen=True)
class Check:
    """One question of the rehearsal, its answer in words, and whether it is the wanted one."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Rehearsal:
    """The verdict. `receipt` is None without a robot file: then nothing can be armed with it."""

    passed: bool
    checks: list[Check]
    result: dict[str, float]
    receipt: Path | None
    notes: list[str] = field(default_factory=list)


def rehearse(
    bundle: Path | str, robot: Path | str | None = None, options: RehearseOptions | None = None,
    progress: Progress | None = None,
) -> Rehearsal:  # fmt: skip
    """Drive and drill; `progress` hears of it in simulated seconds.

    Raises OSError, ValueError, LookupError if bundle, robot file and world do not fit together.
    """
    options = options or RehearseOptions()
    digests = (bundle_digest(bundle), file_digest(robot)) if robot is not None else None
    policy = PolicyBundle.load(bundle)
    spec = load_robot(robot) if robot is not None else spec_from_contract(policy.contract)
    findings = compare(policy.contract, spec)
    blocking = [f.text for f in findings if f.blocks]
    if blocking:
        more, where = len(blocking) - 1, f"robot-cl deploy check {bundle} robot={robot}"
        raise ValueError(blocking[0] + (f"; and {more} more, one a line in: {where}" if more else ""))
    stage = _Stage(policy, spec, options, load_flow(bundle, policy.contract), guard_of(bundle), progress)
    drive, result = stage.drive()
    checks = [drive, *(drill(stage) for drill in DRILLS)]
    passed = all(c.passed for c in checks)
    receipt = None
    if digests is not None:
        listed = {c.name: c.passed for c in checks}
        receipt = write_receipt(bundle, digests, passed, asdict(options), listed)
    return Rehearsal(passed, checks, result, receipt, [f.text for f in findings])


class _Notes:
    """Keeps the steps of a scene."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)


@dataclass
class Scene:
    """One run on loopback: what was ticked and sent, and when it began."""

    runner: Runner
    loopback: Loopback
    clock: VirtualClock
    plant: Any
    steps: list[Step]
    begin: float

    def first(self, *modes: Mode) -> float:
        """Seconds from the beginning until one of these modes was entered (HOLD by enabling aside), else infinite."""
        history = ((t - self.begin, mode) for t, mode, why in self.runner.history if why != ENABLED)
        return next((when for when, mode in history if mode in modes), np.inf)


class _Stage:
    """Makes scenes of one bundle on one robot."""

    def __init__(
        self, policy: PolicyBundle, spec: RobotSpec, options: RehearseOptions, flow: FlowStage | None,
        guard: Guard | None, progress: Progress | None = None,
    ):  # fmt: skip
        self.policy, self.spec, self.options, self.flow, self.guard = policy, spec, options, flow, guard
        self.progress, self.done = progress, 0.0
        self.dt = spec.control_dt
        self.task = options.task or policy.contract.task or spec.task or None
        self.start = round(START / self.dt) * self.dt  # of a drill's fault: a tick

    @property
    def contract(self) -> Contract:
        return self.policy.contract

    def plant(self) -> Any:
        o = self.options
        return simulated_plant(self.task, self.contract, self.spec, o.seed, o.shift)

    def scene(
        self, faults: tuple[Fault, ...], seconds: float, act: Callable[[Scene, float], None] | None = None,
        shadow: bool = False, ramp: float = 0.0, guard: Guard | None = None,
    ) -> Scene:  # fmt: skip
        """Enable, start, tick for so long; `act` is called before every tick with the elapsed seconds."""
        clock, notes, plant = VirtualClock(), _Notes(), self.plant()
        loopback = Loopback(self.spec, plant, clock, faults, self.options.seed)
        config = RunnerConfig(ramp_s=ramp, max_speed=self.options.max_speed)
        runner = Runner(
            self.policy, self.contract, loopback, clock, config, listeners=(notes,), guard=guard, stage=self.flow
        )
        scene = Scene(runner, loopback, clock, plant, notes.steps, clock.now())
        self._wait_for_state(scene)
        scene.begin = clock.now()
        if shadow:
            runner.shadow()
        else:
            runner.enable()
            runner.start()
        for k in range(round(seconds / self.dt)):
            runner.wait(scene.begin + k * self.dt)
            runner.mind.builder.goals.update(getattr(plant, "goals", {}))
            if act is not None:
                act(scene, k * self.dt)
            runner.tick()
            self.done += self.dt
            if self.progress is not None and k % 16 == 0:
                drives = 1 if isinstance(plant, JointPlant) else 2
                self.progress(self.done, drives * self.options.seconds + DRILLS_S, "")
        return scene

    def _wait_for_state(self, scene: Scene) -> None:
        """Let delayed first messages arrive, at most one second."""
        for _ in range(int(1.0 / self.dt) + 1):
            if scene.loopback.read() is not None:
                return
            scene.clock.advance(self.dt)

    def drive(self) -> tuple[Check, dict[str, float]]:
        """The policy drives in the weather asked for, watched by the bundle's guard; it may not be interrupted, nor
        fall where it stands in calm."""
        rough = self.scene(self.options.faults, self.options.seconds, ramp=self.options.ramp, guard=self.guard)
        problem = _outside(rough, self.spec)
        driven = sum(s.mode in DRIVING for s in rough.steps) * self.dt
        result = {"seconds": driven}
        words = f"drove {driven:.1f} s of {self.options.seconds:.1f} s"
        if not isinstance(rough.plant, JointPlant):
            calm = self.scene((), self.options.seconds, ramp=self.options.ramp)
            result |= {"return": rough.plant.total, "calm_return": calm.plant.total}
            returns = f"return {rough.plant.total:.1f} against {calm.plant.total:.1f} in calm"
            words += f", {returns}"
            # What may be lost is a share of the return's size: half of a negative return would be a gain.
            if rough.plant.total < calm.plant.total - (1 - self.options.keep) * abs(calm.plant.total):
                problem = problem or f"{returns}: less than the share of {self.options.keep:g} to be kept"
            if rough.plant.fell and not calm.plant.fell:
                problem = problem or f"the robot fell after {rough.plant.steps * self.dt:.2f} s, in calm it does not"
        if rough.runner.mode not in DRIVING:
            at = rough.first(Mode.HOLD, Mode.DAMP)
            problem = problem or f"interrupted after {at:.2f} s: {rough.runner.reason}"
        return Check("drive", problem is None, problem or words), result


def _outside(scene: Scene, spec: RobotSpec) -> str | None:
    """What is wrong with the commands sent, if anything: a sentence."""
    if not scene.loopback.sent:
        return "no command was sent"
    sent = np.array([c for _, c in scene.loopback.sent])
    low, high = (np.array([getattr(c, side) for c in spec.channels]) for side in ("low", "high"))
    if not np.isfinite(sent).all() or (sent < low - 1e-9).any() or (sent > high + 1e-9).any():
        return "a command left its box"
    return None



def _reaction(stage: _Stage, name: str, kind: str, mode: Mode, limit: float, last: float | None = None) -> Check:
    """The fault must lead to `mode` within `limit` seconds after `last` (None: after it began), and no command may
    leave its box."""
    scene = stage.scene((Fault(kind, start=stage.start),), stage.start + limit + 4 * stage.dt)
    took = scene.first(mode, Mode.DAMP) - (stage.start if last is None else last)
    problem = _outside(scene, stage.spec)
    good = problem is None and -1e-6 <= took <= limit + 1e-6
    return Check(name, good, problem or f"{mode} after {1e3 * abs(took):.0f} ms (allowed {1e3 * limit:.0f})")


def _dead_publisher(stage: _Stage) -> Check:
    last = stage.start - stage.dt  # the last message that left
    return _reaction(stage, "dead publisher holds", "silence", Mode.HOLD, min(3 * stage.dt, 0.1), last)


def _long_dead(stage: _Stage) -> Check:
    return _reaction(stage, "long dead damps", "silence", Mode.DAMP, 0.5, stage.start - stage.dt)


def _not_finite(stage: _Stage) -> Check:
    return _reaction(stage, "non-finite state holds", "nan", Mode.HOLD, stage.dt)


def _new_publisher(stage: _Stage) -> Check:
    return _reaction(stage, "restarted publisher holds", "restart", Mode.HOLD, stage.dt)


def _stop(stage: _Stage) -> Check:
    def act(scene: Scene, elapsed: float) -> None:
        if abs(elapsed - stage.start) < 0.5 * stage.dt:
            scene.runner.estop()

    scene = stage.scene((), stage.start + 0.2, act)
    took, problem = scene.first(Mode.ESTOP) - stage.start, _outside(scene, stage.spec)
    allowed = stage.dt + 0.005
    good = problem is None and -1e-6 <= took <= allowed
    return Check("stop", good, problem or f"stop sent after {1e3 * abs(took):.0f} ms (allowed {1e3 * allowed:.0f})")


def _no_return(stage: _Stage) -> Check:
    scene = stage.scene((Fault("silence", start=stage.start, stop=stage.start + 0.3),), stage.start + 1.0)
    late = [s.mode for s in scene.steps if s.time - scene.begin > stage.start + 0.2]
    good = not DRIVING & set(late)
    return Check("no return without an operator", good, f"{late[-1]} after the robot came back")


def _permuted(stage: _Stage) -> Check:
    plain, mixed = stage.scene((), 0.5), stage.scene((Fault("permute"),), 0.5)
    pairs = zip(plain.loopback.sent, mixed.loopback.sent, strict=True)
    same = all((a == b).all() for (_, a), (_, b) in pairs)
    return Check("permuted joints", same, "identical commands" if same else "the commands changed")


def _shadow(stage: _Stage) -> Check:
    scene = stage.scene((), 0.5, shadow=True)
    count = len(scene.loopback.sent)
    return Check("shadow is silent", not count, f"{count} commands sent")


DRILLS = (_dead_publisher, _long_dead, _not_finite, _new_publisher, _stop, _no_return, _permuted, _shadow)
