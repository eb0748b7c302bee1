"""Transport over rosbridge (JSON on a web socket), for ROS 1 and ROS 2: supervision at up to 50 Hz.

A killed server may keep its port open and say nothing, so the only sign of life is the age of the last message. A
subscription made before a best-effort publisher exists stays deaf, so silence is answered by subscribing again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import roslibpy

from robot_cl.deploy.clock import Clock, MonotonicClock
from robot_cl.deploy.extract import read_state, write_command
from robot_cl.deploy.messages import Message
from robot_cl.deploy.robot import RobotSpec, StateTopic
from robot_cl.deploy.transport import Inbox, InboxTransport, State

OPERATOR_TOPIC = "/robot_cl/operator"
FASTEST_S = 0.02
RESUBSCRIBE_S = 1.0
WAITING = 8
RETRY_S, LONGEST_RETRY_S = 0.2, 2.0


def two_part(kind: str) -> str:
    """sensor_msgs/msg/JointState -> sensor_msgs/JointState, which both ROS 1 and ROS 2 bridges accept."""
    return kind.replace("/msg/", "/")


def ros_1_stamps(message: Any) -> Any:
    """The same message with stamps as ROS 1 names them: secs, nsecs."""
    if isinstance(message, dict):
        if set(message) == {"sec", "nanosec"}:
            return {"secs": message["sec"], "nsecs": message["nanosec"]}
        return {k: ros_1_stamps(v) for k, v in message.items()}
    return [ros_1_stamps(v) for v in message] if isinstance(message, list) else message


class RosbridgeTransport(InboxTransport):
    """Remembers the connection, what arrived since the last `read`, and errors the bridge reported (`errors`).

    `ros` is 1 or 2. Raises ValueError above 50 Hz unless `force`, OSError if no bridge answers for `timeout` seconds.
    """

    def __init__(
        self,
        spec: RobotSpec,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 9090,
        ros: int = 2,
        force: bool = False,
        timeout: float = 5.0,
        wall_time: Callable[[], float] = time.time,
    ):
        if spec.control_dt < FASTEST_S - 1e-9 and not force:
            wanted = f"{1 / spec.control_dt:g} Hz"
            raise ValueError(f"rosbridge is for supervision up to 50 Hz, this robot wants {wanted}; use dds or force")
        if ros not in (1, 2):
            raise ValueError(f"ros must be 1 or 2, got {ros}")
        self.spec, self.clock, self.ros, self.wall_time = spec, clock or MonotonicClock(), ros, wall_time
        self.inbox = Inbox(spec, self.clock)
        self.errors: deque[str] = deque(maxlen=100)
        self.connections = 0
        self._protocol: Any = None
        logging.getLogger("roslibpy").addHandler(logging.NullHandler())
        self._client = roslibpy.Ros(host, port)
        self._client.factory.initialDelay, self._client.factory.maxDelay = RETRY_S, LONGEST_RETRY_S
        self._client.on("ready", self._connected)
        try:
            self._client.run(timeout)
        except TimeoutError:
            self._client.factory.stopTrying()
            raise OSError(
                f"no rosbridge answers at ws://{host}:{port}; start rosbridge_server there or give host and port"
            ) from None
        # The client begins to connect when it is made: the first "ready" may have come before anybody listened.
        self._client.factory.on_ready(self._connected)
        lead = f"/{spec.namespace.strip('/')}" if spec.namespace else ""
        self._arrived: dict[str, deque[tuple[float, int, Message]]] = {}
        self._topics: list[tuple[StateTopic, roslibpy.Topic, Callable[[Any], None]]] = []
        for topic in spec.state:
            box: deque[tuple[float, int, Message]] = deque(maxlen=WAITING)
            self._arrived[topic.key] = box
            subscription = roslibpy.Topic(self._client, lead + topic.topic, two_part(topic.type), queue_length=1)
            self._topics.append((topic, subscription, self._listener(box)))
        self._texts: deque[Message] = deque(maxlen=WAITING)
        self._operator = roslibpy.Topic(self._client, lead + OPERATOR_TOPIC, "std_msgs/String")
        self._operator.subscribe(self._texts.append)
        self._asked = dict.fromkeys(self._arrived, -np.inf)
        self._heard = dict.fromkeys(self._arrived, self.clock.now())
        self._publishers = [roslibpy.Topic(self._client, lead + t.topic, two_part(t.type)) for t in spec.command]
        for publisher in self._publishers:
            publisher.advertise()
        self._subscribe_to_the_silent()

    def read(self) -> State | None:
        for topic, _, _ in self._topics:
            box = self._arrived[topic.key]
            while box:
                when, source, message = box.popleft()
                self._heard[topic.key] = when
                try:
                    stamp, values = read_state(topic, message)
                except ValueError as problem:
                    self.inbox.refuse(str(problem))
                    continue
                self.inbox.offer(topic, stamp, values, source, when)
        self._subscribe_to_the_silent()
        return self.inbox.read()

    def write(self, command: np.ndarray) -> None:
        """Raises OSError while there is no connection: the client would keep the command and send it long after."""
        if not self._client.is_connected:
            raise OSError("the connection to rosbridge is lost")
        at = 0
        for topic, publisher in zip(self.spec.command, self._publishers, strict=True):
            values = command[at : at + len(topic.channels)]
            stamp = self.wall_time() if topic.type.endswith("TwistStamped") else 0.0
            message = write_command(topic, values, self.spec.control_dt, stamp)
            publisher.publish(roslibpy.Message(ros_1_stamps(message) if self.ros == 1 else message))
            at += len(topic.channels)

    def messages(self) -> list[str]:
        texts = []
        while self._texts:
            text = self._texts.popleft()
            data = text.get("data") if isinstance(text, dict) or hasattr(text, "get") else None
            if isinstance(data, str):
                texts.append(data)
        return texts

    def problem(self) -> str | None:
        return self.errors[-1] if self.errors else self.inbox.problem

    def close(self) -> None:
        """Everything written before is sent before the connection closes."""
        self._client.factory.stopTrying()
        with suppress(TimeoutError):
            self._client.close(timeout=2)

    def _listener(self, box: deque[tuple[float, int, Message]]) -> Callable[[Any], None]:
        def listen(message: Any) -> None:
            box.append((self.clock.now(), self.connections, message))

        return listen

    def _connected(self, protocol: Any) -> None:
        """In the network thread, at each connection: a new one is a new source; status operations are kept."""
        if protocol is self._protocol:
            return
        self._protocol = protocol
        self.connections += 1
        protocol._message_handlers["status"] = self._status

    def _status(self, message: Any) -> None:
        if message.get("level") in ("error", "warning"):
            self.errors.append(str(message.get("msg"))[:500])

    def _subscribe_to_the_silent(self) -> None:
        """Subscribe, and again whenever a topic has been silent for a second."""
        now = self.clock.now()
        for topic, subscription, listener in self._topics:
            key = topic.key
            if now - max(self._heard[key], self._asked[key]) > RESUBSCRIBE_S or self._asked[key] == -np.inf:
                if subscription.is_subscribed:
                    subscription.unsubscribe()
                subscription.subscribe(listener)
                self._asked[key] = now
