"""What one learner takes over from another: values with their unit, and nothing that belongs to the other run alone."""

from dataclasses import replace

import pytest
import torch

from policies.actor import ActorConfig
from policies.critics import CriticConfig
from policies.diffusion import GenerativeConfig
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.learners import learner_class
from robot_cl.learners.base import Learner
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.cal_ql import CalQLConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.lcb import LCBConfig
from robot_cl.learners.mbpo import MBPOConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.ppo import PPOConfig
from robot_cl.learners.psec import PSECConfig, Skill
from robot_cl.learners.rlpd import RLPDConfig
from robot_cl.learners.sac import tanh_actor
from robot_cl.learners.uni_o4 import UniO4, check_data
from robot_cl.learners.uni_o4_config import UniO4Config
from robot_cl.learners.wsrl import WSRLConfig

CRITIC, ACTOR = CriticConfig(hidden=(8,)), ActorConfig(hidden=(8,))
SOFT = {"actor": replace(tanh_actor(), hidden=(8,)), "critic": CRITIC}
SMALL = GenerativeConfig(hidden=8, blocks=1, features=4, time_width=4)
CONFIGS = {
    "iql": IQLConfig(actor=ACTOR, critic=CRITIC),
    "ppo": PPOConfig(actor=replace(PPOConfig().actor, hidden=(8,)), critic=CRITIC),
    "rlpd": RLPDConfig(**SOFT, critics=2),
    "moorl": MOORLConfig(**SOFT, tasks=Tasks.both, returns_steps=2),
    "lcb": LCBConfig(**SOFT, critics=2, returns_steps=2),
    "cal_ql": CalQLConfig(**SOFT),
    "wsrl": WSRLConfig(**SOFT, critics=2),
    "mbpo": MBPOConfig(**SOFT),
    "bc": BCConfig(actor=ACTOR),
    "psec": PSECConfig(actor=SMALL, critic=CRITIC),
    "uni_o4": UniO4Config(actor=replace(UniO4Config().actor, hidden=(8,)), critic=CRITIC, behaviours=2),
}


def build(name: str, seed: int = 0, **options) -> Learner:
    return learner_class(name)(replace(CONFIGS[name], **options), 4, 2, 1, seed)


def unit(learner: Learner) -> float:
    return float(learner.extra["reward_scale"])


@pytest.fixture
def data(transitions):
    return transitions(1200)


@pytest.mark.parametrize("source", ["ppo", "iql", "lcb"])
@pytest.mark.parametrize("name", ["iql", "lcb", "uni_o4"])
def test_a_unit_of_reward_goes_over_with_the_values_in_it_or_not_at_all(source, name, data):
    theirs, ours = build(source), build(name)
    if source != "ppo":  # whose own unit is 0: it moves
        theirs.extra["reward_scale"].fill_(123.0)
    ours.prepare(data)
    own = unit(ours)
    ours.adopt(theirs.state_dict())
    comes = source == name or (source, name) == ("iql", "uni_o4")
    assert unit(ours) == (123.0 if comes else own) and own > 0.0


def test_a_reward_skill_on_an_imitating_base_keeps_the_unit_of_its_own_data(data):
    base, skill = build("psec"), build("psec", skill=Skill.reward)
    skill.prepare(data)
    own = unit(skill)
    skill.adopt(base.state_dict())
    assert unit(skill) == own != unit(base)
    onward = build("psec", skill=Skill.reward)
    onward.adopt(skill.state_dict())
    assert unit(onward) == own


@pytest.mark.parametrize("name", ["iql", "psec"])
def test_a_unit_that_is_asked_for_is_the_unit(name):
    options = {"skill": Skill.reward} if name == "psec" else {}
    theirs, ours = build(name, reward_scale=7.0, **options), build(name, reward_scale=2.0, **options)
    ours.adopt(theirs.state_dict())
    assert unit(ours) == 2.0


def test_pessimism_is_what_is_asked_for_or_read_from_this_run_s_data(data):
    theirs = build("lcb", beta=7.0)
    for ours, wanted in ((build("lcb", beta=0.5), 0.5), (build("lcb"), 7.0)):
        ours.adopt(theirs.state_dict())
        assert ours.extra["beta"].item() == wanted
    ours.prepare(data)
    own = ours.extra["beta"].item()
    ours.adopt(theirs.state_dict())
    assert ours.extra["beta"].item() == own != 7.0


@pytest.mark.parametrize("pair", [("lcb", "rlpd"), *((name, "lcb") for name in ("rlpd", "moorl", "cal_ql", "wsrl"))])
def test_values_of_another_unit_stay_behind_and_so_does_the_entropy_s_weight_beside_them(pair, data):
    ours, theirs = build(pair[0]), build(pair[1], seed=1, temperature=0.7)
    for learner in (ours, theirs):
        learner.prepare(data)
    held = [name for name in ("critic", "target", "reference", "temperature") if name in ours.nets]
    before = {name: value.clone() for name in held for name, value in ours.nets[name].state_dict(prefix=name).items()}
    ours.adopt(theirs.state_dict())
    for name in held:
        assert all(torch.equal(before[key], value) for key, value in ours.nets[name].state_dict(prefix=name).items())


@pytest.mark.parametrize("source", ["rlpd", "moorl"])
def test_fast_weights_and_targets_begin_at_the_critics_taken_over(source, transitions):
    theirs, ours = build(source, seed=1), build("moorl")
    theirs.update_online(transitions(1, 8), transitions(1, 8))
    ours.adopt(theirs.state_dict())
    assert not torch.equal(ours.critic.net.layers[0].weight, build("moorl").critic.net.layers[0].weight)
    for name, value in ours.critic.named_parameters():
        for copied in (ours.fast.critic, ours.fast.target):
            assert torch.equal(dict(copied.named_parameters())[name], value.repeat(2, *[1] * (value.dim() - 1)))
    for name, value in ours.actor.named_parameters():
        fast = dict(ours.fast.actor.named_parameters())[name]
        assert torch.equal(fast, value.repeat(2, *[1] * (value.dim() - 1)))


def test_how_long_another_run_was_online_does_not_count():
    theirs, ours = build("mbpo"), build("mbpo")
    theirs.extra["online"] += 5000
    theirs.extra["fits"] += 20
    ours.adopt(theirs.state_dict())
    assert (int(ours.extra["online"]), int(ours.extra["fits"])) == (0, 20)


def test_uni_o4_goes_on_from_the_policy_that_another_uni_o4_came_to_online(transitions):
    theirs = build("uni_o4")
    theirs.update_online(transitions(1, 8, 4))
    theirs.gate.made += 1.0
    theirs.gate.scores[0, 1] += 1.0
    norm = Normalizer(4).fit(transitions(50).obs)
    reached = type(theirs.actor)(4, 2, generators(5, 1), theirs.actor.config, norm)
    ours = UniO4(CONFIGS["uni_o4"], 4, 2, actor=reached)
    ours.adopt(theirs.state_dict())
    obs = transitions(20).obs
    assert torch.equal(ours.policy().mode(obs), reached.mode(obs))  # not what that run had selected offline
    assert torch.equal(ours.v(obs), theirs.v(obs))
    assert not ours.rollouts and not ours.gate.made.any()


def test_uni_o4_improves_a_policy_with_statistics_of_its_seed_s_own(data):
    small = {"behaviours": 2, "critic_steps": 2, "behaviour_steps": 2, "improve_steps": 2, "returns_steps": 0}
    config = replace(CONFIGS["uni_o4"], **small, advantage_steps=2)
    config.fit.max_steps, config.gate.horizon = 2, 2
    check_data(data)
    for seeds, apart in ((1, False), (2, False), (2, True)):
        norm = Normalizer(4, population=seeds)
        norm.update(data.obs.expand(seeds, -1, -1) * (1.0 + torch.arange(seeds).view(-1, 1, 1) * float(apart)))
        actor = type(build("bc").actor)(4, 2, generators(0, seeds), config.actor, norm.freeze())
        if apart:
            with pytest.raises(ValueError, match="continue a run of one seed"):
                UniO4(config, 4, 2, seeds, actor=actor)
            continue
        learner = UniO4(config, 4, 2, seeds, actor=actor)
        torch.testing.assert_close(learner.policy().mode(data.obs[:9]), actor.mode(data.obs[:9]))
        learner.attach_data(data)
        learner.prepare(data)
        for _ in range(4):
            metrics = learner.update_offline(data[:16].__class__.unpack(data[:16].pack().expand(seeds, -1, -1), 4, 2))
        assert all(value.isfinite().all() for value in metrics.values())


@pytest.mark.parametrize("seeds", [1, 3])
def test_more_critics_of_one_seed_are_no_critics_of_more_seeds(seeds):
    config = replace(CONFIGS["rlpd"], critics=6)
    ours, theirs = learner_class("rlpd")(config, 4, 2, seeds, 0), build("rlpd", seed=1)
    before = ours.nets["critic"].net.layers[0].weight.clone()
    ours.adopt(theirs.state_dict())
    assert torch.equal(ours.nets["critic"].net.layers[0].weight, before)  # 2 critics, asked to be 6 for each seed
    fitting = learner_class("rlpd")(CONFIGS["rlpd"], 4, 2, seeds, 0)
    fitting.adopt(theirs.state_dict())
    first = theirs.nets["critic"].net.layers[0].weight
    assert torch.equal(fitting.nets["critic"].net.layers[0].weight, first.repeat(seeds, 1, 1))
    twice = learner_class("rlpd")(CONFIGS["rlpd"], 4, 2, 2 * seeds, 0)
    twice.adopt(fitting.state_dict())
    assert torch.equal(twice.nets["critic"].net.layers[0].weight, first.repeat(2 * seeds, 1, 1))


def test_a_running_scale_of_reward_stays_without_the_values_in_it(data):
    theirs, ours = build("lcb"), build("ppo")
    theirs.extra["reward_scale"].fill_(123.0)
    ours.adopt(theirs.state_dict())
    assert unit(ours) == 0.0


def test_an_average_begins_at_the_policy_that_was_loaded(transitions):
    theirs, ours = build("ppo", average=0.5), build("ppo", average=0.5, seed=1)
    theirs.update_online(transitions(1, 8, 4))
    before = ours.average.policy.normalizer.mean.clone()
    ours.adopt(theirs.state_dict())
    weights = zip(ours.average.policy.parameters(), ours.actor.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in weights)
    assert torch.equal(ours.average.policy.normalizer.mean, before)
