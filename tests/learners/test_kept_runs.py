"""A run folder of another version, or one that was brought home without all of it: one sentence, or what still goes."""

import json
import shutil

import numpy as np
import pytest
import torch
from small_runs import options, random_hopper

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.checkpoint import checkpoint_folder, load_actor, load_tensors, save_tensors
from robot_cl.cli import main
from robot_cl.learners.iql import IQLConfig
from robot_cl.train import begin, resume, take_up, train

SMALL = IQLConfig(actor=ActorConfig(hidden=(8,)), critic=CriticConfig(hidden=(8,)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and the options to begin another from it."""
    root = tmp_path_factory.mktemp("kept")
    config = options(root / "runs", task=None, data=random_hopper(root), offline_steps=20, checkpoint_every=20)
    return train(config, SMALL), config


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "old")


def remembered(run):
    return checkpoint_folder(run) / "resume"


def without(run, prefix):
    """The learner's state as a version would have left it that knew nothing of this."""
    path = remembered(run) / "learner.safetensors"
    state = load_tensors(path)
    left = {name: value for name, value in state.items() if not name.startswith(prefix)}
    assert left.keys() < state.keys()
    save_tensors(path, left)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("nets.v.", "network tensor 'v.net.layers.0.weight' is missing"),
        ("opts.critic.exp_avg_sq", "optimiser state exp_avg_sq is nothing"),
        ("extra.reward_scale", "running quantity 'reward_scale' is missing"),
        ("rng.", "0 members"),
    ],
)
def test_a_run_of_a_version_that_knew_less_says_what_is_missing_and_what_to_do(run, prefix, says):
    without(run, prefix)
    with pytest.raises(ValueError, match=f"another version.*{says}.*init_from=.*old"):
        take_up(run)


@pytest.mark.parametrize("name", ["step", "seconds", "rows", "digests"])
def test_counters_that_are_missing_are_named(run, name):
    path = remembered(run) / "counters.json"
    counters = json.loads(path.read_text())
    del counters[name]
    path.write_text(json.dumps(counters))
    with pytest.raises(ValueError, match=f"another version.*no '{name}'"):
        take_up(run)


def test_options_of_another_version_are_named(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("expectile:", "quantile:"))
    with pytest.raises(ValueError, match="IQLConfig has no option 'quantile'; take the version that wrote it"):
        resume(run)


@pytest.mark.parametrize("lost", [["learner.safetensors"], ["counters.json"], ["learner.safetensors", "counters.json"]])
def test_a_run_without_what_its_learner_remembers_cannot_go_on_but_another_can_begin_with_its_policy(
    run, trained, tmp_path, lost
):
    for name in lost:
        (remembered(run) / name).unlink()
    with pytest.raises(LookupError, match=f"{lost[0]} is missing; copy it.*init_from=.*old, which can do with the"):
        resume(run)
    config = options(tmp_path / "next", task=None, data=trained[1].data, offline_steps=1, init_from=str(run))
    again, theirs = checkpoint_folder(train(config, SMALL)).with_name("0"), checkpoint_folder(run)
    obs = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 11)).astype(np.float32))
    assert torch.equal(load_actor(again).mode(obs), load_actor(theirs).mode(obs))


def test_critics_of_another_shape_are_made_and_taken_over_whatever_else_a_run_was_told(run, trained, tmp_path):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("expectile:", "quantile:"))
    config = options(tmp_path / "next", task=None, data=trained[1].data, offline_steps=1, init_from=str(run))
    began, theirs = begin(config, IQLConfig())[0].learner, load_tensors(remembered(run) / "learner.safetensors")
    for name, value in began.nets["v"].state_dict(prefix="nets.v.").items():
        assert torch.equal(value, theirs[name])


def test_the_command_line_says_that_values_begin_anew(run, trained, tmp_path, capsys):
    words = ["train", "learner=iql", f"data={trained[1].data}", "offline_steps=1", f"init_from={run}", "device=cpu",
             "tensorboard=false", f"out={tmp_path / 'next'}", "eval_every=0"]  # fmt: skip
    assert main(words) == 0 and "begin anew" not in capsys.readouterr().err
    (remembered(run) / "learner.safetensors").unlink()
    assert main(words) == 0 and "begin anew" in "".join(capsys.readouterr())
