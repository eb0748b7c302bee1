"""What every transport owes the runner, asked of all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.clock import MonotonicClock
from robot_cl.deploy.extract import read_command, write_state
from robot_cl.deploy.loopback import Loopback
from robot_cl.deploy.messages import SCHEMAS
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.transport import TRANSPORTS, Inbox, StampFilter, open_transport

PATIENCE = 20.0
STATES, OPERATOR = "/joint_states", "/robot_cl/operator"


class Far:
    """The robot's end: `publish` a message, `say` an operator text, `command` last heard."""

    def __init__(self, transport: Any, publish: Callable, say: Callable, command: Callable, close: Callable):
        self.transport, self.publish, self.say, self.command, self.close = transport, publish, say, command, close


def far_loopback(arm: RobotSpec) -> Far:
    class Silent:
        def signals(self) -> np.ndarray:
            return np.full(4, np.nan)

        def step(self, command: np.ndarray) -> None:
            pass

    clock = MonotonicClock()
    loopback = Loopback(arm, Silent(), clock, ())
    loopback._sense = lambda: None  # type: ignore[method-assign]
    loopback._flying.clear()

    def publish(message: dict) -> None:
        from robot_cl.deploy.faults import Envelope

        now = clock.now()
        loopback._flying.append((now, len(loopback._flying), Envelope(arm.state[0], message, "far", now)))

    return Far(loopback, publish, loopback.say, lambda: loopback.sent[-1][1] if loopback.sent else None, lambda: None)


def far_dds(arm: RobotSpec, codec: str = "fast") -> Far:
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    import dds_peer

    from robot_cl.deploy.cdr import decode
    from robot_cl.deploy.dds_node import Node

    network = dds_peer.network(dds_peer.free_domain())
    node = Node(**network)
    states, texts = node.writer(STATES, arm.state[0].type), node.writer(OPERATOR, "std_msgs/msg/String")
    commands = node.reader(arm.command[0].topic, arm.command[0].type)
    last: list[np.ndarray] = []

    def command() -> np.ndarray | None:
        last.extend(read_command(arm.command[0], decode(arm.command[0].type, raw)) for raw, _ in commands.take())
        return last[-1] if last else None

    transport = open_transport("dds", arm, codec=codec, **network)
    return Far(transport, states.write, lambda text: texts.write({"data": text}), command, node.close)


def far_dds_public(arm: RobotSpec) -> Far:
    return far_dds(arm, "public")


def far_rosbridge(arm: RobotSpec) -> Far:
    pytest.importorskip("roslibpy")
    import rosbridge_standin

    server = rosbridge_standin.StandIn()

    def command() -> np.ndarray | None:
        heard = server.published.get(arm.command[0].topic)
        return read_command(arm.command[0], heard[-1]) if heard else None

    transport = open_transport("rosbridge", arm, port=server.port)
    return Far(
        transport, lambda m: server.publish(STATES, m), lambda t: server.publish(OPERATOR, {"data": t}), command,
        server.close,
    )  # fmt: skip


def far_rclpy(arm: RobotSpec) -> Far:
    pytest.importorskip("rclpy")
    from robot_cl.deploy import rclpy as ours

    other = ours.RclpyTransport(arm)
    states = other.node.create_publisher(ours.message_class(arm.state[0].type), "joint_states", 1)
    texts = other.node.create_publisher(ours.message_class("std_msgs/msg/String"), "robot_cl/operator", 1)
    heard: list[np.ndarray] = []
    other.node.create_subscription(
        ours.message_class(arm.command[0].type), arm.command[0].topic.lstrip("/"),
        lambda m: heard.append(np.array(m.data)), 1,
    )  # fmt: skip

    def command() -> np.ndarray | None:
        other.read()
        return heard[-1] if heard else None

    def publish(message: dict) -> None:
        states.publish(ours.to_ros(arm.state[0].type, message))

    def say(text: str) -> None:
        texts.publish(ours.to_ros("std_msgs/msg/String", {"data": text}))

    return Far(open_transport("rclpy", arm), publish, say, command, other.close)


FAR = {
    "loopback": far_loopback, "dds": far_dds, "dds-public": far_dds_public, "rosbridge": far_rosbridge,
    "rclpy": far_rclpy,
}  # fmt: skip


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.ros2] if n == "rclpy" else []) for n in FAR])
def far(request: pytest.FixtureRequest, arm: RobotSpec) -> Iterator[Far]:
    one = FAR[request.param](arm)
    yield one
    one.transport.close()
    one.close()


def until(wanted: Callable[[], Any], each: Callable[[], Any] = lambda: None) -> None:
    clock = MonotonicClock()
    end = clock.now() + PATIENCE
    while not wanted():
        assert clock.now() < end, "waited in vain"
        each()
        clock.sleep_until(clock.now() + 0.005)


def message(arm: RobotSpec, k: int) -> dict:
    return write_state(arm.state[0], np.array([0.1, 0.2, 0.3, 0.4]) * k, 100.0 + k)


def test_every_transport_of_the_table_is_tested() -> None:
    assert {name.partition("-")[0] for name in FAR} == set(TRANSPORTS)


def test_a_transport_owes_state_command_age_orders_and_reasons(far: Far, arm: RobotSpec) -> None:
    transport = far.transport
    assert transport.read() is None and transport.age() == np.inf and transport.problem() is None
    count = iter(range(1, 10**6))
    until(lambda: transport.read() is not None, lambda: far.publish(message(arm, next(count))))
    k = next(count)
    latest = np.array([0.1, 0.2, 0.3, 0.4]) * k
    until(lambda: (transport.read().values == latest).all(), lambda: far.publish(message(arm, k)))
    state = transport.read()
    assert state.stamp == 100.0 + k

    permuted = message(arm, k + 1)
    for name in ("name", "position", "velocity"):
        permuted[name] = permuted[name][::-1]
    far.publish(permuted)
    until(lambda: transport.read().stamp == 101.0 + k)
    np.testing.assert_array_equal(transport.read().values, np.array([0.1, 0.2, 0.3, 0.4]) * (k + 1))
    assert transport.read().source == state.source, "the same publisher keeps its identity"

    until(lambda: transport.read() is not None and transport.age() > 0.05)
    wrong = message(arm, k + 2)
    wrong["name"][0] = "knee"
    until(lambda: transport.problem() is not None and "knee" in transport.problem(),
          lambda: (far.publish(wrong), transport.read()))  # fmt: skip
    assert transport.read().stamp == 101.0 + k

    asked = np.array([0.25, -0.125])
    until(lambda: far.command() is not None, lambda: transport.write(asked))
    assert (far.command() == asked).all()

    heard: list[str] = []
    until(lambda: heard.extend(transport.messages()) or heard, lambda: far.say("hold"))
    assert set(heard) == {"hold"}


@pytest.mark.ros2
def test_over_rclpy_a_publisher_that_restarts_is_another(arm: RobotSpec) -> None:
    far = far_rclpy(arm)
    from robot_cl.deploy import rclpy as ours

    transport, count, sources = far.transport, iter(range(1, 10**6)), []
    for _ in range(2):
        node = ours.Node("robot", context=transport._context)
        publisher = node.create_publisher(ours.message_class(arm.state[0].type), "joint_states", 1)
        heard = transport.inbox.accepted
        until(
            lambda heard=heard: transport.read() is not None and transport.inbox.accepted > heard + 5,
            lambda publisher=publisher: publisher.publish(ours.to_ros(arm.state[0].type, message(arm, next(count)))),
        )
        sources.append(transport.read().source)
        node.destroy_node()
    transport.close()
    far.close()
    assert sources[0] != sources[1]


def test_stamps_only_go_forward_except_when_a_clock_was_set_back() -> None:
    accept = StampFilter().accept
    stamps = [10.0, 10.1, 10.05, 10.1, 10.2, 5.0, 10.3, 5.1, 4.0, 4.1, 4.05, 4.2, np.nan, np.inf, 4.3]
    wanted = [True, True, False, False, True, False, True, False, False, True, False, True, False, False, True]
    assert [accept(s) for s in stamps] == wanted
    assert StampFilter().accept(None)


def test_age_is_that_of_the_slowest_needed_topic(arm_dict: dict) -> None:
    from robot_cl.deploy.clock import VirtualClock
    from robot_cl.deploy.robot_file import robot_from_dict

    arm_dict["state"]["imu"] = {"topic": "/imu", "type": "sensor_msgs/msg/Imu"}
    spec, clock = robot_from_dict(arm_dict), VirtualClock()
    inbox = Inbox(spec, clock)
    inbox.offer(spec.state[0], 1.0, np.zeros(4))
    assert inbox.read() is None and inbox.age() == np.inf
    clock.advance(0.5)
    inbox.offer(spec.state[1], 1.0, np.zeros(10))
    assert inbox.age() == 0.5
    inbox.need({"imu.orientation.x"})
    assert inbox.age() == 0.0


def test_a_transport_that_does_not_exist_or_is_not_installed_is_explained(arm: RobotSpec) -> None:
    with pytest.raises(LookupError, match="did you mean 'dds'"):
        open_transport("ddss", arm)
    if importlib.util.find_spec("rclpy") is None:
        with pytest.raises(OSError, match="source the ROS 2 setup file"):
            open_transport("rclpy", arm)
    assert "sensor_msgs/msg/Imu" in SCHEMAS
