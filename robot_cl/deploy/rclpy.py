"""Transport through an installed ROS 2: used where `import rclpy` works, for robots behind an unusual middleware."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import rclpy as ros
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

from robot_cl.deploy.clock import Clock, MonotonicClock
from robot_cl.deploy.extract import read_state, write_command
from robot_cl.deploy.messages import SCHEMAS, Message, from_fields, split_type
from robot_cl.deploy.robot import RobotSpec, StateTopic
from robot_cl.deploy.transport import Inbox, InboxTransport, State

OPERATOR_TOPIC, STRING = "/robot_cl/operator", "std_msgs/msg/String"
WAITING = 8  # messages of a topic between two reads that are kept: a gripper may speak on the topic of its arm


def message_class(kind: str) -> Any:
    """sensor_msgs/msg/JointState -> the class sensor_msgs.msg.JointState."""
    package, _, name = kind.partition("/msg/")
    return getattr(import_module(f"{package}.msg"), name)


def to_ros(kind: str, message: Any) -> Any:
    """A nested dict as ROS message objects."""
    element, count = split_type(kind)
    if count is not None:
        return [to_ros(element, m) for m in message]
    if element not in SCHEMAS:
        return message
    made = message_class(element)()
    for inner, name in SCHEMAS[element]:
        setattr(made, name, to_ros(inner, message[name]))
    return made


class RclpyTransport(InboxTransport):
    """Remembers a node, what arrived since the last `read` and which publishers each state topic has had. Callbacks run
    inside `read`, in the caller's thread."""

    def __init__(
        self, spec: RobotSpec, clock: Clock | None = None, wall_time: Callable[[], float] = time.time
    ):  # fmt: skip
        self.spec, self.clock, self.wall_time = spec, clock or MonotonicClock(), wall_time
        self.inbox = Inbox(spec, self.clock)
        self._context = ros.Context()
        ros.init(context=self._context)
        self.node = Node("robot_cl", namespace=spec.namespace or None, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        sensors = QoSProfile(depth=WAITING, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
        commands = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
        self._texts: deque[str] = deque(maxlen=WAITING)
        self._heard, self._polled, self._when = 0, self.clock.now(), 0.0
        self._publishers_seen: dict[str, set[bytes]] = {t.key: set() for t in spec.state}
        for topic in spec.state:
            kind = message_class(topic.type)
            self.node.create_subscription(kind, topic.topic.lstrip("/"), self._listener(topic), sensors)
        self.node.create_subscription(
            message_class(STRING), OPERATOR_TOPIC.lstrip("/"), self._operator, commands
        )
        self._publishers = [
            self.node.create_publisher(message_class(t.type), t.topic.lstrip("/"), commands) for t in spec.command
        ]

    def read(self) -> State | None:
        now = self.clock.now()
        # What waited while nobody asked may be as old as the pause.
        self._when = now if now - self._polled <= 2 * self.spec.control_dt else self._polled
        for _ in range(WAITING * len(self.spec.state)):
            heard = self._heard
            self._executor.spin_once(timeout_sec=0.0)
            if self._heard == heard:
                break
        self._polled = now
        return self.inbox.read()

    def write(self, command: np.ndarray) -> None:
        at = 0
        for topic, publisher in zip(self.spec.command, self._publishers, strict=True):
            stamp = self.wall_time() if topic.type.endswith("TwistStamped") else 0.0
            values = command[at : at + len(topic.channels)]
            publisher.publish(to_ros(topic.type, write_command(topic, values, self.spec.control_dt, stamp)))
            at += len(topic.channels)

    def messages(self) -> list[str]:
        texts = list(self._texts)
        self._texts.clear()
        return texts

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        ros.shutdown(context=self._context)

    def _listener(self, topic: StateTopic) -> Callable[[Any], None]:
        def listen(message: Any) -> None:
            self._heard += 1
            found: Message = from_fields(topic.type, message)
            try:
                stamp, values = read_state(topic, found)
            except ValueError as problem:
                self.inbox.refuse(str(problem))
                return
            self.inbox.offer(topic, stamp, values, self._source(topic), self._when)

        return listen

    def _operator(self, message: Any) -> None:
        self._heard += 1
        self._texts.append(message.data)

    def _source(self, topic: StateTopic) -> int:
        """How many publishers the topic has had so far: one that restarts is another. ROS 2 Jazzy does not say whose a
        message is, so the graph is asked."""
        seen = self._publishers_seen[topic.key]
        endpoints = self.node.get_publishers_info_by_topic(topic.topic.lstrip("/"))
        seen.update(bytes(endpoint.endpoint_gid) for endpoint in endpoints)
        return len(seen)
