"""Damaged sensor messages and bridge frames by the million: nothing may crash, no command may leave its box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.bridge_parts.echo import JOINTS, of_the_tests, spec
from robot_cl.deploy.cdr import encode
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.dds import StateReader
from robot_cl.deploy.extract import write_state
from robot_cl.deploy.modes import Mode, RunnerConfig
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.runner import Runner
from robot_cl.deploy.transport import Inbox, InboxTransport, State
from sim.spec import Channel, Interface

RATE = 5.0
BURST = 8  # messages between two ticks


def robot(hertz: float) -> RobotSpec:
    """The echo robot with a tight box, so that a command outside is easily seen."""
    import dataclasses

    wide = spec(hertz)
    channels = tuple(dataclasses.replace(c, low=-1.0, high=1.0, rate=RATE, lead=0.5) for c in wide.channels)
    topic = dataclasses.replace(wide.command[0], channels=channels)
    return dataclasses.replace(wide, command=(topic,))


def contract(hertz: float) -> Contract:
    obs = [Channel(f"{j}.{f}", u) for f, u in (("position", "rad"), ("velocity", "rad/s")) for j in JOINTS]
    action = tuple(Channel(f"{j}.position", "rad", -3.0, 3.0) for j in JOINTS)
    interface = Interface(tuple(obs), action, 1.0 / hertz)
    return Contract("0" * 64, 0, "fuzz", 1.0 / hertz, interface.digest, *terms_from_interface(interface))


class Wild:
    """Random actions, now and then none at all."""

    obs_dim, act_dim = 24, 12

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def act(self, obs: np.ndarray) -> np.ndarray:
        action = self.rng.uniform(-2, 2, (1, 12)).astype(np.float32)
        if self.rng.random() < 0.01:
            action[0, self.rng.integers(12)] = self.rng.choice([np.nan, np.inf, 1e30])
        return action

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


class Bytes(InboxTransport):
    """A transport fed with raw CDR, through the reader that DDS uses. Checks every command it is given."""

    def __init__(self, robot_spec: RobotSpec, clock: VirtualClock):
        self.spec, self.inbox, self.reader = robot_spec, Inbox(robot_spec, clock), StateReader(robot_spec.state[0])
        self.box = Box(robot_spec)

    def feed(self, data: bytes) -> None:
        try:
            stamp, values = self.reader.read(data)
        except ValueError as problem:
            self.inbox.refuse(str(problem))
            return
        self.inbox.offer(self.spec.state[0], stamp, values, 1)

    def read(self) -> State | None:
        return self.inbox.read()

    def write(self, command: np.ndarray) -> None:
        self.box.check(command)

    def messages(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class Box:
    """Counts commands, and those outside position or rate limits. Remembers the last one."""

    def __init__(self, robot_spec: RobotSpec):
        self.low, self.high = (np.array([getattr(c, k) for c in robot_spec.channels]) for k in ("low", "high"))
        self.step = RATE * robot_spec.control_dt + 1e-9
        self.count = self.outside = 0
        self.last: np.ndarray | None = None

    def check(self, command: np.ndarray) -> None:
        bad = not np.isfinite(command).all() or (command < self.low).any() or (command > self.high).any()
        if self.last is not None:
            bad = bad or bool((np.abs(command - self.last) > self.step).any())
        self.count, self.outside, self.last = self.count + 1, self.outside + int(bad), command.copy()


def damaged(rng: np.random.Generator, good: bytes) -> bytes:
    """A good message with some of its bytes, its length or its numbers changed."""
    raw, choice = bytearray(good), rng.random()
    if choice < 0.5:
        for at in rng.integers(0, len(raw), rng.integers(1, 6)):
            raw[at] = rng.integers(0, 256)
    elif choice < 0.65:
        return bytes(raw[: rng.integers(0, len(raw))])
    elif choice < 0.9:  # numbers only: NaN, infinity, huge, subnormal
        at = int(rng.integers(0, (len(raw) - 4) // 8)) * 8 + 4
        raw[at : at + 8] = np.float64(rng.choice([np.nan, np.inf, -np.inf, 1e300, 5e-324, -1e9])).tobytes()
    else:
        raw += bytes(rng.integers(0, 256, rng.integers(1, 40), dtype=np.uint8))
    return bytes(raw)


def insist(runner: Runner, refresh: Callable[[], Any]) -> None:
    """An operator who enables and starts again at once, with a good state in between."""
    refresh()
    try:
        if runner.mode is Mode.DAMP:
            runner.enable()
        if runner.mode is Mode.HOLD:
            runner.start()
    except ValueError:
        pass  # refused, as it may be


def sensor_messages(count: int, seed: int = 0) -> dict[str, float]:
    """`count` damaged JointStates between good ones, with a runner ticking in between."""
    rng, clock = np.random.default_rng(seed), VirtualClock()
    transport = Bytes(robot(100.0), clock)
    topic, stamp = transport.spec.state[0], 1000.0

    def good(values: np.ndarray) -> bytes:
        nonlocal stamp
        stamp += 0.01
        return encode(topic.type, write_state(topic, values, stamp))

    transport.feed(good(np.zeros(24)))
    runner = Runner(Wild(rng), contract(100.0), transport, clock, RunnerConfig(ramp_s=0.0))
    runner.enable()
    driven = 0
    for _ in range(count // BURST):
        base = good(rng.uniform(-0.5, 0.5, 24))
        for _ in range(BURST):
            transport.feed(damaged(rng, base))
        if rng.random() < 0.7:
            transport.feed(good(rng.uniform(-0.3, 0.3, 24)))
        if runner.mode in (Mode.HOLD, Mode.DAMP):
            insist(runner, lambda: transport.feed(good(rng.uniform(-0.3, 0.3, 24))))
        runner.tick()
        driven += runner.mode is Mode.ACTIVE
        clock.advance(0.01)
    return {
        "messages": count, "refused": transport.inbox.refused, "accepted": transport.inbox.accepted,
        "commands": transport.box.count, "outside": transport.box.outside, "driving_share": driven * BURST / count,
    }  # fmt: skip


def bridge_frames(count: int, seed: int = 0) -> dict[str, float]:
    """`count` nonsense frames through a real web socket, with a runner ticking in between."""
    import time

    from robot_cl.deploy.clock import MonotonicClock
    from robot_cl.deploy.rosbridge import RosbridgeTransport

    bridge = of_the_tests("rosbridge_standin")
    rng, server, here = np.random.default_rng(seed), bridge.StandIn(), robot(50.0)
    transport = RosbridgeTransport(here, MonotonicClock(), port=server.port)
    box, write = Box(here), transport.write
    transport.write = lambda command: (box.check(command), write(command))[1]  # type: ignore[method-assign]
    topic, stamps = here.state[0], iter(range(1, 10**9))

    def good() -> None:
        heard, end = transport.inbox.accepted, time.monotonic() + 10
        message = write_state(topic, rng.uniform(-0.3, 0.3, 24), 1e6 + next(stamps))
        server.publish(topic.topic, message)
        while transport.inbox.accepted == heard and time.monotonic() < end:
            transport.read()
            time.sleep(0.0005)

    while transport.read() is None:
        good()
    runner = Runner(Wild(rng), contract(50.0), transport, transport.clock, RunnerConfig(ramp_s=0.0, stale_s=0.4))
    runner.enable()
    for _ in range(count // 6):
        for _ in range(6):
            odd = write_state(topic, rng.uniform(-0.3, 0.3, 24), float(rng.integers(0, 1000)))
            server.send_text(bridge.nonsense(rng, topic.topic, odd))
        insist(runner, good)
        runner.tick()
    lost = transport.connections - 1
    runner.close()
    transport.close()
    server.close()
    return {"frames": count, "refused": transport.inbox.refused, "reconnections": lost, "commands": box.count,
            "outside": box.outside}  # fmt: skip
