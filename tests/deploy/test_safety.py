"""Whatever is asked, whatever was measured: a command stays in its box."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.robot_file import robot_from_dict
from robot_cl.deploy.safety import blend, brake_overspeed, limit_command, pd_effort, slew
from sim.spec import Channel, Interface

ANY = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=300, deadline=None)
@given(arrays(float, 4, elements=ANY), arrays(float, 4, elements=ANY), st.integers(0, 2**31))
def test_a_limited_command_obeys_box_and_step_whatever_is_asked(asked: np.ndarray, seen: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-5, 0, 4)
    high, step, lead = low + rng.uniform(0.1, 5, 4), rng.uniform(1e-3, 1, 4), rng.uniform(1e-3, 1, 4)
    previous = rng.uniform(low, high)
    asked = np.where(np.isfinite(asked), asked, previous)  # as Actuation does before
    safe = limit_command(asked, previous, seen, low, high, step, lead)
    assert (safe >= low).all() and (safe <= high).all()
    assert (np.abs(safe - previous) <= step + 1e-12).all()
    free = np.isfinite(seen) & (np.abs(previous - seen) <= lead) & (seen - lead >= low) & (seen + lead <= high)
    assert (np.abs(safe - seen)[free] <= lead[free] + 1e-9).all()


def test_a_command_inside_every_limit_passes_unchanged() -> None:
    ones = np.ones(2)
    asked = np.array([0.05, -0.08])
    safe = limit_command(asked, np.zeros(2), np.zeros(2), -ones, ones, 0.1 * ones, 0.2 * ones)
    assert (safe == asked).all()


def test_an_effort_may_brake_a_joint_that_is_too_fast_but_not_push_it() -> None:
    effort, speed = np.array([3.0, -3.0, 3.0, 3.0]), np.array([2.0, 2.0, 0.5, math.nan])
    assert brake_overspeed(effort, speed, np.ones(4)).tolist() == [0.0, -3.0, 3.0, 3.0]


def test_small_helpers() -> None:
    a, b = np.zeros(2), np.ones(2)
    assert blend(a, b, -3).tolist() == [0, 0] and blend(a, b, 7).tolist() == [1, 1]
    assert slew(a, b, 0.25).tolist() == [0.25, 0.25] and slew(b, a, np.inf).tolist() == [0, 0]
    assert pd_effort(b * 10, b, b, a, b * 2).tolist() == [8.0, 8.0]
    assert pd_effort(b * 10, b, b * np.nan, a, b).tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(arrays(np.float32, (1, 2), elements=st.floats(width=32)), min_size=40, max_size=60), st.integers(0, 99))
def test_no_sequence_of_actions_and_measurements_leads_out_of_the_box(actions: list[np.ndarray], seed: int) -> None:
    spec = robot_from_dict(_arm(lead=0.2))
    interface = _interface()
    contract = Contract("0" * 64, 0, "t", 0.02, interface.digest, *terms_from_interface(interface))
    rng = np.random.default_rng(seed)
    actuation = Actuation(contract, spec, max_speed=0.5)
    actuation.start(np.zeros(4))
    low, high = np.array([-0.5, -1.0]), np.array([1.5, 1.0])
    previous = np.zeros(2)
    for action in actions:
        values = rng.choice([0.0, 1.0, -3.0, math.nan, math.inf, 1e300], size=4)
        with np.errstate(invalid="ignore", over="ignore"):
            command = actuation.limit(actuation.from_action(action[0]), values)
        assert np.isfinite(command).all() and (command >= low).all() and (command <= high).all()
        assert (np.abs(command - previous) <= 0.5 * 2.0 * 0.02 + 1e-12).all()
        previous = command


def test_max_speed_shrinks_steps_of_positions_and_the_range_of_velocities() -> None:
    interface = Interface((Channel("x.velocity", "m/s"),), (Channel("drive", "m/s", -2.0, 2.0),), 0.1)
    contract = Contract("0" * 64, 0, "t", 0.1, interface.digest, *terms_from_interface(interface))
    spec = robot_from_dict(
        {
            "name": "cart", "control_dt": 0.1,
            "state": {"x": {"topic": "/x", "type": "std_msgs/msg/Float64MultiArray", "names": ["velocity"],
                            "units": ["m/s"]}},
            "command": [{"topic": "/cmd_vel", "type": "geometry_msgs/msg/Twist", "channels": [
                {"name": "drive", "unit": "m/s", "low": -2.0, "high": 2.0, "field": "linear.x", "rate": 100.0,
                 "hold": 0.0, "damp": 0.0, "stop": 0.0}]}],
        }
    )  # fmt: skip
    actuation = Actuation(contract, spec, max_speed=0.25)
    actuation.start(np.zeros(1))
    assert actuation.limit(actuation.from_action(np.ones(1)), np.zeros(1)).tolist() == [0.5]
    with pytest.raises(ValueError, match="share"):
        Actuation(contract, spec, max_speed=0.0)
    positions, arm = _interface(), _arm()
    contract = Contract("0" * 64, 0, "t", 0.02, positions.digest, *terms_from_interface(positions))
    for channel in arm["command"][0]["channels"]:
        del channel["rate"]
    Actuation(contract, robot_from_dict(arm))
    with pytest.raises(ValueError, match=r"max_speed has nothing to scale: elbow.position, waist.position"):
        Actuation(contract, robot_from_dict(arm), max_speed=0.2)


def test_efforts_hold_by_pd_and_damp_by_velocity() -> None:
    spec, interface = robot_from_dict(_arm(effort=True)), _interface("N m")
    contract = Contract("0" * 64, 0, "t", 0.02, interface.digest, *terms_from_interface(interface))
    actuation = Actuation(contract, spec)
    names = list(spec.signals)

    def values(waist: float, speed: float) -> np.ndarray:
        found = np.zeros(4)
        found[names.index("waist.position")], found[names.index("waist.velocity")] = waist, speed
        return found

    actuation.start(values(0.4, 0.0))
    at = [c.name for c in spec.channels].index("waist.effort")
    assert actuation.fallback("hold", values(0.3, 0.5))[at] == pytest.approx(20 * 0.1 - 2 * 0.5)
    assert actuation.fallback("damp", values(0.3, 0.5))[at] == pytest.approx(-2 * 0.5)
    assert actuation.fallback("hold", values(math.nan, 0.5))[at] == 0.0
    assert actuation.fallback("stop", values(0.3, 0.5))[at] == 0.0


def _interface(unit: str = "rad") -> Interface:
    obs = [Channel(f"{j}.{f}", u) for f, u in (("position", "rad"), ("velocity", "rad/s")) for j in ("waist", "elbow")]
    kind = "position" if unit == "rad" else "effort"
    return Interface(
        tuple(obs), (Channel(f"waist.{kind}", unit, -1.0, 1.0), Channel(f"elbow.{kind}", unit, -0.5, 1.5)), 0.02
    )


def _arm(lead: float = math.inf, effort: bool = False) -> dict[str, Any]:
    kind, unit = ("effort", "N m") if effort else ("position", "rad")
    more: dict[str, Any] = {"unit": unit, "rate": 2.0, "lead": lead}
    if effort:
        more |= {"hold": "pd", "damp": "damping", "stop": 0.0, "kp": 20.0, "kd": 2.0, "rate": 100.0}
    channels = [
        {"name": f"elbow.{kind}", "low": -0.5, "high": 1.5, **more},
        {"name": f"waist.{kind}", "low": -1.0, "high": 1.0, **more},
    ]
    joints = {"topic": "/joint_states", "type": "sensor_msgs/msg/JointState", "joints": ["waist", "elbow"]}
    topic = {"topic": "/commands", "type": "std_msgs/msg/Float64MultiArray", "channels": channels}
    return {"name": "arm2", "control_dt": 0.02, "state": {"joints": joints}, "command": [topic]}
