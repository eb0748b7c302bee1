"""The other ends of a bridge: an operator who says something to a running policy, and a robot that is simulated."""

from __future__ import annotations

import time
from typing import Any

from robot_cl.deploy.clock import Clock, MonotonicClock
from robot_cl.deploy.loopback import Plant
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.simulated import SimulatedRobot

OPERATOR_TOPIC, STRING = "/robot_cl/operator", "std_msgs/msg/String"
TIMES, APART_S = 3, 0.05  # readers are best-effort, so nothing is acknowledged; saying an order again changes nothing


def say(text: str, transport: str = "dds", namespace: str = "", wait: float = 5.0, **network: Any) -> int:
    """Publish one order on the operator topic and return how many listeners there were (1 where a bridge cannot tell).

    Raises OSError if nobody listens within `wait` seconds, LookupError for a transport without an operator topic.
    """
    topic = f"/{namespace.strip('/')}{OPERATOR_TOPIC}" if namespace.strip("/") else OPERATOR_TOPIC
    if transport in ("dds", "rclpy"):
        return _say_dds(text, topic, wait, network if transport == "dds" else {})
    if transport == "rosbridge":
        return _say_rosbridge(text, topic, wait, **network)
    raise LookupError(f"nothing can be said over {transport!r}; expected dds, rclpy or rosbridge")


def _say_dds(text: str, topic: str, wait: float, network: dict[str, Any]) -> int:
    from robot_cl.deploy.dds_node import Node

    node, clock = Node(**network), MonotonicClock()
    try:
        writer, end = node.writer(topic, STRING), clock.now() + wait
        while not (count := writer.listeners()):
            if clock.now() > end:
                raise OSError(f"nobody listens on {topic} within {wait:g} s; is a policy running, in the same domain?")
            clock.sleep_until(clock.now() + 0.02)
        for _ in range(TIMES):
            writer.write({"data": text})
            clock.sleep_until(clock.now() + APART_S)
        return count
    finally:
        node.close()


def _say_rosbridge(text: str, topic: str, wait: float, host: str = "127.0.0.1", port: int = 9090, ros: int = 2) -> int:
    import roslibpy

    client = roslibpy.Ros(host, port)
    try:
        client.run(wait)
    except TimeoutError:
        client.factory.stopTrying()
        raise OSError(f"no rosbridge answers at ws://{host}:{port}; start rosbridge_server there") from None
    publisher = roslibpy.Topic(client, topic, "std_msgs/String")
    for _ in range(TIMES):
        publisher.publish(roslibpy.Message({"data": text}))
        time.sleep(APART_S)
    client.factory.stopTrying()
    client.close(timeout=2)
    return 1


def simulate(
    spec: RobotSpec, plant: Plant, transport: str = "dds", seconds: float | None = None, clock: Clock | None = None,
    **network: Any,
) -> int:  # fmt: skip
    """A simulated robot over DDS, in real time, for so long (None: for ever). Returns how many commands it heard."""
    if transport != "dds":
        raise LookupError(f"a simulated robot talks over dds, not over {transport!r}")
    from robot_cl.deploy.dds_node import Node

    node = Node(**network)
    robot = SimulatedRobot(spec, plant, node, clock or MonotonicClock())
    try:
        robot.run(float("inf") if seconds is None else seconds)
    finally:
        node.close()
    return robot.count
