"""Every fault a robot meets: which mode follows, how soon, and that no command leaves its box meanwhile."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.faults import FAULTS, Fault
from robot_cl.deploy.modes import Mode, RunnerConfig, Step
from robot_cl.deploy.robot import RobotSpec

DT, STALE, DAMP = 0.02, 0.06, 0.5
SIGNALS = ("waist.position", "elbow.position", "waist.velocity", "elbow.velocity")
MakeRig = Callable[..., Any]


class Notes:
    """A listener that keeps every step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)


def held_from(rig: Any, when: float) -> None:
    """From this instant on the robot never drives again and every command is the one before."""
    after = [m for t, m in rig.log if t >= when - 1e-9]
    assert after and set(after) <= {"hold", "damp"}
    sent = np.array([c for t, c in rig.loopback.sent if t - rig.begin >= when - DT - 1e-9])
    assert len(sent) > 2 and np.ptp(sent, axis=0).max() == 0.0


def test_without_faults_the_robot_drives(make_rig: MakeRig) -> None:
    rig = make_rig().drive(until=2.0)
    assert rig.first("active") <= 0.14 and rig.runner.mode is Mode.ACTIVE
    assert np.abs(rig.plant.position).min() > 0.1
    rig.check_box()


@pytest.mark.parametrize("loss", [0.05, 0.2, 0.5])
def test_lost_messages_never_let_it_drive_on_an_old_state(make_rig: MakeRig, loss: float) -> None:
    notes = Notes()
    rig = make_rig(Fault("drop", loss, start=0.3), seed=3, listeners=(notes,)).drive(until=6.0)
    for step in notes.steps:
        if step.mode in ("ramp", "active"):
            assert step.age < STALE
    held = [s for s in notes.steps if s.mode == "hold"]
    if held:
        assert held[0].age == pytest.approx(STALE, abs=1e-6)
        held_from(rig, held[0].time - rig.begin)
    assert bool(held) == (loss >= 0.2)
    rig.check_box()


@pytest.mark.parametrize("delay", [0.01, 0.05])
def test_a_constant_delay_is_driven_through(make_rig: MakeRig, delay: float) -> None:
    rig = make_rig(Fault("delay", delay)).go(0.2)
    rig.drive(until=3.0)
    assert rig.runner.mode is Mode.ACTIVE and rig.runner.stats.percentile("age", 100) < STALE
    rig.check_box()


def test_a_state_that_was_overtaken_is_never_used(make_rig: MakeRig, arm: RobotSpec) -> None:
    class Counting:
        """Positions say when they were measured."""

        ticks = 0

        def signals(self) -> np.ndarray:
            return np.full(4, 1e-4 * self.ticks)

        def step(self, command: np.ndarray) -> None:
            self.ticks += 1

    notes = Notes()
    rig = make_rig(Fault("jitter", 0.05), plant=Counting(), listeners=(notes,), seed=1)
    rig.go(0.1).drive(until=4.0)
    seen = [s.values[0] for s in notes.steps if np.isfinite(s.values[0])]
    assert (np.diff(seen) >= 0).all() and seen[-1] > 0
    assert rig.loopback.inbox.refused > 10, "the fault must really have reordered messages"
    rig.check_box()


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_non_finite_measurement_holds_at_once_and_damps_later(make_rig: MakeRig, kind: str, signal: str) -> None:
    rig = make_rig(Fault(kind, start=1.0, stop=2.0, where=signal)).drive(until=2.5)
    assert rig.first("hold") == pytest.approx(1.0, abs=1e-6)
    assert rig.first("damp") - 0.98 == pytest.approx(DAMP, abs=1e-6)
    held_from(rig, 1.0)
    rig.check_box()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("entry", [0, 1])
def test_a_non_finite_action_holds_in_the_same_tick(make_rig: MakeRig, value: float, entry: int) -> None:
    class Broken:
        obs_dim, act_dim, calls = 4, 2, 0

        def act(self, obs: np.ndarray) -> np.ndarray:
            self.calls += 1
            action = np.full((1, 2), 0.3, np.float32)
            action[0, entry] = value if self.calls > 40 else 0.3
            return action

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    rig = make_rig(policy=Broken()).drive(until=1.5)
    assert rig.first("hold") == pytest.approx(40 * DT, abs=1e-6)
    held_from(rig, 40 * DT)
    rig.check_box()


def test_a_policy_that_raises_holds(make_rig: MakeRig) -> None:
    class Raising:
        obs_dim, act_dim, calls = 4, 2, 0

        def act(self, obs: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls > 20:
                raise RuntimeError("out of memory")
            return np.zeros((1, 2), np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    rig = make_rig(policy=Raising()).drive(until=1.0)
    assert rig.first("hold") == pytest.approx(20 * DT, abs=1e-6) and "RuntimeError" in rig.runner.reason


def test_permuted_joints_change_nothing(make_rig: MakeRig) -> None:
    plain, mixed = make_rig().drive(2.0), make_rig(Fault("permute")).drive(2.0)
    assert (plain.commands == mixed.commands).all() and mixed.runner.mode is Mode.ACTIVE
    assert (plain.plant.position == mixed.plant.position).all()


@pytest.mark.parametrize(("kind", "word"), [("missing", "without"), ("extra", "unknown"), ("duplicate", "twice")])
def test_wrong_joints_refuse_to_enable_and_hold_while_driving(make_rig: MakeRig, kind: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_rig(Fault(kind)).runner.enable()
    rig = make_rig(Fault(kind, start=1.0)).drive(until=2.0)
    assert 0.98 < rig.first("hold") <= 0.98 + STALE + 1e-6
    assert rig.first("damp") <= 0.98 + DAMP + 1e-6
    held_from(rig, rig.first("hold"))
    rig.check_box()


def test_a_dead_publisher_holds_within_the_stale_time_and_damps_within_half_a_second(make_rig: MakeRig) -> None:
    rig = make_rig(Fault("silence", start=1.0)).drive(until=3.0)
    last = 0.98  # the last message that left
    assert rig.first("hold") == pytest.approx(last + STALE, abs=1e-6)
    assert rig.first("damp") == pytest.approx(last + DAMP, abs=1e-6)
    held_from(rig, rig.first("hold"))
    rig.check_box()


@pytest.mark.parametrize("gap", [0.2, 2.0])
def test_a_robot_that_comes_back_is_not_driven_before_an_operator_says_so(make_rig: MakeRig, gap: float) -> None:
    rig = make_rig(Fault("silence", start=1.0, stop=1.0 + gap)).drive(until=6.0)
    assert {m for t, m in rig.log if t > 1.1} <= {"hold", "damp"}
    if rig.runner.mode is Mode.DAMP:
        rig.runner.enable()
    rig.runner.start()
    rig.go(7.0)
    assert rig.runner.mode is Mode.ACTIVE
    rig.check_box()


def test_a_restarted_publisher_holds_even_without_a_gap(make_rig: MakeRig) -> None:
    rig = make_rig(Fault("restart", start=1.0)).drive(until=3.0)
    assert rig.first("hold") == pytest.approx(1.0, abs=1e-6) and "publisher" in rig.runner.reason
    held_from(rig, 1.0)
    rig.runner.start()
    assert rig.go(4.0).runner.mode is Mode.ACTIVE


@pytest.mark.parametrize("hours", [1.0, -1.0])
def test_the_robots_clock_may_jump_by_an_hour(make_rig: MakeRig, hours: float) -> None:
    rig = make_rig(Fault("clock", 3600 * hours, start=1.0)).drive(until=3.0)
    assert rig.runner.mode is Mode.ACTIVE and rig.loopback.inbox.refused <= 1
    rig.check_box()


def test_our_own_time_of_day_is_never_asked(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> float:
        raise AssertionError("the control loop asked for the time of day")

    monkeypatch.setattr(time, "time", asked)
    assert make_rig().drive(until=1.0).runner.mode is Mode.ACTIVE


def test_stamps_that_stand_still_count_as_silence(make_rig: MakeRig) -> None:
    rig = make_rig(Fault("frozen_stamp", start=1.0)).drive(until=2.0)
    assert rig.first("hold") <= 0.98 + STALE + DT + 1e-6


class Slow:
    """A policy that takes `seconds` of virtual time on calls in `when`."""

    obs_dim, act_dim = 4, 2

    def __init__(self, seconds: float, when: range):
        self.seconds, self.when, self.calls, self.clock = seconds, when, 0, None

    def act(self, obs: np.ndarray) -> np.ndarray:
        if self.calls in self.when:
            self.clock.advance(self.seconds)
        self.calls += 1
        return np.full((1, 2), 0.01 * self.calls, np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


@pytest.mark.parametrize(("late", "mode"), [(1, "active"), (2, "active"), (3, "hold"), (9, "hold"), (10, "damp")])
def test_late_actions_are_bridged_then_held_then_damped(make_rig: MakeRig, late: int, mode: str) -> None:
    policy = Slow(0.018, range(20, 20 + late))
    rig = make_rig(policy=policy)
    policy.clock = rig.clock
    rig.runner.enable()
    rig.runner.start()
    for k in range(60):
        due = rig.begin + k * DT
        rig.clock.sleep_until(due)
        rig.runner.tick()
        rig.log.append((k * DT, str(rig.runner.mode)))
    assert str(rig.runner.mode) == mode
    assert rig.runner.stats.events["late_action"] == late
    assert rig.first("hold") == (pytest.approx(22 * DT + 0.018) if late >= 3 else math.inf)
    assert rig.first("damp") == (pytest.approx(29 * DT + 0.018) if late >= 10 else math.inf)
    if late == 1:
        assert (rig.commands[20] == rig.commands[19]).all() and (rig.commands[21] != rig.commands[20]).any()
    rig.check_box()


def test_a_state_that_grows_old_while_the_policy_thinks_is_not_driven_on(make_rig: MakeRig) -> None:
    notes, policy = Notes(), Slow(0.015, range(10**6))
    rig = make_rig(Fault("delay", 0.005), Fault("silence", start=1.0), policy=policy, listeners=(notes,))
    policy.clock = rig.clock
    rig.go(0.02)
    rig.drive(2.0)
    assert rig.runner.stats.events["late_action"] == 0 and rig.first("active") < 1.0
    driven = [s.age for s in notes.steps if s.mode in ("ramp", "active")]
    assert max(driven) < STALE and rig.first("hold") - 0.985 < STALE + 0.015
    rig.check_box()


@pytest.mark.parametrize("state", ["hold", "active", "ramp"])
def test_a_stop_is_sent_within_one_period_whatever_the_mode(make_rig: MakeRig, state: str) -> None:
    rig = make_rig(config=RunnerConfig(ramp_s=5.0 if state == "ramp" else 0.05))
    rig.runner.enable()
    if state != "hold":
        rig.runner.start()
    rig.go(0.5)
    assert str(rig.runner.mode) == state
    ordered = rig.clock.now() - 0.7 * DT
    rig.runner.estop()
    rig.runner.tick()
    when, command = rig.loopback.sent[-1]
    assert rig.runner.mode is Mode.ESTOP and when - ordered <= DT + 0.005
    assert (command == rig.commands[-2]).all(), "stop of a position channel freezes it"
    rig.go(1.0)
    assert rig.runner.mode is Mode.ESTOP
    rig.check_box()


def test_a_stop_does_not_wait_for_a_silent_robot_or_a_slow_policy(make_rig: MakeRig) -> None:
    policy = Slow(0.019, range(10, 1000))
    rig = make_rig(Fault("silence", start=0.19), policy=policy)
    policy.clock = rig.clock
    rig.drive(0.2)
    rig.runner.estop()
    before = rig.clock.now()
    rig.runner.tick()
    assert rig.runner.mode is Mode.ESTOP and rig.loopback.sent[-1][0] == before


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_shadow_sends_nothing_whatever_happens(make_rig: MakeRig, kind: str) -> None:
    notes = Notes()
    rig = make_rig(Fault(kind, 0.05, start=0.5), listeners=(notes,))
    rig.runner.shadow()
    rig.go(1.0)
    rig.runner.estop()
    rig.go(1.2)
    rig.runner.close()
    assert rig.loopback.sent == []
    assert any(s.command is not None for s in notes.steps), "it must still compute what it would have sent"


@pytest.mark.parametrize("kind", sorted(FAULTS))
@pytest.mark.parametrize("seed", [0, 1])
def test_no_fault_makes_a_command_leave_its_box(make_rig: MakeRig, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    where = rng.choice(["", "joints"]) if kind not in ("nan", "inf", "bias") else rng.choice(SIGNALS)
    fault = Fault(kind, float(rng.choice([0.03, 0.3, 1.0])), start=0.4, stop=0.9, where=str(where))
    rig = make_rig(fault, Fault("drop_command", 0.1), Fault("delay_command", 0.03), seed=seed).drive(until=2.0)
    for _ in range(3):  # an operator who insists
        with contextlib.suppress(ValueError):
            rig.runner.enable() if rig.runner.mode is Mode.DAMP else rig.runner.start()
        rig.go(rig.elapsed + 0.5)
    rig.check_box()


def test_an_unknown_or_impossible_fault_is_refused() -> None:
    with pytest.raises(LookupError, match="did you mean 'silence'"):
        Fault("silense")
    with pytest.raises(ValueError, match="probability"):
        Fault("drop", 5)
