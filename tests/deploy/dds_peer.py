"""A simulated two-joint arm in a process of its own, for tests: `python dds_peer.py DOMAIN HZ` until killed.

Prints "ready", then after SIGTERM one JSON line: commands received, the largest command and step between two.
"""

from __future__ import annotations

import json
import signal
import socket
import sys

import numpy as np

from robot_cl.deploy.clock import MonotonicClock
from robot_cl.deploy.dds_node import Node
from robot_cl.deploy.loopback import JointPlant
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import robot_from_dict
from robot_cl.deploy.simulated import SimulatedRobot


def arm_spec(hertz: float) -> RobotSpec:
    limits = {"unit": "rad", "low": -1.0, "high": 1.0, "rate": 4.0}
    channels = [{"name": f"{j}.position", **limits} for j in ("elbow", "waist")]
    joints = {"topic": "/joint_states", "type": "sensor_msgs/msg/JointState", "joints": ["waist", "elbow"]}
    topic = {"topic": "/commands", "type": "std_msgs/msg/Float64MultiArray", "channels": channels}
    return robot_from_dict({"name": "arm2", "control_dt": 1.0 / hertz, "state": {"joints": joints}, "command": [topic]})


reserved: list[socket.socket] = []  # until this process ends: a peer that was killed is remembered for ten seconds


def free_domain() -> int:
    """A DDS domain that nobody on this machine is in, and that neither this process nor another one got here. Ports of
    domains above 100 may be taken by anything."""
    for domain in np.random.default_rng().permutation(np.arange(1, 100)).tolist():
        first = 7400 + 250 * domain
        mine = _bound(first + 249)  # which no participant takes
        if mine is None:
            continue
        probe = _bound(first + 10)  # where a domain's first participant listens
        if probe is not None:
            probe.close()
            reserved.append(mine)
            return domain
        mine.close()
    raise OSError("every DDS domain from 1 to 99 is taken on this machine")


def _bound(port: int) -> socket.socket | None:
    """A socket at a port of this machine, None where something else is."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.bind(("127.0.0.1", port))
    except OSError:
        made.close()
        return None
    return made


def network(domain: int) -> dict:
    return {"domain": domain, "interface": "lo", "peers": ("127.0.0.1",), "multicast": False}


class Watching(JointPlant):
    """Notes the largest command and the largest step between two."""

    largest = step_size = 0.0
    last: np.ndarray | None = None

    def step(self, command: np.ndarray) -> None:
        self.largest = max(self.largest, float(np.abs(command).max()))
        if self.last is not None:
            self.step_size = max(self.step_size, float(np.abs(command - self.last).max()))
        self.last = command.copy()
        super().step(command)


def main() -> None:
    spec = arm_spec(float(sys.argv[2]))
    plant, clock = Watching(spec), MonotonicClock()
    robot = SimulatedRobot(spec, plant, Node(**network(int(sys.argv[1]))), clock)

    def report(*_: object) -> None:
        robot.node.close()
        seen = {"count": robot.count, "largest": plant.largest, "step": plant.step_size}
        print(json.dumps(seen), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, report)
    print("ready", flush=True)
    robot.run(60.0)


if __name__ == "__main__":
    main()
