"""The robot of a mission: its task's physics in a process of its own, behind DDS, until it is killed.

    python benchmarks/mission_parts/robot.py ROBOT_FILE BUNDLE DOMAIN SEED

Prints "ready", and one JSON line at SIGTERM: commands heard, those outside their box, crashes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

# A real robot's start takes nothing from the machine that drives: until it is ready this one steps back.
os.setpriority(os.PRIO_PROCESS, 0, 15)

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import sim  # noqa: E402
from benchmarks.bridge_parts.echo import network  # noqa: E402
from robot_cl.deploy.bundle import read_contract  # noqa: E402
from robot_cl.deploy.clock import MonotonicClock  # noqa: E402
from robot_cl.deploy.dds_node import Node  # noqa: E402
from robot_cl.deploy.plants import TaskPlant  # noqa: E402
from robot_cl.deploy.robot_file import load_robot  # noqa: E402
from robot_cl.deploy.simulated import SimulatedRobot  # noqa: E402


class MissionPlant(TaskPlant):
    """Goes on where an episode would end. Counts crashes (of what can crash) and commands outside their box."""

    crashes = outside = 0
    down = False

    def step(self, command: np.ndarray) -> None:
        low, high = (np.array([getattr(c, side) for c in self.spec.channels]) for side in ("low", "high"))
        self.outside += int((command < low - 1e-9).any() or (command > high + 1e-9).any())
        super().step(command)
        self.ended = False
        lost = self.fell and self.task.name.startswith("quadrotor")
        self.crashes, self.down = self.crashes + int(lost and not self.down), lost


def main() -> None:
    robot_file, bundle, domain, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    contract, spec = read_contract(bundle), load_robot(robot_file)
    plant = MissionPlant(sim.get_task(contract.task), contract, spec, seed)
    robot = SimulatedRobot(spec, plant, Node(**network(domain)), MonotonicClock())

    def report(*_: object) -> None:
        robot.node.close()
        print(json.dumps({"commands": robot.count, "outside": plant.outside, "crashes": plant.crashes}), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, report)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # nobody is left to tell it to end otherwise
        robot.run(1.0)


if __name__ == "__main__":
    main()
