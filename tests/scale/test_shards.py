"""Collection in shards, and skills of a stream side by side, from the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest

from robot_cl.cli import main
from robot_cl.data.store import list_datasets, open_dataset
from robot_cl.scale.launchers import Launching
from robot_cl.scale.shards import collect_in_shards, shard_jobs
from robot_cl.scale.sweep import Sweep
from robot_cl.serve.index import read_line

OPTIONS = {
    "task": "hopper", "policy": "random", "name": "hopper/many-v0", "steps": 250, "noise": 0.0, "shares": [],
    "replay": False, "stochastic": False, "seed": 0, "storage": "hdf5", "overwrite": False,
}  # fmt: skip
TINY = ["learner.actor.hidden=[8]", "learner.critic.hidden=[8]", "num_worlds=2", "eval_every=0", "tensorboard=false"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBOT_CL_DATA", raising=False)
    monkeypatch.delenv("ROBOT_CL_LIBRARY", raising=False)
    return tmp_path


def said(*words: str) -> dict:
    """What `robot-cl *words --json` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--json"])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue().splitlines()[-1])


def test_shards_become_one_dataset_with_every_step_and_no_start_twice() -> None:
    told = said("data", "collect", "task=hopper", "policy=random", "name=hopper/many-v0", "steps=250", "shards=3")
    dataset = open_dataset("hopper/many-v0")
    assert told["dataset"]["steps"] == dataset.meta.steps == 250 and list(list_datasets()) == ["hopper/many-v0"]
    first = [dataset.recording().obs[e.start] for e in dataset.episodes() if e.ordinal == 0]
    assert len(np.unique(np.array(first), axis=0)) == len(first) >= 3
    assert [s["seed"] for s in dataset.meta.source["shards"]] == [0, 64, 128]
    assert not (Path("datasets") / ".shards").exists()


def test_a_recording_that_was_cut_short_goes_on_with_the_shards_it_has() -> None:
    folder = Path("datasets/.shards/hopper--many-v0").absolute()
    jobs = shard_jobs(OPTIONS, 1, 3, 1)
    begun = Sweep.at(folder, "shard", jobs, Launching())
    from robot_cl.scale.sweep import Work

    Work.of(folder)(1)
    stamp = (folder / "jobs/0001/shard-v0/meta.json").stat().st_mtime_ns
    seen: list[tuple[int, int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total, (folder / "jobs/0001/shard-v0/meta.json").stat().st_mtime_ns))

    dataset = collect_in_shards(OPTIONS, 1, 3, Launching(), watch)
    assert seen == [(done, 3, stamp) for done in (1, 2, 3)] and dataset.meta.steps == 250 and not begun.folder.exists()
    whole = collect_in_shards(OPTIONS | {"name": "hopper/whole-v0"}, 1, 3, Launching())
    assert whole.meta.hash == dataset.meta.hash


def test_shards_that_cannot_be_launched_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ImportError, match=r"launch\.on=joblib needs joblib"):
        collect_in_shards(OPTIONS, 1, 3, Launching(jobs=2))
    assert not (Path("datasets") / ".shards").exists()


def test_more_shards_than_steps_and_a_taken_name_are_refused() -> None:
    with pytest.raises(ValueError, match="shards is 300; expected 1 to 250"):
        shard_jobs(OPTIONS, 1, 300, 1)
    collect_in_shards(OPTIONS, 1, 1, Launching())
    with pytest.raises(FileExistsError, match="exists already"):
        collect_in_shards(OPTIONS, 1, 2, Launching())


def test_a_shard_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"shard 0 of hopper/many-v0 failed: .*nobody"):
        collect_in_shards(OPTIONS | {"policy": "nobody.npz"}, 1, 2, Launching())


def test_skills_of_a_stream_are_trained_apart_and_published_once() -> None:
    words = ["learner=ppo", "task=halfcheetah", "online_steps=200", "name=base", "learner.horizon=20", *TINY]
    base = next(iter(said("train", *words)["runs"]))
    words = ["stream=halfcheetah_shifts", "tasks=2", f"base={base}", "learner=ppo", "online_steps=200", "rank=2"]
    told = said("skills", "train", *words, "learner.horizon=20", *TINY, "launch.retries=0")
    assert (told["jobs"], told["done"], told["failed"]) == (2, 2, {})
    names = [skill["name"] for skill in said("skills", "list")["skills"]]
    assert names == ["back-leg-reversed", "low-gravity"]
    sweep = Sweep(Path(told["wrote"]))
    (sweep.job_folder(1) / "done.json").unlink()  # as if killed after publishing, before that was noted
    again = said("resume", told["wrote"])
    assert again["done"] == 2 and [skill["name"] for skill in said("skills", "list")["skills"]] == names
    assert sorted(sweep.results()[k]["skill"] for k in range(2)) == names


def test_a_taken_skill_or_a_stream_of_a_suite_is_refused_before_anything_runs(place: Path) -> None:
    for words, says in (
        (["stream=walker", "base=x.zip"], "is only in robot-cl continual"),
        (["stream=halfcheetah_shift", "base=x.zip"], "did you mean 'halfcheetah_shifts'"),
    ):
        err = io.StringIO()
        (place / "x.zip").touch()
        with contextlib.redirect_stderr(err):
            assert main(["skills", "train", *words, "learner=ppo"]) == 2
        assert says in err.getvalue()
    assert not (place / "runs").exists()


def test_a_sweep_on_the_command_line_leaves_a_table_and_one_sentence_where_it_is_no_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said("data", "collect", "task=hopper", "policy=random", "name=hopper/tiny-v0", "steps=100")
    words = ["learner=bc", "data=hopper/tiny-v0", "offline_steps=5", "seed=0,1", "learner.actor.hidden=[8]"]
    told = said("train", *words, "eval_every=0", "tensorboard=false", "launch.retries=0", "name=both")
    assert (told["done"], told["failed"], told["next"].split()[0]) == (2, {}, "report")
    rows = (Path(told["wrote"]) / "table.csv").read_text().splitlines()
    assert rows[0].startswith("job,learner,data,offline_steps,seed") and len(rows) == 3
    assert all((Path(run) / "config.yaml").exists() for run in told["runs"])
    capsys.readouterr()
    for verb in ("evaluate", "verify", "compare"):
        assert main([verb, Path(told["wrote"]).name, *(["last"] if verb == "compare" else [])]) == 2, verb
        assert "Traceback" not in (err := capsys.readouterr().err) and err.count("\n") == 1, err
    page = Path(said("report", told["wrote"])["wrote"])
    assert page.parent == Path(told["wrote"]) and all(Path(run).name in page.read_text() for run in told["runs"])
    line = read_line(Path(told["wrote"]))
    assert line.kind == "sweep" and not line.problem
    assert set(said("list", "launchers")["launchers"]) == {"here", "joblib", "submitit", "ray"}
