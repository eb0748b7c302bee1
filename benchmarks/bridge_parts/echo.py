"""The far side of the round trip: a process that answers every command with joint states of the same numbers.

    python benchmarks/bridge_parts/echo.py dds DOMAIN CODEC [PRIORITY]
    python benchmarks/bridge_parts/echo.py rosbridge PORT
    python benchmarks/bridge_parts/echo.py robot DOMAIN HZ      a robot at its own pace instead

Prints "ready" and goes on until it is killed. It waits for data, so that the time measured is the bridge's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
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


@functools.cache
def of_the_tests(name: str) -> Any:
    """A module of the tests of the bridge: rosbridge_standin, a stand-in for rosbridge_server, or dds_peer."""
    found = importlib.util.spec_from_file_location(name, ROOT / "tests" / "deploy" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def free_domain() -> int:
    """A DDS domain that nobody on this machine is in, and that no process got here before."""
    return int(of_the_tests("dds_peer").free_domain())


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


def play_robot(domain: int, hertz: float) -> None:
    """Joints that are at once where they are told to be, published at a fixed rate."""
    from robot_cl.deploy.clock import MonotonicClock
    from robot_cl.deploy.dds_node import Node
    from robot_cl.deploy.loopback import JointPlant
    from robot_cl.deploy.simulated import SimulatedRobot

    robot = spec(hertz)
    simulated = SimulatedRobot(robot, JointPlant(robot), Node(**network(domain)), MonotonicClock())
    print("ready", flush=True)
    simulated.run(float("inf"))


def echo_rosbridge(port: int) -> None:
    robot = spec(50.0)
    states, commands = robot.state[0], robot.command[0]
    module = of_the_tests("rosbridge_standin")

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
    if len(sys.argv) > 4:
        with contextlib.suppress(OSError):  # the near side says that it is not permitted
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(int(sys.argv[4])))
    if sys.argv[1] == "dds":
        echo_dds(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "robot":
        play_robot(int(sys.argv[2]), float(sys.argv[3]))
    else:
        echo_rosbridge(int(sys.argv[2]))
