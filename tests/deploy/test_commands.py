"""From bundle to robot on the command line: nothing is armed out of turn, and a running policy can be spoken to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robot_cl.cli import main
from robot_cl.commands.deploy import find_robot, robot_files, seconds
from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.guard import calibrate, collect, load_guard, run_guard
from robot_cl.deploy.novelty import Rollouts
from robot_cl.deploy.record import read_log

MakeBundle = Callable[..., Path]
ROOT = Path(__file__).parents[2]


class Ran:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def cli(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)

    def run(*words: Any) -> Ran:
        capsys.readouterr()
        code = main([str(w) for w in words])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def robot_file(tmp_path: Path, arm_dict: dict) -> Path:
    path = tmp_path / "arm2.yaml"
    path.write_text(yaml.safe_dump(arm_dict))
    return path


def test_nothing_is_armed_before_a_rehearsal_and_then_it_drives_and_records(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path
) -> None:
    folder, robot = make_bundle(), f"robot={robot_file}"
    armed = ("deploy", "run", folder, robot, "transport=loopback", "armed=true", "seconds=0.6", "ramp=100ms",
             "stale=400ms", "keyboard=false")  # fmt: skip
    refused = cli(*armed)
    assert refused.code == 2 and "no readable rehearsal receipt; run: robot-cl deploy rehearse" in refused.err
    assert "not to be armed yet" in cli("deploy", "check", folder, robot).out

    rehearsed = cli("deploy", "rehearse", folder, robot, "seconds=1", "latency=20ms", "noise=0.001")
    assert rehearsed.code == 0 and rehearsed.out.count("✓") == 9 and "passed" in rehearsed.out
    assert f"next: robot-cl deploy check {folder}" in rehearsed.out
    assert cli("deploy", "check", folder, robot, "--json").json["missing"] is None

    ran = cli(*armed, "record=a.mcap", "--json")
    assert ran.code == 0 and ran.json["next"] == "data import a.mcap" and ran.json["mode"] == "estop"
    assert [mode for _, mode, _ in ran.json["history"]][:3] == ["hold", "ramp", "active"]
    log = read_log("a.mcap")
    assert np.isfinite(log.command[log.mode == "active"]).all() and (log.mode == "active").sum() > 3
    assert log.mode[-1] == "estop" and np.isfinite(log.command[-1]).all(), "the last word is written down as well"
    assert "estop: finished" in ran.err


def test_a_dry_run_says_what_it_would_send_and_sends_nothing(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path
) -> None:
    folder = make_bundle()
    words = ("deploy", "run", folder, f"robot={robot_file}", "transport=loopback", "seconds=0.3", "keyboard=false")
    ran = cli(*words, "recording=false", "stale=400ms", "dry_run=true")
    assert ran.code == 0 and re.search(r"would send elbow.position \S+ rad, waist.position \S+ rad", ran.out)
    assert "disabled: finished" not in ran.out and "one whole tick" in ran.out
    both = cli(*words, "dry_run=true", "armed=true")
    assert both.code == 2 and "choose one of them" in both.err


def test_a_rehearsal_that_does_not_pass_says_so_with_its_exit_code(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path
) -> None:
    ran = cli("deploy", "rehearse", make_bundle(), f"robot={robot_file}", "seconds=3", "drop=0.7")
    assert ran.code == 1 and "✗ drive" in ran.out and "nothing can be armed" in ran.out


def test_a_robot_that_does_not_fit_is_explained_line_by_line(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path, arm_dict: dict
) -> None:
    arm_dict["state"]["joints"]["joints"] = ["waist", "elbw"]
    robot_file.write_text(yaml.safe_dump(arm_dict))
    ran = cli("deploy", "check", make_bundle(), f"robot={robot_file}")
    assert ran.code == 1 and "✗" in ran.out and "did you mean 'elbw.position'" in ran.out


def test_robots_are_found_by_name_by_path_and_by_what_fits(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    assert set(robot_files()) >= {"arm", "vehicle", "quadrotor", "ur5e"}
    assert find_robot("arm", folder) == robot_files()["arm"]
    assert find_robot(str(tmp_path / "new.yaml"), folder) == tmp_path / "new.yaml"
    assert find_robot(None, folder) is None
    with pytest.raises(LookupError, match="did you mean vehicle"):
        find_robot("vehicel", folder)


def test_times_are_written_as_people_write_them() -> None:
    assert [seconds("x", t) for t in ("20ms", "0.5s", 3, "1e-3", ".2 s")] == [0.02, 0.5, 3.0, 0.001, 0.2]
    for wrong in ("20 parsecs", "", "-1", "ms"):
        with pytest.raises(ValueError, match="expected a time such as 20ms"):
            seconds("latency", wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["deploy", "say", "stpo"], "did you mean 'stop'"),
        (["deploy", "say", "skills"], "skills takes at least one NAME=NUMBER"),
        (["deploy", "say", "skills", "hop=much"], "skills expects NAME=NUMBER"),
        (["deploy", "say", "stop", "transport=loopback"], "nothing can be said over 'loopback'"),
        (["deploy", "say", "policy", "trot", "transport=loopback"], "nothing can be said over 'loopback'"),
        (["deploy", "say", "stop", "now", "transport=loopback"], "stop expects NAME=NUMBER"),
        (["deploy", "rehearse", "nowhere"], "nowhere has no contract.json"),
        (["deploy", "run", "nowhere", "robot=arm"], "nowhere is not a folder"),
        (["export", "--to", "b"], "export needs a RUN"),
        (["export", "last", "skills=[a]", "--to", "b"], "and not both"),
        (["export", "skills=[a,b]", "weights=[1]", "--to", "b"], "1 numbers for 2 skills"),
    ],
)
def test_mistakes_are_one_sentence(cli: Callable[..., Ran], words: list[str], says: str) -> None:
    ran = cli(*words)
    assert ran.code == 2 and says in ran.err and ran.err.count("\n") == 1, ran.err


def test_a_policy_in_one_process_a_robot_in_another_and_an_operator_in_a_third(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path
) -> None:
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    import dds_peer

    folder = make_bundle(skills=("hop", "walk"))
    assert cli("deploy", "rehearse", folder, f"robot={robot_file}", "seconds=1").code == 0
    from robot_cl.deploy.dds_node import Node

    domain = dds_peer.free_domain()
    network = [f"domain={domain}", "interface=lo", "peers=[127.0.0.1]"]
    command = [sys.executable, "-m", "robot_cl.cli", "deploy", "simulate", str(folder), f"robot={robot_file}", *network]
    robot = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    try:
        assert robot.stdout is not None and "obeys /forward_position_controller/commands" in robot.stdout.readline()
        answers: list[int] = []
        over = threading.Event()

        def operator() -> None:
            node = Node(**dds_peer.network(domain))
            commands, heard = node.reader("/forward_position_controller/commands", "std_msgs/msg/Float64MultiArray"), 0
            while heard < 10 and not over.is_set():  # until the policy drives
                heard += len(commands.take())
                time.sleep(0.01)
            node.close()
            answers.append(main(["deploy", "say", "skills", "hop=0.5", "walk=1", "wait=20", *network, "--quiet"]))
            answers.append(main(["deploy", "say", "stop", "wait=20", *network, "--quiet"]))

        person = threading.Thread(target=operator)
        person.start()
        words = ("deploy", "run", folder, f"robot={robot_file}", *network, "armed=true", "ramp=0s", "stale=400ms")
        ran = cli(*words, "wait=20", "seconds=6", "keyboard=false", "record=b.mcap", "--json")
        over.set()
        person.join(60)
    finally:
        robot.terminate()
        robot.wait()
    assert ran.code == 0 and answers == [0, 0], ran.err
    assert "stop ordered" in [why for _, _, why in ran.json["history"]]
    log = read_log("b.mcap")
    active = log.mode == "active"  # how long is up to the machine: a robot that is heard late is held
    assert active.any() and np.isfinite(log.command[active]).all()
    assert ran.json["statistics"].get("bad_order", 0) == ran.json["statistics"].get("refused_order", 0) == 0


def test_a_run_that_is_terminated_sends_its_robot_the_stop_command(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path, arm_dict: dict
) -> None:
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    import dds_peer

    from robot_cl.deploy.clock import MonotonicClock
    from robot_cl.deploy.dds_node import Node
    from robot_cl.deploy.loopback import JointPlant
    from robot_cl.deploy.robot_file import load_robot
    from robot_cl.deploy.simulated import SimulatedRobot

    for channel, stop in zip(arm_dict["command"][0]["channels"], (0.125, -0.25), strict=True):
        channel["stop"] = stop
    robot_file.write_text(yaml.safe_dump(arm_dict))
    folder, domain, clock = make_bundle(), dds_peer.free_domain(), MonotonicClock()
    assert cli("deploy", "rehearse", folder, f"robot={robot_file}", "seconds=1").code == 0
    spec = load_robot(robot_file)
    robot = SimulatedRobot(spec, JointPlant(spec), Node(**dds_peer.network(domain)), clock)
    command = [sys.executable, "-m", "robot_cl.cli", "deploy", "run", str(folder), f"robot={robot_file}",
               f"domain={domain}", "interface=lo", "peers=[127.0.0.1]", "armed=true", "ramp=0s", "stale=400ms",
               "wait=20", "recording=false", "keyboard=false"]  # fmt: skip
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        end, told = clock.now() + 60, False
        while run.poll() is None and clock.now() < end:
            robot.step()
            if robot.count >= 20 and not told:  # once: a second signal would meet a process that is past its handler
                run.terminate()
                told = True
            clock.sleep_until(clock.now() + 0.01)
        end = clock.now() + 10
        while robot.command.tolist() != [0.125, -0.25] and clock.now() < end:  # what has arrived may still wait
            robot.receive()
            clock.sleep_until(clock.now() + 0.01)
        assert run.returncode == 0 and robot.count > 20
        assert robot.command.tolist() == [0.125, -0.25], "the last word of a run is its stop command"
    finally:
        run.kill()
        run.wait()
        robot.node.close()


def test_a_behaviour_becomes_a_bundle_with_one_line(cli: Callable[..., Ran]) -> None:
    ran = cli("export", "hopper-low", "--to", "bundle", "licence=Apache-2.0", "--json")
    assert ran.code == 0 and ran.json["parity"] <= 1e-5 and ran.json["next"] == "deploy rehearse bundle"
    bundle = PolicyBundle.load("bundle")
    assert bundle.contract.task == "hopper" and bundle.contract.licence == "Apache-2.0"


def test_a_guard_is_told_how_a_deployment_went_and_the_rehearsal_is_due_again(
    cli: Callable[..., Ran], make_bundle: MakeBundle, robot_file: Path
) -> None:
    folder = make_bundle()
    assert "guard" in cli("deploy", "guard", folder, "after=quiet").err  # there is none to move
    rng = np.random.default_rng(0)
    guard = calibrate(Rollouts(rng.normal(size=(60, 9, 4)), rng.normal(size=(60, 9, 2))))
    guard.maxima[:] = 1e9  # nothing alarms it
    guard.save(folder)
    assert cli("deploy", "rehearse", folder, f"robot={robot_file}", "seconds=1").code == 0
    moved = cli("deploy", "guard", folder, "after=false_alarm", "--json").json
    assert moved["alpha"] == pytest.approx(0.082) and moved["promised"] == 0.1
    told = cli("deploy", "guard", folder, "after=quiet")
    assert "8.20 -> 8.40 %" in told.out and "rehearse" in told.out
    assert cli("deploy", "run", folder, f"robot={robot_file}", "armed=true").code == 2
    wrong = cli("deploy", "guard", folder, "after=alarm")
    assert wrong.code == 2 and "quiet" in wrong.err


def test_a_guard_calibrated_with_the_robots_noise_is_quiet_where_an_exact_one_alarms(cli: Callable[..., Ran]) -> None:
    assert cli("export", "halfcheetah-low", "--to", "bundle").code == 0
    noisy = collect(PolicyBundle.load("bundle"), "halfcheetah", 40, 30, seed=900, shift="noise0.05")
    rates = []
    for words in ([], ["shift=noise0.05"]):
        assert cli("deploy", "guard", "bundle", "rollouts=40", "steps=30", *words).code == 0
        guard = load_guard("bundle")
        rates.append((run_guard(guard, noisy).max(1) > guard.threshold).mean())
    assert rates[0] > 0.9 and rates[1] < 0.3
    wrong = cli("deploy", "guard", "bundle", "shift=fog1")
    assert wrong.code == 2 and "fog" in wrong.err and "Traceback" not in wrong.err
