"""rosbridge against a stand-in server (never a real one here): control, silence, restarts, nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("roslibpy")

import rosbridge_standin as standin

from robot_cl.deploy.clock import MonotonicClock
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.extract import write_state
from robot_cl.deploy.loopback import JointPlant
from robot_cl.deploy.modes import Mode, RunnerConfig
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import robot_from_dict
from robot_cl.deploy.rosbridge import RosbridgeTransport, ros_1_stamps, two_part
from robot_cl.deploy.runner import Runner
from robot_cl.deploy.simulated import SimulatedRobot

STATES, COMMANDS = "/joint_states", "/forward_position_controller/commands"
PATIENCE = 20.0


@pytest.fixture
def server() -> Iterator[Any]:
    one = standin.StandIn()
    yield one
    one.close()


@pytest.fixture
def connect(arm: RobotSpec) -> Iterator[Callable[..., RosbridgeTransport]]:
    made: list[RosbridgeTransport] = []

    def make(server: Any, **options: Any) -> RosbridgeTransport:
        made.append(RosbridgeTransport(arm, port=server.port, **options))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def until(wanted: Callable[[], Any], each: Callable[[], Any] = lambda: None) -> None:
    """Do `each` every few milliseconds until `wanted`."""
    clock = MonotonicClock()
    end = clock.now() + PATIENCE
    while not wanted():
        assert clock.now() < end, "waited in vain"
        each()
        clock.sleep_until(clock.now() + 0.005)


def state(arm: RobotSpec, k: int = 0) -> dict:
    return write_state(arm.state[0], np.full(4, 0.01 * k), 100.0 + k)


def test_a_policy_moves_a_robot_over_the_bridge_and_a_lost_connection_holds_it(
    server: Any, connect: Callable, arm: RobotSpec, arm_contract: Contract
) -> None:
    transport = connect(server)
    clock = transport.clock
    robot = SimulatedRobot(arm, JointPlant(arm), standin.StandInNode(server), clock)

    class Fixed:
        obs_dim, act_dim = 4, 2

        def act(self, obs: np.ndarray) -> np.ndarray:
            return np.full((1, 2), 0.5, np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    config = RunnerConfig(stale_s=0.4, damp_s=0.8, ramp_s=0.05, late_hold=1000, late_damp=10_000)
    runner = Runner(Fixed(), arm_contract, transport, clock, config)
    until(lambda: transport.read() is not None, robot.step)
    runner.enable()
    runner.start()

    def both() -> None:
        robot.step()
        runner.tick()

    until(lambda: np.allclose(robot.plant.position, [1.0, 0.5], atol=1e-3), both)
    assert runner.mode is Mode.ACTIVE and transport.problem() is None
    server.drop_clients()
    until(lambda: runner.mode in (Mode.HOLD, Mode.DAMP), both)
    until(lambda: transport.connections == 2 and transport.age() < 0.1, both)
    for _ in range(20):
        both()
    assert runner.mode in (Mode.HOLD, Mode.DAMP), "a bridge that came back must not drive by itself"
    if runner.mode is Mode.DAMP:
        runner.enable()
    runner.start()
    until(lambda: runner.mode is Mode.ACTIVE, both)


def test_commands_of_a_time_without_connection_never_arrive(connect: Callable, arm: RobotSpec) -> None:
    server = standin.StandIn()
    transport = connect(server)
    until(lambda: server.published.get(COMMANDS), lambda: transport.write(np.array([0.5, 0.5])))
    server.close()
    until(lambda: not transport._client.is_connected)
    for _ in range(20):
        with pytest.raises(OSError, match="connection to rosbridge is lost"):
            transport.write(np.array([0.25, 0.25]))
    back = standin.StandIn(port=server.port)
    until(lambda: transport._client.is_connected)
    until(lambda: back.published.get(COMMANDS), lambda: transport.write(np.array([0.125, 0.125])))
    assert all(m["data"] == [0.125, 0.125] for m in back.published[COMMANDS])
    back.close()


def test_a_server_that_is_silent_on_an_open_connection_counts_as_dead(
    server: Any, connect: Callable, arm: RobotSpec
) -> None:
    transport = connect(server)
    count = iter(range(10**6))
    until(lambda: transport.read() is not None, lambda: server.publish(STATES, state(arm, next(count))))
    server.silent = True
    until(lambda: transport.age() > 0.3, lambda: server.publish(STATES, state(arm, next(count))))
    assert transport._client.is_connected, "the port is still open: only the age tells"


def test_a_subscription_made_too_early_is_made_again(server: Any, connect: Callable, arm: RobotSpec) -> None:
    server.late.add(STATES)
    transport = connect(server)
    until(lambda: any(r["op"] == "subscribe" and r["topic"] == STATES for r in server.requests))
    server.appear(STATES)
    assert not server.hears(STATES), "the fault must really leave the first subscription deaf"
    count = iter(range(10**6))
    until(lambda: transport.read() is not None, lambda: server.publish(STATES, state(arm, next(count))))


def test_ros_1_gets_its_own_type_names_and_stamps(arm_dict: dict) -> None:
    old = standin.StandIn(ros=1)
    arm_dict["command"][0].update(type="geometry_msgs/msg/TwistStamped")
    for channel, field in zip(arm_dict["command"][0]["channels"], ("linear.x", "angular.z"), strict=True):
        channel["field"] = field
    transport = RosbridgeTransport(robot_from_dict(arm_dict), port=old.port, ros=1, wall_time=lambda: 12.5)
    message = ros_1_stamps(state(transport.spec, 3))
    assert message["header"]["stamp"] == {"secs": 103, "nsecs": 0}

    def talk() -> None:
        old.publish(STATES, message)
        transport.write(np.array([0.25, 0.5]))

    until(lambda: transport.read() is not None and old.published.get(COMMANDS), talk)
    sent = old.published[COMMANDS][-1]
    assert sent["header"]["stamp"] == {"secs": 12, "nsecs": 500000000} and sent["twist"]["angular"]["z"] == 0.5
    assert {r["type"] for r in old.requests if "type" in r} >= {"sensor_msgs/JointState", "geometry_msgs/TwistStamped"}
    assert transport.problem() is None and two_part("a/msg/B") == "a/B"
    transport.close()
    old.close()


def test_errors_the_bridge_reports_are_seen(server: Any, connect: Callable) -> None:
    transport = connect(server)
    server.send_text(json.dumps({"op": "status", "level": "error", "msg": "no such topic"}))
    until(lambda: transport.problem() == "no such topic")


def test_nobody_there_and_too_fast_are_said_in_one_sentence(arm: RobotSpec, arm_dict: dict) -> None:
    with pytest.raises(OSError, match="no rosbridge answers"):
        RosbridgeTransport(arm, port=1, timeout=0.3)
    with pytest.raises(ValueError, match="up to 50 Hz"):
        RosbridgeTransport(robot_from_dict({**arm_dict, "control_dt": 0.01}), port=1)


def test_no_frame_crashes_the_loop_or_moves_a_command_out_of_its_box(
    server: Any, connect: Callable, arm: RobotSpec, arm_contract: Contract
) -> None:
    transport = connect(server)
    rng, count = np.random.default_rng(0), iter(range(2, 10**6))

    class Wild:
        obs_dim, act_dim = 4, 2

        def act(self, obs: np.ndarray) -> np.ndarray:
            return rng.uniform(-3, 3, (1, 2)).astype(np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    runner = Runner(Wild(), arm_contract, transport, transport.clock, RunnerConfig(stale_s=0.4, ramp_s=0.0))
    until(lambda: transport.read() is not None, lambda: server.publish(STATES, state(arm)))
    sent: list[np.ndarray] = []
    write = transport.write
    transport.write = lambda command: (sent.append(command.copy()), write(command))[1]  # type: ignore[method-assign]
    runner.enable()
    for _ in range(300):
        for _ in range(6):  # what waits for one tick is bounded, so more at once would go unseen
            server.send_text(standin.nonsense(rng, STATES, state(arm, int(rng.integers(0, 1000)))))
        server.publish(STATES, write_state(arm.state[0], np.zeros(4), 1e6 + next(count)))
        heard = transport.inbox.accepted
        until(lambda heard=heard: transport.inbox.accepted > heard, transport.read)
        if runner.mode is Mode.DAMP:
            _try(runner.enable)
        if runner.mode is Mode.HOLD:
            _try(runner.start)
        runner.tick()
    assert transport.connections == 1 and transport.inbox.refused > 300
    low, high = np.array([-0.5, -1.0]), np.array([1.5, 1.0])
    commands = np.array(sent)
    assert len(commands) > 200 and np.ptp(commands) > 0.5 and np.isfinite(commands).all()
    assert (commands >= low).all() and (commands <= high).all()
    assert (np.abs(np.diff(commands, axis=0)) <= 2.0 * 0.02 + 1e-12).all()


def _try(action: Callable[[], None]) -> bool:
    try:
        action()
    except ValueError:
        return False
    return True
