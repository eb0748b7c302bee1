"""Captured updates: over fixed buffers, with draws made beforehand, the numbers are those of the plain loop.

On a CPU the same path runs without graphs; where there is a GPU, with them.
"""

from dataclasses import replace

import pytest
import torch

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.data.sampler import Sampler
from robot_cl.learners import config_class, learner_class
from robot_cl.learners.bc import BC, BCConfig
from robot_cl.learners.draws import Draws, Tape
from robot_cl.learners.evaluation import EvaluationConfig
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.graph import Acting, Captured, Updates
from robot_cl.learners.imagined import ImaginationConfig
from robot_cl.learners.moorl import Tasks
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.uni_o4_config import Advantage

CRITIC = CriticConfig(hidden=(16,))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OPTIONS = {
    "uni_o4": {
        "behaviours": 2,
        "critic_steps": 12,
        "behaviour_steps": 6,
        "improve_steps": 20,
        "dynamics": EnsembleConfig(2, 2, (16,), (8,)),
        "fit": FitConfig(max_steps=20, batch=32),
        "gate": GateConfig(every=10, horizon=3, starts=4, end_steps=5),
    },
    "rlpd": {"critics": 4, "actor_every": 2},
    "wsrl": {"critics": 3, "actor_every": 2, "drawn": 2, "critic_only": 4, "cloning": 3},
    "cal_ql": {"drawn": 2, "critic_only": 4, "cloning": 3},
    "moorl": {"tasks": Tasks.alternate, "inner": 2, "actor_every": 2},
    "lcb": {"critics": 3, "actor_every": 2},
}
OFFLINE = ["bc", "percent_bc", "iql", "rebrac", "lcb", "sac", "cal_ql", "wsrl", "uni_o4"]
ONLINE = ["iql", "rebrac", "lcb", "sac", "rlpd", "cal_ql", "wsrl", "moorl"]


def tiny(name: str, **options):
    config = config_class(name)()
    changes = {"actor": replace(config.actor, hidden=(16,))} | OPTIONS.get(name, {}) | options
    return replace(config, **changes | ({"critic": replace(config.critic, hidden=(16,))} if name not in BCS else {}))


BCS = ("bc", "percent_bc")


def pair(name, data, device, fixed=True):
    """The same learner twice with what its updates read: the plain one and the captured one."""
    made = []
    for captured in (False, fixed):
        learner = learner_class(name)(tiny(name), 4, 2, 2, 3, device)
        learner.captured = Captured(learner, captured)
        learner.attach_data(data.to(device))
        learner.prepare(data.to(device))
        sampler = Sampler.over(data, learner.rng, device)
        made.append((learner, sampler))
    return made


def assert_same(one, other, device):
    tolerance = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {"rtol": 2e-4, "atol": 2e-5}
    assert one.step == other.step
    wanted, found = one.state_dict(), other.state_dict()
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}", **tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OFFLINE)
def test_captured_offline_updates_are_the_plain_ones(name, device, transitions):
    (plain, plain_sampler), (fixed, sampler) = pair(name, transitions(1200), device)
    updates = [Updates(learner, s, None, 32) for learner, s in ((plain, plain_sampler), (fixed, sampler))]
    for _ in range(30 if name == "uni_o4" else 12):  # to the second test of the gate
        wanted, found = (u.offline() for u in updates)
        assert wanted.keys() == found.keys()
    assert fixed.captured.recordings and not fixed.captured.refused
    assert_same(plain, fixed, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("advantage", [Advantage.imagined, Advantage.evaluated])
def test_captured_steps_of_sources_that_learn_are_the_plain_ones(advantage, device, transitions):
    small = ImaginationConfig(members=2, horizon=3, rollouts=8, every=6, minibatch=16)
    few = EvaluationConfig(critics=2, before=2, updates=2)
    config = replace(tiny("uni_o4"), advantage=advantage, imagined=small, evaluated=few)
    data, made = transitions(1200), []
    for captured in (False, True):
        learner = learner_class("uni_o4")(config, 4, 2, 2, 3, device)
        learner.captured = Captured(learner, captured)
        learner.attach_data(data.to(device))
        learner.prepare(data.to(device))
        updates = Updates(learner, Sampler.over(data, learner.rng, device), None, 32)
        for _ in range(28):  # past the third rollouts and the first test of the gate
            updates.offline()
        made.append(learner)
    if advantage is Advantage.imagined:
        assert made[1].extra["imagined"].std() > 0
    assert not made[1].captured.refused
    assert_same(*made, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ONLINE)
def test_captured_online_updates_are_the_plain_ones(name, device, transitions):
    updates = []
    for learner, sampler in pair(name, transitions(300), device):
        buffer = ReplayBuffer(64, 2, 4, 2, device)
        updates.append(Updates(learner, sampler if learner.plan().offline_share else None, buffer, 16))
    for step in range(14):  # the buffer fills, and its oldest rows are overwritten
        for u in updates:
            u.buffer.add(transitions(2, 6, 1, seed=step))
        wanted, found = (u.online() for u in updates)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0.0 if device == "cpu" else 1e-3, atol=1e-5)
    plain, fixed = (u.learner for u in updates)
    assert fixed.captured.recordings and not fixed.captured.refused
    assert_same(plain, fixed, device)


@pytest.mark.parametrize("device", DEVICES)
def test_captured_minibatches_of_ppo_are_the_plain_ones(device, transitions):
    made = []
    for captured in (False, True):
        options = {"minibatch": 24, "epochs": 2, "value_warmup": 1, "max_kl": 1e-4, "average": 0.5}
        learner = learner_class("ppo")(tiny("ppo", **options), 4, 2, 2, 3, device)
        learner.captured = Captured(learner, captured)
        made.append(learner)
    for step in range(5):  # to the second rollout that is replayed
        wanted, found = (learner.update_online(transitions(2, 10, 8, seed=step)) for learner in made)
        assert ("taken" in found) == (step > 0)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0.0 if device == "cpu" else 1e-3, atol=1e-5)
    assert {key[1] for key in made[1].captured.recordings} == {24, 8}  # whole minibatches and the rest
    assert_same(*made, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sac", "rebrac", "ppo"])
def test_a_copy_on_the_host_acts_as_the_policy_does_when_a_round_begins(name, device, transitions):
    learner = learner_class(name)(tiny(name), 4, 2, 2, 3, device)
    learner.prepare(transitions(300).to(device))
    acting, obs = Acting(learner, apart=True), transitions(2, 1).obs
    for _ in range(2):
        noise = acting.noise(1, 2)
        found = acting.explore(obs, noise)
        torch.testing.assert_close(found, learner.explore(obs.to(device), noise.to(device)).cpu())
        with torch.no_grad():
            for p in learner.actor.parameters():
                p.add_(0.1)
        assert torch.equal(acting.explore(obs, noise), found)  # not before the next round


def test_updates_with_a_special_step_are_not_captured():
    config = tiny("uni_o4", critic_steps=20)
    learner = learner_class("uni_o4")(config, 4, 2)
    keys = []
    for step in range(20):
        learner.step = step
        keys.append(learner.graph_key())
    assert keys[0] is None  # values are fitted to the data's returns first
    assert keys[1] == (True, True) and keys[5] is None  # the clones are handed over after the sixth update
    assert keys[6] == keys[18] == (True, False) and keys[19] is None
    learner.step = 20 + 5
    assert learner.graph_key() == (False, False)  # improvement, between two tests of the gate


def test_the_numbers_of_a_tape_are_those_drawn_at_once():
    def ask(draws: Draws) -> list[torch.Tensor]:
        twice = draws.of(2 * draws.rngs)  # generators that two networks share
        return [draws.normal(3, 5), twice.uniform(2), draws.rows(range(9), 4), draws.subset(6, 2), draws.uniform()]

    plain, taped = (Draws([torch.Generator().manual_seed(s) for s in (1, 2)]) for _ in range(2))
    tape = Tape("cpu")
    for turn in range(3):
        wanted = ask(plain)
        with taped.through(tape):
            if turn:
                tape.refill()
            found = ask(taped)
        if not turn:
            tape.fix()
        for a, b in zip(wanted, found, strict=True):
            assert torch.equal(a, b)
    assert {tuple(x.shape) for x in ask(plain)} == {(2, 3, 5), (4, 2), (2, 4), (2, 2), (2,)}


class Restless(BC):
    """Its updates claim to be alike, but every one draws more than the one before."""

    def update_offline(self, batch):
        self.draws.normal(1 + self.step)
        return super().update_offline(batch)


def test_an_update_that_is_not_what_its_key_says_is_noticed(transitions):
    learner = Restless(BCConfig(actor=ActorConfig(hidden=(8,))), 4, 2)
    learner.captured = Captured(learner, fixed=True)
    learner.prepare(transitions(50))
    updates = Updates(learner, Sampler.over(transitions(50), learner.rng), None, 8)
    for _ in range(3):
        updates.offline()
    with pytest.raises(RuntimeError, match="graph_key"):
        updates.offline()
