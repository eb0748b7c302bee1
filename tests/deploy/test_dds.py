"""DDS between real processes on the loopback interface: what is said is heard, deaths are noticed, nobody restarts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")

import dds_peer

from robot_cl.deploy.cdr import encode
from robot_cl.deploy.clock import MonotonicClock
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.dds import OPERATOR_TOPIC, STRING, DdsTransport
from robot_cl.deploy.dds_node import Node, idl_type, topic_name, type_hash
from robot_cl.deploy.extract import write_state
from robot_cl.deploy.loopback import JointPlant
from robot_cl.deploy.messages import SCHEMAS
from robot_cl.deploy.modes import Mode, RunnerConfig
from robot_cl.deploy.runner import Runner
from robot_cl.deploy.simulated import SimulatedRobot
from sim.spec import Channel, Interface

HERE = Path(__file__).parent
PATIENCE = 20.0
# RIHS01 hashes of ROS 2 Jazzy's own interface packages.
HASHES = {
    "sensor_msgs/msg/JointState": "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e",
    "sensor_msgs/msg/Imu": "RIHS01_7d9a00ff131080897a5ec7e26e315954b8eae3353c3f995c55faf71574000b5b",
    "nav_msgs/msg/Odometry": "RIHS01_3cc97dc7fb7502f8714462c526d369e35b603cfc34d946e3f2eda2766dfec6e0",
    "std_msgs/msg/Float64MultiArray": "RIHS01_1025ddc6b9552d191f89ef1a8d2f60f3d373e28b283d8891ddcc974e8c55397f",
    "geometry_msgs/msg/Twist": "RIHS01_9c45bf16fe0983d80e3cfe750d6835843d265a9a6c46bd2e609fcddde6fb8d2a",
    "trajectory_msgs/msg/JointTrajectory": "RIHS01_179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e",
}


class Waving:
    """Moves both joints to and fro. Remembers how often it was asked."""

    obs_dim, act_dim, calls = 4, 2, 0

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full((1, 2), np.sin(0.05 * self.calls), np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def contract(hertz: float) -> Contract:
    obs = [Channel(f"{j}.{f}", u) for f, u in (("position", "rad"), ("velocity", "rad/s")) for j in ("waist", "elbow")]
    action = [Channel(f"{j}.position", "rad", -1.0, 1.0) for j in ("waist", "elbow")]
    interface = Interface(tuple(obs), tuple(action), 1.0 / hertz)
    return Contract("0" * 64, 0, "test", 1.0 / hertz, interface.digest, *terms_from_interface(interface))


class Pair:
    """A runner here and a robot process there."""

    def __init__(self, domain: int, hertz: float):
        self.domain, self.hertz, self.clock = domain, hertz, MonotonicClock()
        self.robot = self.spawn()
        self.transport = DdsTransport(dds_peer.arm_spec(hertz), self.clock, **dds_peer.network(domain))
        # A busy test machine is no robot: generous times, so that only what the test does can cause a hold.
        config = RunnerConfig(stale_s=0.45, damp_s=0.9, ramp_s=0.05, late_hold=1000, late_damp=10_000)
        self.runner = Runner(Waving(), contract(hertz), self.transport, self.clock, config)

    def spawn(self) -> subprocess.Popen:
        command = [sys.executable, str(HERE / "dds_peer.py"), str(self.domain), str(self.hertz)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        robot = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert robot.stdout is not None and robot.stdout.readline() == "ready\n"
        return robot

    def until(self, wanted: Callable[[], Any], tick: bool = True) -> None:
        """Tick in rhythm until `wanted`; a minute at most, whatever the machine does."""
        begin = due = self.clock.now()
        while not wanted():
            assert self.clock.now() < begin + PATIENCE, f"waited in vain in {self.runner.mode}: {self.runner.reason}"
            if tick:
                self.runner.tick()
            due = max(due + 1.0 / self.hertz, self.clock.now())
            self.clock.sleep_until(due)

    def drive(self) -> None:
        self.until(lambda: self.transport.read() is not None, tick=False)
        self.runner.enable()
        self.runner.start()
        self.until(lambda: self.runner.mode is Mode.ACTIVE)

    def report(self) -> dict:
        self.robot.send_signal(signal.SIGTERM)
        out, _ = self.robot.communicate(timeout=PATIENCE)
        return json.loads(out.splitlines()[-1])

    def close(self) -> None:
        self.runner.close()
        self.transport.close()
        if self.robot.poll() is None:
            self.robot.kill()
            self.robot.wait()


@pytest.fixture
def pair(domain: int) -> Iterator[Callable[[float], Pair]]:
    made: list[Pair] = []

    def make(hertz: float) -> Pair:
        made.append(Pair(domain, hertz))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("hertz", [100.0, 500.0])
def test_a_policy_moves_a_robot_in_another_process(pair: Callable[[float], Pair], hertz: float) -> None:
    rig = pair(hertz)
    rig.drive()
    seen: list[float] = []

    def moved() -> bool:
        state = rig.transport.read()
        seen.append(0.0 if state is None else float(state.values[0]))
        return rig.runner.mind.caller.policy.calls > 150 and np.ptp(seen) > 0.3

    rig.until(moved)
    assert rig.runner.mode is Mode.ACTIVE, rig.runner.reason
    assert rig.transport.inbox.refused == 0
    report = rig.report()
    assert report["count"] > 20 and report["largest"] <= 1.0  # of those that came while it was busy it keeps the last
    assert report["step"] <= 4.0 / hertz * 30 and report["step"] > 0  # commands may be lost, never invented


def test_a_killed_robot_is_noticed_and_its_return_changes_nothing_without_an_operator(
    pair: Callable[[float], Pair],
) -> None:
    rig = pair(100.0)
    rig.drive()
    rig.robot.send_signal(signal.SIGKILL)
    rig.robot.wait()
    modes = []
    rig.until(lambda: modes.append(rig.runner.mode) or rig.runner.mode is Mode.DAMP)
    assert modes.index(Mode.HOLD) < modes.index(Mode.DAMP)
    rig.robot = rig.spawn()
    heard = rig.transport.inbox.accepted
    rig.until(lambda: rig.transport.inbox.accepted > heard + 30)
    assert rig.runner.mode is Mode.DAMP
    rig.runner.enable()
    rig.runner.start()
    rig.until(lambda: rig.runner.mode is Mode.ACTIVE)
    assert rig.report()["largest"] <= 1.0


def test_a_stop_over_the_network_reaches_the_robot(pair: Callable[[float], Pair], domain: int) -> None:
    rig = pair(100.0)
    rig.drive()
    operator = Node(**dds_peer.network(domain))
    writer = operator.writer(OPERATOR_TOPIC, STRING)
    rig.until(lambda: writer.listeners() == 1)
    writer.write({"data": "stop"})
    rig.until(lambda: rig.runner.mode is Mode.ESTOP)
    operator.close()
    stopped = rig.runner.actuation.previous
    rig.until(lambda: np.allclose(_positions(rig), stopped, atol=1e-3))


def test_a_shadow_beside_a_robot_in_another_process_sends_it_nothing(pair: Callable[[float], Pair]) -> None:
    rig = pair(100.0)
    rig.until(lambda: rig.transport.read() is not None, tick=False)
    rig.until(lambda: rig.transport.listeners() == {"/commands": 1}, tick=False)
    rig.runner.shadow()
    rig.until(lambda: rig.runner.mind.caller.policy.calls > 20)
    rig.runner.estop()
    rig.until(lambda: rig.runner.mode is Mode.DISABLED)
    rig.runner.close()
    assert rig.report()["count"] == 0


def _positions(rig: Pair) -> np.ndarray:
    """Measured elbow and waist, in the order of the commands."""
    state = rig.transport.read()
    return np.full(2, np.nan) if state is None else state.values[[1, 0]]


@pytest.mark.parametrize("codec", ["fast", "public"])
@pytest.mark.parametrize("other", ["fast", "public"])
def test_both_codecs_speak_the_same_language(domain: int, codec: str, other: str) -> None:
    spec, clock = dds_peer.arm_spec(100.0), MonotonicClock()
    node = Node(**dds_peer.network(domain), codec=other)
    robot = SimulatedRobot(spec, JointPlant(spec), node, clock)
    transport = DdsTransport(spec, clock, **dds_peer.network(domain), codec=codec)
    assert transport.node.fast == (codec == "fast") and node.fast == (other == "fast")
    end = clock.now() + PATIENCE
    while (robot.count < 5 or transport.inbox.accepted < 5) and clock.now() < end:
        robot.step()
        transport.read()
        transport.write(np.array([0.25, -0.5]))
        clock.sleep_until(clock.now() + 0.002)
    assert robot.command.tolist() == [0.25, -0.5]
    robot.publish()
    while clock.now() < end:
        state = transport.read()
        if state is not None and np.allclose(state.values[:2], robot.plant.position[[1, 0]]):
            break
    state = transport.read()
    assert state is not None and np.allclose(state.values[:2], robot.plant.position[[1, 0]])
    assert transport.listeners() == {"/commands": 1}
    node.close()  # a dying writer sends samples without data
    for _ in range(20):
        transport.read()
        clock.sleep_until(clock.now() + 0.005)
    assert transport.inbox.refused == 0
    transport.close()


def test_messages_that_are_nonsense_are_refused_and_counted(domain: int) -> None:
    spec, clock = dds_peer.arm_spec(100.0), MonotonicClock()
    node = Node(**dds_peer.network(domain))
    writer = node.writer("/joint_states", "sensor_msgs/msg/JointState")
    transport = DdsTransport(spec, clock, **dds_peer.network(domain))
    wrong = {"header": {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": ""}, "name": ["waist", "knee"],
             "position": [0.0, 0.0], "velocity": [0.0, 0.0], "effort": []}  # fmt: skip
    end = clock.now() + PATIENCE
    while transport.inbox.refused < 3 and clock.now() < end:
        writer.write(encode("sensor_msgs/msg/JointState", wrong))
        transport.read()
        clock.sleep_until(clock.now() + 0.002)
    assert transport.read() is None and "without elbow" in str(transport.problem())
    transport.close()
    node.close()


def test_names_and_types_are_those_ros_2_uses() -> None:
    assert topic_name("/joint_states") == "rt/joint_states"
    kind = idl_type("sensor_msgs/msg/JointState")
    assert kind.__idl__.idl_transformed_typename == "sensor_msgs::msg::dds_::JointState_"
    for name in SCHEMAS:
        assert idl_type(name).__idl_annotations__["extensibility"] == "final"


@pytest.mark.parametrize("kind", sorted(HASHES))
def test_type_hashes_are_those_of_ros_2_jazzy(kind: str) -> None:
    assert type_hash(kind) == HASHES[kind]


def test_a_gripper_that_speaks_on_the_topic_of_its_arm_does_not_drown_it(domain: int) -> None:
    spec = dds_peer.arm_spec(50.0)
    transport, node = DdsTransport(spec, **dds_peer.network(domain)), Node(**dds_peer.network(domain))
    arm, gripper = (node.writer(spec.state[0].topic, spec.state[0].type) for _ in range(2))
    clock = MonotonicClock()
    end = clock.now() + PATIENCE
    while not (arm.listeners() and gripper.listeners() and clock.now() < end):
        clock.sleep_until(clock.now() + 0.01)
    other = {**write_state(spec.state[0], np.zeros(4), 1.0), "name": ["finger"], "position": [0.1], "velocity": [0.0]}
    heard: set[float] = set()
    for k in range(1, 20):  # the gripper always has the last word
        arm.write(write_state(spec.state[0], np.full(4, float(k)), 100.0 + k))
        gripper.write(other)
        clock.sleep_until(clock.now() + 0.01)
        state = transport.read()
        heard |= {float(state.values[0])} if state is not None else set()
    node.close()
    transport.close()
    assert len(heard) > 10 and "finger" in str(transport.problem())


@pytest.mark.parametrize("codec", ["fast", "public"])
def test_what_dds_refuses_is_an_os_error_whatever_the_codec(domain: int, codec: str) -> None:
    node = Node(**dds_peer.network(domain), codec=codec)
    writer, reader = node.writer("/x", STRING), node.reader("/x", STRING)
    node.close()
    with pytest.raises(OSError, match="DDS could not write"):
        writer.write({"data": "stop"})
    with pytest.raises(OSError, match="DDS could not read"):
        reader.take()


@pytest.fixture(scope="session")
def fastdds_peer(request: pytest.FixtureRequest) -> Path:
    """Our C++ peer, compiled against Debian's Fast-DDS; skipped where its packages are missing.

    Compiling takes many seconds, so pytest's cache keeps what belongs to the present sources.
    """
    if not all(shutil.which(tool) for tool in ("fastddsgen", "g++")):
        pytest.skip("needs libfastrtps-dev libfastcdr-dev fastddsgen g++")
    given = [HERE / "fastdds" / name for name in ("messages.idl", "peer.cpp")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in given)).hexdigest()[:16]
    folder = request.config.cache.mkdir(f"fastdds-{digest}")
    if (folder / "peer").exists():
        return folder / "peer"
    for path in given:
        shutil.copy(path, folder)
    sources = ["peer.cpp", "messages.cxx", "messagesPubSubTypes.cxx"]
    for command in (
        ["fastddsgen", "-replace", "messages.idl"],
        ["g++", "-std=c++14", "-O0", "-I.", "-o", "peer", *sources, "-lfastrtps", "-lfastcdr"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / "peer"


def test_a_robot_built_on_another_vendors_dds_hears_and_is_heard(fastdds_peer: Path, domain: int) -> None:
    spec, clock = dds_peer.arm_spec(100.0), MonotonicClock()
    transport = DdsTransport(spec, clock, **dds_peer.network(domain))
    command = [str(fastdds_peer), str(domain), "20", "elbow", "waist"]
    robot = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        end, echoed = clock.now() + PATIENCE, False
        asked = np.array([0.123456789, -0.75])
        while not echoed and clock.now() < end:
            transport.write(asked)
            state = transport.read()
            # The peer lists its joints in the order of the commands, our signals in another.
            echoed = state is not None and (state.values[[1, 0]] == asked).all()
            clock.sleep_until(clock.now() + 0.01)
        assert echoed, transport.problem()
        for _ in range(60):
            transport.write(asked)
            transport.read()
            clock.sleep_until(clock.now() + 0.01)
        assert robot.stdout is not None and robot.stdout.readline() == "heard 20 last -0.75\n"
        assert transport.inbox.refused == 0 and transport._states[0][2].template is not None
    finally:
        robot.kill()
        robot.wait()
        transport.close()
