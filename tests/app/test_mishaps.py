"""What goes wrong around a run: damaged files, full and locked disks, two at once, typing as one is used to."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from robot_cl.cli import main
from robot_cl.commands.runs import plain_names, typed
from robot_cl.config import read_options
from robot_cl.data.atomic import claim
from robot_cl.plain_files import read_json, write_whole
from robot_cl.run_config import TrainConfig
from tests.app.conftest import Cli

DAMAGED: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty configuration": ("config.yaml", b"", ("report", "resume", "evaluate")),
    "configuration that is a list": ("config.yaml", b"- a\n", ("report", "resume", "evaluate")),
    "configuration in bytes": ("config.yaml", b"\xff\xfe\x00", ("report", "resume", "verify")),
    "configuration with a constructor": ("config.yaml", b"task: !!python/name:os.system\n", ("report", "resume")),
    "half a provenance": ("provenance.json", b'{"a": "b', ("report", "resume")),
    "metrics in bytes": ("metrics.csv", b"\x95\x00\n", ("report", "resume")),
    "metrics of something else": ("metrics.csv", b"a,b\n1,2\n", ("report", "resume")),
    "half the counters": ("checkpoints/20/resume/counters.json", b'{"step": ', ("resume",)),
    "counters that are a list": ("checkpoints/20/resume/counters.json", b"[]", ("resume",)),
    "a pointer to nowhere": ("checkpoints/last", b"rubbish", ("resume", "evaluate")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_in_one_sentence(case: str, cli: Cli, place: Path, tmp_path: Path) -> None:
    name, content, verbs = DAMAGED[case]
    run = shutil.copytree(next((place / "runs").glob("*-cloned")), tmp_path / "run")
    (run / name).write_bytes(content)
    for verb in verbs:
        ran = cli(verb, str(run))
        assert ran.code == 2, (verb, ran)
        assert str(run / name) in ran.err and ran.err.count("\n") == 1, (verb, ran.err)
        assert "object" not in ran.err and "Error" not in ran.err, ran.err


def test_what_a_file_should_hold_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(ValueError, match=r"a\.json is damaged \(it holds a int\)"):
        read_json(tmp_path / "a.json")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """`failing(problem)` makes the verb `list` raise it after it has said how to go on."""
    import robot_cl.commands.list as module
    from robot_cl.commands.verb import Call, Outcome, Verb

    def replace(problem: BaseException) -> None:
        def run(call: Call, options: Any) -> Outcome:
            call.resume = "continue with: robot-cl resume X"
            raise problem

        monkeypatch.setattr(module, "LIST", Verb(run=run, usage="", about="", examples=("robot-cl list",)))

    return replace


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        OSError("560000 requested and 76768 written"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_called_that_and_the_way_on_is_named(
    problem: Exception, cli: Cli, failing: Callable[[BaseException], None]
) -> None:
    failing(problem)
    ran = cli("list")
    assert ran.code == 2 and "the disk is full" in ran.err and "robot-cl resume X" in ran.err


def test_a_folder_that_may_not_be_written_is_named_without_numbers(
    cli: Cli, failing: Callable[[BaseException], None]
) -> None:
    failing(PermissionError(errno.EACCES, "Permission denied", "/there"))
    assert cli("list").err == "robot-cl: /there: permission denied; choose another folder\n"


def test_a_file_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "a", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_two_processes_do_not_write_one_run(cli: Cli, place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(next((place / "runs").glob("*-cloned")), tmp_path / "run")
    code = "import sys, pathlib; from robot_cl.data.atomic import claim; claim(pathlib.Path(sys.argv[1])); print(1);"
    other = subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdout.flush(); input()", str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline()
    ran = cli("resume", str(run))
    assert ran.code == 2 and "is being written by another process" in ran.err
    other.communicate("\n")
    claim(run)  # the process has ended, and its claim with it
    claim(run)  # and what is ours stays ours


def test_whole_numbers_may_be_written_with_an_exponent(cli: Cli) -> None:
    assert read_options(TrainConfig, ["online_steps=2e5", "batch=64.0"]).online_steps == 200_000
    ran = cli("train", "learner=iql", "online_steps=2.5")
    assert ran.code == 2 and "online_steps expects a whole number, got 2.5" in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "learner", "=", "iql"], "without blanks around ="),
        (["train", "learner=iql", "data=hopper/tiny"], "no dataset 'hopper/tiny'; did you mean hopper/tiny-v0?"),
        (["train", "learner=iql", "data=hopper/tiny-v0", "trainable=adapter"], "give base=RUN"),
        (["data", "collect", "task=hopper", "policy=random", "name=hopper/x-v0", "noise=abc"], "noise expects a num"),
    ],
)
def test_mistakes_of_habit_are_understood(words: list[str], says: str, cli: Cli) -> None:
    ran = cli(*words)
    assert ran.code == 2 and says in ran.err, ran


def test_what_is_refused_leaves_no_run_behind(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = list((place / "runs").iterdir())
    ran = cli("train", "learner=bc", "data=hopper/tiny-v0", "offline_steps=2", "wandb=true")
    assert ran.code == 2 and "wandb is not installed" in ran.err
    assert list((place / "runs").iterdir()) == before


def test_ctrl_c_names_the_run_where_it_lies(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(place)
    monkeypatch.setattr("robot_cl.run.Run.go", stop)
    out = tmp_path / "else where"
    words = ["train", "learner=bc", "data=hopper/tiny-v0", "offline_steps=2", "name=it", f"out={out}", "eval_every=0"]
    assert main(words) == 130
    run = next(out.iterdir())
    assert f"continue with: robot-cl resume '{run}'" in capsys.readouterr().err


def test_a_path_with_blanks_is_quoted_in_the_next_command() -> None:
    assert typed("runs/my run") == "'runs/my run'" and typed("runs/a") == "runs/a"


def test_a_run_records_data_by_its_name(cli: Cli) -> None:
    ran = cli("data", "collect", "task=hopper", "policy=cloned", "name=hopper/by-name-v0", "steps=20")
    assert ran.code == 0, ran
    ran = cli("data", "collect", "task=hopper", "policy=clonde", "name=hopper/other-v0", "steps=20")
    assert ran.code == 2 and "no run or behaviour 'clonde'; did you mean cloned?" in ran.err


def test_a_misspelt_behaviour_is_found_among_runs(cli: Cli) -> None:
    assert "did you mean hopper-medium" in cli("evaluate", "hopper-medum").err


def test_what_is_needed_is_explained(cli: Cli) -> None:
    assert "data=... is needed: dataset with the demonstrations" in cli("compose", "task=hopper").err
    assert "there is no earlier version of 'nope'" in cli("skills", "rollback", "nope").err


def test_a_report_goes_into_a_folder_that_is_named(cli: Cli, tmp_path: Path) -> None:
    assert cli("report", "cloned", f"out={tmp_path}").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_names_are_shown_without_dates_that_say_nothing() -> None:
    assert plain_names(["2026-01-31-bc", "2026-01-31-120000-iql"]) == ["bc", "iql"]
    same = ["2026-01-31-bc", "2026-02-01-bc"]
    assert plain_names(same) == same


def test_ctrl_c_names_the_stream_it_was_learning(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(place)
    monkeypatch.setattr("robot_cl.continual.run.proceed", stop)
    assert main(["continual", "stream=vehicle_regimes", "methods=library", "name=mine"]) == 130  # one is a list of one
    run = next((place / "runs").glob("*-mine"))
    assert f"continue with: robot-cl continual runs/{run.name}" in capsys.readouterr().err
    shutil.rmtree(run)


def test_a_run_of_many_tasks_is_not_taken_for_one_training(cli: Cli, place: Path, tmp_path: Path) -> None:
    run = tmp_path / "many"
    (run / "base").mkdir(parents=True)
    (run / "config.yaml").write_text("kind: continual\nlearner: {name: ppo}\n")
    (run / "base" / "policy.json").write_text("{}")
    says = {
        "verify": "is of kind continual",
        "evaluate": f"its base is {run / 'base'}",
        "export": f"its base is {run / 'base'}",
    }
    for verb, words in says.items():
        ran = cli(verb, str(run), *(["to=" + str(tmp_path / "b")] if verb == "export" else []))
        assert ran.code == 2 and words in ran.err, (verb, ran)
    ran = cli("compare", str(run), "cloned")
    assert ran.code == 2 and "its base is" in ran.err
    ran = cli("report", str(run))
    assert ran.code == 0 and "next: robot-cl serve" in ran.out
    assert "robot-cl verify" not in (run / "report.html").read_text()


def test_one_episode_is_advised_about_without_a_comparison_that_was_never_made(cli: Cli) -> None:
    words = ["task=hopper", "policy=walk.safetensors", "name=hopper/single-v0", "steps=10"]
    assert cli("data", "collect", *words).code == 0
    said = cli("data", "check", "hopper/single-v0")
    assert "nan" not in said.out and "told apart" not in said.out
    found = cli("data", "check", "hopper/single-v0", "--json").json
    assert found["coverage"]["action_disagreement"] is None


def test_a_terminal_of_few_letters_is_no_error() -> None:
    code = "import sys; from robot_cl.cli import main; sys.exit(main(['list', 'merges']))"
    given = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "? w_k" in ran.stdout, ran


def test_a_run_of_another_trainer_is_not_offered_to_be_verified(cli: Cli, place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(next((place / "runs").glob("*-cloned")), tmp_path / "run")
    (run / "config.yaml").write_text("task: hopper\nlearner: {name: sb3}\n")
    ran = cli("report", str(run))
    assert ran.code == 0 and "robot-cl export" in ran.out and "verify" not in (run / "report.html").read_text()


def test_a_damaged_dataset_is_listed_as_such_and_not_called_unknown(cli: Cli, place: Path) -> None:
    folder = place / "datasets" / "hopper" / "torn-v0"
    folder.mkdir()
    (folder / "meta.json").write_text('{"id": "hop')
    ran = cli("data", "list")
    assert ran.code == 0 and "✗ hopper/torn-v0" in ran.out
    assert list(cli("data", "list", "--json").json["damaged"]) == ["hopper/torn-v0"]
    ran = cli("data", "check", "hopper/torn-v0")
    shutil.rmtree(folder)
    assert ran.code == 2 and f"{folder / 'meta.json'} is not readable JSON" in ran.err


def test_a_sweep_says_where_its_policies_are(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "0000").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("kind: sweep\njob: train\n")
    ran = cli("evaluate", str(tmp_path))
    assert ran.code == 2 and f"name one of {tmp_path}/jobs" in ran.err


def test_short_spellings_are_in_the_help(cli: Cli) -> None:
    assert "base= for init_from=" in cli("train", "--help").out
