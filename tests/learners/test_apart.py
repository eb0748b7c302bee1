"""Seeds of one run in several processes: the members of smaller stacks, one folder, and no process left behind."""

import errno
import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_runs
from small_runs import assert_same, random_hopper, weights

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.apart import Part, shares
from robot_cl.checkpoint import checkpoint_folder, load_actor
from robot_cl.learners.base import Trainable
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.incumbent import IncumbentConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.metrics import DivergedError, read_metrics
from robot_cl.run_config import TrainConfig
from robot_cl.train import resolve, resume, train, verify

TINY = ActorConfig(hidden=(16,))
BC, IQL = BCConfig(actor=TINY), IQLConfig(actor=TINY, critic=CriticConfig(hidden=(16,)))
PPO = PPOConfig(horizon=8, minibatch=16, epochs=2)
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_apart import PPO, options, train
train(options(Path(sys.argv[2]), online_steps=2000, seeds=3, processes=2), PPO)
"""


def options(out: Path, **changes) -> TrainConfig:
    """Torch's threads are the run's own choice."""
    return small_runs.options(out, **({"torch_threads": None} | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("datasets")
    return random_hopper(root)


@pytest.mark.parametrize(
    ("learner", "changes"),
    [
        (BC, {"offline_steps": 60}),
        (IQL, {"offline_steps": 60}),
        (PPO, {"online_steps": 96}),
        (replace(PPO, average=0.5, least_log_std=0.5, incumbent=IncumbentConfig(2)), {"online_steps": 96}),
    ],
    ids=["bc", "iql", "ppo", "ppo with all that it may remember"],
)
def test_seeds_in_two_processes_are_those_of_two_stacks(tmp_path, data, learner, changes):
    offline = "offline_steps" in changes
    changes |= {"data": data if offline else None, "num_worlds": 4, "eval_every": 64, "eval_episodes": 1}
    run = train(options(tmp_path, seed=3, seeds=3, processes=2, **changes), learner)
    stacks = [train(options(tmp_path, seed=seed, seeds=n, **changes), learner) for n, seed in ((2, 3), (1, 5))]
    actor, metrics, row = load_actor(checkpoint_folder(run)), read_metrics(run), 0
    for stack in stacks:
        theirs, other = load_actor(checkpoint_folder(stack)), read_metrics(stack)
        assert theirs.config == actor.config
        for p in range(theirs.population):
            assert_same(theirs.member(p).state_dict(), actor.member(row).state_dict())
            for name in set(metrics) - {"time_s", "member"}:
                mine = metrics[name][metrics["member"] == row]
                np.testing.assert_array_equal(mine, other[name][other["member"] == p], name)
            row += 1
    both = zip(*((s / "digests.txt").read_text().splitlines() for s in stacks), strict=True)
    hashed = [hashlib.sha256("".join(line.split()[1] for line in lines).encode()).hexdigest() for lines in both]
    assert [line.split()[1] for line in (run / "digests.txt").read_text().splitlines()] == hashed
    assert verify(run, 2).identical
    whole = weights(train(options(tmp_path, seed=3, seeds=3, **changes), learner))
    assert {k: v.shape for k, v in weights(run).items()} == {k: v.shape for k, v in whole.items()}


def test_a_skill_trains_in_processes_too(tmp_path, data):
    base = train(options(tmp_path, data=data, offline_steps=40), BC)
    changes = {"data": data, "offline_steps": 40, "init_from": str(base)}
    learner = replace(BC, trainable=Trainable.adapter, rank=2)
    run = train(options(tmp_path, seeds=2, processes=2, **changes), learner)
    alone = train(options(tmp_path, seed=1, **changes), learner)
    mine, theirs = load_actor(checkpoint_folder(run)).member(1), load_actor(checkpoint_folder(alone)).member(0)
    assert_same(mine.state_dict(), theirs.state_dict())
    assert (checkpoint_folder(run) / "adapter.safetensors").exists()


def processes_of(word: str) -> list[int]:
    """Processes with this word in their command, as /proc tells."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_killed_run_leaves_no_process_and_goes_on_the_same(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not [path for path in tmp_path.glob("killed/*/checkpoints/last") if int(path.read_text()) >= 320]:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    assert len(processes_of(str(tmp_path))) == 3
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (run,) = (tmp_path / "killed").iterdir()
    assert int((run / "checkpoints" / "last").read_text()) < 2000
    resume(run)  # at once: what is left of the killed run does not hold its folder
    deadline = time.monotonic() + 20
    while processes_of(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes_of(str(tmp_path))
    whole = train(options(tmp_path / "whole", online_steps=2000, seeds=3, processes=2), PPO)
    assert_same(weights(run), weights(whole))
    mine, theirs = read_metrics(run), read_metrics(whole)
    for name in set(theirs) - {"time_s"}:
        np.testing.assert_array_equal(mine[name], theirs[name])
    assert (run / "digests.txt").read_text() == (whole / "digests.txt").read_text()


def test_what_goes_wrong_in_a_process_is_the_runs_problem(tmp_path, data):
    wild = BCConfig(actor=replace(TINY, squash_mean=False), lr=1e30)
    with pytest.raises(DivergedError, match=r"bc: actor_loss became (nan|inf) at update \d+"):
        train(options(tmp_path, data=data, offline_steps=200, seeds=2, processes=2), wild)

    def fail(*_: object) -> None:
        raise FloatingPointError("a joint is nowhere")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FloatingPointError, match="a joint is nowhere"):
        patch.setattr("robot_cl.learners.ppo.PPO.update_online", fail)
        train(options(tmp_path, online_steps=160, seeds=2, processes=2), PPO)


def test_a_process_that_was_ended_is_told_in_a_sentence(tmp_path):
    def end_one(*_: object) -> None:
        os.kill(int(children()[-1]), signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"seeds 3 to 3 of 3 was ended, .*; go on from the last checkpoint"):
        train(options(tmp_path, online_steps=2000, seeds=3, processes=2), PPO, end_one)


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_process_that_was_ended_in_the_midst_of_what_it_sends_is_told_too(tmp_path, monkeypatch):
    def half(part: Part, state: bool) -> None:
        os.write(part._pipe.fileno(), struct.pack("!i", 1000) + b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("robot_cl.apart.Part.send", half)
    with pytest.raises(ChildProcessError, match="seeds 1 to 1 of 2 was ended"):
        train(options(tmp_path, online_steps=160, seeds=2, processes=2), PPO)
    assert not children()


class OddError(Exception):
    """Cannot be made from its words alone, as many exceptions of libraries."""

    def __init__(self, joint: str, limit: float):
        super().__init__(f"{joint} is beyond {limit}")


def test_an_exception_that_does_not_survive_the_way_is_told_in_its_words_and_with_its_place(tmp_path, monkeypatch):
    def raise_odd(*_: object) -> None:
        raise OddError("elbow", 1.5)

    monkeypatch.setattr("robot_cl.learners.ppo.PPO.update_online", raise_odd)
    with pytest.raises(RuntimeError, match=r"OddError: elbow is beyond 1\.5") as told:
        train(options(tmp_path, online_steps=160, seeds=2, processes=2), PPO)
    assert "in raise_odd" in str(told.value.__cause__)


def test_where_no_further_process_can_be_started_those_begun_are_ended(tmp_path, monkeypatch):
    fork, begun = os.fork, []

    def once() -> int:
        if begun:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        begun.append(fork())
        return begun[0]

    monkeypatch.setattr("robot_cl.apart.os.fork", once)
    with pytest.raises(OSError, match=r"process 2 of 2 could not be started .*unavailable.*processes=1"):
        train(options(tmp_path, online_steps=160, seeds=2, processes=2), PPO)
    assert begun and not children()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_interrupt_ends_all_processes_and_leaves_a_run_that_goes_on(tmp_path):
    def interrupt(*_: object) -> None:
        for child in children():
            os.kill(int(child), signal.SIGINT)  # as a terminal does, to all at once
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options(tmp_path / "stopped", online_steps=320, seeds=2, processes=2), PPO, interrupt)
    assert not children()
    (run,) = (tmp_path / "stopped").iterdir()
    resume(run)
    assert_same(weights(run), weights(train(options(tmp_path, online_steps=320, seeds=2, processes=2), PPO)))


def test_no_process_has_more_than_one_member_more_than_another():
    assert shares(5, 3) == [2, 2, 1] and shares(7, 3) == [3, 2, 2] and shares(4, 2) == [2, 2]


@pytest.mark.parametrize(
    ("learner", "changes", "processes"),
    [
        (PPO, {"seeds": 4, "threads": 2}, 2),
        (PPO, {"seeds": 5, "threads": 2}, 3),  # of 2, 2 and 1: with two processes one thread would wait for three seeds
        (PPO, {"seeds": 5, "threads": 8}, 5),
        (PPO, {"seeds": 5, "threads": 1}, 1),
        (PPO, {"seeds": 5, "threads": 2, "torch_threads": 2}, 1),
        (PPO, {"seeds": 5, "threads": 2, "processes": 2}, 2),
        (PPO, {"seeds": 30, "threads": 8}, 10),
        (IQL, {"seeds": 2, "threads": 2, "online_steps": 0, "offline_steps": 10}, 2),
        (IQL, {"seeds": 2, "threads": 2, "offline_steps": 10}, 1),
    ],
)
def test_seeds_are_shared_out_where_that_can_be(learner, changes, processes, data):
    config = resolve(options(Path("nowhere"), **{"data": data, "online_steps": 10} | changes), learner)
    assert config.processes == processes
    assert processes == 1 or config.torch_threads == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, "the seeds of iql learn online in one process; leave it out"),
        ({"online_steps": 0, "torch_threads": 2}, "torch_threads=2 are for one process"),
        ({"online_steps": 0, "compile": True}, "compile=true makes code for all seeds"),
    ],
)
def test_processes_that_cannot_share_the_seeds_are_refused(changes, match, data):
    wanted = {"data": data, "offline_steps": 10, "online_steps": 10, "seeds": 2, "processes": 2}
    with pytest.raises(ValueError, match=match):
        resolve(options(Path("nowhere"), **wanted | changes), IQL)
