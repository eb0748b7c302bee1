"""What is heard from the robot: how old is too old, and who may say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from robot_cl.deploy.faults import Fault
from robot_cl.deploy.modes import Mode

MakeRig = Callable[..., Any]


def test_a_robot_that_fell_silent_refuses_to_enable_and_to_start(make_rig: MakeRig) -> None:
    rig = make_rig(Fault("silence", start=0.2))
    rig.go(0.1)
    rig.runner.enable()
    rig.clock.sleep_until(rig.begin + 1.0)
    with pytest.raises(ValueError, match="no fresh state from the robot"):
        rig.runner.start()
    other = make_rig(Fault("silence", start=0.2)).go(1.0)
    with pytest.raises(ValueError, match="no fresh state from the robot"):
        other.runner.enable()


def test_a_tick_alone_holds_once_the_last_state_is_as_old_as_allowed(make_rig: MakeRig) -> None:
    """Without the watch between ticks, as where a tick came late."""
    rig = make_rig(Fault("silence", start=0.39)).drive(until=0.4)
    hearing = rig.runner.hearing
    rig.clock.sleep_until(hearing.usable + 0.9 * hearing.stale_s)
    rig.runner.tick()
    assert rig.runner.mode is Mode.ACTIVE
    rig.clock.sleep_until(hearing.usable + hearing.stale_s)
    rig.runner.tick()
    assert rig.runner.mode is Mode.HOLD and rig.runner.reason.startswith("no state for")


def test_who_speaks_matters_only_to_whoever_drives(make_rig: MakeRig) -> None:
    rig = make_rig(Fault("restart", start=0.5))
    rig.runner.enable()
    rig.go(1.0)
    assert rig.runner.mode is Mode.HOLD and not rig.runner.stats.events["another publisher took over"]
    rig.runner.start()  # from whoever speaks now
    assert rig.go(2.0).runner.mode is Mode.ACTIVE
