"""Shifts: their names, what they do to the physics, when, and in which world."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
import pytest

import sim
from sim.disturbance import Disturbance
from sim.shift import NONE, Schedule, Shift, combined, parse, plans, shifted_model

CHEETAH = sim.TASKS["halfcheetah"].load_model()


def at(text: str, step: int) -> Shift:
    return combined(schedule.at(step) for schedule in parse(text))


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        ("gravity0.6", Shift(gravity=0.6)),
        ("friction0.25", Shift(friction=0.25)),
        ("friction=.25", Shift(friction=0.25)),
        ("latency2", Shift(latency=2)),
        ("gain.bthigh0.5", Shift(gain={"bthigh": 0.5})),
        ("gain.hip_1=0.5", Shift(gain={"hip_1": 0.5})),
        ("gain0.8", Shift(gain={"*": 0.8})),
        ("bias.fshin-0.1", Shift(bias={"fshin": -0.1})),
        ("command.bthigh=-1", Shift(command={"bthigh": -1.0})),
        ("size.bthigh1.3", Shift(size={"bthigh": 1.3})),
        ("noise1e-05", Shift(noise=1e-5)),
        ("mass1.2 + payload3", Shift(mass=1.2, payload=3.0)),
        ("none", NONE),
    ],
)
def test_a_name_is_read(text: str, shift: Shift) -> None:
    assert at(text, 0) == shift


@pytest.mark.parametrize(
    "shift",
    [NONE, Shift(0.3, 1.5, 2.0, 1.25, {"hip_1": 0.5, "*": 0.9}, {"a": -0.125}, 3, 1e-5), Shift(latency=1)],
)
def test_a_shift_is_read_back_from_its_name(shift: Shift) -> None:
    assert at(str(shift), 0) == shift


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gravty0.6", "did you mean gravity"),
        ("gravity", "write for example gravity0.6"),
        ("gravity-1", "gravity must be at least 0"),
        ("friction0", "friction must be positive"),
        ("latency1.5", "whole steps"),
        ("gravity.bthigh0.5", "only gain and bias and command are per joint and size per body"),
        ("gravity0.5@soon", "write @5000 for a step"),
        ("gravity0.5@9-3", "ascending steps"),
        ("gravity0.5++mass2", "is not understood"),
    ],
)
def test_a_wrong_name_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_an_unknown_joint_is_told_at_once_with_the_joints_there_are() -> None:
    with pytest.raises(LookupError, match=r"no motor drives a joint 'thigh'; joints: bthigh, bshin"):
        sim.make("halfcheetah", shift="gain.thigh0.5@5000")


def test_a_list_needs_one_shift_per_world() -> None:
    with pytest.raises(ValueError, match="2 shifts for 3 worlds"):
        sim.make("halfcheetah", 3, shift=["mass2", None])
    with pytest.raises(ValueError, match="a shift is a name"):
        plans(3.0, 2)  # type: ignore[arg-type]


def test_models_change_where_the_shift_says_and_nowhere_else() -> None:
    names = ("body_mass", "body_inertia", "geom_friction", "actuator_gainprm", "actuator_biasprm")
    changes = {
        "mass2": {"body_mass", "body_inertia"},
        "payload1": {"body_mass"},
        "friction0.5": {"geom_friction"},
        "gain.bthigh0.5": {"actuator_gainprm"},
        "bias.bthigh0.5": {"actuator_biasprm"},
        "gravity0.5": set(),
    }
    for text, expected in changes.items():
        model = shifted_model(CHEETAH, at(text, 0))
        assert {n for n in names if (getattr(model, n) != getattr(CHEETAH, n)).any()} == expected, text
    assert shifted_model(CHEETAH, at("gravity0.5", 0)).opt.gravity[2] == CHEETAH.opt.gravity[2] / 2
    assert shifted_model(CHEETAH, at("payload1", 0)).body_mass[1] == CHEETAH.body_mass[1] + 1
    np.testing.assert_allclose(shifted_model(CHEETAH, at("mass2", 0)).body_subtreemass[0], 28, rtol=1e-3)


def test_gravity_is_what_a_jumping_robot_feels() -> None:
    """Free fall of hopper's body: the centre of mass accelerates by the scaled gravity."""
    world = sim.make("hopper", 3, shift=[None, "gravity0.5", "gravity2"])
    qpos = np.tile(world.model.qpos0, (3, 1))
    qpos[:, 1] += 5.0
    world.set_state(qpos, np.zeros((3, 6)))
    world.step(np.zeros((3, 3)))
    np.testing.assert_allclose(world.get_qvel()[:, 1], -9.81 * 0.008 * np.array([1, 0.5, 2]), rtol=1e-6)


def test_motor_force_is_gain_times_command_plus_bias() -> None:
    model = shifted_model(CHEETAH, Shift(gain={"bthigh": 0.5, "*": 0.8}, bias={"bthigh": 0.25}))
    data = mujoco.MjData(model)
    data.ctrl[:] = 0.6
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force[0], 0.8 * 0.5 * (0.6 + 0.25), rtol=1e-12)
    np.testing.assert_allclose(data.actuator_force[1:], 0.8 * 0.6, rtol=1e-12)


def test_a_servo_under_gain_and_bias_is_weaker_and_offset() -> None:
    xml = """<mujoco><worldbody><body><joint name="j"/><geom size="1"/></body></worldbody>
             <actuator><position joint="j" kp="10"/></actuator></mujoco>"""
    model = shifted_model(mujoco.MjModel.from_xml_string(xml), Shift(gain={"j": 0.5}, bias={"j": 0.1}))
    data = mujoco.MjData(model)
    data.qpos[:], data.ctrl[:] = 0.2, 0.7
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force, 0.5 * 10 * (0.7 + 0.1 - 0.2), rtol=1e-12)


def test_latency_delays_actions_by_whole_steps() -> None:
    late, prompt = sim.make("halfcheetah", 1, seed=2, shift="latency2"), sim.make("halfcheetah", 1, seed=2)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 1, 6))
    for k, action in enumerate(actions):
        late.step(action)
        prompt.step(actions[k - 2] if k >= 2 else np.zeros((1, 6)))
        np.testing.assert_array_equal(late.get_qpos(), prompt.get_qpos())


def test_no_action_arrives_in_the_next_episode() -> None:
    world = sim.make("hopper", 1, shift="latency1")
    world.step(np.ones((1, 3)))
    qpos = np.tile(world.model.qpos0, (1, 1))
    world.set_state(qpos, np.zeros((1, 6)))
    world.step(np.ones((1, 3)))
    other = sim.make("hopper", 1)
    other.set_state(qpos, np.zeros((1, 6)))
    other.step(np.zeros((1, 3)))
    np.testing.assert_array_equal(world.get_qpos(), other.get_qpos())


def test_noise_is_on_the_observation_not_on_the_state() -> None:
    noisy, clean = sim.make("halfcheetah", 2, shift=["noise0.1", None]), sim.make("halfcheetah", 2)
    errors = []
    for _ in range(60):
        action = np.full((2, 6), 0.1)
        obs, reward, *_ = noisy.step(action)
        expected, expected_reward, *_ = clean.step(action)
        np.testing.assert_array_equal(reward, expected_reward)
        np.testing.assert_array_equal(obs[1], expected[1])
        errors.append(obs[0] - expected[0])
    assert np.std(errors) == pytest.approx(0.1, rel=0.1) and abs(np.mean(errors)) < 0.02


def test_each_world_has_its_own_noise_from_its_own_seed() -> None:
    both, second = (sim.make("halfcheetah", n, shift="noise1") for n in (2, 1))
    obs = both.reset(seed=3)
    assert np.abs(obs[0] - obs[1]).mean() > 0.5
    np.testing.assert_array_equal(second.reset(seed=4)[0], obs[1])


def test_no_shift_changes_nothing() -> None:
    plain, shifted = sim.make("ant", 2), sim.make("ant", 2, shift=[None, "none"])
    for _ in range(5):
        action = np.full((2, 8), 0.3)
        np.testing.assert_array_equal(plain.step(action)[0], shifted.step(action)[0])


def test_a_shift_at_a_step_begins_exactly_there() -> None:
    world, plain = sim.make("halfcheetah", 1, shift="gain0.5@3"), sim.make("halfcheetah", 1)
    same = []
    for _ in range(5):
        world.step(np.full((1, 6), 0.5))
        plain.step(np.full((1, 6), 0.5))
        same.append(bool((world.get_qpos() == plain.get_qpos()).all()))
    assert same == [True, True, True, False, False]


def test_a_ramp_runs_linearly_and_then_holds() -> None:
    values = [at("gravity0.5@10-20", step).gravity for step in (0, 10, 15, 20, 1000)]
    np.testing.assert_allclose(values, [1.0, 1.0, 0.75, 0.5, 0.5])
    world = sim.make("halfcheetah", 2, shift=["gravity0.5@1-3", "mass2"])
    seen = []
    for _ in range(5):
        world.step(np.zeros((2, 6)))
        assert world.disturbance is not None
        seen.append([world.disturbance.models[i].opt.gravity[2] / -9.81 for i in range(2)])
    np.testing.assert_allclose(seen, [[1, 1], [1, 1], [0.75, 1], [0.5, 1], [0.5, 1]])


def test_a_schedule_can_be_built_from_points() -> None:
    schedule = Schedule(((2, Shift(mass=2.0)), (4, NONE)))
    assert [schedule.at(s).mass for s in range(6)] == [1, 1, 2, 2, 1, 1]
    assert [schedule.next_change(s) for s in (0, 2, 4)] == [2, 4, np.inf]


def test_worlds_in_the_same_shift_share_one_model_and_the_base_is_untouched() -> None:
    base = copy.copy(CHEETAH)
    disturbance = Disturbance(plans(["mass2", "mass2", None, "latency3"], 4), CHEETAH, 6)
    one, two, three, four = disturbance.models
    assert one is two and three is four is CHEETAH
    np.testing.assert_array_equal(CHEETAH.body_mass, base.body_mass)


def test_a_shift_goes_on_over_episodes_and_starts_over_with_a_seed() -> None:
    world = sim.make("hopper", 1, shift="gravity0.5@20")
    ends = 0
    for _ in range(60):
        ends += int(world.step(np.ones((1, 3)))[2][0])
    assert world.disturbance is not None
    assert ends > 0 and world.disturbance.now[0].gravity == 0.5
    world.reset()
    assert world.disturbance.now[0].gravity == 0.5
    world.reset(seed=0)
    assert world.disturbance.now[0].gravity == 1.0


def test_a_motor_wired_the_wrong_way_round_pushes_the_other_way_and_keeps_its_bias() -> None:
    plain, turned = (shifted_model(CHEETAH, Shift(command=c, bias={"bfoot": 0.5})) for c in ({}, {"bfoot": -1.0}))
    forces = []
    for model, ctrl in ((plain, 0.3), (turned, -0.3)):
        data = mujoco.MjData(model)
        data.ctrl[2] = ctrl
        mujoco.mj_forward(model, data)
        forces.append(float(data.actuator_force[2]))
    assert forces[0] == pytest.approx(0.8)
    assert forces[1] == pytest.approx(0.8)


def test_a_larger_thigh_is_longer_thicker_and_heavier_and_carries_the_rest_of_the_leg_further_out() -> None:
    model = shifted_model(CHEETAH, Shift(size={"bthigh": 1.5}))
    thigh, shin, other = (CHEETAH.body(name).id for name in ("bthigh", "bshin", "fthigh"))
    geom = int(CHEETAH.body_geomadr[thigh])
    assert model.body_mass[thigh] == pytest.approx(CHEETAH.body_mass[thigh] * 1.5**3)
    np.testing.assert_allclose(model.geom_size[geom], CHEETAH.geom_size[geom] * 1.5)
    np.testing.assert_allclose(model.body_pos[shin], CHEETAH.body_pos[shin] * 1.5)
    assert model.body_mass[other] == CHEETAH.body_mass[other]
    assert shifted_model(CHEETAH, NONE).body_mass[thigh] == CHEETAH.body_mass[thigh]


def test_a_longer_tool_reaches_further_with_its_tip() -> None:
    model = sim.get_task("arm-reach").load_model()
    longer = shifted_model(model, Shift(size={"tool": 1.5}))
    np.testing.assert_allclose(longer.site("tip").pos, 1.5 * model.site("tip").pos)


def test_a_payload_on_what_does_not_move_is_refused() -> None:
    with pytest.raises(ValueError, match="'base' does not move"):
        sim.make("arm-reach", shift="payload2")


def test_a_body_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(LookupError, match=r"bodies: .*bthigh"):
        sim.make("halfcheetah", shift="size.knee2")
