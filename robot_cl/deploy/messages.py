"""The ROS messages spoken here, as data: field tables, and named numbers in and out of nested dictionaries.

A message is a nested dict with the field names of its .msg file, whatever the transport: CDR, JSON and ROS classes are
converted at the transport's edge. Definitions equal those of ROS 2 Jazzy; a test compares their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Field = tuple[str, str]
Message = dict[str, Any]

# type -> [(field type, field name)]; "T[]" is a sequence, "T[n]" an array; primitive types as in .msg files.
SCHEMAS: dict[str, list[Field]] = {
    "builtin_interfaces/msg/Time": [("int32", "sec"), ("uint32", "nanosec")],
    "builtin_interfaces/msg/Duration": [("int32", "sec"), ("uint32", "nanosec")],
    "std_msgs/msg/Header": [("builtin_interfaces/msg/Time", "stamp"), ("string", "frame_id")],
    "std_msgs/msg/String": [("string", "data")],
    "std_msgs/msg/MultiArrayDimension": [("string", "label"), ("uint32", "size"), ("uint32", "stride")],
    "std_msgs/msg/MultiArrayLayout": [("std_msgs/msg/MultiArrayDimension[]", "dim"), ("uint32", "data_offset")],
    "std_msgs/msg/Float64MultiArray": [("std_msgs/msg/MultiArrayLayout", "layout"), ("float64[]", "data")],
    "geometry_msgs/msg/Vector3": [("float64", "x"), ("float64", "y"), ("float64", "z")],
    "geometry_msgs/msg/Point": [("float64", "x"), ("float64", "y"), ("float64", "z")],
    "geometry_msgs/msg/Quaternion": [("float64", "x"), ("float64", "y"), ("float64", "z"), ("float64", "w")],
    "geometry_msgs/msg/Pose": [
        ("geometry_msgs/msg/Point", "position"), ("geometry_msgs/msg/Quaternion", "orientation"),
    ],
    "geometry_msgs/msg/PoseStamped": [("std_msgs/msg/Header", "header"), ("geometry_msgs/msg/Pose", "pose")],
    "geometry_msgs/msg/PoseWithCovariance": [("geometry_msgs/msg/Pose", "pose"), ("float64[36]", "covariance")],
    "geometry_msgs/msg/Twist": [("geometry_msgs/msg/Vector3", "linear"), ("geometry_msgs/msg/Vector3", "angular")],
    "geometry_msgs/msg/TwistStamped": [("std_msgs/msg/Header", "header"), ("geometry_msgs/msg/Twist", "twist")],
    "geometry_msgs/msg/TwistWithCovariance": [("geometry_msgs/msg/Twist", "twist"), ("float64[36]", "covariance")],
    "sensor_msgs/msg/JointState": [
        ("std_msgs/msg/Header", "header"), ("string[]", "name"), ("float64[]", "position"), ("float64[]", "velocity"),
        ("float64[]", "effort"),
    ],
    "sensor_msgs/msg/Imu": [
        ("std_msgs/msg/Header", "header"),
        ("geometry_msgs/msg/Quaternion", "orientation"), ("float64[9]", "orientation_covariance"),
        ("geometry_msgs/msg/Vector3", "angular_velocity"), ("float64[9]", "angular_velocity_covariance"),
        ("geometry_msgs/msg/Vector3", "linear_acceleration"), ("float64[9]", "linear_acceleration_covariance"),
    ],
    "nav_msgs/msg/Odometry": [
        ("std_msgs/msg/Header", "header"), ("string", "child_frame_id"),
        ("geometry_msgs/msg/PoseWithCovariance", "pose"), ("geometry_msgs/msg/TwistWithCovariance", "twist"),
    ],
    "trajectory_msgs/msg/JointTrajectoryPoint": [
        ("float64[]", "positions"), ("float64[]", "velocities"), ("float64[]", "accelerations"),
        ("float64[]", "effort"), ("builtin_interfaces/msg/Duration", "time_from_start"),
    ],
    "trajectory_msgs/msg/JointTrajectory": [
        ("std_msgs/msg/Header", "header"), ("string[]", "joint_names"),
        ("trajectory_msgs/msg/JointTrajectoryPoint[]", "points"),
    ],
}  # fmt: skip

_XYZ = ("x", "y", "z")
# state type -> {signal suffix: path in the message}; JointState and Float64MultiArray carry their own names instead.
SENSOR_PATHS: dict[str, dict[str, tuple[str, ...]]] = {
    "sensor_msgs/msg/Imu": {
        **{f"orientation.{a}": ("orientation", a) for a in (*_XYZ, "w")},
        **{f"angular_velocity.{a}": ("angular_velocity", a) for a in _XYZ},
        **{f"linear_acceleration.{a}": ("linear_acceleration", a) for a in _XYZ},
    },
    "geometry_msgs/msg/PoseStamped": {
        **{f"position.{a}": ("pose", "position", a) for a in _XYZ},
        **{f"orientation.{a}": ("pose", "orientation", a) for a in (*_XYZ, "w")},
    },
    "nav_msgs/msg/Odometry": {
        **{f"position.{a}": ("pose", "pose", "position", a) for a in _XYZ},
        **{f"orientation.{a}": ("pose", "pose", "orientation", a) for a in (*_XYZ, "w")},
        **{f"linear.{a}": ("twist", "twist", "linear", a) for a in _XYZ},
        **{f"angular.{a}": ("twist", "twist", "angular", a) for a in _XYZ},
    },
}
# An Imu that cannot tell one of these says so by −1 in the first element of its covariance (sensor_msgs/msg/Imu).
UNKNOWN_PATHS: dict[str, dict[str, tuple[str | int, ...]]] = {
    "sensor_msgs/msg/Imu": {
        group: (f"{group}_covariance", 0) for group in ("orientation", "angular_velocity", "linear_acceleration")
    }
}
SENSOR_UNITS = {
    "position": "m", "orientation": "1", "linear": "m/s", "angular": "rad/s", "angular_velocity": "rad/s",
    "linear_acceleration": "m/s^2",
}  # fmt: skip
JOINT_FIELDS = ("position", "velocity", "effort")
# command type -> path of each named field; Float64MultiArray and JointTrajectory are lists in the YAML's order.
COMMAND_PATHS: dict[str, dict[str, tuple[str, ...]]] = {
    "geometry_msgs/msg/Twist": {f"{k}.{a}": (k, a) for k in ("linear", "angular") for a in _XYZ},
    "geometry_msgs/msg/TwistStamped": {f"{k}.{a}": ("twist", k, a) for k in ("linear", "angular") for a in _XYZ},
}
STATE_TYPES = ("sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray", *SENSOR_PATHS)
COMMAND_TYPES = ("std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory", *COMMAND_PATHS)
PRIMITIVES: dict[str, Any] = {"int32": 0, "uint32": 0, "float64": 0.0, "string": ""}


def split_type(kind: str) -> tuple[str, int | None]:
    """("float64", None) for one, ("float64", -1) for a sequence, ("float64", 9) for an array of nine."""
    if not kind.endswith("]"):
        return kind, None
    element, _, count = kind[:-1].partition("[")
    return element, int(count) if count else -1


def blank(kind: str) -> Any:
    """A message of this type with every field zero, empty or blank."""
    element, count = split_type(kind)
    if count is not None:
        return [blank(element) for _ in range(max(count, 0))]
    if element in PRIMITIVES:
        return PRIMITIVES[element]
    return {name: blank(field) for field, name in SCHEMAS[element]}


def from_fields(kind: str, message: Any) -> Any:
    """An object with ROS field names (cyclonedds, rclpy, rosbags) as a nested dict."""
    element, count = split_type(kind)
    if count is not None:
        return [from_fields(element, m) for m in message]
    if element not in SCHEMAS:
        return message
    return {name: from_fields(inner, getattr(message, name)) for inner, name in SCHEMAS[element]}


def stamp_of(message: Mapping[str, Any]) -> float | None:
    """Seconds of header.stamp, as ROS 2 (sec, nanosec) or ROS 1 (secs, nsecs) name them; None if absent or zero."""
    stamp = message.get("header", {}).get("stamp")
    if not stamp:
        return None
    seconds = stamp["sec"] if "sec" in stamp else stamp["secs"]
    nanos = stamp["nanosec"] if "nanosec" in stamp else stamp["nsecs"]
    return float(seconds) + 1e-9 * float(nanos) or None


def set_stamp(message: Message, seconds: float) -> None:
    """Write header.stamp (ROS 2 names) where the message has a header."""
    if "header" in message:
        whole = int(seconds // 1)
        message["header"]["stamp"] = {"sec": whole, "nanosec": min(int((seconds - whole) * 1e9), 999_999_999)}


def get_path(message: Mapping[str, Any], path: Sequence[str | int]) -> float:
    for name in path:
        message = message[name]  # type: ignore[index]
    return float(message)  # type: ignore[arg-type]


def set_path(message: Message, path: Sequence[str], value: float) -> None:
    for name in path[:-1]:
        message = message[name]
    message[path[-1]] = float(value)


def joint_of(channel: str) -> str:
    """The joint of a channel: "elbow.position" -> "elbow"."""
    base, _, last = channel.rpartition(".")
    return base if last in ("position", "velocity", "effort") else channel
