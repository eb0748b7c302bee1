"""What the offline-to-online learners promise alike: stacked is separate, state comes back, ends matter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.actor import ActorConfig, StackedGaussianActor
from policies.critics import CriticConfig
from policies.lora import base_digest
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.apart import joined, narrowed
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners import learner_class
from robot_cl.learners.base import Learner, LearnerConfig, Trainable
from robot_cl.learners.cal_ql import CalQLConfig
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.lcb import LCBConfig
from robot_cl.learners.mbpo import MBPOConfig
from robot_cl.learners.model_config import ModelConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.percent_bc import PercentBCConfig
from robot_cl.learners.rebrac import ReBRACConfig
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.sac import SACConfig, tanh_actor
from robot_cl.learners.uni_o4_config import UniO4Config
from robot_cl.learners.wsrl import WSRLConfig

SOFT = {"actor": replace(tanh_actor(), hidden=(16, 16)), "critic": CriticConfig(hidden=(16, 16), layer_norm=True)}
CONFIGS: dict[str, LearnerConfig] = {
    "iql": IQLConfig(actor=ActorConfig(hidden=(16, 16)), critic=CriticConfig(hidden=(16, 16))),
    "sac": SACConfig(**SOFT),
    "rlpd": RLPDConfig(**SOFT, critics=4, actor_every=2),
    "moorl": MOORLConfig(**SOFT, tasks=Tasks.both, inner=3),
    "cal_ql": CalQLConfig(**SOFT, drawn=2, cloning=10, critic_only=3),
    "wsrl": WSRLConfig(**SOFT, critics=3, drawn=2, cloning=10, critic_only=3),
    "lcb": LCBConfig(**SOFT, critics=3, cloning=10),
    "rebrac": ReBRACConfig(actor=ActorConfig(hidden=(16, 16)), critic=CriticConfig(hidden=(16, 16), layer_norm=True)),
    "mbpo": MBPOConfig(
        **SOFT,
        model=ModelConfig(
            ensemble=EnsembleConfig(3, 2, (16,), (8,)),
            every=8,
            first=10,
            steps=5,
            batch=32,
            rows=400,
            rollouts=4,
            keep=64,
        ),
    ),
    "percent_bc": PercentBCConfig(actor=ActorConfig(hidden=(16, 16)), share=0.3),
    "uni_o4": UniO4Config(
        actor=replace(UniO4Config().actor, hidden=(16, 16)),
        critic=CriticConfig(hidden=(16, 16)),
        behaviours=2,
        critic_steps=12,
        advantage_steps=20,
        behaviour_steps=8,
        improve_steps=8,
        dynamics=EnsembleConfig(3, 2, (16,), (8,)),
        fit=FitConfig(max_steps=10, batch=32),
        gate=GateConfig(every=2, horizon=4, starts=4, end_steps=10),
    ),
}


def build(name: str, seeds: int = 1, seed: int = 0, **options) -> Learner:
    return learner_class(name)(CONFIGS[name], 4, 2, seeds, seed, **options)


def begin(learner: Learner, data: Transitions) -> Callable[[int], list[dict[str, torch.Tensor]]]:
    """The learner with its data -> a function that makes so many updates with batches from the members' generators."""
    sampler = Sampler.over(data, learner.rng)
    learner.attach_data(data)
    learner.prepare(data)

    def run(steps: int) -> list[dict[str, torch.Tensor]]:
        if "offline" in learner.phases:
            return [learner.update_offline(sampler.sample(32)) for _ in range(steps)]
        return [learner.update_online(sampler.sample(16), sampler.sample(16)) for _ in range(steps)]

    return run


@pytest.fixture
def data(transitions) -> Transitions:
    return transitions(1500)


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_training_is_separate_training(name, data):
    steps = 20 if name == "uni_o4" else 40
    stack = build(name, seeds=2, seed=7)
    theirs = begin(stack, data)(steps)
    for p in range(2):
        alone = build(name, seed=7 + p)
        ours = begin(alone, data)(steps)
        member = stack.policy().member(p).state_dict()
        for key, value in alone.policy().member(0).state_dict().items():
            torch.testing.assert_close(member[key], value, rtol=1e-4, atol=1e-5)
        for stacked, single in zip(theirs, ours, strict=True):
            for key, value in single.items():
                torch.testing.assert_close(stacked[key][p], value[0], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_state_goes_out_and_comes_back_bit_for_bit(name, data):
    first, second = build(name, seeds=2, seed=1), build(name, seeds=2, seed=50)
    run = begin(first, data)
    run(15)
    again = begin(second, data)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for more in (run, again):
        more(5)
    theirs = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    assert first.step == second.step == 20


@pytest.mark.parametrize("name", ["sac", "rlpd", "cal_ql", "lcb", "rebrac", "uni_o4", "mbpo"])
def test_what_follows_a_terminal_does_not_matter_and_what_follows_a_time_limit_does(name, data):
    """A learner that forgot the mask would give another loss for another state after a terminal."""
    batch = data[:64].pack().unsqueeze(0)
    batch = Transitions.unpack(batch, 4, 2)
    for flag, matters in (("terminated", False), ("truncated", True)):
        hit = getattr(batch, flag) > 0
        assert hit.any()
        other = Transitions(**{**vars(batch), "next_obs": torch.where(hit.unsqueeze(-1), 3.0, batch.next_obs)})
        losses = []
        for each in (batch, other):
            learner = build(name, seed=3)
            learner.config.cloning = 0  # of those that move the policy alone at first
            learner.attach_data(data)
            learner.prepare(data)
            half = name == "rlpd"
            metrics = learner.update_online(each, None) if half else learner.update_offline(each)
            losses.append(metrics["q_loss" if name == "uni_o4" else "critic_loss"].item())
        if name == "cal_ql" and not matters:  # its conservative term also draws actions at the next state
            continue
        assert (losses[0] != losses[1]) == matters, flag


@pytest.mark.parametrize(
    ("trainable", "parts"), [(Trainable.adapter, (".down", ".up")), (Trainable.weights, (".weight",))]
)
@pytest.mark.parametrize("name", ["iql", "moorl", "uni_o4", "lcb", "mbpo"])
def test_a_skill_on_a_frozen_base_can_be_what_is_trained(name, trainable, parts, data):
    norm = Normalizer(4).fit(data.obs)
    source = StackedGaussianActor(4, 2, generators(3, 1), CONFIGS[name].actor, norm)
    config = replace(CONFIGS[name], trainable=trainable, rank=2)
    learner = learner_class(name)(config, 4, 2, 2, 0, actor=source)
    before = {key: value.clone() for key, value in learner.nets["actor"].state_dict().items()}
    begin(learner, data)(20)
    learner.policy()
    moved = {k for k, v in learner.nets["actor"].state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(key.endswith(parts) for key in moved)
    assert base_digest(learner.adapted(), 1) == base_digest(source)
    assert (learner.policy().mode(data.obs[:50]) - source.mode(data.obs[:50])).abs().max() > 1e-4


@pytest.mark.parametrize("name", [name for name in CONFIGS if learner_class(name).apart])
def test_members_are_taken_apart_and_put_together_again(name, data):
    whole, parts = build(name, seeds=3, seed=5), [build(name, seeds=2), build(name, seeds=1)]
    begin(whole, data)(3)
    for part, first in zip(parts, (0, 2), strict=True):
        part.load_state_dict(narrowed(whole, part, first))
        for p in range(part.seeds):
            mine, theirs = part.actor.member(p).state_dict(), whole.actor.member(first + p).state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    again = joined(whole, [{k: v.numpy() for k, v in part.state_dict().items()} for part in parts], [2, 1])
    state = whole.state_dict()
    assert again.keys() == state.keys() and all(torch.equal(value, again[key]) for key, value in state.items())
