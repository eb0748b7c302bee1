"""A simulated robot in this process, on a virtual clock: deterministic, and the place where every fault is injected."""

from __future__ import annotations

import heapq
import itertools
from typing import Protocol

import numpy as np

from robot_cl.deploy.clock import Clock
from robot_cl.deploy.extract import read_state, write_state
from robot_cl.deploy.faults import Envelope, Fault, apply
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.transport import Inbox, InboxTransport, State


class Plant(Protocol):
    """A robot's physics: signals (n_signals,) now, and one control period under a command (n_commands,)."""

    def signals(self) -> np.ndarray: ...

    def step(self, command: np.ndarray) -> None: ...


class JointPlant:
    """Joints that follow: each channel's position moves to its command with time constant `tau` (velocity commands are
    integrated), inside their limits from the beginning. For tests, latency measurements and rehearsals without a world,
    where physics does not matter: every body stands upright. Remembers position and velocity.
    """

    def __init__(self, spec: RobotSpec, tau: float = 0.05, start: float = 0.0):
        self.spec, self.tau = spec, tau
        bounds = [(c.low, c.high) if c.is_position else (c.lowest, c.highest) for c in spec.channels]
        self.position = np.clip(start, *np.array(bounds).T)
        self.velocity = np.zeros(len(spec.channels))
        self._speedy = np.array([c.is_speed for c in spec.channels])
        self._upright = np.array([name.endswith("orientation.w") for name in spec.signals], dtype=np.float64)
        self._position_at, self._speed_at = spec.position_index(), spec.speed_index()

    def signals(self) -> np.ndarray:
        values = self._upright.copy()
        for places, source in ((self._position_at, self.position), (self._speed_at, self.velocity)):
            values[places[places >= 0]] = source[places >= 0]
        return values

    def step(self, command: np.ndarray) -> None:
        follow = (command - self.position) / max(self.tau, self.spec.control_dt)
        self.velocity = np.where(self._speedy, command, follow)
        self.position = self.position + self.velocity * self.spec.control_dt


class Loopback(InboxTransport):
    """Transport to a `Plant` that steps once per control period of the clock it is given.

    Messages really are made, changed by faults and read back by name, as with any other transport. Remembers the
    plant's time, messages and commands on their way, and everything written: `sent` is a list of (time, command).
    Until a first command arrives the plant stands still.
    """

    def __init__(self, spec: RobotSpec, plant: Plant, clock: Clock, faults: tuple[Fault, ...] = (), seed: int = 0):
        self.spec, self.plant, self.clock, self.faults = spec, plant, clock, faults
        self.inbox = Inbox(spec, clock)
        self.sent: list[tuple[float, np.ndarray]] = []
        self.closed = False
        self._rng = np.random.default_rng(seed)
        self._begin = self._plant_time = clock.now()
        self._ticks = 0
        self._count = itertools.count()
        self._flying: list[tuple[float, int, Envelope]] = []
        self._commands: list[tuple[float, int, np.ndarray]] = []
        self._command: np.ndarray | None = None
        self._texts: list[str] = []
        self._sense()

    def read(self) -> State | None:
        self._catch_up()
        return self.inbox.read()

    def write(self, command: np.ndarray) -> None:
        self._catch_up()
        now = self.clock.now()
        self.sent.append((now, command.copy()))
        arrival = now
        for fault in self.faults:
            if fault.active(now - self._begin):
                if fault.kind == "drop_command" and self._rng.random() < fault.amount:
                    return
                arrival += fault.amount if fault.kind == "delay_command" else 0.0
        heapq.heappush(self._commands, (arrival, next(self._count), command.copy()))

    def messages(self) -> list[str]:
        texts, self._texts = self._texts, []
        return texts

    def say(self, text: str) -> None:
        """An operator text, as if it came over the network."""
        self._texts.append(text)

    def close(self) -> None:
        self.closed = True

    def _catch_up(self) -> None:
        """Let the plant and the wire do what they do until now."""
        now, dt = self.clock.now(), self.spec.control_dt
        while self._plant_time + dt <= now + 1e-9:
            while self._commands and self._commands[0][0] <= self._plant_time + 1e-9:
                self._command = heapq.heappop(self._commands)[2]
            if self._command is not None:
                self.plant.step(self._command)
            self._ticks += 1
            self._plant_time = self._begin + self._ticks * dt
            self._sense()
        self._deliver(now)

    def _sense(self) -> None:
        values, when = self.plant.signals(), self._plant_time
        for topic in self.spec.state:
            # The robot's own time of day: it only orders its messages.
            message = write_state(topic, values[self.spec.slices[topic.key]], 1.7e9 + when)
            envelope = apply(self.faults, Envelope(topic, message, "plant", when), when - self._begin, self._rng)
            if envelope is not None:
                heapq.heappush(self._flying, (envelope.arrival, next(self._count), envelope))

    def _deliver(self, now: float) -> None:
        while self._flying and self._flying[0][0] <= now + 1e-9:
            arrival, _, envelope = heapq.heappop(self._flying)
            try:
                stamp, values = read_state(envelope.topic, envelope.message)
            except ValueError as problem:
                self.inbox.refuse(str(problem))
                continue
            self.inbox.offer(envelope.topic, stamp, values, envelope.source, arrival)
