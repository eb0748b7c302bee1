"""The state machine, what makes it hold, and the end of a run."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.caller import InlineCaller, ThreadCaller
from robot_cl.deploy.clock import MonotonicClock
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.faults import Fault
from robot_cl.deploy.loopback import JointPlant, Loopback
from robot_cl.deploy.modes import Mode, RunnerConfig, Step
from robot_cl.deploy.realtime import ENDING, stop_on_signals
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import robot_from_dict
from robot_cl.deploy.runner import Runner
from sim.spec import Interface

DT = 0.02
MakeRig = Callable[..., Any]
MakePolicy = Callable[[float, float], Any]


def test_nothing_is_sent_before_enabling_and_the_present_position_right_after(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.plant.position[:] = [0.7, -0.2]
    rig.go(0.2)
    assert rig.loopback.sent == [] and rig.runner.mode is Mode.DISABLED
    rig.runner.enable()
    rig.go(0.5)
    assert rig.runner.mode is Mode.HOLD and np.allclose(rig.commands, [0.7, -0.2])


def test_the_ramp_goes_from_holding_to_the_policy(make_rig: MakeRig, constant: MakePolicy, arm_dict: dict) -> None:
    for channel in arm_dict["command"][0]["channels"]:
        channel["rate"] = 1000.0
    spec = robot_from_dict(arm_dict)

    rig = make_rig(policy=constant(0.8, -0.2), spec=spec, config=RunnerConfig(ramp_s=0.4)).drive(until=1.0)
    goal = np.array([0.3, 0.8])  # elbow: 0.5 + 1.0 · (−0.2); waist: 0.8, in the robot's order
    share = np.minimum(np.arange(50) * DT / 0.4, 1.0)[:, None]
    np.testing.assert_allclose(rig.commands, share * goal, atol=1e-6)


def test_only_the_allowed_ways_lead_between_modes(make_rig: MakeRig) -> None:
    rig = make_rig()
    with pytest.raises(ValueError, match="start needs a robot in hold"):
        rig.runner.start()
    rig.drive(0.5)
    for call in (rig.runner.enable, rig.runner.start, rig.runner.shadow, rig.runner.reset):
        with pytest.raises(ValueError, match="active"):
            call()
    rig.runner.estop()
    rig.go(0.6)
    for call in (rig.runner.enable, rig.runner.start, rig.runner.shadow):
        with pytest.raises(ValueError, match="estop"):
            call()
    rig.runner.reset()
    count = len(rig.loopback.sent)
    rig.go(0.8)
    assert rig.runner.mode is Mode.DISABLED and len(rig.loopback.sent) == count


def test_a_joint_outside_its_box_refuses_to_enable(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.plant.position[:] = [2.0, 0.0]
    rig.go(0.1)
    with pytest.raises(ValueError, match=r"elbow.position stands at 2 rad, outside its box \[-0.5, 1.5\]"):
        rig.runner.enable()


def test_a_silent_robot_refuses_to_enable(make_rig: MakeRig) -> None:
    with pytest.raises(ValueError, match="is it publishing"):
        make_rig(Fault("silence")).runner.enable()
    with pytest.raises(ValueError, match=r"no finite elbow\.velocity"):
        make_rig(Fault("nan", where="elbow.velocity")).runner.enable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(control_dt=0.015), "acts every 20 ms, the robot file says 15 ms"),
        (lambda d: d["state"]["joints"]["joints"].__setitem__(0, "wrist"), "does not measure 'waist.position'"),
        (lambda d: d["state"]["joints"].update(joint_unit="deg"), "in deg on the robot and in rad in the policy"),
        (lambda d: d["command"][0]["channels"][0].update(unit="deg"), "in deg, the policy gives rad"),
        (lambda d: d["command"][0]["channels"][0].update(name="wrist.position"), "robot only: wrist.position"),
        (lambda d: d["command"][0]["channels"].pop(), "policy only: waist.position"),
        (lambda d: d["command"][0]["channels"][0].update(kp=50.0, kd=1.0), "kp of 'elbow.position' is 50"),
        (lambda d: d.update(actions={"elbow": "x"}), "does not command"),
        (
            lambda d: d.update(terms={"waist.position": {"unit": "deg", "signal": "waist.position"}}),
            "in deg on the robot and in rad",
        ),
        (
            lambda d: d.update(
                terms={"waist.position": {"unit": "rad", "signal": "waist.position", "function": "cos"}}
            ),
            "reads 'cos' in 1 without a scale to rad",
        ),
        (
            lambda d: d.update(
                terms={"waist.position": {"unit": "rad", "signal": "elbow.velocity", "function": "sin", "scale": 2.0}}
            ),
            "sin of 'elbow.velocity' in rad/s",
        ),
    ],
)
def test_a_robot_unlike_the_contract_is_refused(
    make_rig: MakeRig, arm_dict: dict, arm_interface: Interface, change: Callable, words: str
) -> None:
    change(arm_dict)
    observation, action = terms_from_interface(arm_interface, gains={"elbow.position": {"kp": 80.0, "kd": 1.0}})
    contract = Contract("0" * 64, 0, "test", DT, arm_interface.digest, observation, action)
    with pytest.raises((ValueError, LookupError), match=words):
        make_rig(spec=robot_from_dict(arm_dict), contract=contract)


def test_a_guard_that_alarms_holds(make_rig: MakeRig) -> None:
    class AtTen:
        count = 0

        def alarm(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> bool:
            self.count += 1
            return self.count == 10

        def reset(self) -> None:
            self.count = 0

    rig = make_rig(guard=AtTen()).drive(1.0)
    assert rig.first("hold") == pytest.approx(9 * DT, abs=1e-6) and "guard" in rig.runner.reason


def test_a_stage_changes_the_action_and_its_nan_holds(make_rig: MakeRig) -> None:
    class Times:
        def __init__(self, factor: float):
            self.factor, self.taken, self.episodes = factor, [], 0

        def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
            self.taken.append(taken)
            return self.factor * action

        def reset(self) -> None:
            self.episodes += 1

    stage = Times(-1.0)
    rig = make_rig(stage=stage).drive(2.0)
    plain = make_rig().drive(2.0)
    assert (rig.commands[-1] - plain.commands[-1] < -0.3).all()
    assert stage.taken[0] is None and stage.episodes == 2
    np.testing.assert_allclose(stage.taken[-1], rig.runner.actuation.to_action(rig.commands[-2]))
    assert make_rig(stage=Times(math.nan)).drive(0.5).runner.mode is Mode.HOLD


class Late:
    """Answers 0.3, and takes longer than its deadline at the calls in `when`."""

    obs_dim, act_dim, calls, clock = 4, 2, 0, None

    def __init__(self, *when: int):
        self.when = when

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls in self.when:
            self.clock.advance(0.9 * DT)
        return np.full((1, 2), 0.3, np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def test_a_stage_sees_every_observation_also_where_the_policy_was_late(make_rig: MakeRig) -> None:
    class Watching:
        def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
            seen.append((obs.copy(), action.copy(), taken))
            return action

        def reset(self) -> None:
            seen.clear()

    seen: list[Any] = []
    steps: list[Step] = []

    class Notes:
        def step(self, step: Step) -> None:
            steps.append(step)

    policy = Late(10, 11)
    rig = make_rig(policy=policy, stage=Watching(), listeners=(Notes(),))
    policy.clock = rig.clock
    rig.drive(0.6)
    assert rig.runner.mode is Mode.ACTIVE and rig.runner.stats.events["late_action"] == 2
    assert len(seen) == len(steps) == policy.calls
    for (_, action, taken), step in zip(seen[1:], steps, strict=False):
        np.testing.assert_array_equal(taken, step.taken)
        assert action.tolist() == [np.float32(0.3)] * 2, "while it is late, its last word goes on"


def test_a_stage_that_is_slow_or_raises_holds(make_rig: MakeRig) -> None:
    class Slow:
        calls = 0

        def __init__(self, after: int, fail: bool):
            self.after, self.fail = after, fail

        def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
            self.calls += 1
            if self.calls > self.after:
                if self.fail:
                    raise RuntimeError("out of memory")
                rig.clock.advance(0.9 * DT)
            return action

        def reset(self) -> None:
            pass

    for fail, reason in ((True, "RuntimeError"), (False, "late actions in a row")):
        rig = make_rig(stage=Slow(20, fail))
        rig.drive(1.2)
        assert rig.first("hold") == pytest.approx(20 * DT if fail else 22.9 * DT, abs=1e-6)
        assert reason in rig.runner.reason
        rig.check_box()


@pytest.mark.parametrize("number", ENDING, ids=lambda s: s.name)
def test_run_ends_with_a_stop_command_also_on_a_signal(make_rig: MakeRig, number: signal.Signals) -> None:
    class Killer:
        def step(self, step: Step) -> None:
            if step.time - rig.begin > 0.5:
                signal.raise_signal(number)

    rig = make_rig(listeners=(Killer(),))
    rig.runner.enable()
    rig.runner.start()
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, or in the background, some are ignored
    try:
        with stop_on_signals(rig.runner):
            rig.runner.run(duration=60.0)
    finally:
        signal.signal(number, before)
    assert 0.5 < rig.elapsed < 0.6 and rig.runner.mode is Mode.ESTOP
    assert (rig.commands[-1] == rig.commands[-2]).all() and len(rig.commands) == pytest.approx(27, abs=1)


def test_a_closing_terminal_that_is_to_be_ignored_is(make_rig: MakeRig) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals(make_rig().runner):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_that_cannot_be_sent_holds_and_the_stop_is_tried_again(make_rig: MakeRig) -> None:
    rig = make_rig().drive(0.5)
    write, refusals = rig.loopback.write, iter([True, False, False, True, True, False])

    def sometimes(command: np.ndarray) -> None:
        if next(refusals, False):
            raise OSError("DDS could not write (code -2)")
        write(command)

    rig.loopback.write = sometimes
    count = len(rig.loopback.sent)
    rig.go(0.56)
    assert rig.runner.mode is Mode.HOLD and "could not be sent" in rig.runner.reason
    assert len(rig.loopback.sent) == count + 2, "the loop goes on and holds"
    rig.runner.close()
    assert rig.runner.stats.events["unsent"] == 3 and rig.runner.mode is Mode.ESTOP
    assert len(rig.loopback.sent) == count + 3, "the third attempt at the stop command came through"


def test_run_keeps_its_rhythm_and_skips_what_it_lost(make_rig: MakeRig) -> None:
    class Stall:
        count = 0

        def step(self, step: Step) -> None:
            self.count += 1
            times.append(step.time - rig.begin)
            if self.count == 10:
                rig.clock.advance(0.107)

    times: list[float] = []
    rig = make_rig(listeners=(Stall(),))
    rig.runner.enable()
    rig.runner.run(duration=1.0)
    grid = np.array(times) / DT
    assert rig.runner.stats.events["missed"] == 4 and len(times) == 46 + 1, "the ticks, and the last word"
    late = grid - np.round(grid)
    assert np.abs(np.delete(late, 10)).max() < 1e-6, "after a stall the old rhythm goes on"


def test_a_policy_that_hangs_cannot_keep_a_stop_from_being_sent(arm: RobotSpec, arm_contract: Contract) -> None:
    release, reached = threading.Event(), threading.Event()

    class Hanging:
        obs_dim, act_dim, calls = 4, 2, 0

        def act(self, obs: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls > 3:
                reached.set()
                release.wait(20)
            return np.zeros((1, 2), np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    clock, policy = MonotonicClock(), Hanging()
    loopback, config = Loopback(arm, JointPlant(arm), clock), RunnerConfig(stale_s=0.5, ramp_s=0.0)
    runner = Runner(policy, arm_contract, loopback, clock, config, ThreadCaller(policy, clock))
    runner.enable()
    runner.start()
    modes = []
    while not reached.is_set() or len(modes) < 16:
        runner.tick()
        modes.append(runner.mode)
        clock.sleep_until(clock.now() + DT)
    assert Mode.HOLD in modes and runner.mode is Mode.DAMP, "3 late actions hold, 10 damp"
    runner.estop()
    runner.tick()
    assert runner.mode is Mode.ESTOP and not release.is_set()
    release.set()
    runner.close()


def test_an_answer_that_came_too_late_is_thrown_away() -> None:
    class Echo:
        obs_dim = act_dim = 1

        def act(self, obs: np.ndarray) -> np.ndarray:
            if obs[0, 0] == 1.0:
                release.wait(20)
            return obs.copy()

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    release, clock = threading.Event(), MonotonicClock()
    caller = ThreadCaller(Echo(), clock)

    def ask(value: float, patience: float) -> np.ndarray | None:
        return caller.call(np.full((1, 1), value, np.float32), None, clock.now() + patience)

    assert ask(0.0, 10.0) == 0.0
    assert ask(1.0, 0.01) is None and ask(2.0, 0.01) is None
    release.set()
    assert ask(3.0, 10.0) is None, "the answer to 1 must not pass for an answer to 3"
    assert ask(4.0, 10.0) == 4.0
    caller.close()


def test_statistics_count_what_happened(make_rig: MakeRig) -> None:
    summary = make_rig(Fault("silence", start=1.0)).drive(2.0).runner.stats.summary()
    assert summary["age_max_ms"] > 900 and summary["no state"] > 10


def test_a_config_that_makes_no_sense_is_refused() -> None:
    for options in ({"stale_s": 2.0}, {"late_hold": 0}, {"deadline": 1.5}, {"late_damp": 1}, {"ramp_s": -1.0}):
        with pytest.raises(ValueError):
            RunnerConfig(**options)


def test_inline_answers_after_the_deadline_are_late(make_rig: MakeRig) -> None:
    rig = make_rig()
    caller = InlineCaller(rig.policy, rig.clock)
    obs = np.zeros((1, 4), np.float32)
    assert caller.call(obs, None, rig.clock.now() + 0.01) is not None
    assert caller.call(obs, None, rig.clock.now() - 0.01) is None
