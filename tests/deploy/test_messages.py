"""Messages as ROS 2 defines them, byte for byte, and codecs that believe nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_cl.deploy.cdr import Layout, ReadTemplate, WriteTemplate, decode, encode
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.extract import (
    command_paths,
    command_template,
    read_command,
    read_state,
    state_paths,
    write_command,
    write_state,
)
from robot_cl.deploy.loopback import JointPlant
from robot_cl.deploy.messages import SCHEMAS, blank, split_type
from robot_cl.deploy.robot import CommandChannel, CommandTopic, RobotSpec, StateTopic
from robot_cl.deploy.simulated import SimulatedRobot

rosbags = pytest.importorskip("rosbags.typesys")
STORE = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
GOLDEN = (
    "sensor_msgs/msg/JointState", "sensor_msgs/msg/Imu", "nav_msgs/msg/Odometry", "std_msgs/msg/Float64MultiArray",
    "geometry_msgs/msg/Twist", "trajectory_msgs/msg/JointTrajectory", "geometry_msgs/msg/TwistStamped",
    "std_msgs/msg/String",
)  # fmt: skip


def filled(kind: str, rng: np.random.Generator) -> Any:
    """A message with every field set to something uneven."""
    element, count = split_type(kind)
    if count is not None:
        size = count if count >= 0 else int(rng.integers(0, 5))
        return [filled(element, rng) for _ in range(size)]
    if element == "float64":
        return float(rng.standard_normal())
    if element in ("int32", "uint32"):
        return int(rng.integers(0, 2**31 - 1))
    if element == "string":
        return "nö" * int(rng.integers(0, 4)) + "x" * int(rng.integers(0, 4))
    return {name: filled(inner, rng) for inner, name in SCHEMAS[element]}


def to_rosbags(kind: str, message: Any) -> Any:
    """The same message as an object of rosbags' own classes."""
    element, count = split_type(kind)
    if count is not None:
        if element == "float64":
            return np.array(message, dtype=np.float64)
        return [to_rosbags(element, m) for m in message]
    if element not in SCHEMAS:
        return message
    return STORE.types[element](**{name: to_rosbags(inner, message[name]) for inner, name in SCHEMAS[element]})


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("seed", range(6))
def test_encoded_bytes_equal_those_of_rosbags(kind: str, seed: int) -> None:
    message = filled(kind, np.random.default_rng(seed))
    golden = bytes(STORE.serialize_cdr(to_rosbags(kind, message), kind))
    ours = encode(kind, message)
    assert ours == golden[: len(ours)] and not any(golden[len(ours) :])
    assert decode(kind, golden) == message


@pytest.mark.parametrize("kind", GOLDEN)
def test_big_endian_messages_are_read_as_well(kind: str) -> None:
    message = filled(kind, np.random.default_rng(9))
    big = bytes(STORE.serialize_cdr(to_rosbags(kind, message), kind, little_endian=False))
    assert decode(kind, big) == message


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_definitions_are_those_of_ros_2_jazzy(kind: str) -> None:
    fields = [(name, _describe(node)) for name, node in STORE.fielddefs[kind][1]]
    assert fields == [(name, inner) for inner, name in SCHEMAS[kind]]


def _describe(node: Any) -> str:
    tag, rest = node
    if tag.name == "BASE":
        return rest[0]
    if tag.name == "NAME":
        return rest
    inner, count = rest
    return f"{_describe(inner)}[{count or ''}]"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOLDEN), st.integers(0, 2**32 - 1), st.data())
def test_damaged_bytes_are_decoded_or_refused_but_never_more(kind: str, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(encode(kind, filled(kind, rng)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        decode(kind, cut)
    except ValueError as problem:
        assert str(problem)


def test_a_sequence_that_claims_more_than_there_is_allocates_nothing() -> None:
    raw = bytearray(encode("std_msgs/msg/Float64MultiArray", blank("std_msgs/msg/Float64MultiArray")))
    raw[4:8] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(ValueError, match="claims"):
        decode("std_msgs/msg/Float64MultiArray", bytes(raw))


JOINTS = StateTopic("joints", "/joint_states", "sensor_msgs/msg/JointState", ("a", "bb", "ccc"))
ODOM = StateTopic("base", "/odom", "nav_msgs/msg/Odometry")
IMU = StateTopic("imu", "/imu", "sensor_msgs/msg/Imu")
GOAL = StateTopic("goal", "/goal", "std_msgs/msg/Float64MultiArray", names=("x", "y"), units=("m", "m"))


@pytest.mark.parametrize("topic", [JOINTS, ODOM, IMU, GOAL], ids=lambda t: t.key)
def test_signals_survive_the_way_there_and_back(topic: StateTopic) -> None:
    values = np.random.default_rng(0).standard_normal(len(topic.signals))
    message = write_state(topic, values, 12.25)
    stamp, back = read_state(topic, decode(topic.type, encode(topic.type, message)))
    assert (back == values).all() and stamp == (None if topic is GOAL else 12.25)


@pytest.mark.parametrize("topic", [JOINTS, ODOM, IMU, GOAL], ids=lambda t: t.key)
def test_a_template_reads_what_the_general_decoder_reads(topic: StateTopic) -> None:
    rng = np.random.default_rng(0)
    first = write_state(topic, rng.standard_normal(len(topic.signals)), 3.5)
    template = ReadTemplate(topic.type, encode(topic.type, first), state_paths(topic, first))
    values = rng.standard_normal(len(topic.signals))
    raw = encode(topic.type, write_state(topic, values, 77.125))
    found = template.read(raw)
    assert found is not None and (found[1] == values).all()
    assert found[0] == (None if topic is GOAL else 77.125)


def test_what_an_imu_says_it_cannot_tell_is_unknown() -> None:
    pytest.importorskip("cyclonedds")
    from robot_cl.deploy.dds import StateReader

    topic = StateTopic("imu", "/imu", "sensor_msgs/msg/Imu")
    message = filled(topic.type, np.random.default_rng(0))
    unsure = {**message, "orientation_covariance": [-1.0] + [0.0] * 8}
    reader, names = StateReader(topic), list(topic.signals)
    for sent in (message, unsure, message, message):  # the third time through the template
        raw = encode(topic.type, sent)
        for values in (reader.read(raw)[1], read_state(topic, sent)[1], read_state(topic, decode(topic.type, raw))[1]):
            assert len(values) == len(names)
            told = dict(zip(names, values, strict=True))
            assert math.isnan(told["imu.orientation.w"]) == (sent is unsure)
            assert told["imu.angular_velocity.z"] == sent["angular_velocity"]["z"]
    assert reader.template is not None


def test_a_template_declines_whatever_is_shaped_otherwise() -> None:
    values = np.arange(6.0)
    first = write_state(JOINTS, values, 1.0)
    raw = encode(JOINTS.type, first)
    template = ReadTemplate(JOINTS.type, raw, state_paths(JOINTS, first))
    renamed, permuted, shorter = (write_state(JOINTS, values, 1.0) for _ in range(3))
    renamed["name"][1] = "bx"
    permuted["name"] = ["bb", "a", "ccc"]
    shorter["velocity"] = []
    reframed = write_state(JOINTS, values, 1.0)
    reframed["header"]["frame_id"] = "base_link"
    for message in (renamed, permuted, shorter, reframed):
        assert template.read(encode(JOINTS.type, message)) is None
    assert template.read(raw[:-1]) is None and template.read(b"\x00\x07" + raw[2:]) is None
    assert template.read(b"\x00\x00" + raw[2:]) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_template_and_decoder_never_disagree_on_damaged_bytes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = write_state(JOINTS, np.arange(6.0), 1.0)
    good = encode(JOINTS.type, first)
    template = ReadTemplate(JOINTS.type, good, state_paths(JOINTS, first))
    raw = bytearray(good)
    for at in rng.integers(0, len(raw), size=3):
        raw[at] = rng.integers(0, 256)
    fast = template.read(bytes(raw))
    if fast is not None:
        stamp, slow = read_state(JOINTS, decode(JOINTS.type, bytes(raw)))
        np.testing.assert_array_equal(fast[1], slow)
        assert fast[0] == stamp


def test_a_write_template_equals_the_general_encoder(arm: RobotSpec) -> None:
    names = ("waist", "elbow")
    for kind, fields in (
        ("std_msgs/msg/Float64MultiArray", ("", "")),
        ("trajectory_msgs/msg/JointTrajectory", ("", "")),
        ("geometry_msgs/msg/Twist", ("linear.x", "angular.z")),
        ("geometry_msgs/msg/TwistStamped", ("linear.x", "angular.z")),
    ):
        channels = tuple(CommandChannel(n, "rad", -1.0, 1.0, field=f) for n, f in zip(names, fields, strict=True))
        topic = CommandTopic("/c", kind, channels)
        template = WriteTemplate(kind, command_template(topic, 0.02), command_paths(topic))
        for values in (np.array([0.5, -0.25]), np.array([1.0, 2.0])):
            raw = template.write(values, 5.5)
            assert raw == encode(kind, write_command(topic, values, 0.02, 5.5))
            assert (read_command(topic, decode(kind, raw)) == values).all()


def test_every_float_lies_on_an_eight_byte_slot() -> None:
    for kind in GOLDEN:
        message = filled(kind, np.random.default_rng(1))
        raw, layout = encode(kind, message), Layout()
        decode(kind, raw, layout)
        words = np.frombuffer(raw, "<f8", (len(raw) - 4) // 8, 4)
        for path, slot in layout.slots.items():
            value: Any = message
            for key in path:
                value = value[key]
            assert words[slot] == value or math.isnan(value)


@pytest.mark.parametrize("junk", [{}, {"name": 3}, {"name": ["a"], "position": ["x"]}, {"header": {"stamp": {}}}])
def test_a_dictionary_that_is_no_joint_state_is_refused(junk: dict) -> None:
    with pytest.raises(ValueError):
        read_state(JOINTS, junk)


def test_a_command_of_another_shape_leaves_a_simulated_robot_as_it_is(arm: RobotSpec) -> None:
    class Wire:
        """Both sides of a middleware that carries whatever it is given."""

        def __init__(self) -> None:
            self.waiting: list[Any] = []

        def reader(self, topic: str, kind: str) -> Wire:
            return self

        writer = reader

        def take(self) -> list[tuple[Any, int]]:
            found, self.waiting = [(m, 0) for m in self.waiting], []
            return found

        def write(self, message: Any) -> None:
            pass

        def close(self) -> None:
            pass

    wire = Wire()
    robot = SimulatedRobot(arm, JointPlant(arm), wire, VirtualClock())
    wire.waiting = [{"data": data} for data in ([0.5, 0.25], [0.1], [1.0, 2.0, 3.0], [None, 1])] + [{}, b"\0\1"]
    robot.step()
    assert robot.command.tolist() == [0.5, 0.25] and (robot.count, robot.refused) == (1, 5)
