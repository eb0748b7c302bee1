"""The command line: help without weight, one sentence for a mistake, JSON for scripts."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robot_cl import cli as cli_module
from robot_cl.cli import VERBS, main
from robot_cl.commands.tables import described
from robot_cl.commands.verb import Call, Outcome, Progress, Verb

Cli = Callable[..., Any]
HEAVY = ("torch", "hydra", "omegaconf", "mujoco", "gymnasium", "numpy", "rich", "matplotlib", "stable_baselines3")


def test_help_imports_nothing_heavy() -> None:
    use = "main(['--help']); main(['evaluate', '--help'])"
    code = f"import sys; from robot_cl.cli import main; {use}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & set(HEAVY), loaded & set(HEAVY)


def test_waiting_threads_leave_the_cores_to_others_unless_told_otherwise() -> None:
    """`GOMP_SPINCOUNT` counts only where it stands before torch is imported."""
    code = "import os, sys, robot_cl; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for env, wanted in ((bare, "1000 False"), (bare | {"GOMP_SPINCOUNT": "7"}, "7 False")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == wanted


def test_list_names_everything_without_waiting_for_torch() -> None:
    code = "import sys; from robot_cl.cli import main; main(['list', '--json']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, said, loaded = done.stdout.splitlines()
    assert loaded == "False" and json.loads(said)["learners"]["iql"].startswith("Kostrikov")


@pytest.mark.parametrize(
    ("module", "table"),
    [
        ("robot_cl.learners", "LEARNERS"), ("robot_cl.continual.methods", "METHODS"), ("policies.merging", "MERGE"),
        ("policies.composers", "COMPOSERS"), ("policies.routers", "ROUTERS"),
        ("robot_cl.deploy.transport", "TRANSPORTS"),
    ],
)  # fmt: skip
def test_what_is_read_from_the_source_is_the_table(module: str, table: str) -> None:
    found = described(module, table)
    assert list(found) == list(getattr(importlib.import_module(module), table))
    assert all(3 < len(sentence) <= 150 and "\n" not in sentence for sentence in found.values()), found


def test_behaviours_name_the_activations_that_networks_know() -> None:
    from policies import networks
    from robot_cl.data import behaviours

    assert set(behaviours.ACTIVATIONS) == set(networks.ACTIVATIONS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_a_page_with_examples_of_itself(cli: Cli, verb: str) -> None:
    ran = cli(*verb.split(), "--help")
    assert ran.code == 0 and ran.out.startswith(f"usage: robot-cl {verb}") and not ran.err
    examples = ran.out.split("examples:\n")[1].split("\n\n")[0].splitlines()
    assert examples and all(re.match(rf"  robot-cl {verb}\b", line) for line in examples)


def test_every_option_of_every_verb_says_what_it_means() -> None:
    from robot_cl.commands.helptext import describe

    for name in VERBS:
        verb = cli_module._load(name)
        if verb.options is not None:
            silent = [option.name for option in describe(verb.options()) if not option.meaning]
            assert not silent, f"{name}: {silent}"


def test_a_dataset_of_random_actions_needs_no_policy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_CL_DATA", str(tmp_path))
    ran = cli("data", "collect", "task=hopper", "policy=random", "name=hopper/random-v0", "steps=300", "--json")
    dataset = json.loads(ran.out)["dataset"]
    assert dataset["steps"] == 300
    assert [(part["policy"], part["stochastic"]) for part in dataset["source"]["parts"]] == [("random", True)]


def test_the_overview_lists_every_verb(cli: Cli) -> None:
    assert cli("--help").out == cli().out
    assert all(re.search(rf"^  {verb} ", cli("--help").out, re.MULTILINE) for verb in VERBS)
    group = cli("data", "--help").out
    assert "data collect" in group and "doctor" not in group


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evalute"], "no verb 'evalute'; did you mean evaluate?"),
        (["data", "chek"], "did you mean check?"),
        (["doctor", "x"], "does not know what to do with 'x'"),
        (["doctor", "x=1"], "takes no options, got 'x=1'"),
        (["evaluate"], "needs more words; usage: robot-cl evaluate RUN"),
        (["evaluate", "cloned", "episode=3"], "no option 'episode'; did you mean episodes?"),
        (["evaluate", "cloned", "episodes=many"], "episodes expects a whole number, got 'many'"),
        (["evaluate", "cloned", "step=7"], "has no checkpoint 7; there are: 0, 20"),
        (["evaluate", "cloned", "member=2"], "has training seeds 0 to 1"),
        (["evaluate", "walk.safetensors", "step=7"], "is not one"),
        (["evaluate", "nothing.zip"], "there is no nothing.zip"),
        (["evaluate", "nonsense"], "no run or behaviour 'nonsense'"),
        (["evaluate", "cloned", "task=halfcheetah"], "does not fit task 'halfcheetah'"),
        (["evaluate", "cloned", "--episodes"], "--episodes needs a value"),
        (["report", "runs"], "is not a run"),
        (["report", "c"], "fits 2 runs"),
        (["compare", "cloned"], "needs more words"),
        (["resume", "clond"], "did you mean"),
        (["list", "taks"], "did you mean tasks"),
        (["train", "learner=iqk", "data=hopper/tiny-v0"], "no learner 'iqk'; did you mean iql"),
        (["train", "learner=bc", "learner.lrr=1", "data=hopper/tiny-v0"], "did you mean learner.lr"),
        (["train", "learner=bc", "data=hopper/tny-v0"], "hopper/tiny-v0"),
        (["train", "learner=bc", "data=hopper/tiny-v0", "seeds=0"], "seeds is 0; expected at least 1"),
        (["train", "learner=bc", "data=hopper/tiny-v0", "task=ant"], "does not fit task ant"),
        (["data", "collect", "task=hopper", "policy=walk.safetensors", "name=x"], "'x' is not a dataset name"),
        (["data", "collect", "task=hopper", "policy=walk.safetensors"], "name=... is needed"),
        (["data", "collect", "task=hopper", "policy=walk.safetensors", "noise=[1,2]", "name=x-v0"], "2 entries for 1"),
        (["data", "import", "nothing.hdf5"], "nothing.hdf5"),
        (["data", "check", "hopper/tny-v0"], "did you mean hopper/tiny-v0"),
        (["report", "cloned", "png=x.png", "out=/proc/no/such/place.html"], "/proc/no"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(cli: Cli, words: list[str], says: str) -> None:
    ran = cli(*words)
    assert ran.code == 2, ran
    assert ran.err.startswith("robot-cl: ") and ran.err.count("\n") == 1 and says in ran.err, ran.err
    assert "Traceback" not in ran.err + ran.out


def test_debug_shows_where(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_CL_DEBUG", "1")
    ran = cli("evaluate", "nonsense")
    assert ran.code == 2 and "Traceback" in ran.err


@pytest.fixture
def throwing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `robot-cl doctor` raise."""

    def install(problem: BaseException) -> None:
        def run(call: Call, options: object) -> Outcome:
            call.resume = "continue with: robot-cl resume RUN"
            raise problem

        monkeypatch.setattr(cli_module, "_load", lambda name: Verb(run, "", "about", ("robot-cl doctor",)))

    return install


def test_a_bug_is_told_from_a_mistake(cli: Cli, throwing: Callable[[BaseException], None]) -> None:
    for problem in (KeyError("x"), RuntimeError("two\nlines"), AssertionError()):
        throwing(problem)
        ran = cli("doctor")
        assert ran.code == 1 and "unexpected" in ran.err and "ROBOT_CL_DEBUG=1" in ran.err and ran.err.count("\n") == 1
    throwing(LookupError("no such thing"))
    assert cli("doctor").err == "robot-cl: no such thing\n"


def test_ctrl_c_says_how_to_resume(cli: Cli, throwing: Callable[[BaseException], None]) -> None:
    throwing(KeyboardInterrupt())
    ran = cli("doctor")
    assert ran.code == 130 and ran.err == "stopped; continue with: robot-cl resume RUN\n"


def heeds_interrupts() -> None:
    """In the child: what a shell started in the background has its children ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_while_training_leaves_a_run_that_resumes(place: Path, cli: Cli) -> None:
    words = ["train", "learner=bc", "learner.actor.hidden=[8]", "data=hopper/tiny-v0", "name=stopped"]
    words += ["offline_steps=1000000", "checkpoint_every=50", "eval_every=0"]
    command = [sys.executable, "-m", "robot_cl.cli", *words]
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=heeds_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(place.glob("runs/*stopped/checkpoints/50")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    run = re.search(r"continue with: robot-cl resume (\S+)", err)
    assert run is not None and run[1].endswith("stopped"), err
    config = place / run[1] / "config.yaml"
    config.write_text(config.read_text().replace("offline_steps: 1000000", "offline_steps: 400"))
    last = int((place / run[1] / "checkpoints/last").read_text())
    assert last % 50 == 0
    if last < 400:
        assert cli("resume", run[1]).code == 0
        assert (place / run[1] / "checkpoints/last").read_text() == "400\n"


def test_json_is_the_only_thing_on_standard_output(cli: Cli) -> None:
    for line in ("list", "data list", "evaluate cloned episodes=2 film=0", "data check hopper/tiny-v0"):
        ran = cli(*line.split(), "--json")
        assert len(ran.out.splitlines()) == 1 and isinstance(json.loads(ran.out), dict), line
        assert {"wrote", "next"} <= set(ran.json)


def test_quiet_says_nothing_but_mistakes(cli: Cli) -> None:
    ran = cli("data", "list", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert "no verb" in cli("nonsense", "--quiet").err


def test_double_dashes_are_another_spelling(cli: Cli) -> None:
    plain = cli("evaluate", "cloned", "episodes=2", "film=0", "label=a", "--json")
    dashed = cli("evaluate", "cloned", "--episodes", "2", "--film=0", "--label", "a", "--json")
    assert plain.code == 0 and dashed.json["evaluation"]["returns"] == plain.json["evaluation"]["returns"]


def test_the_last_line_names_the_folder_and_the_next_command(cli: Cli) -> None:
    line = cli("evaluate", "cloned", "episodes=2", "film=0").out.strip().splitlines()[-1]
    assert re.fullmatch(r"wrote runs/\S+-cloned  ·  next: robot-cl report runs/\S+-cloned", line)


def test_the_next_command_of_every_verb_exists(cli: Cli) -> None:
    for line in ("list", "data list", "data check hopper/tiny-v0", "verify cloned", "report cloned"):
        following = cli(*line.split(), "--json").json["next"]
        if following:
            assert cli_module._find_verb(following.split())[0] in VERBS, following


def test_list_names_what_can_be_named(cli: Cli) -> None:
    found = cli("list", "--json").json
    assert "hopper" in found["tasks"] and "hopper/tiny-v0" in found["datasets"] and "iql" in found["learners"]
    assert {run.split("-", 4)[-1] for run in found["runs"]} >= {"cloned", "critic"}
    only = cli("list", "tasks", "--json").json
    assert set(only) == {"tasks", "wrote", "next"}


def test_commas_train_one_run_after_the_other(cli: Cli) -> None:
    words = ["data=hopper/tiny-v0", "offline_steps=2", "learner.actor.hidden=[8]", "eval_every=0", "tensorboard=false"]
    ran = cli("train", "learner=bc", "learner.lr=1e-3,1e-4", *words, "name=swept", "--json")
    assert ran.code == 0 and len(ran.json["runs"]) == 2 and ran.json["next"].startswith("compare ")


def test_an_experiment_gives_a_learner_only_the_parts_it_has(cli: Cli, place: Path) -> None:
    ran = cli("train", "experiment=smoke", "learner=bc", "data=hopper/tiny-v0", "seeds=1", "name=smoked")
    assert ran.code == 0, ran.err
    (run,) = place.glob("runs/*smoked")
    assert "offline_steps: 20" in (run / "config.yaml").read_text()
    assert "online_steps: 0" in (run / "config.yaml").read_text()
    refused = cli("train", "experiment=smoke", "learner=bc", "data=hopper/tiny-v0", "online_steps=50")
    assert refused.code == 2 and "bc does not learn online" in refused.err


def test_smoke_makes_its_data_and_takes_every_learner(
    run_in: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robot_cl import learners

    few = {name: learners.LEARNERS[name] for name in ("bc", "percent_bc")}
    monkeypatch.setattr(learners, "LEARNERS", few)
    ran = run_in(tmp_path, "train", "experiment=smoke", "--json")
    assert ran.code == 0 and len(ran.json["runs"]) == 2, ran.err
    assert (tmp_path / "datasets/smoke/hopper-v0/meta.json").exists()
    assert run_in(tmp_path, "train", "experiment=smoke", "learner=bc", "--json").json["next"].startswith("evaluate ")


def test_all_means_every_learner(cli: Cli) -> None:
    from robot_cl.learners import LEARNERS

    ran = cli("train", "learner=all", "data=hopper/tny-v0")
    assert ran.code == 2 and f"1 of {len(LEARNERS)}: learner=bc" in ran.out


def test_verify_tells_a_changed_run(cli: Cli, place: Path) -> None:
    assert cli("verify", "critic", "--json").json["identical"] is True
    (run,) = place.glob("runs/*critic")
    digests = run / "digests.txt"
    text = digests.read_text()
    digests.write_text(text.replace(text.splitlines()[2].split()[1], "0" * 64))
    try:
        ran = cli("verify", "critic", "--json")
        assert ran.code == 1 and ran.json["diverged_at"] == 3
    finally:
        digests.write_text(text)


def test_check_ends_with_1_where_data_misleads(cli: Cli, place: Path) -> None:
    meta = place / "datasets/hopper/tiny-v0/meta.json"
    text = meta.read_text()
    meta.write_text(text.replace(json.loads(text)["hash"], "0" * 64))
    try:
        ran = cli("data", "check", "hopper/tiny-v0", "--json")
        assert ran.code == 1 and any(f["check"] == "content_changed" for f in ran.json["findings"])
    finally:
        meta.write_text(text)
    assert cli("data", "check", "hopper/tiny-v0").code == 0


def test_a_pipe_that_closes_early_is_no_error(place: Path) -> None:
    command = f"'{sys.executable}' -m robot_cl.cli list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0" and not done.stderr


def test_a_bar_appears_when_work_takes_longer_than_patience() -> None:
    from rich.console import Console

    for patience, seen in ((60.0, False), (0.0, True)):
        terminal = io.StringIO()
        bar = Progress(Console(file=terminal, force_terminal=True, width=100), "working", patience)
        bar._timer.join(0.0 if patience else 10.0)
        bar(3, 4, "a note")
        bar.close()
        assert (bar.bar is not None) is seen and ("working" in terminal.getvalue()) is seen
        assert not seen or (bar.bar.tasks[0].completed, bar.bar.tasks[0].total) == (3, 4)


def test_a_file_or_a_pipe_gets_no_bar() -> None:
    from rich.console import Console

    bar = Progress(Console(file=io.StringIO()), "working", 0.0)
    assert not bar._timer.is_alive() and bar.bar is None
    bar.close()


def test_an_extra_that_is_missing_is_a_mistake_not_a_bug(cli: Cli, throwing: Callable[[BaseException], None]) -> None:
    throwing(ImportError("needs robot-cl[suites]"))
    assert cli("doctor").code == 2


def test_main_returns_instead_of_exiting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("robot-cl ")
    assert os.environ.get("ROBOT_CL_DEBUG") is None
