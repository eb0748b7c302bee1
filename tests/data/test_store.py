import json
import os
import platform
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robot_cl.data.minari_io import STORAGES
from robot_cl.data.recording import STEP_FIELDS, Recording
from robot_cl.data.store import (
    anonymous_interface,
    delete_dataset,
    find_dataset,
    list_datasets,
    open_dataset,
    write_dataset,
)


def minari_dataset(root: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return minari.load_dataset(name)


def assert_nothing_but(root: Path, *names: str) -> None:
    """Only these datasets lie under the root, and nothing hidden."""
    assert sorted(list_datasets(root)) == sorted(names)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("storage", STORAGES)
def test_twenty_thousand_transitions_read_back_equal_in_both_forms(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch, make_recording
) -> None:
    data = make_recording(110, 200, seed=3, terminate=0.1)
    assert len(data) >= 20_000
    write_dataset("toy/big-v0", data, storage=storage, root=tmp_path)
    flat = open_dataset("toy/big-v0", tmp_path).transitions()
    for name in STEP_FIELDS:
        assert np.array_equal(getattr(flat, name).numpy(), getattr(data, name)), name
    episodes = list(minari_dataset(tmp_path, "toy/big-v0", monkeypatch))
    assert [len(e) for e in episodes] == data.lengths.tolist()
    assert np.array_equal(np.concatenate([e.observations[:-1] for e in episodes]), data.obs)
    assert np.array_equal(np.concatenate([e.observations[1:] for e in episodes]), data.next_obs)
    assert np.array_equal(np.concatenate([e.actions for e in episodes]), data.action)
    assert np.array_equal(np.concatenate([e.rewards for e in episodes]), data.reward)
    assert np.array_equal(np.concatenate([e.terminations for e in episodes]), data.terminated)
    assert np.array_equal(np.concatenate([e.truncations for e in episodes]), data.truncated)


@pytest.mark.parametrize("storage", STORAGES)
def test_minari_knows_the_seed_of_an_episode_that_a_reset_started(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch, clean: Recording
) -> None:
    data = replace(clean, seeds=np.full(30, 7), ordinals=np.arange(30), complete=clean.complete)
    write_dataset("toy/seeds-v0", data, storage=storage, root=tmp_path)
    loaded = minari_dataset(tmp_path, "toy/seeds-v0", monkeypatch)
    seeds = [meta.get("seed") for meta in loaded.storage.get_episode_metadata(range(30))]
    assert seeds == [7] + [None] * 29


def test_minari_lists_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: Recording) -> None:
    import minari

    write_dataset("toy/a-v0", clean, root=tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    listed = minari.list_local_datasets()
    assert list(listed) == ["toy/a-v0"] and listed["toy/a-v0"]["total_steps"] == len(clean)


def test_meta_counts_what_was_stored(tmp_path: Path, clean: Recording) -> None:
    meta = write_dataset("toy/a-v0", clean, root=tmp_path).meta
    assert (meta.steps, meta.episodes) == (len(clean), 30)
    assert meta.terminals == clean.terminated.sum() > 0
    assert meta.timeouts == clean.truncated.sum() == 30 - meta.terminals
    per_episode = [clean.reward[a:b].sum(dtype=float) for a, b in zip(clean.starts, clean.stops, strict=True)]
    assert meta.return_mean == pytest.approx(np.mean(per_episode))
    assert meta.return_max == pytest.approx(max(per_episode))


def test_a_cut_episode_is_left_out_of_the_returns(tmp_path: Path, clean: Recording) -> None:
    complete = np.ones(30, bool)
    complete[3] = False
    meta = write_dataset("toy/a-v0", replace(clean, complete=complete), root=tmp_path).meta
    assert meta.cuts == 1
    assert meta.return_mean == pytest.approx(np.delete(clean.returns, 3).mean())


def test_episodes_say_where_they_lie_and_how_they_ended(tmp_path: Path, clean: Recording) -> None:
    dataset = write_dataset("toy/a-v0", clean, root=tmp_path)
    reward = dataset.transitions().reward.numpy()
    for episode, length in zip(dataset.episodes(), clean.lengths, strict=True):
        assert len(episode) == length
        assert episode.ret == pytest.approx(reward[episode.rows].sum(dtype=float), abs=1e-5)
        assert episode.terminated != episode.truncated


def test_writing_to_the_transitions_never_reaches_the_file(tmp_path: Path, clean: Recording) -> None:
    write_dataset("toy/a-v0", clean, root=tmp_path)
    open_dataset("toy/a-v0", tmp_path).transitions().obs.zero_()
    assert torch.equal(open_dataset("toy/a-v0", tmp_path).transitions().obs, torch.from_numpy(clean.obs))


def test_equal_data_has_an_equal_hash_and_a_changed_number_or_border_another(tmp_path: Path, clean: Recording) -> None:
    first, again = (write_dataset(f"toy/{n}-v0", clean, root=tmp_path).meta.hash for n in ("aa", "bb"))
    reward = clean.reward.copy()
    reward[17] += 1e-3
    changed = write_dataset("toy/c-v0", replace(clean, reward=reward), root=tmp_path).meta.hash
    assert first == again != changed
    first_length, *others = clean.lengths.tolist()
    none = np.zeros(0)
    split = replace(clean, lengths=[10, first_length - 10, *others], seeds=none, ordinals=none, complete=none)
    assert write_dataset("toy/dd-v0", split, root=tmp_path).meta.hash not in (first, changed)


def test_statistics_leave_out_the_held_out_episodes(tmp_path: Path, clean: Recording) -> None:
    meta = write_dataset("toy/a-v0", clean, root=tmp_path, held_out=[0, 5]).meta
    kept = np.concatenate([clean.obs[a:b] for e, (a, b) in enumerate(zip(clean.starts, clean.stops, strict=True))
                           if e not in (0, 5)])
    assert meta.statistics["obs_mean"] == pytest.approx(kept.mean(0, dtype=float).tolist(), abs=1e-12)
    with pytest.raises(ValueError, match="episode 30, there are 30"):
        write_dataset("toy/b-v0", clean, root=tmp_path, held_out=[30])


def test_an_interface_of_other_widths_is_refused(tmp_path: Path, clean: Recording) -> None:
    with pytest.raises(ValueError, match="5 observations and 2 actions wide, the interface of hopper 11 and 3"):
        write_dataset("toy/a-v0", clean, anonymous_interface(11, 3), task="hopper", root=tmp_path)
    assert not tmp_path.joinpath("toy").exists()


@pytest.mark.parametrize("name", ["d4rl/hopper/medium-v2", "hopper-medium-v2"])
def test_a_d4rl_name_is_only_for_d4rl_data(tmp_path: Path, clean: Recording, name: str) -> None:
    with pytest.raises(ValueError, match="is a D4RL name"):
        write_dataset(name, clean, root=tmp_path)


def test_an_unknown_name_gets_near_matches_and_a_d4rl_id_a_hint(tmp_path: Path, clean: Recording) -> None:
    write_dataset("hopper/medium-v0", clean, root=tmp_path)
    with pytest.raises(LookupError, match="did you mean hopper/medium-v0"):
        open_dataset("hopper/medum-v0", tmp_path)
    with pytest.raises(LookupError, match="import the HDF5 file"):
        open_dataset("halfcheetah-expert-v2", tmp_path)
    with pytest.raises(LookupError, match="there are none yet"):
        open_dataset("hopper/medium-v0", tmp_path / "empty")


def test_an_existing_dataset_is_replaced_only_on_request(tmp_path: Path, clean: Recording) -> None:
    first = write_dataset("toy/a-v0", clean, root=tmp_path).meta.hash
    other = clean.take(np.arange(10))
    with pytest.raises(FileExistsError, match="overwrite=true"):
        write_dataset("toy/a-v0", other, root=tmp_path)
    assert open_dataset("toy/a-v0", tmp_path).meta.hash == first
    write_dataset("toy/a-v0", other, root=tmp_path, overwrite=True)
    assert open_dataset("toy/a-v0", tmp_path).meta.episodes == 10
    assert_nothing_but(tmp_path, "toy/a-v0")


def test_a_dataset_never_lies_inside_another(tmp_path: Path, clean: Recording) -> None:
    write_dataset("toy/a-v0", clean, root=tmp_path)
    with pytest.raises(ValueError, match="lies inside the dataset 'toy/a-v0'"):
        write_dataset("toy/a-v0/inner-v0", clean, root=tmp_path)


def test_a_deleted_dataset_is_gone_with_its_empty_folders(tmp_path: Path, clean: Recording) -> None:
    write_dataset("toy/a-v0", clean, root=tmp_path)
    delete_dataset("toy/a-v0", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, clean: Recording) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_dataset("toy/a-v0", clean, root=tmp_path, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_kill_nine_at_random_moments_leaves_a_whole_dataset_or_none(
    tmp_path: Path, clean: Recording, overwrite: bool
) -> None:
    moments, hashes = random.Random(0), {write_dataset("toy/a-v0", clean, root=tmp_path).meta.hash}
    for trial in range(6):
        name = "toy/a-v0" if overwrite else f"toy/t{trial}-v0"
        pid = os.fork()
        if pid == 0:
            try:
                while overwrite or not (tmp_path / name).exists():
                    write_dataset(name, clean, root=tmp_path, overwrite=overwrite)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0.005, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        write_dataset(f"toy/after{trial}-v0", clean, root=tmp_path)  # the next writer cleans up
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        listed = name in list_datasets(tmp_path)
        assert listed == (tmp_path / name).exists()
        assert listed or not overwrite  # the old one or the new one, never none
        if listed:
            dataset = open_dataset(name, tmp_path)
            assert dataset.meta.hash in hashes
            assert np.array_equal(dataset.recording().obs, clean.obs)


def test_a_name_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path, clean: Recording) -> None:
    write_dataset("toy/a-v0", clean, root=tmp_path)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    (tmp_path / "toy/a-v0").rename(tmp_path / f".old-{platform.node()}-{gone}-00000000")
    write_dataset("toy/b-v0", clean, root=tmp_path)
    assert_nothing_but(tmp_path, "toy/a-v0", "toy/b-v0")


def damage(path: Path, how: str) -> None:
    flat = path / "flat" / "transitions.npy"
    if how == "truncated":
        flat.write_bytes(flat.read_bytes()[:-400])
    elif how == "missing":
        flat.unlink()
    elif how == "wrong width":
        np.save(flat, np.zeros((3, 4), np.float32))
    elif how == "object array":
        np.save(flat, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how == "bad json":
        (path / "meta.json").write_text("{")
    elif how == "other json":
        (path / "meta.json").write_text("[1, 2]")
    elif how == "incomplete json":
        (path / "meta.json").write_text(json.dumps({"format": 1, "id": "toy/a-v0"}))
    elif how == "newer format":
        (path / "meta.json").write_text(json.dumps({"format": 99}))
    elif how == "other lengths":
        np.save(path / "flat" / "lengths.npy", np.ones(3, np.int64))


@pytest.mark.parametrize(
    "how",
    ["truncated", "missing", "wrong width", "object array", "bad json", "other json", "incomplete json", "newer format",
     "other lengths"],
)  # fmt: skip
def test_a_damaged_dataset_is_refused_in_one_sentence(tmp_path: Path, clean: Recording, how: str) -> None:
    path = write_dataset("toy/a-v0", clean, root=tmp_path).path
    damage(path, how)
    with pytest.raises((ValueError, OSError), match=r"write (the dataset|it) again") as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_dataset_is_found_by_folder_and_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: Recording
) -> None:
    monkeypatch.setenv("ROBOT_CL_DATA", str(tmp_path / "here"))
    written = write_dataset("toy/a-v0", clean)
    assert written.path == tmp_path / "here" / "toy" / "a-v0"
    assert open_dataset(written.path).meta == open_dataset("toy/a-v0").meta == find_dataset("toy/a-v0").meta
