"""Sweeps: every job done once, whatever is killed, on every launcher."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robot_cl.commands.train import read_train
from robot_cl.data.collect import collect, random_part
from robot_cl.scale.launchers import Launching, On, answers
from robot_cl.scale.sweep import Sweep, is_sweep
from robot_cl.scale.training import train_jobs

LONG = 800  # updates: long enough to be killed in the middle
TINY = ["learner.actor.hidden=[8]", "batch=16", "log_every=5", "eval_every=0", "tensorboard=false",
        "checkpoint_every=100"]  # fmt: skip
NEEDED = {"joblib": "joblib", "submitit": "submitit", "ray": "ray"}


def needs(name: str) -> pytest.MarkDecorator:
    """Skips where the extra is not installed."""
    module = NEEDED.get(name, "json")
    absent = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(absent, reason=f"{module} is not installed: pip install 'robot-cl[scale]'")


LAUNCHED = [pytest.param(On(name), marks=needs(name)) for name in ("here", "joblib", "submitit", "ray")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small hopper dataset, by its folder."""
    root = tmp_path_factory.mktemp("data")
    return str(collect("hopper", [random_part("hopper")], 200, "hopper/tiny-v0", root=root).path)


def jobs_of(data: str, seeds: int, steps: int = 10, launching: Launching | None = None) -> list[dict]:
    words = [["learner=bc", f"data={data}", f"seed={seed}", f"offline_steps={steps}", *TINY] for seed in range(seeds)]
    return train_jobs(words, launching or Launching())


def rows_of(sweep: Sweep) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep.folder / "table.csv").read_text().splitlines()))


def weights(sweep: Sweep) -> dict[int, bytes]:
    """Number -> the last policy's weights."""
    found = {}
    for number, result in sweep.results().items():
        checkpoints = Path(result["run"]) / "checkpoints"
        found[number] = (checkpoints / (checkpoints / "last").read_text().strip() / "policy.safetensors").read_bytes()
    return found


@pytest.fixture(scope="module")
def expected(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The policies of two seeds, trained one after the other and undisturbed."""
    sweep = Sweep.create(tmp_path_factory.mktemp("calm"), "calm", "train", jobs_of(data, 2, LONG), Launching())
    return weights(sweep.go())


class Striker(threading.Thread):
    """Kills the first process that has taken up a job, once it has written a checkpoint."""

    def __init__(self, sweep: Sweep):
        super().__init__()
        self.sweep, self.struck = sweep, 0
        self.start()

    def run(self) -> None:
        while not self.struck and len(self.sweep.results()) < len(self.sweep.jobs()):
            for path in self.sweep.folder.glob("jobs/*/*/checkpoints/last"):
                attempts, number = path.parents[2] / "attempts.jsonl", int(path.parents[2].name)
                pid = json.loads(attempts.read_text().splitlines()[0])["pid"]
                if not self.sweep.settled(number) and pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    self.struck = pid
                    return
            time.sleep(0.005)


@pytest.mark.parametrize("on", [p for p in LAUNCHED if p.values[0] is not On.here])
def test_a_killed_worker_loses_no_job_and_changes_no_result(
    on: On, data: str, expected: dict[int, bytes], tmp_path: Path
) -> None:
    launching = Launching(on, 2, address="local" if on is On.submitit else None)
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 2, LONG, launching), launching)
    striker = Striker(sweep)
    sweep.go()
    striker.join()
    assert striker.struck and is_sweep(sweep.folder) and not sweep.failures()
    assert [(row["job"], row["seed"]) for row in rows_of(sweep)] == [("0", "0"), ("1", "1")]
    assert sum(sweep.attempts(n) for n in range(2)) >= 3 and weights(sweep) == expected
    assert len(list(sweep.folder.glob("jobs/*/*/config.yaml"))) == 2


def test_a_finished_sweep_is_not_done_again(data: str, tmp_path: Path) -> None:
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 2), Launching()).go()
    before = (sweep.folder / "table.csv").read_text(), [sweep.attempts(n) for n in range(2)]
    Sweep(sweep.folder).go()
    assert ((sweep.folder / "table.csv").read_text(), [sweep.attempts(n) for n in range(2)]) == before


def test_a_job_that_fails_is_told_and_leaves_the_others_alone(data: str, tmp_path: Path) -> None:
    jobs = jobs_of(data, 2)
    wrong = {"overrides": [*jobs[0]["overrides"], "learner.actor.hidden=[8]", "data=hopper/gone-v0"]}
    sweep = Sweep.create(tmp_path, "sweep", "train", [wrong, jobs[1]], Launching()).go()
    assert list(sweep.results()) == [1] and "gone-v0" in sweep.failures()[0]
    assert "LookupError" in (sweep.job_folder(0) / "failed.txt").read_text()
    (sweep.folder / "jobs.json").write_text(json.dumps(jobs))
    assert sorted(sweep.go().results()) == [0, 1] and not sweep.failures() and len(rows_of(sweep)) == 2


def test_two_processes_with_the_same_job_do_it_once(data: str, tmp_path: Path) -> None:
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 1), Launching())
    code = "import sys; from pathlib import Path; from robot_cl.scale.sweep import Work; Work.of(Path(sys.argv[1]))(0)"
    both = [subprocess.Popen([sys.executable, "-c", code, str(sweep.folder)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sweep.attempts(0) == 1 and sweep.done(0)


@needs("ray")
def test_a_cluster_that_loses_one_of_two_machines_loses_no_job(
    data: str, expected: dict[int, bytes], tmp_path: Path
) -> None:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux too: listen on 127.0.0.1 only
    from ray.cluster_utils import Cluster

    quiet = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=quiet)
    try:
        other = cluster.add_node(**quiet)
        launching = Launching(On.ray, 2, address=cluster.address)
        sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 2, LONG, launching), launching)
        removed: list[int] = []

        def lose() -> None:
            while len(list(sweep.folder.glob("jobs/*/*/checkpoints/last"))) < 2:  # one job on each machine
                time.sleep(0.005)
            removed.append(sum(sweep.done(n) for n in range(2)))
            cluster.remove_node(other, allow_graceful=False)

        loser = threading.Thread(target=lose)
        loser.start()
        sweep.go()
        loser.join()
    finally:
        cluster.shutdown()
    assert removed and not sweep.failures() and weights(sweep) == expected
    assert [row["job"] for row in rows_of(sweep)] == ["0", "1"]


@needs("joblib")
def test_a_job_that_kills_every_worker_is_given_up_and_named(tmp_path: Path, data: str) -> None:
    launching = Launching(On.joblib, 2, retries=1)
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 1, launching=launching), launching)
    code = (
        "import os, signal, sys; from pathlib import Path; from robot_cl.scale.sweep import Sweep\n"
        "import robot_cl.scale.launchers.on_joblib as on\n"
        "class Deadly:\n"
        "    def __init__(self, folder): self.folder = folder\n"
        "    def __call__(self, number):\n"
        "        folder = Sweep(Path(self.folder)).job_folder(number); folder.mkdir(parents=True, exist_ok=True)\n"
        "        (folder / 'attempts.jsonl').open('a').write('{}\\n'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "sweep = Sweep(Path(sys.argv[1]))\n"
        "print(on.launch(sweep, Deadly(sys.argv[1]), [0], sweep.launching, lambda: None), sweep.attempts(0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep.folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0] 2"


@needs("joblib")
def test_a_job_beside_one_that_kills_its_worker_is_not_given_up(tmp_path: Path, data: str) -> None:
    """Job 0 dies whenever it is taken up; job 1 dies with it, until it is taken up by itself."""
    launching = Launching(On.joblib, 2, retries=0)
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 2, launching=launching), launching)
    code = (
        "import os, signal, sys, time; from pathlib import Path; from robot_cl.scale.sweep import Sweep\n"
        "import robot_cl.scale.launchers.on_joblib as on\n"
        "class Beside:\n"
        "    def __init__(self, folder): self.folder = folder\n"
        "    def __call__(self, number):\n"
        "        sweep = Sweep(Path(self.folder)); folder = sweep.job_folder(number)\n"
        "        folder.mkdir(parents=True, exist_ok=True); (folder / 'attempts.jsonl').open('a').write('{}\\n')\n"
        "        if number == 1 and sweep.attempts(1) > 1: (folder / 'done.json').write_text('{}'); return\n"
        "        while number == 1 or sweep.attempts(1) < min(1, sweep.attempts(0)): time.sleep(0.01)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sweep = Sweep(Path(sys.argv[1]))\n"
        "print(on.launch(sweep, Beside(sys.argv[1]), [0, 1], sweep.launching, lambda: None), sweep.attempts(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep.folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0] 2"


@needs("joblib")
def test_workers_that_cannot_start_are_given_up(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launching = Launching(On.joblib, 2, retries=0)
    sweep = Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 2, launching=launching), launching)
    end = "import os, sys\nif 'loky' in ' '.join(sys.orig_argv): os._exit(1)\n"
    (tmp_path / "sitecustomize.py").write_text(end)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import sys; from pathlib import Path; from robot_cl.scale.sweep import Sweep; Sweep(Path(sys.argv[1])).go()"
    subprocess.run([sys.executable, "-c", code, str(sweep.folder)], capture_output=True, check=True, timeout=100)
    assert list(sweep.failures()) == [0, 1] and "no process could be started" in sweep.failures()[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"jobs": 0}, "launch.jobs is 0; expected at least 1"),
        ({"retries": -1}, "launch.retries is -1; expected 0 or more"),
        ({"on": On.here, "jobs": 2}, "one job at a time"),
    ],
)
def test_launching_that_makes_no_sense_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Launching(**options)


def test_jobs_are_refused_before_anything_is_launched() -> None:
    with pytest.raises(LookupError, match="no learner 'bcc'"):
        train_jobs([["learner=bc"], ["learner=bcc"]], Launching())
    with pytest.raises(ValueError, match="out= cannot be chosen here"):
        train_jobs([["learner=bc", "out=elsewhere"]], Launching())
    with pytest.raises(ValueError, match="at least one job"):
        Sweep.create(Path("nowhere"), "none", "train", [], Launching())
    with pytest.raises(LookupError, match="no kind of job 'dream'"):
        Sweep.create(Path("nowhere"), "none", "dream", [{}], Launching())


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        answers(address)
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
        answers(address)
    for odd in ("127.0.0.1", ":6379", "auto", "127.0.0.1:99999"):
        with pytest.raises(ValueError, match="expected HOST:PORT"):
            answers(odd)


@needs("ray")
def test_a_sweep_on_a_cluster_that_does_not_answer_ends_before_anything_is_written(tmp_path: Path, data: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    gone, jobs = Launching(On.ray, 2, address=f"127.0.0.1:{port}"), jobs_of(data, 1)
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        Sweep.create(tmp_path, "sweep", "train", jobs, gone)
    assert not list(tmp_path.iterdir())
    begun = Sweep.create(tmp_path, "sweep", "train", jobs, Launching())
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        begun.go(gone)
    begun.go()
    begun.go(gone)  # of what is done nothing is asked


@pytest.mark.parametrize("on", [On.joblib, On.submitit, On.ray])
def test_a_launcher_whose_package_is_missing_says_what_to_install(
    on: On, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ImportError, match=rf"launch.on={on} needs {on}; install it with: pip install 'robot-cl\[scale"):
        Sweep.create(tmp_path, "sweep", "train", jobs_of(data, 1), Launching(on, 2))
    assert not list(tmp_path.iterdir())


def test_each_job_has_as_many_threads_as_it_has_cores() -> None:
    words = train_jobs([["learner=bc", "threads=5"]], Launching(On.joblib, 2, cpus=3))[0]["overrides"]
    _, config, _ = read_train(words)
    assert (config.threads, config.torch_threads) == (5, 3)
