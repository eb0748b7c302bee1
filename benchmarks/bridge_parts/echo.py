"""The far side of the round trip: a process that answers every command with joint states of the same numbers.

    python benchmarks/bridge_parts/echo.py dds DOMAIN CODEC
    python benchmarks/bridge_parts/echo.py rosbridge PORT

Prints "ready" and goes on until it is killed. It waits for data, so that the time measured is the bridge's.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from robot_cl.deploy.cdr import decode, encode  # noqa: E402
from robot_cl.deploy.extract import read_command, write_state  # noqa: E402
from robot_cl.deploy.robot import RobotSpec  # noqa: E402
from robot_cl.deploy.robot_file import robot_from_dict  # noqa: E402

JOINTS = [f"joint_{k:02d}" for k in range(12)]


def spec(hertz: float) -> RobotSpec:
    """Twelve joints, positions out, positions and velocities back."""
    channels = [{"name": f"{j}.position", "unit": "rad", "low": -10.0, "high": 10.0} for j in JOINTS]
    return robot_from_dict(
        {
            "name": "echo",
            "control_dt": 1.0 / hertz,
            "state": {"joints": {"topic": "/joint_states", "type": "sensor_msgs/msg/JointState", "joints": JOINTS}},
            "command": [{"topic": "/commands", "type": "std_msgs/msg/Float64MultiArray", "channels": channels}],
        }
    )


def network(domain: int) -> dict[str, Any]:
    return {"domain": domain, "interface": "lo", "peers": ("127.0.0.1",), "multicast": False}


def standin() -> Any:
    """The stand-in for rosbridge_server that the tests use."""
    path = ROOT / "tests" / "deploy" / "rosbridge_standin.py"
    found = importlib.util.spec_from_file_location("rosbridge_standin", path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def echo_dds(domain: int, codec: str) -> None:
    from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState, WaitSet
    from cyclonedds.util import duration

    from robot_cl.deploy.dds_node import Node

    robot, node = spec(100.0), Node(**network(domain), codec=codec)
    states, commands = robot.state[0], robot.command[0]
    writer, reader = node.writer(states.topic, states.type), node.reader(commands.topic, commands.type)
    waiting = WaitSet(node._participant)
    waiting.attach(ReadCondition(reader.entity, ViewState.Any | InstanceState.Any | SampleState.NotRead))
    writer.write(write_state(states, np.zeros(24), time.time()))
    print("ready", flush=True)
    while True:
        waiting.wait(duration(milliseconds=100))
        for data, _ in reader.take():
            values = read_command(commands, decode(commands.type, data) if isinstance(data, bytes) else data)
            message = write_state(states, np.concatenate([values, np.zeros(12)]), time.time())
            writer.write(encode(states.type, message) if node.fast else message)


def echo_rosbridge(port: int) -> None:
    robot = spec(50.0)
    states, commands = robot.state[0], robot.command[0]
    module = standin()

    class Echo(module.StandIn):
        def handle(self, client: Any, request: dict) -> None:
            super().handle(client, request)
            if request.get("op") == "publish":
                values = read_command(commands, request["msg"])
                self.publish(states.topic, write_state(states, np.concatenate([values, np.zeros(12)]), time.time()))

    server = Echo(port=port)
    print("ready", flush=True)
    while True:
        time.sleep(0.2)
        if not server.hears(states.topic):
            continue
        server.publish(states.topic, write_state(states, np.zeros(24), time.time()))
        break
    while True:
        time.sleep(1.0)


if __name__ == "__main__":
    if sys.argv[1] == "dds":
        echo_dds(int(sys.argv[2]), sys.argv[3])
    else:
        echo_rosbridge(int(sys.argv[2]))
