"""The robot's side of a bridge: a plant that publishes the state topics and obeys the command topics of its YAML."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from robot_cl.deploy.cdr import decode
from robot_cl.deploy.clock import Clock
from robot_cl.deploy.extract import read_command, write_state
from robot_cl.deploy.loopback import Plant
from robot_cl.deploy.robot import RobotSpec


class NodeLike(Protocol):
    """What a simulated robot needs of a middleware: readers with `take`, writers with `write`, `close`."""

    def reader(self, topic: str, kind: str) -> Any: ...

    def writer(self, topic: str, kind: str) -> Any: ...

    def close(self) -> None: ...


class SimulatedRobot:
    """Steps a plant once per control period and talks as the robot would. Remembers the last command.

    Until a first command arrives the plant stands still. `count` is how many commands were received, `refused` how many
    messages were none, which change nothing.
    """

    def __init__(self, spec: RobotSpec, plant: Plant, node: NodeLike, clock: Clock):
        self.spec, self.plant, self.node, self.clock = spec, plant, node, clock
        lead = f"/{spec.namespace.strip('/')}" if spec.namespace else ""
        self._writers = [(t, node.writer(lead + t.topic, t.type)) for t in spec.state]
        self._readers = [(t, node.reader(lead + t.topic, t.type)) for t in spec.command]
        self.command = np.full(len(spec.channels), np.nan)
        self.count = self.refused = 0

    def step(self) -> None:
        """Take commands, move, publish."""
        self.receive()
        if np.isfinite(self.command).all():
            self.plant.step(self.command)
        self.publish()

    def receive(self) -> None:
        at = 0
        for topic, reader in self._readers:
            for data, _ in reader.take():
                try:
                    message = decode(topic.type, data) if isinstance(data, bytes) else data
                    self.command[at : at + len(topic.channels)] = read_command(topic, message)
                except ValueError:
                    self.refused += 1
                    continue
                self.count += 1
            at += len(topic.channels)

    def publish(self) -> None:
        values, stamp = self.plant.signals(), time.time()
        for topic, writer in self._writers:
            writer.write(write_state(topic, values[self.spec.slices[topic.key]], stamp))

    def run(self, duration: float) -> None:
        """Step at every control period for so many seconds."""
        begin, ticks = self.clock.now(), 0
        while self.clock.now() < begin + duration:
            self.step()
            ticks += 1
            self.clock.sleep_until(begin + ticks * self.spec.control_dt)
