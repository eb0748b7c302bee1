"""A recording opens in standard readers, comes back as arrays, and never holds up the robot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.cdr import encode
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.faults import Fault
from robot_cl.deploy.modes import Mode, Step
from robot_cl.deploy.record import STRING, Recorder, drives, read_log
from robot_cl.deploy.robot import RobotSpec

DT = 0.02
MakeRig = Callable[..., Any]


class Notes:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)


def recorded(make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract, *faults: Fault) -> Any:
    notes, recorder = Notes(), Recorder(tmp_path / "log" / "a.mcap", arm_contract, arm)
    rig = make_rig(*faults, listeners=(notes, recorder))
    rig.go(0.1).drive(1.0)
    recorder.close()
    return rig, notes, recorder


def test_what_was_recorded_comes_back(
    make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract
) -> None:
    _, notes, recorder = recorded(make_rig, tmp_path, arm, arm_contract)
    log = read_log(recorder.path)
    assert log.contract == arm_contract and log.robot == "arm2" and recorder.dropped == 0
    assert log.mode.tolist() == [str(s.mode) for s in notes.steps]
    np.testing.assert_allclose(log.time, [s.time - notes.steps[0].time for s in notes.steps], atol=1e-6)
    for k, step in enumerate(notes.steps):
        assert (log.signals[k] == step.values).all()
        for found, wanted in ((log.obs, step.obs), (log.action, step.action), (log.command, step.command)):
            if wanted is None:
                assert np.isnan(found[k]).all()
            else:
                assert (found[k] == np.asarray(wanted).reshape(-1)).all()
    assert log.names["command"] == ["elbow.position", "waist.position"]


def test_drives_are_the_stretches_a_policy_really_drove(
    make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract
) -> None:
    fault = Fault("nan", start=0.8, where="waist.velocity")
    _, notes, recorder = recorded(make_rig, tmp_path, arm, arm_contract, fault)
    found = drives(read_log(recorder.path))
    active = [s for s in notes.steps if s.mode == "active"]
    assert found.lengths.tolist() == [len(active) - 1] and len(found.obs) == found.lengths.sum()
    np.testing.assert_array_equal(found.obs, np.concatenate([s.obs for s in active[:-1]]))
    np.testing.assert_array_equal(found.next_obs[:-1], found.obs[1:])
    interface = arm_contract.interface
    for step, action in zip(active, found.action, strict=False):
        sent = dict(zip([c.name for c in arm.channels], step.command, strict=True))
        wanted = [sent[c.name] for c in interface.action]
        np.testing.assert_allclose(interface.command(action), wanted, atol=1e-9)
    assert np.abs(found.action).max() <= 1.0


def test_standard_readers_open_it(make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract) -> None:
    mcap_ros2 = pytest.importorskip("mcap_ros2.reader")
    _, notes, recorder = recorded(make_rig, tmp_path, arm, arm_contract)
    seen = [m for m in mcap_ros2.read_ros2_messages(str(recorder.path)) if m.channel.topic == "/robot_cl/command"]
    sent = [s for s in notes.steps if s.command is not None]
    assert len(seen) == len(sent)
    assert list(seen[3].ros_msg.name) == ["elbow.position", "waist.position"]
    assert list(seen[3].ros_msg.position) == sent[3].command.tolist()
    assert seen[3].ros_msg.header.stamp.sec > 1_600_000_000


def test_a_slow_disk_loses_steps_and_not_the_robot(tmp_path: Path, arm: RobotSpec, arm_contract: Contract) -> None:
    recorder = Recorder(tmp_path / "a.mcap", arm_contract, arm, size=4)
    hold, write = threading.Event(), recorder._write
    recorder._write = lambda step: (hold.wait(20), write(step))[1]  # type: ignore[method-assign]
    step = Step(0.0, "hold", "", np.zeros(4), None, None, None, None, 0.0)  # type: ignore[arg-type]
    for _ in range(10):
        recorder.step(step)
    assert recorder.dropped >= 5
    hold.set()
    recorder.close()
    assert len(read_log(recorder.path).time) == 10 - recorder.dropped


def test_weights_are_kept_by_name_also_of_a_policy_that_took_over(
    make_rig: MakeRig, make_bundle: Callable[..., Path], tmp_path: Path, arm: RobotSpec
) -> None:
    walk, trot = (PolicyBundle.load(make_bundle(n, skills=s)) for n, s in (("a", ("hop", "run")), ("b", ("run",))))
    recorder = Recorder(tmp_path / "a.mcap", walk.contract, arm, skills=("hop", "run"))
    rig = make_rig(policy=walk, contract=walk.contract, listeners=(recorder,)).drive(0.5)
    rig.runner.order("skills hop=0.25 run=0.75")
    rig.go(1.0)
    rig.runner.swap(trot, trot.contract)
    rig.runner.order("skills run=0.5")
    rig.go(2.0)
    recorder.close()
    log = read_log(recorder.path)
    assert recorder.dropped == 0 and len(log.time) == round(2.0 / DT)
    np.testing.assert_allclose(log.weights[round(0.98 / DT)], [0.25, 0.75])
    np.testing.assert_allclose(log.weights[-1], [np.nan, 0.5])


def test_a_full_disk_ends_the_recording_and_not_the_run(
    make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract
) -> None:
    recorder = Recorder(tmp_path / "a.mcap", arm_contract, arm)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), recorder._file.fileno())
        rig = make_rig(listeners=(recorder,)).drive(8.0)
        recorder.close()
    assert "No space" in recorder.problem and recorder.dropped > 0 and rig.runner.mode is Mode.ACTIVE


def test_what_a_killed_run_wrote_is_on_the_disk_and_stamped_with_the_time_of_day(
    make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract
) -> None:
    from mcap.reader import make_reader

    recorder = Recorder(tmp_path / "a.mcap", arm_contract, arm)
    assert read_log(recorder.path).contract == arm_contract
    time.sleep(0.3)  # as while waiting for a robot
    before = time.time()
    rig = make_rig(listeners=(recorder,)).drive(4.0)
    while not recorder._queue.empty():
        time.sleep(0.01)
    left = read_log(recorder.path)
    assert not left.whole and len(left.time) > 0.5 * rig.ticks and len(drives(left).obs) > 50
    recorder.close()
    with recorder.path.open("rb") as file:
        first = next(iter(make_reader(file).iter_messages()))[2]
    assert before - 1e-3 <= 1e-9 * first.log_time <= time.time()


def test_other_files_are_refused_in_one_sentence(tmp_path: Path, arm: RobotSpec, arm_contract: Contract) -> None:
    recorder = Recorder(tmp_path / "a.mcap", arm_contract, arm)
    with pytest.raises(OSError, match="never overwritten"):
        Recorder(tmp_path / "a.mcap", arm_contract, arm)
    recorder.close()
    with pytest.raises(ValueError, match="never drove"):
        drives(read_log(tmp_path / "a.mcap"))
    (tmp_path / "b.mcap").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as MCAP"):
        read_log(tmp_path / "b.mcap")


@pytest.mark.parametrize(
    ("streams", "status", "sequence"),
    [("[1]", '{"mode": "hold"}', 0), ("{}", "{}", 0), ("{}", "hold", 0), ("{}", '{"mode": "hold"}', 4_000_000_000)],
)
def test_a_recording_that_was_tampered_with_is_refused(
    tmp_path: Path, arm_contract: Contract, streams: str, status: str, sequence: int
) -> None:
    from mcap.writer import Writer

    with (tmp_path / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        writer.add_metadata("robot_cl", {"contract": arm_contract.to_json(), "robot": "arm", "streams": streams})
        channel = writer.register_channel("/robot_cl/status", "cdr", writer.register_schema(STRING, "ros2msg", b""))
        writer.add_message(channel, 1, encode(STRING, {"data": status}), 1, sequence)
        writer.finish()
    with pytest.raises(ValueError, match="damaged recording"):
        read_log(tmp_path / "a.mcap")


def test_a_recording_cut_short_by_a_crash_gives_what_is_left(
    make_rig: MakeRig, tmp_path: Path, arm: RobotSpec, arm_contract: Contract
) -> None:
    recorder = Recorder(tmp_path / "a.mcap", arm_contract, arm)
    make_rig(listeners=(recorder,)).drive(4.0)
    recorder.close()
    data, whole = recorder.path.read_bytes(), read_log(recorder.path)
    (tmp_path / "b.mcap").write_bytes(data[: len(data) // 2])
    cut = read_log(tmp_path / "b.mcap")
    assert whole.whole and not cut.whole and 20 < len(cut.time) < len(whole.time)
    np.testing.assert_array_equal(cut.obs[:-1], whole.obs[: len(cut.obs) - 1])
    assert len(drives(cut).obs) > 10
