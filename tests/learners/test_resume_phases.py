"""Killed in the middle of an improvement, between two meta steps or two retrainings: goes on the same, bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.train import resume, train

SETUP = """
import os, signal, sys
from dataclasses import replace
from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.critics import CriticConfig
from robot_cl.learners.evaluation import EvaluationConfig
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.imagined import ImaginationConfig
from robot_cl.learners.mbpo import MBPOConfig
from robot_cl.learners.model_config import ModelConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.sac import tanh_actor
from robot_cl.learners.uni_o4_config import Advantage, UniO4Config
from robot_cl.run_config import TrainConfig
CRITIC = CriticConfig(hidden=(16,))
UNI_O4 = UniO4Config(
    actor=replace(UniO4Config().actor, hidden=(16,)), critic=CRITIC, behaviours=2, horizon=8, minibatch=8, epochs=1,
    critic_steps=20, behaviour_steps=10, improve_steps=20, dynamics=EnsembleConfig(3, 2, (8,), (8,)),
    fit=FitConfig(max_steps=5), gate=GateConfig(every=4, horizon=3, starts=4, end_steps=5),
    imagined=ImaginationConfig(members=2, horizon=3, rollouts=8, every=8, minibatch=16),
    evaluated=EvaluationConfig(critics=2, before=4, updates=2),
)
LEARNERS = {
    "uni_o4": UNI_O4,
    "imagined": replace(UNI_O4, advantage=Advantage.imagined),
    "evaluated": replace(UNI_O4, advantage=Advantage.evaluated),
    "mbpo": MBPOConfig(
        actor=replace(tanh_actor(), hidden=(16,)), critic=CRITIC, warmup=4,
        model=ModelConfig(
            ensemble=EnsembleConfig(3, 2, (8,), (8,)), every=12, first=5, steps=3, batch=16, rollouts=2.0, keep=60,
        ),
    ),
    "moorl": MOORLConfig(
        actor=replace(tanh_actor(), hidden=(16,)), critic=CRITIC, tasks=Tasks.both, inner=3, warmup=4
    ),
}
def options(out, data, name):
    lengths = {"uni_o4": (40, 64, 4), "mbpo": (20, 40, 1), "moorl": (0, 50, 1)}
    offline, online, worlds = lengths.get(name, (40, 0, 4))
    return TrainConfig(task="hopper", data=data, offline_steps=offline, online_steps=online, batch=16,
        num_worlds=worlds, log_every=1, eval_every=0, checkpoint_every=16, threads=1, torch_threads=1, out=out,
        device="cpu", name=name, seeds=2, tensorboard=False)
"""
KILLED = (
    SETUP
    + """
from robot_cl.train import train
out, data = sys.argv[1:]
def fatal(phase, step, total, metrics):
    if step == 38:
        os.kill(os.getpid(), signal.SIGKILL)
for name, learner in LEARNERS.items():
    child = os.fork()
    if not child:
        train(options(out, data, name), learner, fatal)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, str]:
    """Folder with one killed run per learner, and the dataset."""
    root = tmp_path_factory.mktemp("resume")
    data = collect("hopper", UniformPolicy(11, 3), 1200, "hopper/random-v0", root=root / "data", stochastic=True)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root / "killed"), str(data.path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert signal.SIGKILL.value == 9
    return root, str(data.path)


@pytest.mark.parametrize("name", ["uni_o4", "imagined", "evaluated", "mbpo", "moorl"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, killed):
    root, data = killed
    scope: dict = {}
    exec(SETUP, scope)  # the same options as in the process that was killed
    whole = train(scope["options"](str(root / "whole"), data, name), scope["LEARNERS"][name])
    (broken,) = (root / "killed").glob(f"*-{name}")
    assert int((broken / "checkpoints" / "last").read_text()) == 32
    again = resume(broken)
    states = [load_resume(checkpoint_folder(run))[0] for run in (whole, again)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
