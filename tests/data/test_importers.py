from pathlib import Path

import h5py
import numpy as np
import pytest

from robot_cl.data.importers.detect import detect, import_dataset
from robot_cl.data.importers.minari import read_stored
from robot_cl.data.minari_io import STORAGES
from robot_cl.data.recording import STEP_FIELDS, Recording
from robot_cl.data.store import anonymous_interface, open_dataset, write_dataset

D4RL_KEYS = {"observations": "obs", "actions": "action", "rewards": "reward", "terminals": "terminated",
             "timeouts": "truncated", "next_observations": "next_obs"}  # fmt: skip


def d4rl_file(path: Path, data: Recording, without: tuple[str, ...] = (), **changed: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for key, name in D4RL_KEYS.items():
            if key not in without:
                file[key] = changed.get(key, getattr(data, name))
        file["metadata/algorithm"] = "SAC"
    return path


def assert_equal(stored: Recording, data: Recording) -> None:
    for name in (*STEP_FIELDS, "lengths"):
        assert np.array_equal(getattr(stored, name), getattr(data, name)), name


def test_a_d4rl_file_is_stored_as_it_is(tmp_path: Path, clean: Recording) -> None:
    report = import_dataset(d4rl_file(tmp_path / "mine.bin", clean), root=tmp_path / "root")
    assert report.kind == "d4rl" and report.dataset.name == "imported/mine-v0"
    assert_equal(report.dataset.recording(), clean)
    meta = report.dataset.meta
    assert (meta.terminals, meta.timeouts, meta.cuts) == (clean.terminated.sum(), clean.truncated.sum(), 0)
    assert meta.source["dtypes"]["obs"] == "float32" and len(meta.source["sha256"]) == 64


def test_the_first_sentence_of_the_report_has_the_counts(tmp_path: Path, clean: Recording) -> None:
    first = import_dataset(d4rl_file(tmp_path / "x.hdf5", clean), root=tmp_path / "root").sentences()[0]
    wanted = f"{clean.terminated.sum()} terminals, {clean.truncated.sum()} timeouts, 0 cut short"
    assert first == f"{len(clean)} transitions of 30 episodes: {wanted}"


def test_without_next_observations_the_last_step_of_each_episode_is_dropped(tmp_path: Path, clean: Recording) -> None:
    path = d4rl_file(tmp_path / "x.hdf5", clean, without=("next_observations",))
    report = import_dataset(path, root=tmp_path / "root")
    stored = report.dataset.recording()
    keep = np.ones(len(clean), bool)
    keep[clean.stops - 1] = False
    assert np.array_equal(stored.obs, clean.obs[keep])
    assert np.array_equal(stored.next_obs, clean.next_obs[keep])
    assert report.counts.dropped == 30 and report.counts.dropped_terminals == clean.terminated.sum()
    assert any("keep_terminals=true" in sentence for sentence in report.sentences())


def test_terminals_without_a_next_observation_are_kept_on_request(tmp_path: Path, clean: Recording) -> None:
    path = d4rl_file(tmp_path / "x.hdf5", clean, without=("next_observations",))
    report = import_dataset(path, keep_terminals=True, root=tmp_path / "root")
    stored = report.dataset.recording()
    assert stored.terminated.sum() == clean.terminated.sum() == report.counts.repeated
    assert np.array_equal(stored.next_obs[stored.terminated], stored.obs[stored.terminated])
    assert report.counts.dropped == clean.truncated.sum()


def test_no_next_observation_is_ever_taken_from_the_next_episode(tmp_path: Path, clean: Recording) -> None:
    path = d4rl_file(tmp_path / "x.hdf5", clean, without=("next_observations",))
    stored = import_dataset(path, keep_terminals=True, root=tmp_path / "root").dataset.recording()
    starts = {obs.tobytes() for obs in clean.obs[clean.starts]}
    assert not starts & {obs.tobytes() for obs in stored.next_obs[~stored.terminated]}


def test_terminals_at_the_limit_become_timeouts_on_request(tmp_path: Path, clean: Recording) -> None:
    ends = clean.terminated | clean.truncated
    path = d4rl_file(tmp_path / "x.hdf5", clean, terminals=ends, timeouts=ends & False)
    report = import_dataset(path, limit=60, root=tmp_path / "root")
    assert_equal(report.dataset.recording(), clean)
    assert report.counts.relabelled == clean.truncated.sum() > 0
    assert any("are stored as timeouts" in sentence for sentence in report.sentences())


def test_a_horizon_says_where_episodes_were_cut(tmp_path: Path, make_recording) -> None:
    data = make_recording(6, 20, terminate=0.0)
    path = d4rl_file(tmp_path / "x.hdf5", data, without=("next_observations", "timeouts"))
    stored = import_dataset(path, horizon=20, root=tmp_path / "root").dataset.recording()
    assert stored.lengths.tolist() == [19] * 6
    assert np.array_equal(stored.next_obs, data.next_obs[np.tile(np.arange(20) < 19, 6)])


def test_missing_timeouts_are_found_where_next_observations_do_not_continue(tmp_path: Path, clean: Recording) -> None:
    report = import_dataset(d4rl_file(tmp_path / "x.hdf5", clean, without=("timeouts",)), root=tmp_path / "root")
    assert report.dataset.recording().lengths.tolist() == clean.lengths.tolist()
    assert report.dataset.meta.cuts == clean.truncated.sum() and report.dataset.meta.timeouts == 0


def test_a_d4rl_id_names_the_dataset_and_finds_it_again(tmp_path: Path, make_recording) -> None:
    data = make_recording(4, 20)
    path = d4rl_file(tmp_path / "pen-human-v1.hdf5", data)
    report = import_dataset(path, root=tmp_path / "root")
    assert report.dataset.name == "d4rl/pen/human-v1"
    assert open_dataset("pen-human-v1", tmp_path / "root").meta == report.dataset.meta
    assert report.dataset.meta.d4rl_id == "pen-human-v1"


@pytest.mark.parametrize("names", [("obs", "action", "reward", "next_obs", "terminated", "truncated"),
                                   ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts"),
                                   ("observation", "action", "reward", "next_observation", "terminal", "truncations")])
def test_an_npz_is_read_under_the_names_people_use(tmp_path: Path, clean: Recording, names: tuple[str, ...]) -> None:
    path = tmp_path / "Some Data.npz"
    np.savez(path, **{name: getattr(clean, field) for name, field in zip(names, (
        "obs", "action", "reward", "next_obs", "terminated", "truncated"), strict=True)})
    report = import_dataset(path, root=tmp_path / "root")
    assert report.dataset.name == "imported/some-data-v0"
    assert_equal(report.dataset.recording(), clean)


def test_episode_lengths_of_the_file_are_borders(tmp_path: Path, clean: Recording) -> None:
    np.savez(tmp_path / "x.npz", obs=clean.obs, action=clean.action, reward=clean.reward, episode_lengths=clean.lengths)
    report = import_dataset(tmp_path / "x.npz", root=tmp_path / "root")
    assert report.dataset.recording().lengths.tolist() == (clean.lengths - 1).tolist()
    assert report.counts.dropped == 30


@pytest.mark.parametrize("storage", STORAGES)
def test_a_minari_dataset_of_either_storage_comes_back_equal(tmp_path: Path, clean: Recording, storage: str) -> None:
    written = write_dataset("toy/a-v0", clean, storage=storage, root=tmp_path)
    assert_equal(read_stored(written.path / "data"), clean)
    report = import_dataset(written.path, root=tmp_path)
    assert report.kind == "minari" and report.dataset.name == "minari/toy/a-v0"
    assert_equal(report.dataset.recording(), clean)
    assert report.dataset.recording().seeds.tolist() == clean.seeds.tolist()
    assert any("do not compare to D4RL" in sentence for sentence in report.sentences())


def minari_made_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch, **spaces) -> Path:
    """A dataset written by Minari itself: a Dict observation, actions in ±2."""
    import minari
    from gymnasium import spaces as gym_spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=i, seed=i, observations={"goal": rng.normal(size=(6, 2)), "at": rng.normal(size=(6, 3))},
            actions=rng.uniform(-2, 2, (5, 2)).astype(np.float32), rewards=list(rng.normal(size=5)),
            terminations=[False] * 5, truncations=[False] * 4 + [True], infos={},
        )
        for i in range(3)
    ]  # fmt: skip
    box = gym_spaces.Box
    observation = gym_spaces.Dict({"goal": box(-9, 9, (2,), np.float64), "at": box(-9, 9, (3,), np.float64)})
    minari.create_dataset_from_buffers(
        "foreign/dict-v0", buffers, observation_space=observation, action_space=box(-2, 2, (2,), np.float32), **spaces
    )
    return root / "foreign" / "dict-v0"


@pytest.mark.parametrize("storage", STORAGES)
def test_foreign_minari_data_is_flattened_and_its_actions_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    path = minari_made_elsewhere(tmp_path / "foreign-root", monkeypatch, data_format=storage)
    report = import_dataset(path, root=tmp_path / "root")
    stored, interface = report.dataset.recording(), report.dataset.interface
    import minari

    episodes = list(minari.load_dataset("foreign/dict-v0"))
    flat = [np.concatenate((e.observations["at"], e.observations["goal"]), axis=1) for e in episodes]
    assert np.array_equal(stored.obs, np.concatenate([obs[:-1] for obs in flat]).astype(np.float32))
    commands = np.concatenate([e.actions for e in episodes])
    assert interface.command(stored.action) == pytest.approx(commands, abs=1e-6)
    assert np.abs(stored.action).max() <= 1.0 and report.counts.clipped == 0
    assert stored.seeds.tolist() == [0, 1, 2]


def ten_steps(path: Path, obs_dim: int, act_dim: int) -> Path:
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(11, obs_dim)), rng.uniform(-1, 1, (10, act_dim))
    np.savez(path, obs=obs[:-1], next_obs=obs[1:], action=action, reward=np.zeros(10))
    return path


def test_a_task_is_guessed_only_where_the_widths_agree(tmp_path: Path) -> None:
    hopper = import_dataset(ten_steps(tmp_path / "hopper-runs.npz", 11, 3), root=tmp_path / "root").dataset
    assert hopper.meta.task == "hopper" and hopper.interface.obs[0].name == "rootz.position"
    odd = import_dataset(ten_steps(tmp_path / "hopper-odd.npz", 12, 3), root=tmp_path / "root").dataset
    assert odd.meta.task is None


def test_a_dataset_of_another_version_of_the_task_is_stored_with_a_note(tmp_path: Path) -> None:
    report = import_dataset(ten_steps(tmp_path / "a.npz", 111, 8), task="ant", root=tmp_path / "root")
    assert report.dataset.meta.task == "ant" and report.dataset.meta.obs_dim == 111
    assert any("another version of the environment" in sentence for sentence in report.sentences())


def test_actions_beyond_one_are_clipped_and_counted_only_where_limits_are_known(
    tmp_path: Path, clean: Recording
) -> None:
    wide = clean.action.copy()
    wide[:7, 0] = 1.5
    path = d4rl_file(tmp_path / "x.hdf5", clean, actions=wide)
    with pytest.raises(ValueError, match=r"reach 1\.5 \(7 numbers beyond 1\).*clip=true"):
        import_dataset(path, root=tmp_path / "root")
    report = import_dataset(path, clip=True, root=tmp_path / "root")
    assert report.counts.clipped == 7 and np.abs(report.dataset.recording().action).max() == 1.0
    named = import_dataset(path, name="toy/door-v0", task="door", root=tmp_path / "root")
    assert named.counts.clipped == 7


def test_content_not_the_name_tells_the_format(tmp_path: Path, clean: Recording) -> None:
    assert detect(d4rl_file(tmp_path / "a.npz", clean)) == "d4rl"
    np.savez(tmp_path / "b", obs=clean.obs)
    (tmp_path / "b.npz").rename(tmp_path / "b.hdf5")
    assert detect(tmp_path / "b.hdf5") == "npz"
    written = write_dataset("toy/a-v0", clean, root=tmp_path)
    assert detect(written.path) == detect(written.path / "data") == "minari"
    assert detect(written.path / "data" / "main_data.hdf5") == "minari"


def test_scalars_kept_as_columns_are_read(tmp_path: Path, clean: Recording) -> None:
    path = d4rl_file(tmp_path / "x.hdf5", clean, rewards=clean.reward[:, None], timeouts=clean.truncated[:, None])
    assert_equal(import_dataset(path, root=tmp_path / "root").dataset.recording(), clean)


def test_published_demonstrations_are_imported_with_their_faults_counted(tmp_path: Path, shared: Path) -> None:
    report = import_dataset(shared / "demonstrations" / "hopper-expert-2ep.npz", root=tmp_path)
    assert (report.dataset.meta.task, report.dataset.meta.terminals, report.dataset.meta.timeouts) == ("hopper", 2, 0)
    assert report.counts.clipped == 2623
    assert report.dataset.meta.return_mean == pytest.approx(3717.5, abs=0.1)


def test_an_interface_can_be_numbered() -> None:
    interface = anonymous_interface(3, 2)
    assert [c.name for c in interface.obs] == ["obs_0", "obs_1", "obs_2"]
    assert interface.command(np.array([0.5, -1.0])).tolist() == [0.5, -1.0]
