"""Runs: folders, policies on disk, verification, and resuming after kill -9 bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import assert_same, options, random_hopper, weights

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from policies.diffusion import FlowActor, GenerativeConfig
from policies.networks import generators
from robot_cl import run_config
from robot_cl.checkpoint import (
    checkpoint_folder,
    load_actor,
    load_policy,
    load_tensors,
    write_policy,
)
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.data.store import open_dataset
from robot_cl.learners.bc import BCConfig, CloningLoss
from robot_cl.learners.incumbent import IncumbentConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.moorl import MOORLConfig
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.uni_o4_config import UniO4Config
from robot_cl.metrics import DivergedError, read_metrics
from robot_cl.train import resume, train, verify

TINY, CRITIC = ActorConfig(hidden=(16,)), CriticConfig(hidden=(16,))
IQL = IQLConfig(actor=TINY, critic=CRITIC, warmup=20, capacity=150)
PPO = PPOConfig(horizon=8, minibatch=16, epochs=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("datasets")
    return random_hopper(root)


def test_a_run_leaves_a_folder_that_says_everything(tmp_path, data):
    seen = []
    config = options(tmp_path, data=data, offline_steps=80, online_steps=80, seeds=2, eval_every=80, eval_episodes=2)
    run = train(config, IQL, lambda *event: seen.append(event))
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints", "config.yaml", "digests.txt", "interface.json", "metrics.csv", "provenance.json", "replay",
    ]  # fmt: skip
    assert (run / "checkpoints" / "last").read_text() == "160\n"
    kept = {p.parent.name for p in run.glob("checkpoints/*/policy.safetensors")}
    assert kept == {"0", "40", "80", "120", "160"}
    assert [p.parent.name for p in run.glob("checkpoints/*/resume")] == ["160"]  # state for continuing: the last only
    read = read_metrics(run)
    evaluated = ~np.isnan(read["eval_return"])
    assert sorted(set(read["step"][evaluated])) == [0, 80, 160]
    assert set(read["phase"][read["step"] > 80]) == {"online"} and "return" in read
    record = json.loads((run / "provenance.json").read_text())
    assert record["dataset"]["hash"] == open_dataset(data).meta.hash and "hopper mujoco" in record["simulator"]
    assert seen[-1][:3] == ("online", 160, 160)
    stored, learner = run_config.read_config(run)
    assert learner == IQL and stored.data == data and (stored.offline_steps, stored.num_worlds) == (80, 2)


def test_a_loaded_policy_acts_as_the_trained_one_with_its_interface(tmp_path, data):
    run = train(options(tmp_path, data=data, offline_steps=40, seeds=2), BCConfig(actor=TINY))
    obs = np.random.default_rng(0).normal(size=(5, 11))
    actor = load_actor(checkpoint_folder(run))
    for member in range(2):
        policy = load_policy(run, member)
        expected = actor.mode(torch.from_numpy(obs.astype(np.float32)))[member].detach().numpy()
        np.testing.assert_allclose(policy.act(obs), expected, rtol=1e-5, atol=1e-6)
        assert policy.interface.obs_dim == 11 and policy.task == "hopper"
    np.testing.assert_array_equal(load_policy(run / "checkpoints" / "40", 1).act(obs), policy.act(obs))
    with pytest.raises(LookupError, match="members 0 to 1"):
        load_policy(run, 2)


def test_damaged_and_missing_policies_are_refused_in_a_sentence(tmp_path, data):
    run = train(options(tmp_path, data=data, offline_steps=40), BCConfig(actor=TINY))
    folder = checkpoint_folder(run)
    card = json.loads((folder / "policy.json").read_text())
    for change, match in (
        ({"kind": "pickle"}, "known kinds: gaussian"),
        ({"format": 99}, "format 1"),
        ({"actor": card["actor"] | {"population": 10**9}}, "larger than"),
        ({"actor": card["actor"] | {"config": card["actor"]["config"] | {"hidden": [500, 500]}}}, "larger than"),
        ({"actor": card["actor"] | {"obs_dim": 12}}, "expected"),
        ({"actor": {}}, "does not describe an actor"),
    ):
        (folder / "policy.json").write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match=match):
            load_policy(run)
    (folder / "policy.json").write_text(json.dumps(card))
    whole = (folder / "policy.safetensors").read_bytes()
    (folder / "policy.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_policy(run)
    (folder / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load_policy(run)
    (run / "checkpoints" / "last").write_text("../../etc\n")
    with pytest.raises(LookupError, match="not a checkpoint"):
        load_policy(run)
    with pytest.raises(LookupError, match="no checkpoint"):
        load_policy(tmp_path)


@pytest.mark.parametrize("change", [{"blocks": 10**7}, {"features": 10**8}, {"time_width": 10**5}, {"hidden": 10**4}])
def test_a_generative_actor_larger_than_its_weights_is_refused_before_it_is_built(change, tmp_path):
    actor = FlowActor(3, 2, generators(0, 1), GenerativeConfig(hidden=8, blocks=1, features=4, time_width=4))
    write_policy(tmp_path, actor, {"step": 0})
    assert load_policy(tmp_path).obs_dim == 3
    card = json.loads((tmp_path / "policy.json").read_text())
    card["actor"]["config"] |= change
    (tmp_path / "policy.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="larger than"):
        load_policy(tmp_path)


def test_seeds_trained_side_by_side_are_the_runs_of_these_seeds(tmp_path, data):
    together = train(options(tmp_path, data=data, offline_steps=60, seeds=2, seed=4), BCConfig(actor=TINY))
    alone = train(options(tmp_path, data=data, offline_steps=60, seed=5), BCConfig(actor=TINY))
    obs = torch.randn(20, 11)
    first, second = (load_actor(checkpoint_folder(run)) for run in (together, alone))
    torch.testing.assert_close(first.mode(obs)[1], second.mode(obs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("learner", "steps"), [(IQL, (60, 60)), (PPO, (0, 160))], ids=["iql", "ppo"])
def test_verification_says_identical_or_where_it_diverged(tmp_path, data, learner, steps):
    config = options(tmp_path, data=data if steps[0] else None, offline_steps=steps[0], online_steps=steps[1])
    run = train(config, learner)
    assert verify(run, 10).identical and str(verify(run, 10)).startswith("identical for 10")
    lines = (run / "digests.txt").read_text().splitlines()
    lines[3] = "4 " + "0" * 64
    (run / "digests.txt").write_text("\n".join(lines))
    found = verify(run, 10)
    assert found.diverged_at == 4 and str(found) == "diverged at step 4"
    changed = (run / "config.yaml").read_text().replace("lr: 0.0003", "lr: 0.0004").replace("lr: 0.001", "lr: 0.002")
    (run / "config.yaml").write_text(changed)
    assert verify(run, 10).diverged_at == 1


def test_a_finished_run_resumes_to_itself_and_changed_data_is_refused(tmp_path, data):
    run = train(options(tmp_path, data=data, offline_steps=40), BCConfig(actor=TINY))
    before = weights(run)
    assert resume(run) == run
    assert_same(before, weights(run))
    record = json.loads((run / "provenance.json").read_text())
    record["dataset"]["hash"] = "0"
    (run / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="has changed"):
        resume(run)


def test_ppo_continues_a_cloned_policy_with_its_statistics_frozen(tmp_path, data):
    cloned = train(options(tmp_path, data=data, offline_steps=40), BCConfig(actor=TINY))
    run = train(options(tmp_path, init_from=str(cloned), online_steps=80), PPO)
    before, after = (load_actor(checkpoint_folder(r)) for r in (cloned, run))
    assert before.normalizer.digest == after.normalizer.digest and before.config == after.config
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    start = load_tensors(run / "checkpoints" / "0" / "policy.safetensors")
    assert_same(start, load_tensors(checkpoint_folder(cloned) / "policy.safetensors"))
    assert verify(run, 3).identical


def test_a_policy_that_learned_online_is_continued_as_it_acts(tmp_path, data):
    """It is on disk with statistics that still moved on; those of other data would make another policy of it."""
    online = train(options(tmp_path, online_steps=32), PPO)
    for learner in (BCConfig(actor=TINY), IQL):
        run = train(options(tmp_path, data=data, offline_steps=1, init_from=str(online)), learner)
        start = load_tensors(run / "checkpoints" / "0" / "policy.safetensors")
        theirs = load_tensors(checkpoint_folder(online) / "policy.safetensors")
        assert_same(start, theirs | {"normalizer.frozen": torch.tensor(True)})
        before, after = (load_actor(checkpoint_folder(r)).normalizer for r in (online, run))
        assert torch.equal(before.mean, after.mean) and torch.equal(before.var, after.var)


def test_training_that_diverges_stops_and_names_it(tmp_path, data):
    config = options(tmp_path, data=data, offline_steps=200)
    with pytest.raises(DivergedError, match=r"bc: actor_loss became (nan|inf) at update \d+"):
        train(config, BCConfig(actor=ActorConfig(hidden=(16,), squash_mean=False), loss=CloningLoss.nll, lr=1e30))


@pytest.mark.parametrize(
    ("changes", "learner", "match"),
    [
        ({"online_steps": 10}, BCConfig(), "bc does not learn online"),
        ({"offline_steps": 10, "online_steps": 10}, PPO, "ppo does not learn offline"),
        ({"offline_steps": 10}, IQL, "needs a dataset"),
        ({"online_steps": 10, "task": None}, PPO, "needs a world"),
        ({}, IQL, "nothing to do"),
        ({"online_steps": 10, "device": "tpu"}, PPO, "auto, cpu, cuda"),
        ({"online_steps": 10, "name": "../out"}, PPO, "one folder name"),
        ({"online_steps": 10, "init_from": "nowhere"}, PPO, "no nowhere"),
        ({"online_steps": 10}, RLPDConfig(), "from a world alone; give data=NAME$"),
        ({"online_steps": 10}, MOORLConfig(), "from a world alone; give data=NAME$"),
        ({"online_steps": 10}, UniO4Config(), "give data=NAME or init_from=NAME$"),
        ({"online_steps": 10, "num_worlds": 3}, PPOConfig(incumbent=IncumbentConfig(3)), "trials in a quarter"),
    ],
)
def test_options_that_do_not_fit_together_leave_nothing_behind(tmp_path, changes, learner, match):
    with pytest.raises((ValueError, OSError, LookupError), match=match):
        train(options(tmp_path, **changes), learner)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train import IQL, options, resume, train
if sys.argv[2] == "train":
    train(options(Path(sys.argv[3]), data=sys.argv[4], offline_steps=400, online_steps=400, seeds=2), IQL)
else:
    resume(sys.argv[3])
"""


def killed(arguments: list[str], out: Path, rows: int, delay: float) -> None:
    """Start a process that trains, and kill it `delay` seconds after metrics.csv below `out` has `rows` lines."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), *arguments]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        files = list(out.glob("*/metrics.csv"))
        if files and files[0].read_bytes().count(b"\n") >= rows:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.parametrize(
    ("steps", "stochastic", "match"),
    [(400, True, "has 400 transitions, uni_o4 needs at least 1000"), (1200, False, "action 0 is the same in every")],
)
def test_data_that_teaches_nothing_is_refused_before_a_folder_is_made(tmp_path, steps, stochastic, match):
    policy = UniformPolicy(11, 3)  # its deterministic action is always zero
    made = collect("hopper", policy, steps, "hopper/x-v0", root=tmp_path / "datasets", stochastic=stochastic)
    config = options(tmp_path / "runs", data=str(made.path))
    with pytest.raises(ValueError, match=match):
        train(config, UniO4Config(critic=CRITIC))
    assert not (tmp_path / "runs").exists()


def test_kills_in_both_parts_change_nothing_of_the_result(tmp_path, data):
    whole = train(options(tmp_path / "whole", data=data, offline_steps=400, online_steps=400, seeds=2), IQL)
    out = tmp_path / "killed"
    killed(["train", str(out), data], out, 15, 0.013)  # of 41 lines after the offline part
    (run,) = out.iterdir()
    killed(["resume", str(run)], out, 50, 0.007)  # of 81 lines in all
    assert 400 < int((run / "checkpoints" / "last").read_text()) < 800
    resume(run)
    assert_same(weights(run), weights(whole))
    mine, theirs = read_metrics(run), read_metrics(whole)
    for name in theirs:
        if name != "time_s":
            np.testing.assert_array_equal(mine[name], theirs[name])
    assert (run / "digests.txt").read_text() == (whole / "digests.txt").read_text()
