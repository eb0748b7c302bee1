"""No arming without a rehearsal of this bundle on this robot file, and runs that end as they should."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import sim
from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.guard import GuardConfig, calibrate
from robot_cl.deploy.loopback import Loopback
from robot_cl.deploy.modes import RunnerConfig
from robot_cl.deploy.novelty import Rollouts
from robot_cl.deploy.observe import orientation_part, rotation
from robot_cl.deploy.plants import WorldPlant, spec_from_contract
from robot_cl.deploy.receipt import require_receipt
from robot_cl.deploy.record import read_log
from robot_cl.deploy.rehearse import DRILLS, RehearseOptions, rehearse
from robot_cl.deploy.robot_file import load_robot
from robot_cl.deploy.run import RunOptions, check, run
from robot_cl.deploy.runner import Runner
from sim.robots import frames
from sim.spec import Channel, Interface

MakeBundle = Callable[..., Path]
VEHICLE = Path(__file__).parents[2] / "configs" / "robot" / "vehicle.yaml"


@pytest.fixture
def robot_file(tmp_path: Path, arm_dict: dict) -> Path:
    path = tmp_path / "arm2.yaml"
    path.write_text(yaml.safe_dump(arm_dict))
    return path


def test_a_rehearsal_answers_every_question_and_leaves_a_receipt(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder, heard = make_bundle(), list[tuple[float, float]]()
    options = RehearseOptions(seconds=2.0, noise=0.001)
    found = rehearse(folder, robot_file, options, lambda done, total, note: heard.append((done, total)))
    assert (np.diff([done for done, _ in heard]) > 0).all() and 0.9 < heard[-1][0] / heard[-1][1] < 1.1
    assert found.passed, [c for c in found.checks if not c.passed]
    assert len(found.checks) == 9 and found.receipt is not None
    receipt = require_receipt(folder, robot_file)
    assert receipt.passed and set(receipt.checks) == {c.name for c in found.checks}
    PolicyBundle.load(folder)


def test_without_a_world_a_robot_stands_upright_inside_its_box(
    tmp_path: Path, robot_file: Path, arm_dict: dict, arm_interface: Interface, linear: Callable[..., bytes]
) -> None:
    for channel in arm_dict["command"][0]["channels"]:
        channel["low"] = 0.25
    arm_dict["state"]["imu"] = {"topic": "/imu", "type": "sensor_msgs/msg/Imu"}
    arm_dict["terms"] = {"up": {"unit": "1", "signal": "imu.orientation", "function": "up.z"}}
    robot_file.write_text(yaml.safe_dump(arm_dict))
    interface = dataclasses.replace(arm_interface, obs=(*arm_interface.obs, Channel("up", "1")))
    terms, model = terms_from_interface(interface), linear(5, 2)
    digest = hashlib.sha256(model).hexdigest()
    contract = Contract(digest, len(model), "t", interface.control_dt, interface.digest, *terms)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "policy.onnx").write_bytes(model)
    (tmp_path / "bundle" / "contract.json").write_text(contract.to_json())
    assert rehearse(tmp_path / "bundle", robot_file, RehearseOptions(seconds=1.0)).passed


def test_weather_that_interrupts_the_drive_fails_the_rehearsal(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder = make_bundle()
    found = rehearse(folder, robot_file, RehearseOptions(seconds=4.0, drop=0.7))
    assert not found.passed and "interrupted" in found.checks[0].detail
    with pytest.raises(ValueError, match=r"did not pass \(drive\)"):
        require_receipt(folder, robot_file)


def test_a_guard_that_knows_another_robot_fails_the_rehearsal(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder, rng = make_bundle(), np.random.default_rng(0)
    elsewhere = Rollouts(5.0 + 0.01 * rng.standard_normal((40, 60, 4)), rng.uniform(-0.1, 0.1, (40, 60, 2)))
    calibrate(elsewhere, GuardConfig(0.1, ("mahalanobis",))).save(folder)
    found = rehearse(folder, robot_file, RehearseOptions(seconds=1.0))
    assert not found.passed and "the guard finds this unlike" in found.checks[0].detail
    assert all(check.passed for check in found.checks[1:]), "the drills are about the bridge, not about the policy"


def test_a_receipt_is_worth_nothing_for_anything_else(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder, other = make_bundle("a"), make_bundle("b", seed=3)
    with pytest.raises(ValueError, match="no readable rehearsal receipt; run: robot-cl deploy rehearse"):
        require_receipt(folder, robot_file)
    rehearse(folder, robot_file, RehearseOptions(seconds=1.0))
    (other / "rehearsal.json").write_bytes((folder / "rehearsal.json").read_bytes())
    with pytest.raises(ValueError, match="the bundle changed"):
        require_receipt(other, robot_file)
    robot_file.write_text(robot_file.read_text() + "\n# faster\n")
    with pytest.raises(ValueError, match="another robot file"):
        require_receipt(folder, robot_file)
    data = json.loads((folder / "rehearsal.json").read_text())
    (folder / "rehearsal.json").write_text(json.dumps({**data, "passed": "yes"}))
    robot_file.write_text(robot_file.read_text().replace("\n# faster\n", ""))
    with pytest.raises(ValueError, match="did not pass"):
        require_receipt(folder, robot_file)
    (folder / "rehearsal.json").write_text(json.dumps({**data, "options": 3}))
    with pytest.raises(ValueError, match="no readable rehearsal receipt"):
        require_receipt(folder, robot_file)


def test_a_robot_file_edited_during_its_rehearsal_was_not_rehearsed(
    make_bundle: MakeBundle, robot_file: Path, arm_dict: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drill = make_bundle(), DRILLS[0]

    def edit(stage: Any) -> Any:
        arm_dict["command"][0]["channels"][0]["rate"] = 500.0
        robot_file.write_text(yaml.safe_dump(arm_dict))
        return drill(stage)

    monkeypatch.setattr("robot_cl.deploy.rehearse.DRILLS", (edit, *DRILLS[1:]))
    assert rehearse(folder, robot_file, RehearseOptions(seconds=1.0)).passed
    with pytest.raises(ValueError, match="another robot file, or this one changed"):
        require_receipt(folder, robot_file)


def test_nothing_is_armed_faster_than_it_was_rehearsed(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder = make_bundle()
    rehearse(folder, robot_file, RehearseOptions(seconds=1.0, max_speed=0.5))
    assert require_receipt(folder, robot_file, 0.2).passed and require_receipt(folder, robot_file, 0.5).passed
    with pytest.raises(ValueError, match=r"rehearsed at max_speed=0\.5 and is to run at 1; run: robot-cl"):
        run(folder, robot_file, RunOptions(transport="loopback", armed=True))


def test_arming_without_a_receipt_is_refused(make_bundle: MakeBundle, robot_file: Path) -> None:
    with pytest.raises(ValueError, match="rehearsal receipt"):
        run(make_bundle(), robot_file, RunOptions(transport="loopback", armed=True))


def test_check_lists_what_differs(make_bundle: MakeBundle, robot_file: Path, arm_dict: dict) -> None:
    assert check(make_bundle(), robot_file) == []
    arm_dict["command"][0]["channels"][0]["high"] = 1.0
    arm_dict["state"]["joints"]["joints"] = ["waist", "elbw"]
    robot_file.write_text(yaml.safe_dump(arm_dict))
    found = check(make_bundle("b"), robot_file)
    assert [f.blocks for f in found] == [True, True, False] and "did you mean 'elbw.position'" in found[0].text
    with pytest.raises(ValueError, match=r"; and 1 more, one a line in: robot-cl deploy check .+$") as refused:
        rehearse(make_bundle("c"), robot_file)
    assert str(refused.value).startswith(found[0].text) and found[1].text not in str(refused.value)


def test_check_says_what_a_fallback_would_need(make_bundle: MakeBundle, robot_file: Path, arm_dict: dict) -> None:
    for channel in arm_dict["command"][0]["channels"]:
        channel["measured"] = "waist.velocity"
    robot_file.write_text(yaml.safe_dump(arm_dict))
    (found,) = check(make_bundle(), robot_file)
    assert found.blocks and "has no measured position, so `stop` must be a number" in found.text


@pytest.mark.parametrize("armed", [True, False])
def test_a_run_on_loopback_drives_or_shadows_records_and_obeys(
    make_bundle: MakeBundle, robot_file: Path, tmp_path: Path, armed: bool
) -> None:
    folder, told = make_bundle(), []
    rehearse(folder, robot_file, RehearseOptions(seconds=1.0))
    ready = threading.Event()

    def say(text: str) -> None:
        told.append(text)
        if text.startswith(("active", "shadow")):
            ready.set()

    def orders() -> Any:
        ready.wait(20)
        yield "nonsense"
        yield "skills fly=1"
        yield from ("stop",) if armed else ("reset", "enable", "start")

    log_path = tmp_path / "a.mcap"
    options = RunOptions(transport="loopback", armed=armed, seconds=1.0, ramp=0.1, stale=0.4, record=log_path)
    report = run(folder, robot_file, options, say, orders())
    modes = [mode for _, mode, _ in report.history]
    log = read_log(log_path)
    assert "there is no order 'nonsense'" in " ".join(told)
    if armed:
        assert modes[:2] == ["hold", "ramp"] and modes[-1] == "estop" and "active" in modes
        assert np.isfinite(log.command[log.mode == "ramp"]).all()
    else:
        assert modes == ["shadow", "disabled"] and "this run only watches" in " ".join(told)
    assert report.dropped == 0 and report.statistics["tick_p50_ms"] > 0


def test_every_bundle_of_a_run_needs_its_own_rehearsal(make_bundle: MakeBundle, robot_file: Path) -> None:
    folder, other, done = make_bundle("walk"), make_bundle("trot", seed=3), threading.Event()
    rehearse(folder, robot_file, RehearseOptions(seconds=1.0))
    options = RunOptions(transport="loopback", armed=True, seconds=0.5, recording=False, stale=0.4, others=(other,))
    with pytest.raises(ValueError, match="trot has no readable rehearsal receipt"):
        run(folder, robot_file, options)
    rehearse(other, robot_file, RehearseOptions(seconds=1.0))

    def orders() -> Any:
        yield "policy trot"
        done.set()

    report = run(folder, robot_file, options, lambda text: None, orders())
    assert done.is_set() and report.statistics.get("refused_order", 0) == 0


def test_bundles_of_one_run_have_names_of_their_own(make_bundle: MakeBundle, robot_file: Path) -> None:
    (robot_file.parent / "other").mkdir()
    folder, other = make_bundle("walk"), make_bundle("other/walk", seed=3)
    with pytest.raises(ValueError, match="told apart by their folders' names, got walk alone"):
        run(folder, robot_file, RunOptions(transport="loopback", recording=False, others=(other,)))


def test_a_terminal_that_takes_no_more_text_does_not_hold_up_the_robot(
    make_bundle: MakeBundle, robot_file: Path
) -> None:
    folder, stuck, free = make_bundle(), threading.Event(), threading.Event()
    rehearse(folder, robot_file, RehearseOptions(seconds=1.0))

    def say(text: str) -> None:
        stuck.set()
        free.wait(30)

    options = RunOptions(transport="loopback", armed=True, seconds=0.3, ramp=0.0, stale=0.4, recording=False)
    report = run(folder, robot_file, options, say)
    assert stuck.is_set() and not free.is_set() and report.history[-1][1:] == ("estop", "finished")
    free.set()


def test_where_nobody_reads_any_more_the_run_ends(make_bundle: MakeBundle, robot_file: Path) -> None:
    def say(text: str) -> None:
        raise BrokenPipeError("the terminal is gone")

    options = RunOptions(transport="loopback", seconds=60.0, stale=0.4, recording=False)
    with pytest.raises(BrokenPipeError):
        run(make_bundle(), robot_file, options, say)


def test_a_robot_that_says_nothing_is_explained(make_bundle: MakeBundle, arm_dict: dict, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    import dds_peer

    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(arm_dict))
    network = dds_peer.network(dds_peer.free_domain())
    options = RunOptions(wait=0.2, recording=False, network=network)
    with pytest.raises(OSError, match="nothing came on /joint_states; is the robot publishing"):
        run(make_bundle(), path, options)


def hopper_contract() -> Contract:
    interface = sim.make("hopper", threads=1).interface
    terms = terms_from_interface(interface)
    return Contract("0" * 64, 0, "t", interface.control_dt, interface.digest, *terms, task="hopper")


class Swinging:
    def __init__(self, obs_dim: int, act_dim: int):
        self.obs_dim, self.act_dim = obs_dim, act_dim

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.tanh(np.sin(7.0 * obs[:, : self.act_dim]) + 0.3 * obs[:, -self.act_dim :]).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def test_without_faults_a_loopback_drive_is_the_simulation_to_the_last_bit() -> None:
    contract = hopper_contract()
    spec, clock = spec_from_contract(contract), VirtualClock()
    plant = WorldPlant(sim.make("hopper", threads=1, seed=3), contract, spec, seed=3)
    policy = Swinging(11, 3)
    runner = Runner(policy, contract, Loopback(spec, plant, clock), clock, RunnerConfig(ramp_s=0.0))
    runner.enable()
    runner.start()
    begin = clock.now()
    for k in range(60):
        runner.wait(begin + k * contract.control_dt)
        runner.tick()
    runner.wait(begin + 60 * contract.control_dt)
    runner.transport.read()

    world = sim.make("hopper", threads=1, seed=3)
    obs, total, steps = world.reset(3), 0.0, 0
    for _ in range(60):
        obs, reward, terminated, _, info = world.step(policy.act(obs.astype(np.float32)))
        total, steps = total + reward[0], steps + 1
        if terminated[0]:
            obs = info["final_obs"]
            break
    assert steps > 20 and plant.steps == steps
    assert (plant.obs == obs[0]).all()
    assert plant.total == pytest.approx(total, rel=1e-6)  # here the control cost is summed in float32


def test_a_return_below_zero_is_kept_by_a_drive_that_is_no_worse(tmp_path: Path, linear: Callable[..., bytes]) -> None:
    interface = sim.make("vehicle-waypoint", threads=1).interface
    model = linear(interface.obs_dim, interface.act_dim)
    contract = Contract(
        hashlib.sha256(model).hexdigest(), len(model), "t", interface.control_dt, interface.digest,
        *terms_from_interface(interface), task="vehicle-waypoint",
    )  # fmt: skip
    (tmp_path / "policy.onnx").write_bytes(model)
    (tmp_path / "contract.json").write_text(contract.to_json())
    found = rehearse(tmp_path, VEHICLE, RehearseOptions(seconds=2.0))
    assert found.result["calm_return"] < 0 and found.result["return"] == found.result["calm_return"]
    assert found.checks[0].passed, found.checks[0].detail


def test_a_world_of_another_interface_is_refused() -> None:
    contract = hopper_contract()
    with pytest.raises(ValueError, match="not made for walker2d"):
        WorldPlant(sim.make("walker2d", threads=1), contract, spec_from_contract(contract))


def test_orientation_parts_are_those_of_the_rotation_matrix() -> None:
    for roll, pitch, yaw in ((0.1, -0.4, 2.0), (-2.0, 1.2, -3.0), (0.0, 0.0, 0.0)):
        w, x, y, z = frames.quaternion(*(np.array([a]) for a in (roll, pitch, yaw)))[0]
        matrix = rotation(x, y, z, w)
        np.testing.assert_allclose(matrix, frames.rotation(np.array([[w, x, y, z]]))[0], atol=1e-12)
        assert [orientation_part(n, matrix) for n in ("roll", "pitch", "yaw")] == pytest.approx([roll, pitch, yaw])
        assert [orientation_part(f"up.{a}", matrix) for a in "xyz"] == pytest.approx(matrix[2])
        assert orientation_part("matrix.xy", matrix) == matrix[0][1]


def test_options_that_make_no_sense_are_refused(robot_file: Path) -> None:
    for options in ({"drop": 2.0}, {"latency": -1.0}, {"seconds": 0.0}):
        with pytest.raises(ValueError):
            RehearseOptions(**options)
    with pytest.raises(ValueError):
        RunOptions(max_speed=2.0)
    with pytest.raises(OSError, match=r"in that folder: .*arm2\.yaml"):
        load_robot(robot_file.with_name("arm3.yaml"))
