"""Every check finds its planted fault, and a clean dataset gives no finding."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robot_cl.data.behaviours import Behaviour, BehaviourCard
from robot_cl.data.collect import collect
from robot_cl.data.doctor import CHECKS, check, examine
from robot_cl.data.importers.detect import import_dataset
from robot_cl.data.recording import Recording
from robot_cl.data.store import StoredDataset, open_dataset, write_dataset

Plant = Callable[[Recording, Path], StoredDataset]
PLANTS: dict[str, Plant] = {}


def plant(fault: Callable[[Recording, Path], Any]) -> Callable[[Recording, Path], Any]:
    """Registers a function named after the check whose fault it plants."""
    PLANTS[fault.__name__.removeprefix("plant_")] = fault
    return fault


def edit(dataset: StoredDataset, **changes: Any) -> StoredDataset:
    """The dataset with fields of its meta.json changed behind its back."""
    path = dataset.path / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return open_dataset(dataset.path)


def change_rows(dataset: StoredDataset, change: Callable[[np.ndarray], np.ndarray]) -> StoredDataset:
    """The dataset with its packed transitions changed behind its back."""
    path = dataset.path / "flat" / "transitions.npy"
    np.save(path, change(np.load(path)))
    return dataset


@plant
def plant_timeouts_as_terminals(data: Recording, root: Path) -> StoredDataset:
    ends = data.terminated | data.truncated
    return write_dataset("toy/a-v0", replace(data, terminated=ends, truncated=ends & False), root=root)


@plant
def plant_border_crossed(data: Recording, root: Path) -> StoredDataset:
    next_obs = data.next_obs.copy()
    last = data.stops[:-1][::4] - 1
    next_obs[last] = data.obs[last + 1]
    return write_dataset("toy/a-v0", replace(data, next_obs=next_obs), root=root)


@plant
def plant_both_flags(data: Recording, root: Path) -> StoredDataset:
    return write_dataset("toy/a-v0", replace(data, truncated=data.truncated | data.terminated), root=root)


@plant
def plant_flags_inside(data: Recording, root: Path) -> StoredDataset:
    terminated = data.terminated.copy()
    terminated[5] = True
    return write_dataset("toy/a-v0", replace(data, terminated=terminated), root=root)


@plant
def plant_maze2d_goal_timeouts(data: Recording, root: Path) -> StoredDataset:
    ends = data.terminated | data.truncated
    goals = replace(data, truncated=ends, terminated=ends & False)
    return write_dataset("toy/a-v0", goals, task="maze2d-umaze", root=root)


@plant
def plant_known_bad_set(data: Recording, root: Path) -> StoredDataset:
    path = root / "hopper_medium-expert-v0.hdf5"
    with h5py.File(path, "w") as file:
        for key, name in (("observations", "obs"), ("actions", "action"), ("rewards", "reward"),
                          ("terminals", "terminated"), ("timeouts", "truncated")):  # fmt: skip
            file[key] = getattr(data, name)
    return import_dataset(path, root=root).dataset


@plant
def plant_antmaze_reward_shift(data: Recording, root: Path) -> StoredDataset:
    sparse = data.terminated.astype(np.float32) - 1.0
    return write_dataset("toy/a-v0", replace(data, reward=sparse), task="antmaze-umaze-v2", root=root)


@plant
def plant_other_environment_version(data: Recording, root: Path) -> StoredDataset:
    wide = np.random.default_rng(0).normal(size=(len(data) + data.episodes, 111)).astype(np.float32)
    rows = np.delete(np.arange(len(wide)), data.stops + np.arange(data.episodes))
    action = np.random.default_rng(1).uniform(-1, 1, (len(data), 8))
    ant = replace(data, obs=wide[rows], next_obs=wide[rows + 1], action=action)
    return write_dataset("toy/a-v0", ant, task="ant", root=root)


@plant
def plant_adroit_reward_version(data: Recording, root: Path) -> StoredDataset:
    return write_dataset("toy/a-v0", door_like(data, sign=+0.1), task="AdroitHandDoor-v1", root=root)


@plant
def plant_score_is_a_fraction(data: Recording, root: Path) -> StoredDataset:
    rich = replace(data, reward=data.reward * 100.0)
    dataset = write_dataset("toy/a-v0", rich, task="kitchen", root=root)
    return edit(dataset, score=dataset.meta.score / 100.0)


@plant
def plant_foreign_reference(data: Recording, root: Path) -> StoredDataset:
    return edit(write_dataset("toy/a-v0", data, task="kitchen", root=root), reference="D4RL kitchen")


@plant
def plant_float64_kept(data: Recording, root: Path) -> StoredDataset:
    dataset = write_dataset("toy/a-v0", data, root=root)
    return change_rows(dataset, lambda rows: rows.astype(np.float64))


@plant
def plant_statistics_of_held_out(data: Recording, root: Path) -> StoredDataset:
    dataset = write_dataset("toy/a-v0", data, held_out=[1, 2], root=root)
    return edit(dataset, statistics=write_dataset("toy/all-v0", data, root=root).meta.statistics)


@plant
def plant_nan_or_inf(data: Recording, root: Path) -> StoredDataset:
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows[7, 2], rows[90, 7] = np.nan, np.inf
        return rows

    return change_rows(write_dataset("toy/a-v0", data, root=root), spoil)


@plant
def plant_actions_out_of_bounds(data: Recording, root: Path) -> StoredDataset:
    def widen(rows: np.ndarray) -> np.ndarray:
        rows[3, 5] = 1.2
        return rows

    return change_rows(write_dataset("toy/a-v0", data, root=root), widen)


@plant
def plant_constant_dimensions(data: Recording, root: Path) -> StoredDataset:
    obs, next_obs = data.obs.copy(), data.next_obs.copy()
    obs[:, 3] = next_obs[:, 3] = 0.5
    return write_dataset("toy/a-v0", replace(data, obs=obs, next_obs=next_obs), root=root)


@plant
def plant_duplicate_episodes(data: Recording, root: Path) -> StoredDataset:
    return write_dataset("toy/a-v0", data.take(np.array([*range(30), 4])), root=root)


@plant
def plant_reward_is_noise(data: Recording, root: Path) -> StoredDataset:
    shuffled = np.random.default_rng(0).permutation(data.reward)
    return write_dataset("toy/a-v0", replace(data, reward=shuffled), root=root)


@plant
def plant_content_changed(data: Recording, root: Path) -> StoredDataset:
    def touch(rows: np.ndarray) -> np.ndarray:
        rows[3, 0] += 1e-3
        return rows

    return change_rows(write_dataset("toy/a-v0", data, root=root), touch)


@plant
def plant_minari_copy(data: Recording, root: Path) -> StoredDataset:
    dataset = write_dataset("toy/a-v0", data, root=root)
    with h5py.File(dataset.path / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0"]["rewards"][1] += 1.0
    return dataset


def door_like(data: Recording, sign: float) -> Recording:
    """Observations of the door task's width whose reward depends on angle and reach as the task's does."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(len(data) + data.episodes, 39)).astype(np.float32)
    rows = np.delete(np.arange(len(wide)), data.stops + np.arange(data.episodes))
    obs, next_obs = wide[rows], wide[rows + 1]
    angle, reach = obs[:, 28], np.linalg.norm(obs[:, 35:38], axis=1)
    bonus = 2.0 * (angle > 0.2) + 8.0 * (angle > 1.0) + 10.0 * (angle > 1.35)
    return replace(data, obs=obs, next_obs=next_obs, reward=sign * reach - 0.1 * (angle - 1.57) ** 2 + bonus)


def test_every_check_has_a_planted_fault() -> None:
    assert set(PLANTS) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_the_planted_fault_is_found(tmp_path: Path, clean: Recording, name: str) -> None:
    dataset = PLANTS[name](clean, tmp_path)
    before = {path: path.read_bytes() for path in dataset.path.rglob("*") if path.is_file()}
    found = {finding.check: finding for finding in check(dataset.path)}
    assert name in found, sorted(found)
    assert "\n" not in found[name].sentence and len(found[name].sentence) > 40
    after = {path: path.read_bytes() for path in dataset.path.rglob("*") if path.is_file()}
    assert before == after  # never repaired silently


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
def test_what_minari_cannot_read_is_said(tmp_path: Path, clean: Recording, storage: str) -> None:
    dataset = write_dataset("toy/a-v0", clean, storage=storage, root=tmp_path)
    assert check(dataset) == []
    copy = dataset.path / "data"
    held = next(iter(sorted(copy.rglob("*.hdf5")) or sorted(copy.rglob("*.arrow"))))
    whole = held.read_bytes()
    held.write_bytes(whole[: len(whole) // 2])
    (found,) = check(dataset)
    assert found.check == "minari_copy" and "cannot be read" in found.sentence
    held.write_bytes(whole)
    about = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(about | {"total_episodes": 3}))
    assert "has 3 episodes" in check(dataset)[0].sentence
    shutil.rmtree(copy)
    assert check(dataset)[0].severity == "note"


def test_a_clean_recording_gives_no_finding(tmp_path: Path, clean: Recording) -> None:
    assert check(write_dataset("toy/a-v0", clean, root=tmp_path)) == []
    assert check(write_dataset("toy/b-v0", clean, held_out=[1, 7], root=tmp_path)) == []


@pytest.mark.parametrize("task", ["hopper", "halfcheetah"])
def test_a_collected_dataset_gives_no_finding(tmp_path: Path, task: str) -> None:
    import sim

    interface = sim.make(task).interface
    rng = np.random.default_rng(0)
    weights = {"W0": rng.normal(size=(interface.act_dim, interface.obs_dim)) * 0.3, "b0": np.zeros(interface.act_dim)}
    policy = Behaviour(weights, BehaviourCard("linear"))
    dataset = collect(task, policy, 3000, "toy/a-v0", noise=0.3, num_worlds=8, root=tmp_path)
    assert check(dataset) == []


def test_the_reward_of_the_original_door_is_no_finding(tmp_path: Path, clean: Recording) -> None:
    dataset = write_dataset("toy/a-v0", door_like(clean, sign=-0.1), task="door", root=tmp_path)
    assert "adroit_reward_version" not in {finding.check for finding in check(dataset)}


def test_the_published_door_demonstrations_have_the_original_sign(tmp_path: Path, shared: Path) -> None:
    report = import_dataset(shared / "demonstrations" / "adroit-door-human.npz", task="door", root=tmp_path)
    assert "adroit_reward_version" not in {finding.check for finding in check(report.dataset)}


def test_published_demonstrations_that_store_timeouts_as_terminals_are_found(tmp_path: Path, shared: Path) -> None:
    report = import_dataset(shared / "demonstrations" / "halfcheetah-expert-2ep.npz", root=tmp_path)
    assert [finding.check for finding in check(report.dataset)] == ["timeouts_as_terminals"]


def test_a_border_without_a_mark_is_found(tmp_path: Path, clean: Recording) -> None:
    """Two episodes stored as one, the second's first observation as next_obs of the first's last step."""
    next_obs, truncated, terminated = clean.next_obs.copy(), clean.truncated.copy(), clean.terminated.copy()
    last = clean.stops[0] - 1
    next_obs[last], truncated[last], terminated[last] = clean.obs[last + 1], False, False
    merged = np.array([clean.lengths[0] + clean.lengths[1], *clean.lengths[2:]])
    joined = replace(
        clean, next_obs=next_obs, truncated=truncated, terminated=terminated, lengths=merged, seeds=np.arange(29),
        ordinals=np.zeros(29), complete=np.ones(29, bool),
    )  # fmt: skip
    found = {f.check: f.sentence for f in check(write_dataset("toy/a-v0", joined, root=tmp_path))}
    assert list(found) == ["border_crossed"] and f"the first is {last}" in found["border_crossed"]


def test_data_of_another_simulator_is_found(tmp_path: Path) -> None:
    policy = Behaviour({"W0": np.eye(3, 11), "b0": np.zeros(3)}, BehaviourCard("linear"))
    dataset = collect("hopper", policy, 600, "toy/a-v0", noise=0.3, num_worlds=4, root=tmp_path)
    old = edit(dataset, simulator=dataset.meta.simulator | {"mujoco": "2.1.0"})
    assert [f.check for f in check(old)] == ["other_environment_version"]
    v4 = edit(dataset, source=dataset.meta.source | {"environment": "Hopper-v4"}, simulator={})
    assert ["Hopper-v4" in f.sentence for f in check(v4)] == [True]


def test_a_sparse_reward_is_not_called_noise(tmp_path: Path, clean: Recording) -> None:
    sparse = replace(clean, reward=clean.terminated.astype(np.float32))
    assert check(write_dataset("toy/a-v0", sparse, root=tmp_path)) == []


def test_a_damaged_file_is_an_error_not_a_finding(tmp_path: Path, clean: Recording) -> None:
    dataset = write_dataset("toy/a-v0", clean, root=tmp_path)
    flat = dataset.path / "flat" / "transitions.npy"
    flat.write_bytes(flat.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        check(dataset.path)


def test_a_dataset_is_examined_by_name_with_progress(tmp_path: Path, clean: Recording) -> None:
    write_dataset("toy/a-v0", clean, root=tmp_path)
    seen: list[tuple[int, int]] = []
    assert examine("toy/a-v0", tmp_path, lambda *at: seen.append(at)).name == "toy/a-v0"
    assert seen[-1] == (len(CHECKS), len(CHECKS))
