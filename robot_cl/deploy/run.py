"""Driving a robot with a bundle: check, shadow, or armed, with everything that was said and done written down."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.bundle import PolicyBundle, read_contract
from robot_cl.deploy.caller import ThreadCaller
from robot_cl.deploy.clock import Clock, MonotonicClock
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.flow_stage import load_flow
from robot_cl.deploy.guard import guard_of
from robot_cl.deploy.loopback import Loopback
from robot_cl.deploy.modes import Listener, Mode, RunnerConfig, Stage, Step
from robot_cl.deploy.observe import Finding, compare
from robot_cl.deploy.plants import simulated_plant
from robot_cl.deploy.realtime import punctual, stop_on_signals
from robot_cl.deploy.receipt import require_receipt
from robot_cl.deploy.record import Recorder
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import load_robot
from robot_cl.deploy.runner import Runner
from robot_cl.deploy.transport import Transport, open_transport

Say = Callable[[str], None]


@dataclass
class RunOptions:
    """How a bundle drives a robot. Without `armed` nothing is ever sent (shadow)."""

    transport: str = "dds"  # loopback, dds, rclpy or rosbridge
    armed: bool = False  # send commands; needs a rehearsal receipt
    start: bool = True  # armed: drive at once, else hold until someone says start
    seconds: float = float("inf")  # end by itself after so long
    max_speed: float = 1.0  # share of the robot's speed limits
    ramp: float = 1.0  # seconds from holding to the policy's command
    stale: float | None = None  # seconds without a state before HOLD; None: 3 periods, at most 0.1
    wait: float = 10.0  # seconds to wait for a first state
    record: Path | None = None  # MCAP file; None: logs/<time>-<robot>.mcap
    recording: bool = True
    remote_start: bool = False  # whether orders over the network may enable and start
    priority: int | None = None  # SCHED_FIFO priority of the control thread, 1 to 99; the policy's is one less
    guard: bool = True  # use the bundle's guard, where it has one
    flow: bool = True  # realign actions by the bundle's flow, where it has one
    others: tuple[Path, ...] = ()  # further bundles of the same interface, for the order "policy NAME"
    network: dict[str, Any] = field(default_factory=dict)  # domain, interface, host, port, ... of the transport

    def __post_init__(self) -> None:
        if not 0 < self.max_speed <= 1 or self.ramp < 0 or self.wait <= 0:
            raise ValueError("max_speed is a share in (0, 1], ramp not negative, wait positive")


@dataclass(frozen=True)
class RunReport:
    """What happened: last mode and reason, changes of mode as (seconds, mode, reason), statistics, the recording."""

    mode: str
    reason: str
    history: list[tuple[float, str, str]]
    statistics: dict[str, float]
    recording: Path | None
    dropped: int
    notes: list[str]
    problem: str = ""  # why the recording ended early, if it did


def check(bundle: Path | str, robot: Path | str) -> list[Finding]:
    """Everything in which contract and robot file differ; empty if nothing does. Raises OSError, ValueError."""
    contract, spec = read_contract(bundle), load_robot(robot)
    PolicyBundle.load(bundle)
    found = compare(contract, spec)
    if not any(f.blocks for f in found):
        try:
            Actuation(contract, spec)
        except ValueError as problem:  # a fallback or a limit needs what this robot does not measure
            found.append(Finding(True, str(problem)))
    return found


def run(
    bundle: Path | str,
    robot: Path | str,
    options: RunOptions | None = None,
    say: Say = print,
    orders: Iterable[str] | None = None,
    stage: Stage | None = None,
) -> RunReport:
    """Drive (armed) or shadow until the time is up, a signal comes, or `orders` says stop.

    `orders` are lines of text (such as sys.stdin), read in a thread of their own; `stage` may change actions on their
    way. Raises OSError, ValueError, LookupError before anything is sent if something does not fit.
    """
    options = options or RunOptions()
    named = {Path(folder).resolve().name: Path(folder) for folder in (bundle, *options.others)}
    if len(named) <= len(options.others):
        raise ValueError(f"the bundles of a run are told apart by their folders' names, got {', '.join(named)} alone")
    policy, spec = PolicyBundle.load(bundle), load_robot(robot)
    for folder in (bundle, *options.others) if options.armed else ():
        require_receipt(folder, robot, options.max_speed)
    clock = MonotonicClock()
    path = (options.record or _log_path(spec)) if options.recording else None
    transport = _open(options, spec, policy.contract, clock)
    recorder, voice = None, _Voice(say)
    try:
        config = RunnerConfig(
            stale_s=options.stale, ramp_s=options.ramp, max_speed=options.max_speed,
            remote_start=options.remote_start, armed=options.armed,
        )  # fmt: skip
        guard = guard_of(bundle) if options.guard else None
        stage = stage or (load_flow(bundle, policy.contract) if options.flow else None)
        others = {name: PolicyBundle.load(folder) for name, folder in named.items()}
        skills = dict.fromkeys(skill for other in others.values() for skill in other.skill_names)
        recorder = Recorder(path, policy.contract, spec, skills=list(skills)) if path else None
        tellers: tuple[Listener, ...] = (_Teller(voice), _Display(voice, spec))
        listeners = (*([recorder] if recorder else []), *tellers)  # written down before anything else can fail
        caller = ThreadCaller(policy, clock)
        runner = Runner(policy, policy.contract, transport, clock, config, caller, listeners, guard, stage)
        for name, other in others.items():
            guarding = guard_of(named[name]) if options.guard else None
            flow = load_flow(named[name], other.contract) if options.flow else None
            runner.offer(name, other, other.contract, guarding, flow)
        return _drive(runner, caller, recorder, options, voice, orders)
    finally:
        transport.close()
        voice.close()
        if recorder is not None:
            recorder.close()


def _drive(
    runner: Runner, caller: ThreadCaller, recorder: Recorder | None, options: RunOptions, say: Say,
    orders: Iterable[str] | None,
) -> RunReport:  # fmt: skip
    begin = runner.clock.now()
    if orders is not None:
        threading.Thread(target=_listen, args=(runner, orders, say), name="orders", daemon=True).start()
    with punctual(options.priority, (caller.native_id,)) as refusal:
        if refusal:
            say(refusal)
        # Last of all, so that nothing has grown stale when the robot is enabled. Nothing is sent before `run`.
        _while_fresh(runner, options.wait, runner.enable if options.armed else runner.shadow)
        if options.armed and options.start:
            _while_fresh(runner, options.wait, runner.start)
        with stop_on_signals(runner):
            runner.run(options.seconds)
    if recorder is not None:
        recorder.close()
    history = [(when - begin, str(mode), why) for when, mode, why in runner.history]
    notes = [f.text for f in compare(runner.contract, runner.transport.spec)]
    return RunReport(
        str(runner.mode), runner.reason, history, runner.stats.summary(), recorder.path if recorder else None,
        recorder.dropped if recorder else 0, notes, recorder.problem if recorder else "",
    )  # fmt: skip


class _Voice:
    """Says things in a thread of its own: a terminal that takes no more text must not hold up the control loop.

    What it has no time to say is left out. An error of `say` is raised at the next word.
    """

    def __init__(self, say: Say, size: int = 256):
        self._say = say
        self._problem: OSError | None = None
        self._queue: queue.Queue[str | None] = queue.Queue(size)
        self._thread = threading.Thread(target=self._work, name="voice", daemon=True)
        self._thread.start()

    def __call__(self, text: str | None) -> None:
        if self._problem is not None:
            raise self._problem
        with suppress(queue.Full):
            self._queue.put_nowait(text)

    def close(self, patience: float = 1.0) -> None:
        with suppress(OSError):
            self(None)
        self._thread.join(patience)

    def _work(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._say(text)
            except OSError as problem:  # nobody reads any more
                self._problem = problem
                return


class _Teller:
    """Says every change of mode, and why an order was refused."""

    def __init__(self, say: Say):
        self.say, self.last = say, Mode.DISABLED

    def step(self, step: Step) -> None:
        if step.mode is not self.last:
            self.last = step.mode
            self.say(f"{step.mode}: {step.reason}")
        if step.refusal:
            self.say(f"refused: {step.refusal}")


class _Display:
    """In shadow, says once a second what would be sent."""

    def __init__(self, say: Say, spec: RobotSpec, every: float = 1.0):
        self.say, self.channels, self.every, self.due = say, spec.channels, every, -float("inf")

    def step(self, step: Step) -> None:
        if step.mode is not Mode.SHADOW or step.command is None or step.time < self.due:
            return
        self.due = step.time + self.every
        parts = (f"{c.name} {value:.3g} {c.unit}" for c, value in zip(self.channels, step.command, strict=True))
        self.say(f"would send {', '.join(parts)}")


def _listen(runner: Runner, orders: Iterable[str], say: Say) -> None:
    for line in orders:
        if line.strip():
            try:
                runner.order(line.strip())
            except (ValueError, LookupError) as problem:
                say(str(problem))


def _while_fresh(runner: Runner, patience: float, act: Callable[[], None]) -> None:
    """`act` as soon as there is a fresh state; again if the state grew old in between, as on a busy machine."""
    end = runner.clock.now() + patience
    while True:
        _await_state(runner, patience)
        try:
            return act()
        except ValueError:
            if runner.transport.age() <= runner.hearing.stale_s or runner.clock.now() > end:
                raise


def _await_state(runner: Runner, patience: float) -> None:
    """Raises OSError saying what was heard instead, if no state comes in time."""
    clock, transport = runner.clock, runner.transport
    end = clock.now() + patience
    while transport.read() is None or transport.age() > runner.hearing.stale_s:
        if clock.now() > end:
            why = transport.problem()
            topics = ", ".join(t.topic for t in transport.spec.state)
            hint = why or f"nothing came on {topics}; is the robot publishing, and in the same domain?"
            raise OSError(f"no state from the robot within {patience:g} s: {hint}")
        clock.sleep_until(clock.now() + runner.dt / 4)


def _open(options: RunOptions, spec: RobotSpec, contract: Contract, clock: Clock) -> Transport:
    if options.transport != "loopback":
        return open_transport(options.transport, spec, clock=clock, **options.network)
    plant = simulated_plant(contract.task or spec.task or None, contract, spec, goes_on=True)
    return Loopback(spec, plant, clock)


def _log_path(spec: RobotSpec) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    path = Path("logs") / f"{stamp}-{spec.name}.mcap"
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    return path
