"""PSEC: stacked is separate, kills cost nothing, skills leave the base alone, weights choose what is imitated."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.actor import ActorPolicy
from policies.critics import CriticConfig
from policies.diffusion import GENERATIVE, GenerativeConfig, kept_scale
from policies.lora import base_digest
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.checkpoint import checkpoint_folder, load_adapted, load_policy, load_tensors
from robot_cl.data.behaviours import load_behaviour
from robot_cl.data.collect import collect
from robot_cl.data.sampler import Sampler
from robot_cl.export import export_policy
from robot_cl.learners.base import Trainable
from robot_cl.learners.bc import BC, BCConfig
from robot_cl.learners.psec import PSEC, PSECConfig, Skill, average_rate
from robot_cl.run_config import TrainConfig
from robot_cl.train import resume, train
from sim.spec import Channel, Interface

SMALL = GenerativeConfig(hidden=16, blocks=2, features=8, time_width=8, dropout=0.1)
TINY = PSECConfig(actor=SMALL, critic=CriticConfig(hidden=(16, 16)), lr=3e-3, rank=2)


def actor(kind="diffusion", members=1, shape=SMALL):
    norm = Normalizer(4).fit(torch.arange(40.0).view(10, 4).sin())
    return GENERATIVE[kind](4, 2, generators(3, members), shape, norm)


def build(config=TINY, seeds=1, seed=0, **options):
    return PSEC(config, 4, 2, seeds, seed, **options)


def go(learner, data, steps):
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng)
    return [learner.update_offline(sampler.sample(32)) for _ in range(steps)]


@pytest.mark.parametrize("kind", GENERATIVE)
@pytest.mark.parametrize("skill", list(Skill))
@pytest.mark.parametrize("trainable", list(Trainable))
def test_stacked_training_is_separate_training(kind, skill, trainable, transitions):
    data, config = transitions(300), replace(TINY, kind=kind, skill=skill, trainable=trainable)
    base = {"actor": actor(kind)} if trainable is not Trainable.full else {}
    stack = build(config, seeds=2, seed=7, **base)
    theirs = go(stack, data, 20)
    for p in range(2):
        alone = build(config, seed=7 + p, **base)
        ours = go(alone, data, 20)
        for mine, other in zip(stack.policy().member(p).parameters(), alone.policy().parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        for stacked, single in zip(theirs, ours, strict=True):
            assert set(stacked) == set(single)
            for key, value in single.items():
                torch.testing.assert_close(stacked[key][p], value[0], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("skill", list(Skill))
def test_state_goes_out_and_comes_back_bit_for_bit(skill, transitions):
    data, config = transitions(200), replace(TINY, skill=skill, trainable=Trainable.adapter, decay=20)
    first, second = (build(config, 2, seed, actor=actor()) for seed in (1, 50))
    go(first, data, 5)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for learner in (first, second):
        sampler = Sampler.over(data, learner.rng)
        for _ in range(5):
            learner.update_offline(sampler.sample(32))
    theirs = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_skill_moves_only_its_factors_and_the_average_is_what_is_published(transitions):
    source, data = actor(), transitions(200)
    learner = build(replace(TINY, trainable=Trainable.adapter), 2, actor=source)
    before = {key: value.clone() for key, value in learner.nets.state_dict().items()}
    go(learner, data, 20)
    moved = {key for key, value in learner.nets.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.endswith((".down", ".up")) for key in moved)
    assert base_digest(learner.ema, 0) == base_digest(source) == base_digest(learner.actor, 1)
    torch.testing.assert_close(learner.policy().mode(data.obs), learner.ema.mode(data.obs), rtol=1e-3, atol=1e-4)
    assert (learner.ema.mode(data.obs) - learner.actor.eval().mode(data.obs)).abs().max() > 1e-4


def test_the_average_follows_the_last_tenth_of_a_short_training_and_the_given_rate_of_a_long_one():
    assert average_rate(0, 0.001) == 1.0 and average_rate(20_000, 0.001) == 0.001
    average, steps = 0.0, 1000
    for step in range(steps):
        average += average_rate(step, 1e-6) * (step - average)
    assert 0.87 < average / steps < 0.93


def two_ways(rows=400):
    """In one state half of the data goes one way, half the other; reward +1 for the first, −1 for the second."""
    side = torch.arange(rows) % 2 * 2.0 - 1.0
    obs, end = torch.zeros(rows, 4), torch.ones(rows)
    return Transitions(obs, (0.6 * side)[:, None].expand(-1, 2).contiguous(), side, obs.clone(), end, torch.zeros(rows))


@pytest.mark.parametrize(("skill", "wanted"), [(Skill.reward, 0.6), (Skill.cost, 0.6), (Skill.imitation, None)])
def test_reward_and_cost_choose_the_better_half_of_the_data(skill, wanted):
    shape = replace(SMALL, hidden=32, dropout=0.0)
    config = replace(TINY, actor=shape, skill=skill, lr=1e-2, critic_lr=1e-2, reward_scale=3.0, beta=3.0)
    learner = build(config)
    go(learner, two_ways(), 250)
    drawn = learner.policy().sample(torch.zeros(200, 4), generators(9, 1))[0, :, 0].detach()
    share = float(((drawn - 0.6).abs() < 0.3).float().mean())
    assert share > 0.85 if wanted else 0.2 < share < 0.8


def test_a_terminal_ends_the_reward_ahead_and_leaves_only_the_cost_at_hand(transitions):
    rows = transitions(64)
    batch = Transitions.unpack(rows.pack().unsqueeze(0), 4, 2)
    for skill in (Skill.reward, Skill.cost):
        learners = [build(replace(TINY, skill=skill)) for _ in range(2)]
        other = Transitions(**{**vars(batch), "next_obs": torch.where(batch.terminated.unsqueeze(-1) > 0, 3.0,
                                                                      batch.next_obs)})  # fmt: skip
        first, second = (learner.update_offline(b) for learner, b in zip(learners, (batch, other), strict=True))
        assert torch.equal(first["q_loss"], second["q_loss"])
        third = build(replace(TINY, skill=skill)).update_offline(
            Transitions(**{**vars(batch), "next_obs": batch.next_obs + 1.0})
        )
        assert not torch.equal(first["q_loss"], third["q_loss"])


def test_what_is_dropped_follows_the_seed_alone():
    seed = torch.tensor([0.25, 0.75])
    both = kept_scale(seed, torch.Size((300, 40)), 0.2)
    assert torch.equal(both[1], kept_scale(seed[1:], torch.Size((300, 40)), 0.2)[0])
    assert not torch.equal(both[0], both[1])
    assert set(both.unique().tolist()) == {0.0, 1.25}
    assert abs(float((both == 0).double().mean()) - 0.2) < 0.01
    for axis, count in ((1, 600), (2, 80)):  # dropped evenly over rows and columns
        spread = (both == 0).double().mean((0, axis)).std()
        assert spread < 1.3 * (0.2 * 0.8 / count) ** 0.5


def test_another_kind_of_policy_is_refused_by_name(transitions):
    with pytest.raises(ValueError, match="BC trains gaussian policies, not a flow one"):
        BC(BCConfig(), 4, 2, actor=actor("flow"))
    with pytest.raises(ValueError, match="base=RUN"):
        build(replace(TINY, trainable=Trainable.adapter))
    with pytest.raises(ValueError, match=r"expectile is 1\.5"):
        PSECConfig(expectile=1.5)


@pytest.mark.parametrize("kind", GENERATIVE)
def test_a_generative_policy_is_exported_as_it_acts(kind, tmp_path):
    channels = (Channel("a", "rad", -1, 1), Channel("b", "rad", -1, 1))
    face = Interface(tuple(Channel(f"x{i}", "1") for i in range(4)), channels, 0.02)
    policy = ActorPolicy(actor(kind, shape=replace(SMALL, steps=2, blocks=1)), interface=face)
    report = export_policy(policy, tmp_path / "bundle")
    assert report.parity <= 1e-5


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBOT_CL_DATA", str(tmp_path / "datasets"))
    collect("hopper", load_behaviour("hopper-low"), 300, "hopper/few-v0", threads=1)
    return "hopper/few-v0"


@pytest.mark.parametrize("kind", GENERATIVE)
def test_a_base_is_trained_a_skill_on_it_and_both_go_on_after_a_kill(kind, dataset):
    shared = {"data": dataset, "batch": 16, "eval_every": 0, "tensorboard": False, "torch_threads": 1}
    plan = TrainConfig(offline_steps=6, checkpoint_every=3, name="base", **shared)
    base = train(plan, replace(TINY, kind=kind))
    skill_plan = TrainConfig(offline_steps=8, checkpoint_every=4, name="skill", init_from=str(base), **shared)
    skill = replace(TINY, trainable=Trainable.adapter)
    whole = train(skill_plan, skill)
    below, adapter = load_adapted(checkpoint_folder(whole))
    assert below.kind == kind and set(adapter.ranks.values()) == {2}
    obs = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    assert np.abs(load_policy(whole).act(obs) - load_policy(base).act(obs)).max() > 1e-6
    cut = train(replace(skill_plan, name="cut"), skill)
    (cut / "checkpoints" / "last").write_text("4\n")  # as if killed before the second checkpoint
    _restore_resume(cut, whole, skill_plan, skill)
    again = resume(cut)
    mine, theirs = (load_tensors(checkpoint_folder(run) / "policy.safetensors") for run in (again, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def _restore_resume(cut, whole, plan, skill):
    """Only the newest checkpoint can be continued: train the first half once more for its state."""
    import shutil

    half = train(replace(plan, offline_steps=4, name="half"), skill)
    shutil.copytree(half / "checkpoints/4/resume", cut / "checkpoints/4/resume", dirs_exist_ok=True)


def test_the_cost_of_an_action_is_what_the_more_worried_twin_says(transitions):
    learner, batch = build(replace(TINY, skill=Skill.cost)), transitions(1, 16)
    z = learner.actor.normalizer(batch.obs)
    q, _, _ = learner.cost_values(batch, z, z)
    assert torch.equal(q, learner.target_q(z, batch.action).max(1).values)
    worth, _, _ = build(replace(TINY, skill=Skill.reward)).reward_values(batch, z, z)
    assert (worth < q).any()  # of rewards it is the more modest one


def test_weights_decay_by_the_learning_rate_apart_from_their_gradient(transitions):
    data, found = transitions(64), []
    for decay in (0.0, 0.5):
        learner = build(replace(TINY, weight_decay=decay, lr=1e-2))
        start = [p.clone() for p in learner.actor.parameters()]
        go(learner, data, 1)
        found.append([p.detach().clone() for p in learner.actor.parameters()])
    for plain, decayed, before in zip(*found, start, strict=True):
        torch.testing.assert_close(plain - decayed, 1e-2 * 0.5 * before, rtol=1e-3, atol=1e-6)
