"""Compiled updates: the numbers of the plain ones to rounding, and of each other bit for bit."""

import os
from dataclasses import replace

import pytest
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from policies.networks import StackedMLP, generators
from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.data.sampler import Sampler
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.compiled import CACHE, check_compiler, compiled
from robot_cl.learners.graph import Captured, Updates
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.sac import SAC, SACConfig
from robot_cl.learners.sb3 import SB3Config
from robot_cl.run_config import TrainConfig
from robot_cl.train import begin, take_up, train

TINY = {"actor": replace(SACConfig().actor, hidden=(16,)), "critic": CriticConfig(hidden=(16,))}
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def learning(data, compile: bool) -> Updates:
    """Two members of soft actor-critic before a ring that is a third full."""
    learner = SAC(SACConfig(**TINY), 4, 2, 2, 3)
    learner.prepare(data)
    learner.captured = Captured(learner, compiled=compile)
    return Updates(learner, Sampler.over(data, learner.rng), ReplayBuffer(64, 2, 4, 2, whole=compile), 16)


def test_compiled_updates_are_the_plain_ones(transitions):
    plain, fused = (learning(transitions(300), compile) for compile in (False, True))
    for step in range(14):  # the oldest rows are overwritten
        for updates in (plain, fused):
            updates.buffer.add(transitions(2, 6, 1, seed=step))
        wanted, found = plain.online(), fused.online()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, **ROUNDING)
    assert fused.learner.captured.recordings and not fused.learner.captured.refused
    wanted, found = plain.learner.state_dict(), fused.learner.state_dict()
    assert plain.learner.step == fused.learner.step and wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **ROUNDING)


def test_a_compiled_run_goes_on_where_it_was_left_bit_for_bit(tmp_path):
    data = str(collect("hopper", UniformPolicy(11, 3), 400, "hopper/random-v0", root=tmp_path, stochastic=True).path)
    config = TrainConfig(
        data=data, offline_steps=30, batch=16, eval_every=0, checkpoint_every=15, torch_threads=1, threads=1,
        out=str(tmp_path / "runs"), device="cpu", tensorboard=False, compile=True,
    )  # fmt: skip
    learner, before = BCConfig(actor=ActorConfig(hidden=(16,))), os.environ.get(CACHE)
    wanted = load_resume(checkpoint_folder(train(config, learner)))[0]
    run, folder = begin(config, learner)
    run.go(updates=15)
    again, _ = take_up(folder)
    assert again.step == 15
    again.go()
    for name, value in again.learner.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert again.learner.captured.recordings and os.environ.get(CACHE) == before


def test_tensors_that_share_memory_are_not_compiled():
    whole = torch.zeros(8)
    part, other = whole[:5], whole[4:]

    def work() -> dict[str, torch.Tensor]:
        part.add_(1.0)
        return {"sum": other.sum()}

    with pytest.raises(RuntimeError, match="share memory"):
        compiled(work)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_adam_by_pieces_is_adam(clip):
    nets = [StackedMLP(3, (8,), 2, generators(0, 2)) for _ in range(2)]
    whole, pieces = (FlatAdam(net.parameters(), 2, 1e-2, clip) for net in nets)
    pieces.by_pieces()
    rng = torch.Generator().manual_seed(1)
    for step in range(5):
        x = torch.randn(2, 6, 3, generator=rng)
        for net, opt in zip(nets, (whole, pieces), strict=True):
            opt.lr = 1e-2 / (1 + step)
            net(x).square().sum().backward()
            opt.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_where_nothing_can_be_compiled_it_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="there is no no-such-compiler; install one"):
        check_compiler()
    config = TrainConfig(task="hopper", online_steps=10, out=str(tmp_path), device="cpu", compile=True)
    with pytest.raises(ValueError, match="leave out compile="):
        train(config, SB3Config())
    assert not list(tmp_path.iterdir())
