"""What an operator may order, from where, and what becomes of it: modes, goals, skills and other policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.modes import Mode, RunnerConfig, Step
from robot_cl.deploy.operator import parse_order
from robot_cl.deploy.robot_file import robot_from_dict
from sim.spec import Interface

DT = 0.02
MakeRig = Callable[..., Any]
MakeBundle = Callable[..., Path]
MakePolicy = Callable[[float, float], Any]


def test_operators_over_the_network_may_stop_but_not_start(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.enable()
    for text in ("start", "enable", "nonsense", "skills", "goal x=nan", "stop now", "x" * 5000, ""):
        rig.loopback.say(text)
    rig.go(0.2)
    assert rig.runner.mode is Mode.HOLD and rig.runner.stats.events["bad_order"] == 6
    rig.runner.start()
    rig.go(0.5)
    rig.loopback.say("stop")
    rig.go(0.52)
    assert rig.runner.mode is Mode.ESTOP
    remote = make_rig(config=RunnerConfig(remote_start=True, ramp_s=0.05))
    remote.loopback.say("enable")
    remote.loopback.say("start")
    assert remote.go(0.5).runner.mode is Mode.ACTIVE


def test_a_run_that_is_not_armed_cannot_be_talked_into_driving(make_rig: MakeRig) -> None:
    rig = make_rig(config=RunnerConfig(armed=False, remote_start=True))
    rig.runner.shadow()
    for text in ("reset", "enable", "start"):
        rig.runner.order(text)
        rig.loopback.say(text)
    rig.go(0.5)
    assert rig.runner.mode is Mode.DISABLED and rig.loopback.sent == []
    with pytest.raises(ValueError, match="only watches"):
        rig.runner.enable()


def test_a_stop_takes_back_what_was_ordered_before_it(make_rig: MakeRig) -> None:
    for give in (lambda rig, text: rig.runner.order(text), lambda rig, text: rig.loopback.say(text)):
        rig = make_rig(config=RunnerConfig(ramp_s=0.0, remote_start=True)).drive(0.5)
        rig.runner.order("hold")
        rig.go(0.6)
        for text in ("reset", "enable", "start", "stop"):
            give(rig, text)
        assert rig.go(0.8).runner.mode is Mode.ESTOP


def test_a_goal_is_set_whole_or_not_at_all_and_a_refusal_is_told_once(make_rig: MakeRig, arm_dict: dict) -> None:
    class Told:
        def step(self, step: Step) -> None:
            heard.append(step.refusal)

    heard: list[str] = []
    arm_dict["goals"] = {"x": {"unit": "m", "start": 0.0, "low": -1.0, "high": 1.0}, "y": {"unit": "m", "start": 0.0,
                         "low": -1.0, "high": 1.0}}  # fmt: skip
    rig = make_rig(spec=robot_from_dict(arm_dict), listeners=(Told(),)).drive(0.3)
    rig.runner.order("goal x=0.5 y=99")
    rig.go(0.5)
    assert rig.runner.mind.builder.goals == {"x": 0.0, "y": 0.0}
    assert [text for text in heard if text] == ["goal 'y' must lie in [-1, 1], got 99.0"]
    rig.runner.order("goal x=0.5 y=-0.5")
    rig.go(0.6)
    assert rig.runner.mind.builder.goals == {"x": 0.5, "y": -0.5}


def test_the_last_word_before_a_reset_is_the_stop_command(make_rig: MakeRig, arm_dict: dict) -> None:
    for channel in arm_dict["command"][0]["channels"]:
        channel["stop"] = 0.25
    rig = make_rig(spec=robot_from_dict(arm_dict)).drive(1.0)
    rig.runner.order("hold")
    rig.go(1.1)
    assert (rig.commands[-1] != 0.25).all()
    write = rig.loopback.write

    def refuse(command: np.ndarray) -> None:
        raise OSError("the cable is out")

    rig.loopback.write = refuse
    with pytest.raises(ValueError, match="the cable is out"):
        rig.runner.reset()
    assert rig.runner.mode is Mode.HOLD, "a robot that was not told to stop is not let go"
    rig.loopback.write = write
    rig.runner.order("reset")
    rig.go(1.2)
    assert rig.runner.mode is Mode.DISABLED and rig.commands[-1].tolist() == [0.25, 0.25]


def test_orders_at_this_machine_are_checked_when_given(make_rig: MakeRig) -> None:
    rig = make_rig().drive(0.3)
    with pytest.raises(LookupError, match="did you mean 'hold'"):
        rig.runner.order("hod")
    rig.runner.order("hold")
    assert rig.go(0.34).runner.mode is Mode.HOLD
    assert parse_order("goal target.x=0.25").values == {"target.x": 0.25}


def skilled_rig(make_rig: MakeRig, bundle: PolicyBundle, **more: Any) -> Any:
    return make_rig(policy=bundle, contract=bundle.contract, **more)


def test_skills_are_weighed_anew_while_driving_and_the_command_stays_continuous(
    make_rig: MakeRig, make_bundle: MakeBundle
) -> None:
    bundle = PolicyBundle.load(make_bundle(skills=("hop", "walk")))
    rig = skilled_rig(make_rig, bundle).drive(1.0)
    before = rig.commands[-1]
    rig.loopback.say("skills hop=1")
    rig.go(1.02)
    assert 0 < rig.runner.mind.weights[0] < 0.1 and bundle.weights[0] == pytest.approx(rig.runner.mind.weights[0])
    rig.go(3.0)
    rig.loopback.say("skills hop=0 walk=7")
    rig.loopback.say("skills fly=1")
    rig.go(5.0)
    assert rig.runner.mind.weights.tolist() == [0.0, 1.0] and rig.runner.stats.events["refused_order"] == 1
    assert rig.runner.mode is Mode.ACTIVE and np.abs(rig.commands[-1] - before).max() > 0.01
    rig.check_box()


def test_another_policy_takes_over_without_a_step(
    make_rig: MakeRig, constant: MakePolicy, arm_dict: dict, arm_contract: Contract
) -> None:
    for channel in arm_dict["command"][0]["channels"]:
        channel["rate"] = 1000.0
    rig = make_rig(policy=constant(0.5, 0.5), spec=robot_from_dict(arm_dict)).drive(1.0)
    rig.runner.swap(constant(-0.5, 0.1), arm_contract)
    rig.go(2.0)
    jumps = np.abs(np.diff(rig.commands, axis=0)).max(1)[49:]
    assert jumps[0] <= 1.0 * DT / 0.3 + 1e-6, "the first tick after the swap moves by at most its share of the way"
    assert jumps.max() <= 1.0 * DT / 0.3 + 1e-6 and rig.runner.mode is Mode.ACTIVE
    np.testing.assert_allclose(rig.commands[-1], [0.6, -0.5], atol=1e-6)


def test_an_operator_chooses_among_the_policies_that_were_loaded(
    make_rig: MakeRig, constant: MakePolicy, arm_dict: dict, arm_contract: Contract
) -> None:
    class Watchful:
        episodes = 0

        def alarm(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> bool:
            return False

        def reset(self) -> None:
            self.episodes += 1

    guard = Watchful()
    rig = make_rig(policy=constant(0.5, 0.5), spec=robot_from_dict(arm_dict))
    rig.runner.offer("low", constant(-0.5, 0.1), arm_contract, guard)
    rig.drive(1.0)
    rig.loopback.say("policy high")
    rig.go(1.1)
    assert rig.runner.stats.events["refused_order"] == 1 and "did you mean" not in rig.runner.refusal
    rig.loopback.say("policy low")
    rig.go(3.0)
    np.testing.assert_allclose(rig.commands[-1], [0.6, -0.5], atol=1e-6)
    assert rig.runner.mode is Mode.ACTIVE and rig.runner.mind.guard is guard and guard.episodes == 1
    rig.check_box()
    with pytest.raises(ValueError, match="takes the name of a bundle"):
        parse_order("policy")


def test_a_policy_of_another_interface_is_not_swapped_in(
    make_rig: MakeRig, make_bundle: MakeBundle, arm_interface: Interface
) -> None:
    bundle = PolicyBundle.load(make_bundle())
    rig = skilled_rig(make_rig, bundle).drive(0.5)
    faster = dataclasses.replace(arm_interface, control_dt=0.01)
    contract = Contract("0" * 64, 0, "t", 0.01, faster.digest, *terms_from_interface(faster))
    with pytest.raises(ValueError, match="another interface"):
        rig.runner.swap(bundle, contract)
    terms = tuple(dataclasses.replace(t, scale=10.0) for t in bundle.contract.observation)
    with pytest.raises(ValueError, match="scale"):
        rig.runner.swap(bundle, dataclasses.replace(bundle.contract, observation=terms))
