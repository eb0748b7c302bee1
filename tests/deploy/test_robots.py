"""Robot files and their simulated robots: the policy sees through the robot's topics what it saw in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sim
from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import ActionTerm, Contract, ObservationTerm, terms_from_interface
from robot_cl.deploy.loopback import Loopback
from robot_cl.deploy.modes import Mode, RunnerConfig
from robot_cl.deploy.observe import ObservationBuilder, compare
from robot_cl.deploy.plants import TaskPlant, simulated_plant
from robot_cl.deploy.record import Recorder, drives, read_log
from robot_cl.deploy.robot_file import load_robot, robot_from_dict
from robot_cl.deploy.runner import Runner
from sim.spec import Channel, Interface

ROBOTS = Path(__file__).parents[2] / "configs" / "robot"
TASKS = {"arm": "arm-reach", "vehicle": "vehicle-waypoint", "quadrotor": "quadrotor-hover"}


def contract_of(task: str) -> Contract:
    interface = sim.make(task, threads=1).interface
    terms = terms_from_interface(interface)
    return Contract("0" * 64, 0, "test", interface.control_dt, interface.digest, *terms, task=task)


@pytest.mark.parametrize("path", sorted(ROBOTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_robot_file_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_robot(path).name == path.stem


@pytest.mark.parametrize("robot", sorted(TASKS))
def test_through_its_topics_a_robot_looks_as_it_did_in_training(robot: str) -> None:
    spec, contract = load_robot(ROBOTS / f"{robot}.yaml"), contract_of(TASKS[robot])
    assert [f for f in compare(contract, spec) if f.blocks] == []
    clock, plant = VirtualClock(), TaskPlant(sim.get_task(TASKS[robot]), contract, spec, seed=4)
    loopback, builder, actuation = Loopback(spec, plant, clock), ObservationBuilder(contract, spec), None
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(60):
        state = loopback.read()
        assert state is not None
        builder.goals.update(plant.goals)
        np.testing.assert_allclose(builder.build(state.values)[0], plant.observation(), atol=1e-5)
        seen.append(plant.observation())
        if actuation is None:
            actuation = Actuation(contract, spec)
            actuation.start(state.values)
        loopback.write(actuation.limit(actuation.from_action(rng.uniform(-0.3, 0.5, contract.act_dim)), state.values))
        clock.advance(spec.control_dt)
    assert np.ptp(seen, axis=0).max() > 0.02, "the robot must really have moved"


@pytest.mark.parametrize("robot", sorted(TASKS))
def test_commands_reach_the_actuators_their_actions_belong_to(robot: str) -> None:
    """One action at a time, held for a policy period: the task's own world and the robot end in the same place."""
    task = TASKS[robot]
    contract = contract_of(task)
    spec = load_robot(ROBOTS / f"{robot}.yaml")
    for k in range(contract.act_dim):
        plant = TaskPlant(sim.get_task(task), contract, spec, seed=1)
        world = sim.make(task, threads=1)
        world.set_state(plant.data.qpos[None], plant.data.qvel[None])
        action = np.zeros(contract.act_dim)
        action[k] = 0.5
        command = Actuation(contract, spec).from_action(action)
        for _ in range(plant.every):
            plant.step(command)
        world.step(action[None])
        np.testing.assert_allclose(plant.data.qpos, world.get_qpos()[0], atol=1e-9)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_simulated_robot_obeys_also_after_it_has_arrived(goes_on: bool) -> None:
    spec, contract = load_robot(ROBOTS / "vehicle.yaml"), contract_of("vehicle-waypoint")
    plant = simulated_plant("vehicle-waypoint", contract, spec, goes_on=goes_on)
    for axis in "xy":
        plant.data.joint(f"goal_{axis}").qpos[:] = plant.signals()["xy".index(axis)]
    for _ in range(plant.every):
        plant.step(np.zeros(2))
    assert plant.ended
    before, total = plant.signals(), plant.total
    for _ in range(50):
        plant.step(np.array([1.0, 0.0]))
    assert (np.abs(plant.signals() - before).max() > 0.3) == goes_on and plant.total == total


class Proportional:
    """Drives the vehicle to its goal by hand: turns towards it, slows down when it is near."""

    obs_dim, act_dim, calls = 4, 2, 0

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.calls += 1
        ahead, left = obs[:, 0], obs[:, 1]
        bearing = np.arctan2(left, ahead)
        return np.stack([np.clip(ahead, 0, 1), np.clip(1.2 * bearing, -1, 1)], 1).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def test_a_policy_of_5_hz_drives_a_vehicle_at_50_hz_to_its_goal(tmp_path: Path) -> None:
    spec, contract = load_robot(ROBOTS / "vehicle.yaml"), contract_of("vehicle-waypoint")
    clock, policy = VirtualClock(), Proportional()
    plant = TaskPlant(sim.get_task("vehicle-waypoint"), contract, spec, seed=2)
    loopback = Loopback(spec, plant, clock)
    recorder = Recorder(tmp_path / "a.mcap", contract, spec)
    runner = Runner(policy, contract, loopback, clock, RunnerConfig(ramp_s=0.2), listeners=(recorder,))
    runner.enable()
    runner.start()
    for name, value in plant.goals.items():
        runner.order(f"goal {name}={value}")
    begin = clock.now()
    while not plant.ended and clock.now() < begin + 20:
        runner.tick()
        runner.wait(begin + (len(loopback.sent)) * spec.control_dt)
    recorder.close()
    assert plant.fell and runner.mode is Mode.ACTIVE, "it must have arrived, which ends the episode"
    ticks = len(loopback.sent)
    assert runner.mind.every == 10 and policy.calls == -(-ticks // 10)
    sent = np.array([c for _, c in loopback.sent])
    low, high, rate = (np.array([getattr(c, k) for c in spec.channels]) for k in ("low", "high", "rate"))
    assert (sent >= low).all() and (sent <= high).all()
    assert (np.abs(np.diff(sent, axis=0)) <= rate * spec.control_dt + 1e-12).all()

    found = drives(read_log(recorder.path))
    assert 0 <= policy.calls - len(found.obs) <= 5
    assert np.allclose(np.diff(found.time), contract.control_dt, atol=1e-6)
    first = np.abs(found.action[3] - policy.act(found.obs[3:4].astype(np.float32))[0])
    assert first.max() < 0.4, "actions are those really taken, averaged over the policy's period"


def test_the_ur5e_fits_a_policy_of_joint_positions() -> None:
    joints = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
    obs = [Channel(f"{j}.{f}", u) for f, u in (("position", "rad"), ("velocity", "rad/s")) for j in joints]
    obs += [Channel(f"{p}.{a}", "m") for p in ("tip", "tip_to_goal") for a in "xyz"]
    interface = Interface(tuple(obs), tuple(Channel(f"{j}.position", "rad", -2.0, 2.0) for j in joints), 0.02)
    contract = Contract("0" * 64, 0, "t", 0.02, interface.digest, *terms_from_interface(interface))
    spec = load_robot(ROBOTS / "ur5e.yaml")
    assert compare(contract, spec) == []
    values = np.arange(len(spec.signals), dtype=float)
    built = ObservationBuilder(contract, spec).build(values)[0]
    at = spec.signal_index
    assert built[2] == values[at["elbow_joint.position"]]
    assert built[15] == pytest.approx(0.4 - values[at["tip.position.x"]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(speed=1), "RobotSpec has no entry 'speed'"),
        (lambda d: d["state"]["joints"].update(type="sensor_msgs/msg/Imuu"), "one of sensor_msgs/msg/JointState"),
        (lambda d: d["state"]["joints"].update(joints=["a", "a"]), "a appears more than once"),
        (lambda d: d["state"]["joints"].pop("joints"), "needs the list `joints`"),
        (lambda d: d["command"][0]["channels"][0].update(low=9.0), "low < high"),
        (lambda d: d["command"][0]["channels"][0].update(high="far"), "expected float"),
        (lambda d: d["command"][0]["channels"][0].update(stop=7.0), "stop 7.0"),
        (lambda d: d["command"][0]["channels"][0].update(hold="float"), "one of freeze, pd, damping"),
        (lambda d: d["command"][0]["channels"][0].update(hold="pd"), "needs the gains kp and kd"),
        (lambda d: d["command"][0]["channels"][0].update(measured="knee.position"), "names 'knee.position'"),
        (lambda d: d.update(command=[]), "at least one state topic and one command"),
        (lambda d: d.update(command=["/cmd_vel"]), "must be a mapping with topic, type and a list of channels"),
        (lambda d: d["command"][0].update(channels=None), "must be a mapping with topic, type and a list of channels"),
        (lambda d: d.update(control_dt=-1.0), "control_dt must be positive"),
        (lambda d: d.update(terms={"x": {"unit": "m", "signal": "a", "function": "tan"}}), "function of a term"),
        (lambda d: d.update(terms={"x": {"unit": "m", "signal": "a", "function": "body.x"}}), "needs `frame`"),
        (lambda d: d.update(goals={"x": {"unit": "m", "start": 3.0, "high": 1.0}}), "goal 3.0 is outside"),
        (lambda d: d["state"]["joints"].update(effort_unit=3), "effort_unit is 3"),
        (lambda d: d.update(name=None), "name is None"),
        (lambda d: d["command"][0]["channels"][0].update(velocity=1.0), "commands a position: give it a rate"),
        (
            lambda d: (
                d["command"][0].update(type="trajectory_msgs/msg/JointTrajectory"),
                d["command"][0]["channels"][0].update(unit="rad/s", name="e", hold=0.0, damp=0.0, stop=0.0),
            ),
            "carries positions alone",
        ),
        (
            lambda d: d["command"].append(
                {**d["command"][0], "channels": [{**d["command"][0]["channels"][0], "name": "hand.position"}]}
            ),
            "/forward_position_controller/commands appears more than once",
        ),
        (lambda d: d["command"][0]["channels"][0].update(lowest=-1.0), "lowest and highest bound velocity commands"),
        (lambda d: d["command"][0]["channels"][0].update(lowest=math.nan), "lowest < highest"),
        (lambda d: d["command"][0]["channels"][0].update(kp=1.0, kd=-1.0), "has the gain -1.0"),
        (lambda d: d["command"][0]["channels"][0].update(name="hand.position", lead=0.1), "position is not measured"),
        (lambda d: d["command"][0]["channels"][0].update(unit="rad/s", name="elbow", damp=0.0, stop=0.0), "hold of"),
        (lambda d: d["command"][0]["channels"][0].update(unit="N m", name="e", hold=0.0, stop=0.0), "damp of"),
        (
            lambda d: (
                d["state"]["joints"].update(joint_unit="deg"),
                d["command"][0]["channels"][0].update(
                    unit="rad/s", name="elbow.velocity", hold=0.0, damp=0.0, stop=0.0, highest=1.0
                ),
            ),
            "its position in deg",
        ),
        (
            lambda d: d["command"][0].update(
                type="geometry_msgs/msg/Twist",
                channels=[{**c, "field": "linear.x"} for c in d["command"][0]["channels"]],
            ),
            "linear.x appears more than once",
        ),
    ],
)
def test_a_mistake_in_a_robot_file_is_named(arm_dict: dict, change: Callable, words: str) -> None:
    change(arm_dict)
    with pytest.raises((ValueError, LookupError)) as caught:
        robot_from_dict(arm_dict)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_that_would_run_code_or_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    made = tmp_path / "made"
    for text in (f"!!python/object/apply:os.mkdir ['{made}']", "name: [", "just text", "- 1", "name: a\nname: b"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"r\.yaml"):
            load_robot(path)
    assert not made.exists()


def test_histories_scales_and_clips_are_built_by_name(arm_dict: dict) -> None:
    observation = (
        ObservationTerm("waist.position", "rad", scale=2.0, clip=1.0, history=3),
        ObservationTerm("elbow.velocity", "rad/s", history=1),
    )
    action = tuple(ActionTerm(n, "rad", -1.0, 1.0, 1.0, 0.0) for n in ("waist.position", "elbow.position"))
    channels = tuple(Channel(t.name, t.unit) for t in observation)
    interface = Interface(channels, tuple(Channel(t.name, t.unit, t.low, t.high) for t in action), 0.02)
    contract = Contract("0" * 64, 0, "t", 0.02, interface.digest, observation, action)
    builder = ObservationBuilder(contract, robot_from_dict(arm_dict))
    assert contract.obs_dim == 4
    rows = [builder.build(np.array([w, 0.0, 0.0, v]))[0].tolist() for w, v in ((0.1, 5.0), (0.2, 6.0), (0.9, 7.0))]
    np.testing.assert_allclose(rows, [[0.2, 0.2, 0.2, 5.0], [0.2, 0.2, 0.4, 6.0], [0.2, 0.4, 1.0, 7.0]], rtol=1e-6)
    builder.reset()
    np.testing.assert_allclose(builder.build(np.array([0.3, 0, 0, 1.0]))[0], [0.6, 0.6, 0.6, 1.0], rtol=1e-6)


def test_an_orientation_never_set_is_no_orientation() -> None:
    spec, contract = load_robot(ROBOTS / "quadrotor.yaml"), contract_of("quadrotor-hover")
    assert np.isnan(ObservationBuilder(contract, spec).build(np.zeros(len(spec.signals)))[0]).any()
