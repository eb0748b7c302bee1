"""What a robot did comes back as data: recordings, LeRobot folders, and real data mixed with simulated."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from robot_cl.data.collect import collect, random_part
from robot_cl.data.importers.detect import import_dataset
from robot_cl.data.importers.rewards import REWARDS
from robot_cl.data.lerobot_out import export_lerobot
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.faults import Fault
from robot_cl.deploy.loopback import Loopback
from robot_cl.deploy.modes import Mode, RunnerConfig
from robot_cl.deploy.plants import TaskPlant
from robot_cl.deploy.record import Recorder
from robot_cl.deploy.robot_file import load_robot
from robot_cl.deploy.runner import Runner

ROBOTS = Path(__file__).parents[2] / "configs" / "robot"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBOT_CL_DATA", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "datasets"


@pytest.mark.parametrize("task", sorted(REWARDS))
def test_a_task_rewards_its_observations_as_its_world_does(task: str) -> None:
    world = sim.make(task, num_worlds=16, threads=1, seed=0)
    rng, obs = np.random.default_rng(0), world.reset(0)
    seen, errors = 0, []
    for _ in range(60):
        action = np.clip(rng.normal(0.1, 0.5, (16, world.interface.act_dim)), -1, 1)
        action[:, 0] = np.where(task.startswith("quadrotor"), 0.05, action[:, 0])  # stays in the air for a while
        after, reward, terminated, _, info = world.step(action)
        found, ended = REWARDS[task](obs, action, info["final_obs"])
        low = np.zeros(16, dtype=bool)
        if task.startswith("quadrotor"):  # nobody who flies this low knows it
            low = terminated & ~ended
        errors.append(np.abs(found - reward)[~low])
        assert (ended == terminated)[~low].all()
        seen, obs = seen + int((~low).sum()), after
    assert seen > 800 and np.median(np.concatenate(errors)) < 1e-5
    # A vehicle that tilts still sees its goal as if it stood level.
    assert np.concatenate(errors).max() < (0.1 if task == "vehicle-waypoint" else 1e-5)


class Wandering:
    """Slow waves. Remembers how often it was asked."""

    calls = 0

    def __init__(self, obs_dim: int, act_dim: int):
        self.obs_dim, self.act_dim = obs_dim, act_dim

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return 0.4 * np.sin(0.2 * self.calls + np.arange(self.act_dim, dtype=np.float32))[None].astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def drive(path: Path, seconds: float = 6.0, seed: int = 0) -> list[Any]:
    """The arm at 100 Hz under a policy of 20 Hz: a NaN at 2 s, started again; a new goal at 4 s. The steps."""
    interface = sim.make("arm-reach", threads=1).interface
    terms = terms_from_interface(interface)
    contract = Contract("0" * 64, 0, "t", interface.control_dt, interface.digest, *terms, task="arm-reach")
    spec, clock, steps = load_robot(ROBOTS / "arm.yaml"), VirtualClock(), []
    plant = TaskPlant(sim.get_task("arm-reach"), contract, spec, seed)
    faults = (Fault("nan", start=2.0, stop=2.05, where="elbow.position"),)
    listener = type("Keep", (), {"step": lambda self, step: steps.append(step)})()
    recorder = Recorder(path, contract, spec)
    policy = Wandering(interface.obs_dim, interface.act_dim)
    loopback = Loopback(spec, plant, clock, faults)
    runner = Runner(policy, contract, loopback, clock, RunnerConfig(ramp_s=0.2), listeners=(recorder, listener))
    runner.enable()
    runner.start()
    for k in range(round(seconds / spec.control_dt)):
        if k == 250:
            runner.start()
        if k == 400:
            runner.order("goal x=0.3 y=0.2")
        runner.tick()
        runner.wait(1000.0 + (k + 1) * spec.control_dt)
    assert runner.mode is Mode.ACTIVE
    recorder.close()
    return steps


def test_a_drive_becomes_episodes_with_the_actions_really_taken(root: Path, tmp_path: Path) -> None:
    steps = drive(tmp_path / "drive.mcap")
    report = import_dataset(tmp_path / "drive.mcap")
    data, dataset = report.dataset.recording(), report.dataset
    assert dataset.name == "robot/drive-v0" and dataset.meta.task == "arm-reach"
    assert dataset.interface.difference(sim.make("arm-reach", threads=1).interface) is None
    assert data.episodes == 3 and "3 stretches were driven" in report.sentences()
    assert data.truncated[data.stops - 1].all() and not data.terminated.any()
    asked = [k for k, s in enumerate(steps) if s.mode == "active" and s.obs is not None]
    first = asked[: data.lengths[0] + 1]
    np.testing.assert_array_equal(data.obs[: data.lengths[0]], np.concatenate([steps[k].obs for k in first[:-1]]))
    # Five commands make one action: what was taken is their mean, recovered from velocities in rad/s.
    taken = [np.mean([s.taken for s in steps[a:b]], axis=0) for a, b in itertools.pairwise(first)]
    np.testing.assert_allclose(data.action[: data.lengths[0]], taken, atol=1e-6)
    assert data.reward.min() > 0 and np.ptp(data.reward) > 0, "the arm's reward is told by its observation"
    jump = np.abs(data.next_obs - data.obs)[:, -3:].max()
    assert jump < 0.2, "no step may lead from one goal to another"


def test_what_a_robot_does_after_the_tasks_end_is_no_episode(root: Path, tmp_path: Path) -> None:
    interface = sim.make("vehicle-waypoint", threads=1).interface
    terms = terms_from_interface(interface)
    contract = Contract("0" * 64, 0, "t", interface.control_dt, interface.digest, *terms, task="vehicle-waypoint")
    spec, clock = load_robot(ROBOTS / "vehicle.yaml"), VirtualClock()
    plant = TaskPlant(sim.get_task("vehicle-waypoint"), contract, spec, 2, goes_on=True)
    recorder = Recorder(tmp_path / "a.mcap", contract, spec)

    class Towards:
        obs_dim, act_dim = 4, 2

        def act(self, obs: np.ndarray) -> np.ndarray:
            ahead, left = obs[:, 0], obs[:, 1]
            return np.stack([np.clip(ahead, 0, 1), np.clip(1.2 * np.arctan2(left, ahead), -1, 1)], 1)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    loopback, config = Loopback(spec, plant, clock), RunnerConfig(ramp_s=0.2)
    runner = Runner(Towards(), contract, loopback, clock, config, listeners=(recorder,))
    runner.enable()
    runner.start()
    runner.order("goal " + " ".join(f"{name}={value}" for name, value in plant.goals.items()))
    for k in range(round(20.0 / spec.control_dt)):
        runner.tick()
        runner.wait(1000.0 + (k + 1) * spec.control_dt)
    recorder.close()
    report = import_dataset(tmp_path / "a.mcap")
    data = report.dataset.recording()
    assert runner.mode is Mode.ACTIVE and data.episodes == 1 and 5 < len(data.obs) < 60
    assert data.terminated.tolist() == [False] * (len(data.obs) - 1) + [True] and not data.truncated.any()
    assert "steps after the task's end are left out" in " ".join(report.sentences())


def test_recordings_of_runs_that_only_watched_are_left_out(root: Path, tmp_path: Path) -> None:
    interface = sim.make("arm-reach", threads=1).interface
    terms = terms_from_interface(interface)
    contract = Contract("0" * 64, 0, "t", interface.control_dt, interface.digest, *terms, task="arm-reach")
    Recorder(tmp_path / "watched.mcap", contract, load_robot(ROBOTS / "arm.yaml")).close()
    with pytest.raises(ValueError, match=r"nothing to learn from in watched\.mcap"):
        import_dataset(tmp_path / "watched.mcap", "robot/none-v0")
    drive(tmp_path / "drove.mcap", 1.5)
    report = import_dataset(tmp_path / "watched.mcap", "robot/arm-v0", more=[tmp_path / "drove.mcap"])
    assert report.dataset.recording().episodes == 1 and "watched.mcap is left out" in " ".join(report.sentences())


def test_training_goes_on_from_real_and_simulated_data_together(root: Path, tmp_path: Path) -> None:
    from robot_cl.checkpoint import load_policy
    from robot_cl.learners.bc import BCConfig
    from robot_cl.run_config import TrainConfig
    from robot_cl.train import train

    drive(tmp_path / "a.mcap", 3.0)
    drive(tmp_path / "b.mcap", 3.0, seed=1)
    real = import_dataset(tmp_path / "a.mcap", "robot/arm-v0", more=[tmp_path / "b.mcap"]).dataset
    simulated = collect("arm-reach", [random_part("arm-reach")], 300, "arm/random-v0", threads=1)
    name = "3*robot/arm-v0+arm/random-v0"
    mixed = open_dataset(name)
    assert mixed.meta.steps == 3 * real.meta.steps + 300 == len(mixed.rows) and real.meta.episodes >= 4
    np.testing.assert_allclose(mixed.meta.statistics["obs_mean"], mixed.rows[:, :18].mean(0), atol=1e-5)
    np.testing.assert_allclose(mixed.meta.statistics["obs_var"], mixed.rows[:, :18].var(0), atol=1e-4)
    assert mixed.meta.episodes == sum(len(part.episodes()) * n for n, part in mixed.parts)  # type: ignore[attr-defined]
    assert (mixed.recording().returns[-simulated.meta.episodes :] == simulated.recording().returns).all()
    learner = BCConfig()
    learner.actor.hidden = (8,)
    folder = train(TrainConfig(data=name, offline_steps=20, eval_every=0, tensorboard=False), learner)
    assert folder.name.endswith("bc-3xrobot-arm-v0+arm-random-v0")
    assert load_policy(folder).act(real.recording().obs[:3]).shape == (3, 6)


def test_what_was_learned_on_the_robot_moves_the_deployed_skill_only_through_the_gate(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Recording -> real+sim -> fast adapter -> part of the way -> release gate -> library."""
    from policies.adapter import distance
    from policies.fast_slow import part_way
    from robot_cl.cli import main
    from robot_cl.learners.base import Trainable
    from robot_cl.learners.bc import BCConfig
    from robot_cl.run_config import TrainConfig
    from robot_cl.skills import add_run, run_skill
    from robot_cl.train import train

    drive(tmp_path / "a.mcap", 3.0)
    import_dataset(tmp_path / "a.mcap", "robot/arm-v0")
    collect("arm-reach", [random_part("arm-reach")], 300, "arm/random-v0", threads=1)

    def learned(data: str, steps: int, **more: Any) -> Path:
        learner = BCConfig(trainable=Trainable.adapter if more else Trainable.full, rank=2)
        learner.actor.hidden = (8,)
        config = TrainConfig(task="arm-reach", data=data, offline_steps=steps, eval_every=0, tensorboard=False, **more)
        return train(config, learner)

    base = learned("arm/random-v0", 5)
    library, _ = add_run(learned("arm/random-v0", 30, init_from=str(base), seed=1), "deployed", tmp_path / "library")
    fast, before = learned("3*robot/arm-v0+arm/random-v0", 60, init_from=str(base), seed=2), library.adapter("deployed")
    words = ["gate", str(fast), "skill=deployed", f"base={library.folder}", "rate=0.25", "episodes=3", "threads=1"]
    assert main([*words, "tasks=[arm-reach]", "margin=1e-6", "--json"]) == 1
    assert library.adapter("deployed").layers.keys() == before.layers.keys()
    assert distance(library.adapter("deployed"), before) == 0.0, "what may be worse changes nothing"
    capsys.readouterr()
    assert main([*words, "tasks=[arm-reach]", "margin=0.99", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["promoted"] and verdict["next"] == "skills rollback deployed"
    wanted = part_way(before, run_skill(fast).adapter.with_header(before.header), 0.25)
    library.refresh()
    assert distance(library.adapter("deployed"), wanted) < 1e-4 < distance(library.adapter("deployed"), before)


def test_datasets_of_different_robots_are_not_mixed(root: Path) -> None:
    collect("arm-reach", [random_part("arm-reach")], 40, "arm/random-v0", threads=1)
    collect("hopper", [random_part("hopper")], 40, "hopper/random-v0", threads=1)
    with pytest.raises(ValueError, match=r"arm/random-v0 and hopper/random-v0 cannot be mixed"):
        open_dataset("arm/random-v0+hopper/random-v0")
    with pytest.raises(LookupError, match="did you mean arm/random-v0"):
        open_dataset("arm/randm-v0+hopper/random-v0")
    with pytest.raises(ValueError, match="names no dataset"):
        open_dataset("0*arm/random-v0+")


def test_recordings_that_are_none_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mcap").write_bytes(b"\x89MCAP0\r\nnothing more")
    with pytest.raises(ValueError, match="mcap"):
        import_dataset(tmp_path / "x.mcap")
    np.savez(tmp_path / "y.npz", obs=np.zeros((3, 2)), action=np.zeros((3, 1)), reward=np.zeros(3))
    with pytest.raises(ValueError, match="only recordings"):
        import_dataset(tmp_path / "y.npz", more=[tmp_path / "x.mcap"])
    assert not root.exists() or not list(root.rglob("meta.json"))


@pytest.fixture
def hops(root: Path) -> StoredDataset:
    return collect("hopper", [random_part("hopper")], 300, "hopper/random-v0", threads=1)


def test_a_lerobot_folder_reads_back_as_it_was_written(hops: StoredDataset, tmp_path: Path) -> None:
    folder = export_lerobot(hops, tmp_path / "hops")
    again = import_dataset(folder, "lerobot/again-v0", task="hopper", keep_terminals=True).dataset.recording()
    was = hops.recording()
    kept = np.ones(len(was), dtype=bool)
    kept[was.stops[~was.terminated[was.stops - 1]] - 1] = False  # no observation after the last step
    np.testing.assert_array_equal(again.obs, was.obs[kept])
    np.testing.assert_allclose(again.action, was.action[kept], atol=1e-6)
    np.testing.assert_array_equal(again.reward, was.reward[kept])
    assert again.terminated.sum() == was.terminated.sum() > 0
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert info["features"]["observation.state"]["names"][0] == "rootz.position" and info["fps"] == 125


def test_a_lerobot_set_in_several_files_with_lists_of_any_length_and_pictures_reads_the_same(
    hops: StoredDataset, tmp_path: Path
) -> None:
    """As other writers leave them: variable lists, one feature per sensor, later episodes in the first file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = export_lerobot(hops, tmp_path / "hops")
    chunk, info = folder / "data" / "chunk-000", folder / "meta" / "info.json"
    table, told = pq.read_table(chunk / "file-000.parquet"), json.loads(info.read_text())
    state = np.array(table.column("observation.state").to_pylist(), np.float32)
    parts = {"observation.state": state[:, :6], "observation.environment_state": state[:, 6:]}
    rest = table.drop_columns(["observation.state", "action", "next.success", "next.reward"])
    lists = {key: pa.array(value.tolist(), pa.list_(pa.float32())) for key, value in parts.items()}
    lists["action"] = pa.array(table.column("action").to_pylist(), pa.list_(pa.float32()))
    for key, value in lists.items():
        rest = rest.append_column(key, value)
    middle = hops.episodes()[1].stop
    pq.write_table(rest.slice(middle), chunk / "file-000.parquet")
    pq.write_table(rest.slice(0, middle), chunk / "file-001.parquet")
    features = {key: about for key, about in told["features"].items() if key not in ("next.success", "next.reward")}
    for key, value in parts.items():
        features[key] = {"dtype": "float32", "shape": [value.shape[1]], "names": {"motors": ["a"] * value.shape[1]}}
    features["observation.images.top"] = {"dtype": "video", "shape": [3, 48, 64], "names": ["c", "h", "w"]}
    info.write_text(json.dumps(told | {"features": features, "robot_type": "so100"}))
    report = import_dataset(folder, "lerobot/foreign-v0")
    again, was = report.dataset.recording(), hops.recording()
    kept = np.ones(len(was), dtype=bool)
    kept[was.stops - 1] = False
    np.testing.assert_array_equal(again.obs, np.concatenate([state[:, 6:], state[:, :6]], 1)[kept])
    assert not again.terminated.any() and not again.reward.any()
    assert "learn by imitation" in " ".join(report.sentences())
    assert [c.name for c in report.dataset.interface.obs][:2] == ["obs_0", "obs_1"], "names that repeat name nothing"


def test_a_dataset_is_exported_by_one_line(hops: StoredDataset, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from robot_cl.cli import main

    assert main(["data", "export", hops.name, "--to", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["next"] == "data import out", "as one would type it here"
    assert main(["data", "export", hops.name, "--to", str(tmp_path / "out")]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_without_a_task_a_lerobot_set_is_scaled_by_what_it_holds(hops: StoredDataset, tmp_path: Path) -> None:
    report = import_dataset(export_lerobot(hops, tmp_path / "hops"))
    assert report.dataset.name == "lerobot/hops-v0" and report.dataset.interface.action[0].name == "thigh_joint.effort"
    assert 0.95 < np.abs(report.dataset.recording().action).max() <= 1.0
    assert "limits of actions are the smallest and largest in the data" in " ".join(report.sentences())


def test_damaged_lerobot_folders_are_refused_in_one_sentence(hops: StoredDataset, tmp_path: Path) -> None:
    folder = export_lerobot(hops, tmp_path / "hops")
    data, info = folder / "data" / "chunk-000" / "file-000.parquet", folder / "meta" / "info.json"
    whole, told = data.read_bytes(), json.loads(info.read_text())
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        import_dataset(folder)
    data.write_bytes(whole)
    for change, says in (
        ({"codebase_version": "v1.6"}, "v3.x is read"),
        ({"features": {}}, "no vectors of observations"),
        ({"features": told["features"] | {"observation.more": {"dtype": "int64", "shape": [2]}}}, "damaged|no column"),
        ({"fps": "fast"}, "does not describe"),
    ):
        info.write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match=says):
            import_dataset(folder)
    info.write_text(json.dumps(told))
    data.rename(tmp_path / "elsewhere.parquet")
    data.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match="no plain"):
        import_dataset(folder)
