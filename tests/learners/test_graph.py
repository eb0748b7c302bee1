"""The captured update: over fixed buffers the numbers are those of the plain loop."""

from dataclasses import replace

import pytest
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from robot_cl.data.sampler import Sampler
from robot_cl.learners import learner_class
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.graph import GraphedUpdate
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.uni_o4 import UniO4Config

TINY, CRITIC = ActorConfig(hidden=(16,)), CriticConfig(hidden=(16,))
CONFIGS = {
    "bc": BCConfig(actor=TINY),
    "iql": IQLConfig(actor=TINY, critic=CRITIC),
    "uni_o4": UniO4Config(
        actor=replace(UniO4Config().actor, hidden=(16,)), critic=CRITIC, behaviours=2,
        critic_steps=20, behaviour_steps=6,
    ),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_captured_loop_gives_the_numbers_of_the_plain_one(name, device, transitions):
    data = transitions(1200)
    plain, fixed = (learner_class(name)(CONFIGS[name], 4, 2, 2, 3, device) for _ in range(2))
    samplers = []
    for learner in (plain, fixed):
        learner.attach_data(data.to(device))
        learner.prepare(data.to(device))
        samplers.append(Sampler.over(data, learner.rng, device))
    update = GraphedUpdate(fixed, samplers[1], 32)
    for _ in range(15):
        wanted, found = plain.update_offline(samplers[0].sample(32)), update()
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0.0 if device == "cpu" else 1e-4, atol=1e-6)
    assert plain.step == fixed.step == 15
    for key, value in plain.state_dict().items():
        if not key.startswith("rng."):
            torch.testing.assert_close(fixed.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_updates_with_a_special_step_are_not_captured():
    learner = learner_class("uni_o4")(CONFIGS["uni_o4"], 4, 2)
    keys = []
    for step in range(20):
        learner.step = step
        keys.append(learner.graph_key())
    assert keys[0] == (True, True) and keys[5] is None  # the clones are handed over after the sixth update
    assert keys[6] == keys[18] == (True, False) and keys[19] is None
