"""Transport over DDS: the default for ROS 2, with no ROS installation."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from robot_cl.deploy.cdr import ReadTemplate, WriteTemplate, decode
from robot_cl.deploy.clock import Clock, MonotonicClock
from robot_cl.deploy.dds_node import Node, Reader, Writer
from robot_cl.deploy.extract import UNKNOWN, command_paths, command_template, read_state, state_paths, unknown_paths
from robot_cl.deploy.messages import Message
from robot_cl.deploy.robot import CommandTopic, RobotSpec, StateTopic
from robot_cl.deploy.transport import Inbox, InboxTransport, State

OPERATOR_TOPIC, STRING = "/robot_cl/operator", "std_msgs/msg/String"
LINGER_S = 0.1
WAITING = 8  # messages between two reads that are kept: a gripper may speak on the topic of its arm, right after it


class StateReader:
    """Signals of one state topic from raw messages. Remembers the template of the last ordinary one.

    A message shaped otherwise goes through the general decoder and, if it is good, becomes the template.
    """

    def __init__(self, topic: StateTopic):
        self.topic, self.count, self.doubtful = topic, len(topic.signals), bool(unknown_paths(topic))
        self.template: ReadTemplate | None = None

    def read(self, data: bytes | Message) -> tuple[float | None, np.ndarray]:
        """(stamp, values). Raises ValueError with one sentence for a message that is not this topic's."""
        if not isinstance(data, bytes):
            return read_state(self.topic, data)
        if self.template is not None:
            found = self.template.read(data)
            if found is not None and not self.doubtful:
                return found
            if found is not None and not (found[1][self.count :] == UNKNOWN).any():
                return found[0], found[1][: self.count]
        message = decode(self.topic.type, data)
        found = read_state(self.topic, message)
        paths = state_paths(self.topic, message)
        if all(paths) and data[1] == 1:
            self.template = ReadTemplate(self.topic.type, data, paths + unknown_paths(self.topic))
        return found


class DdsTransport(InboxTransport):
    """Reads a robot's state topics and writes its command topics. Remembers subscriptions and the latest messages.

    `domain` defaults to ROS_DOMAIN_ID; `interface` names a network interface; `peers` with multicast=False finds robots
    by unicast alone. Messages are fetched when `read` is called, so their age counts from there; after a pause of
    the caller it counts from before the pause.
    """

    def __init__(
        self,
        spec: RobotSpec,
        clock: Clock | None = None,
        domain: int | None = None,
        interface: str = "",
        peers: tuple[str, ...] = (),
        multicast: bool = True,
        codec: str = "fast",
        wall_time: Callable[[], float] = time.time,
    ):
        self.spec, self.clock, self.wall_time = spec, clock or MonotonicClock(), wall_time
        self.inbox = Inbox(spec, self.clock)
        self.node = Node(domain, interface, peers, multicast, codec)
        prefix = spec.namespace.strip("/")
        self._lead = f"/{prefix}" if prefix else ""
        self._states = [
            (t, self.node.reader(self._lead + t.topic, t.type, WAITING), StateReader(t)) for t in spec.state
        ]
        self._commands = [self._command(topic) for topic in spec.command]
        self._operator: Reader = self.node.reader(self._lead + OPERATOR_TOPIC, STRING, depth=WAITING)
        self._polled = self.clock.now()

    def read(self) -> State | None:
        now = self.clock.now()
        # What waited while nobody asked may be as old as the pause.
        when = now if now - self._polled <= 2 * self.spec.control_dt else self._polled
        for topic, reader, state_reader in self._states:
            for data, source in reader.take():
                try:
                    stamp, values = state_reader.read(data)
                except ValueError as problem:
                    self.inbox.refuse(str(problem))
                    continue
                self.inbox.offer(topic, stamp, values, source, when)
        self._polled = now
        return self.inbox.read()

    def write(self, command: np.ndarray) -> None:
        at = 0
        for writer, template, stamped in self._commands:
            count = len(template.slots)
            stamp = self.wall_time() if stamped else 0.0
            writer.write(template.write(command[at : at + count], stamp))
            at += count

    def messages(self) -> list[str]:
        texts = []
        for data, _ in self._operator.take():
            try:
                texts.append(str((decode(STRING, data) if isinstance(data, bytes) else data)["data"]))
            except ValueError as problem:
                self.inbox.refuse(str(problem))
        return texts

    def listeners(self) -> dict[str, int]:
        """Command topic -> how many receivers are there now."""
        return {t.topic: w.listeners() for t, (w, _, _) in zip(self.spec.command, self._commands, strict=True)}

    def close(self) -> None:
        """The last command is given time to arrive."""
        for writer, _, _ in self._commands:
            writer.flush(LINGER_S)
        self.node.close()

    def _command(self, topic: CommandTopic) -> tuple[Writer, WriteTemplate, bool]:
        message = command_template(topic, self.spec.control_dt)
        template = WriteTemplate(topic.type, message, command_paths(topic))
        # A trajectory stamped zero starts at once; a stamped twist must carry the time of day.
        return self.node.writer(self._lead + topic.topic, topic.type), template, topic.type.endswith("TwistStamped")
