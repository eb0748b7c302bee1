"""Our own robots: their models, tasks, regimes of change and missions."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

import sim
from sim.robots import frames, maps, regimes
from sim.robots.fleet import Fleet, quadrotor_robot, vehicle_robot
from sim.robots.regimes import UNCHANGED, Regime
from sim.tasks import arm, quadrotor, vehicle

OWN = ("vehicle-waypoint", "quadrotor-hover", "quadrotor-waypoint", "arm-reach", "arm-push")


def seek(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Turns a vehicle to its goal and drives there."""
    away = goal - pose[:, :2]
    turn = np.arctan2(away[:, 1], away[:, 0]) - pose[:, 2]
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    return np.stack([np.clip(np.cos(turn), 0, 1), np.clip(1.5 * turn, -1, 1)], axis=1)


def fly(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Proportional-derivative flight of a quadrotor to its goal at heading zero."""
    wanted = np.clip(1.5 * (goal - pose[:, :3]), -1.5, 1.5)
    push = 2.0 * (wanted - pose[:, 3:6])
    roll, pitch, yaw = pose[:, 6:9].T
    c, s = np.cos(yaw), np.sin(yaw)
    ahead, left = c * push[:, 0] + s * push[:, 1], c * push[:, 1] - s * push[:, 0]
    rates = [6 * (-left / 9.81 - roll) / 3, 6 * (ahead / 9.81 - pitch) / 3, -yaw]
    thrust = (1 + push[:, 2] / 9.81) / (np.cos(roll) * np.cos(pitch)) * 0.61 / 0.6 - 1
    return np.clip(np.stack([thrust, *rates], axis=1), -1, 1)


# -- frames -----------------------------------------------------------------------------------------------------------


def test_angles_survive_the_way_through_a_quaternion_and_its_matrix_is_mujocos() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-1.2, 1.2, (50, 3)) * np.array([2.0, 1.0, 2.5])
    quat = frames.quaternion(*angles.T)
    np.testing.assert_allclose(frames.roll_pitch_yaw(quat), angles, atol=1e-12)
    np.testing.assert_allclose(frames.heading(quat), angles[:, 2], atol=1e-12)
    for q, turn in zip(quat, frames.rotation(quat), strict=True):
        theirs = np.empty(9)
        mujoco.mju_quat2Mat(theirs, q)
        np.testing.assert_allclose(turn.ravel(), theirs, atol=1e-12)
    vector = rng.normal(size=(50, 3))
    back = (frames.rotation(quat) @ frames.in_body(quat, vector)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(back, vector, atol=1e-12)


# -- models and tasks -------------------------------------------------------------------------------------------------


def test_the_vehicle_follows_speed_and_turn_commands_in_their_units() -> None:
    world = sim.make("vehicle-waypoint", 3, seed=0)
    for _ in range(10):
        obs, *_ = world.step(np.array([[0.8, 0.0], [0.0, 0.6], [-0.5, 0.0]]))
    np.testing.assert_allclose(obs[:, 2], [0.8, 0.0, -0.5], atol=0.05)
    np.testing.assert_allclose(obs[:, 3], [0.0, 0.6 * np.pi / 2, 0.0], atol=0.06)


def test_the_quadrotor_hovers_at_its_own_weight_and_follows_body_rates() -> None:
    model = quadrotor.HOVER.load_model()
    data = mujoco.MjData(model)
    data.ctrl[:] = [model.body_mass[1] * 9.81, 0, 0, 0]
    mujoco.mj_step(model, data, 200)
    np.testing.assert_allclose(data.qpos[:3], [0, 0, 1], atol=1e-9)
    data.ctrl[1:] = [0.5, 0.0, -0.4]
    mujoco.mj_step(model, data, 80)
    np.testing.assert_allclose(data.qvel[3:6], [0.5, 0.0, -0.4], atol=0.05)


@pytest.mark.parametrize("task", OWN)
def test_random_and_zero_agents_run_and_channels_say_what_they_are(task: str) -> None:
    world = sim.make(task, 3, seed=0)
    assert len(set(c.name for c in world.interface.obs)) == world.interface.obs_dim
    rng = np.random.default_rng(0)
    for k in range(60):
        action = rng.uniform(-1, 1, (3, world.interface.act_dim)) * (k % 2)
        obs, reward, *_ = world.step(action)
        assert np.isfinite(obs).all() and (np.abs(reward) < 3).all()
    assert np.ptp(obs, axis=0).max() > 0


def test_driving_to_the_waypoint_earns_more_than_standing_and_ends_the_episode() -> None:
    world, total, ends = sim.make("vehicle-waypoint", 4, seed=1), np.zeros(4), 0
    obs = world.reset(seed=1)
    for _ in range(60):
        turn = np.arctan2(obs[:, 1], obs[:, 0])
        obs, reward, terminated, *_ = world.step(np.stack([np.cos(turn).clip(0), (1.5 * turn).clip(-1, 1)], 1))
        total, ends = total + reward, ends + terminated.sum()
    assert ends >= 8 and (total > 3).all()


def test_flying_level_earns_hovers_full_reward_and_falling_ends_it() -> None:
    world = sim.make("quadrotor-hover", 2, seed=0)
    for _ in range(60):
        fields = {"qpos": world.get_qpos(), "qvel": world.get_qvel()}
        action = fly(quadrotor.pose(fields), world.get_qpos()[:, 7:10])
        action[1] = [-1, 0, 0, 0]
        _, reward, terminated, *_ = world.step(action)
        if terminated[1]:
            break
    assert terminated.tolist() == [False, True]
    for _ in range(60):
        fields = {"qpos": world.get_qpos(), "qvel": world.get_qvel()}
        _, reward, *_ = world.step(fly(quadrotor.pose(fields), world.get_qpos()[:, 7:10]))
    assert reward[0] > 0.95


def test_the_arms_tip_is_where_forward_kinematics_puts_it_and_nearness_pays() -> None:
    world = sim.make("arm-reach", 2, seed=0)
    qpos = world.get_qpos()
    obs = world.set_state(qpos, np.zeros_like(world.get_qvel()))
    np.testing.assert_allclose(obs[:, 12:15] + obs[:, 15:18], qpos[:, 8:11], atol=1e-12)
    assert (obs[:, 14] > 0.1).all()  # the ready pose holds the tip above the table
    qpos[1, 8:11] = obs[1, 12:15]
    world.set_state(qpos, np.zeros_like(world.get_qvel()))
    _, reward, *_ = world.step(np.zeros((2, 6)))
    assert reward[1] > 1.9 > reward[0]


def test_every_puck_and_goal_lies_within_the_arms_reach_and_apart() -> None:
    for task in (arm.REACH, arm.PUSH):
        qpos, _ = task.reset_state([np.random.default_rng(k) for k in range(200)], task.load_model())
        assert np.linalg.norm(qpos[:, 8:10], axis=1).max() < 0.78
    puck = qpos[:, 6:8] + [arm.PUCK_X, 0.0]
    apart = np.linalg.norm(qpos[:, 8:10] - puck, axis=1)
    assert apart.min() > arm.PUSHED and apart.max() < 0.26


def test_the_puck_moves_when_it_is_pushed_and_only_then() -> None:
    world = sim.make("arm-push", 1, seed=0)
    qpos = world.get_qpos()
    qpos[0, :6] = [0.0, 0.2, 2.1, 0.8, 0.0, 0.0]
    world.set_state(qpos, np.zeros_like(world.get_qvel()))
    world.step(np.zeros((1, 6)))
    still = world.get_qpos()[0, 6:8]
    np.testing.assert_allclose(still, qpos[0, 6:8], atol=1e-3)
    qvel = np.zeros_like(world.get_qvel())
    qvel[0, 6] = 0.5
    world.set_state(qpos, qvel)
    world.step(np.zeros((1, 6)))
    assert 0.005 < world.get_qpos()[0, 6] - qpos[0, 6] < 0.03


# -- regimes ----------------------------------------------------------------------------------------------------------


def test_slip_grows_with_speed_and_turning_couples_to_it() -> None:
    regime = Regime("both", slip=0.5, cross=0.9)
    np.testing.assert_allclose(regime.command(np.array([1.0, 0.0])), [0.5, 0.9])
    np.testing.assert_allclose(regime.command(np.array([0.2, 0.1])), [0.18, 0.28])
    np.testing.assert_allclose(Regime("g", gain=(-2.5, 1.0), bias=(0.1,)).command(np.array([0.4, 0.3])), [-0.9, 0.3])


def test_a_payload_hangs_where_it_is_said_to() -> None:
    base = quadrotor.HOVER.load_model()
    model = Regime("p", payload=0.2, payload_at=(0.1, 0.0, 0.0)).model(base)
    assert model.body_mass[1] == pytest.approx(base.body_mass[1] + 0.2)
    assert model.body_ipos[1, 0] == pytest.approx(0.02 / model.body_mass[1])
    reduced = base.body_mass[1] * 0.2 / model.body_mass[1]
    assert model.body_inertia[1, 2] - base.body_inertia[1, 2] == pytest.approx(reduced * 0.01)
    assert base.body_mass[1] != model.body_mass[1], "the base is left as it was"


def test_a_dead_rotor_loses_a_quarter_of_the_thrust_and_tips_towards_itself() -> None:
    base = quadrotor.HOVER.load_model()
    for rotor, (x, y) in enumerate(regimes.ROTORS):
        model = Regime("r", weak_rotor=(rotor, 0.0)).model(base)
        data = mujoco.MjData(model)
        data.ctrl[:] = [4.0, 0, 0, 0]
        mujoco.mj_forward(model, data)
        force = data.qfrc_actuator[:6]
        assert force[2] == pytest.approx(3.0)
        np.testing.assert_allclose(force[3:5], [-y, x], atol=1e-12)
    whole = Regime("r", weak_rotor=(1, 1.0)).model(base)
    np.testing.assert_allclose(whole.actuator_gear, base.actuator_gear, atol=1e-12)


@pytest.mark.parametrize("options", [{"gain": (np.nan,)}, {"payload": -1.0}, {"weak_rotor": (4, 0.5)}])
def test_an_impossible_regime_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="'x'"):
        Regime("x", **options)


# -- missions ---------------------------------------------------------------------------------------------------------


def test_the_maps_have_18_and_33_waypoints_a_leg_apart() -> None:
    assert [len(m) for m in maps.MAPS.values()] == [18, 33]
    for points in maps.MAPS.values():
        legs = np.linalg.norm(np.diff(points, axis=0), axis=1)
        assert legs.min() > 1.0 and legs.max() < 2.2
    assert maps.with_heights(maps.YARD).shape == (18, 3)


def test_unchanged_robots_finish_both_maps() -> None:
    for robot, act, name, steps in (
        (vehicle_robot(), seek, "yard", 260),
        (vehicle_robot(), seek, "field", 420),
        (quadrotor_robot(), fly, "yard", 900),
    ):
        fleet = Fleet(robot, name, [UNCHANGED] * 2)
        for _ in range(steps):
            fleet.step(act(fleet.pose(), fleet.goal))
        assert fleet.arrived.all(), (name, fleet.reached, fleet.crashed)


def test_a_regime_holds_between_15_and_80_percent_of_the_waypoints() -> None:
    fleet, seen = Fleet(vehicle_robot(), "yard", [UNCHANGED]), {}
    while not fleet.over.all():
        seen[int(fleet.reached[0])] = bool(fleet.changed[0])
        fleet.step(seek(fleet.pose(), fleet.goal))
    assert [k for k, on in seen.items() if on] == list(range(3, 15))


def test_a_reversed_vehicle_goes_astray_from_where_the_regime_begins() -> None:
    fleet = Fleet(vehicle_robot(), "yard", [UNCHANGED, *regimes.VEHICLE_GAINS[:1], regimes.VEHICLE_COUPLED[3]])
    for _ in range(120):
        fleet.step(seek(fleet.pose(), fleet.goal))
    assert fleet.reached[0] > 7 and fleet.reached[1:].tolist() == [3, 3]


def test_peeking_tells_what_another_regime_would_do_and_changes_nothing() -> None:
    fleet, twin = (Fleet(vehicle_robot(), "yard", [UNCHANGED] * 2) for _ in range(2))
    action = np.array([[1.0, 0.2], [1.0, 0.2]])
    for _ in range(3):
        fleet.step(action)
        twin.step(action)
    before = fleet.pose()
    backwards = fleet.peek(action, [Regime("r", gain=(-1.0, 1.0))] * 2)
    np.testing.assert_array_equal(fleet.pose(), before)
    np.testing.assert_array_equal(fleet.peek(action), fleet.step(action))
    assert (np.linalg.norm(backwards[:, :2] - fleet.pose()[:, :2], axis=1) > 0.05).all()


def test_what_is_over_stays_where_it_is() -> None:
    fleet = Fleet(quadrotor_robot(), "yard", [UNCHANGED])
    for _ in range(40):
        fleet.step(np.array([[-1.0, 0.0, 0.0, 0.0]]))
    assert fleet.crashed.all()
    resting = fleet.pose()
    np.testing.assert_array_equal(fleet.step(np.ones((1, 4))), resting)


def test_an_unknown_map_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match="yard, field"):
        Fleet(vehicle_robot(), "moon", [UNCHANGED])


def test_vehicle_pose_reads_the_body_frame() -> None:
    model = vehicle.TASK.load_model()
    qpos, qvel = np.tile(model.qpos0, (1, 1)), np.zeros((1, model.nv))
    qpos[0, 3:7] = frames.quaternion(np.zeros(1), np.zeros(1), np.array([np.pi / 2]))[0]
    qvel[0, 1], qvel[0, 5] = 0.7, 0.3
    np.testing.assert_allclose(vehicle.pose({"qpos": qpos, "qvel": qvel})[0], [0, 0, np.pi / 2, 0.7, 0.3], atol=1e-12)
