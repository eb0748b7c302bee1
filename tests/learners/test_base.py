"""What all learners promise: stacked is separate, state goes out and comes back, adapters leave the base alone."""

import pytest
import torch

from policies.actor import ActorConfig, Distribution, StackedGaussianActor
from policies.critics import CriticConfig
from policies.lora import base_digest, extract
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners import LEARNERS, config_class, learner_class, name_of
from robot_cl.learners.base import Learner, Trainable
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.ppo import PPOConfig

TINY, CRITIC = ActorConfig(hidden=(16, 16)), CriticConfig(hidden=(16, 16))
CONFIGS = {
    "bc": BCConfig(actor=TINY, clip=0.5, lr=1e-3),
    "iql": IQLConfig(actor=TINY, critic=CRITIC, clip=0.5, lr=1e-3),
    "ppo": PPOConfig(minibatch=16, epochs=2, max_grad_norm=0.1),
}


def build(name: str, seeds: int = 1, seed: int = 0, **options) -> Learner:
    return learner_class(name)(CONFIGS[name], 4, 2, seeds, seed, **options)


def run(learner: Learner, data: Transitions, steps: int) -> list[dict[str, torch.Tensor]]:
    """`steps` updates, each with a batch from the members' own generators."""
    sampler, metrics = Sampler.over(data, learner.rng), []
    for _ in range(steps):
        if "offline" in learner.phases:
            metrics.append(learner.update_offline(sampler.sample(32)))
        else:
            batch = sampler.sample(32)
            shaped = (x.view(learner.seeds, 8, 4, *x.shape[2:]) for x in vars(batch).values())
            metrics.append(learner.update_online(Transitions(*shaped), None))
    return metrics


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_training_is_separate_training(name, transitions):
    data, steps = transitions(500), 200 if name != "ppo" else 50  # of PPO's updates each has four gradient steps
    stack = build(name, seeds=3, seed=7)
    stack.prepare(data)
    stacked_metrics = run(stack, data, steps)
    for p in range(3):
        alone = build(name, seed=7 + p)
        alone.prepare(data)
        metrics = run(alone, data, steps)
        member, own = stack.actor.member(p).state_dict(), alone.actor.member(0).state_dict()
        for key, value in own.items():
            torch.testing.assert_close(member[key], value, rtol=1e-5, atol=1e-5)
        for theirs, ours in zip(stacked_metrics, metrics, strict=True):
            for key, value in ours.items():
                torch.testing.assert_close(theirs[key][p], value[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_members_of_a_stack_differ(name, transitions):
    learner = build(name, seeds=2)
    run(learner, transitions(200), 2)
    first, second = (learner.actor.member(p).mode(torch.ones(1, 4)) for p in range(2))
    assert (first - second).abs().min() > 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_state_goes_out_and_comes_back_bit_for_bit(name, transitions):
    data = transitions(200)
    first, second = build(name, seeds=2, seed=1), build(name, seeds=2, seed=50)
    first.prepare(data)
    run(first, data, 3)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for learner in (first, second):
        run(learner, data, 3)
    theirs = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    assert first.step == second.step == 6


def test_a_state_cut_out_of_one_buffer_is_as_good_as_any():
    learner = build("bc", seeds=2, seed=1)
    state = learner.state_dict()
    rng = torch.cat([torch.zeros(3, dtype=torch.uint8), state["rng.0"]])[3:]
    other = build("bc", seeds=2, seed=5)
    other.load_state_dict(state | {"rng.0": rng})
    assert torch.equal(other.noise(4)[0], learner.noise(4)[0])


def test_state_of_other_options_is_refused_by_name(transitions):
    state = build("iql").state_dict()
    with pytest.raises(ValueError, match="missing"):
        build("iql").load_state_dict({k: v for k, v in state.items() if k != "nets.v.net.layers.0.weight"})
    with pytest.raises(ValueError, match=r"expected \(2, 1, 2\)"):
        build("iql", seeds=2).load_state_dict(state)


def trained_actor(members: int = 1, config: ActorConfig = TINY) -> StackedGaussianActor:
    normalizer = Normalizer(4).fit(torch.arange(40.0).view(10, 4).sin())
    return StackedGaussianActor(4, 2, generators(3, members), config, normalizer)


def test_an_adapter_trains_on_a_frozen_policy_and_is_published_inside_the_weights(transitions):
    source, data = trained_actor(), transitions(200)
    config = BCConfig(trainable=Trainable.adapter, rank=2, lr=1e-2)
    learner = learner_class("bc")(config, 4, 2, 2, actor=source)
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    run(learner, data, 20)
    moved = {key for key, value in learner.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if key.startswith("nets.")} == {
        f"nets.actor.net.layers.{i}.{factor}" for i in range(3) for factor in ("down", "up")
    }
    published = learner.policy()
    torch.testing.assert_close(published.mode(data.obs), learner.actor.mode(data.obs), rtol=1e-4, atol=1e-5)
    assert published.population == 2 and (published.mode(data.obs) - source.mode(data.obs)).abs().max() > 1e-3


def test_weights_train_alone_and_the_best_of_what_they_gained_is_published_as_a_skill(transitions):
    source, data = trained_actor(), transitions(200)
    learners = {}
    for rank in (1, 16):
        config = BCConfig(trainable=Trainable.weights, rank=rank, lr=1e-2)
        learners[rank] = learner_class("bc")(config, 4, 2, 2, actor=source)
        before = {key: value.clone() for key, value in learners[rank].state_dict().items()}
        run(learners[rank], data, 20)
        moved = {key for key, value in learners[rank].state_dict().items() if not torch.equal(value, before[key])}
        assert {k for k in moved if k.startswith("nets.")} == {f"nets.actor.net.layers.{i}.weight" for i in range(3)}
    exact, thin = learners[16], learners[1]
    published = exact.adapted()
    assert base_digest(published, 1) == base_digest(source)
    torch.testing.assert_close(exact.policy().mode(data.obs), exact.actor.mode(data.obs), rtol=1e-4, atol=1e-5)
    assert set(extract(thin.adapted(), 1).ranks.values()) == {1}
    for name in extract(published).layers:  # nothing of one rank is nearer to what was gained
        gained = extract(published, 1).delta(name)
        gap = (extract(thin.adapted(), 1).delta(name) - gained).norm()
        torch.testing.assert_close(gap, torch.linalg.svdvals(gained)[1:].norm(), rtol=1e-3, atol=1e-5)


def test_biases_that_trained_are_published_as_weights_of_the_same_base(transitions):
    source, data = trained_actor(config=ActorConfig((16, 16), distribution=Distribution.gaussian)), transitions(200)
    config = PPOConfig(trainable=Trainable.weights, rank=16, lr=1e-3, minibatch=16)
    learner = learner_class("ppo")(config, 4, 2, 2, actor=source)
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    run(learner, data, 3)
    layers = learner.actor.net.layers
    assert all(not torch.equal(layer.bias, before[f"nets.actor.net.layers.{i}.bias"]) for i, layer in enumerate(layers))
    assert base_digest(learner.adapted(), 1) == base_digest(source)
    folded, wanted = (actor(data.obs)[0] for actor in (learner.policy(), learner.actor))
    del learner.extra["seen"]  # without them biases are left out
    without = learner.policy()(data.obs)[0]
    assert (folded - wanted).norm() < 0.4 * (without - wanted).norm()


def test_a_learner_of_weights_comes_back_and_gives_no_start_away(transitions):
    source, data = trained_actor(2), transitions(200)
    config = BCConfig(trainable=Trainable.weights, lr=1e-2)
    first, second = (learner_class("bc")(config, 4, 2, 2, actor=actor) for actor in (source, trained_actor(2)))
    run(first, data, 5)
    with torch.no_grad():
        second.nets["start"].net.layers[0].weight.zero_()
    second.adopt(first.state_dict())
    assert not second.nets["start"].net.layers[0].weight.any()
    second.load_state_dict(first.state_dict())
    for name, factors in extract(second.adapted(), 1).layers.items():
        torch.testing.assert_close(factors.delta, extract(first.adapted(), 1).delta(name))


@pytest.mark.parametrize("trainable", [Trainable.adapter, Trainable.weights])
def test_a_skill_needs_a_policy_to_adapt(trainable):
    with pytest.raises(ValueError, match=f"trainable={trainable} .*base=RUN"):
        learner_class("bc")(BCConfig(trainable=trainable), 4, 2)


def test_a_loaded_policy_is_repeated_or_refused(transitions):
    obs, source = transitions(5).obs, trained_actor()
    learner = build("bc", seeds=3, actor=source)
    for p in range(3):
        torch.testing.assert_close(learner.actor.mode(obs)[p], source.mode(obs)[0])
    run(learner, transitions(50), 1)
    torch.testing.assert_close(source.mode(obs), trained_actor().mode(obs))  # the original is a copy's source only
    with pytest.raises(ValueError, match="seeds=2"):
        build("bc", seeds=3, actor=trained_actor(2))
    with pytest.raises(ValueError, match="reads 4 observations"):
        learner_class("bc")(CONFIGS["bc"], 5, 2, actor=source)


def test_ppo_takes_over_the_values_and_the_reward_unit_of_iql(transitions):
    data = transitions(200)
    iql = build("iql")
    iql.prepare(data)
    run(iql, data, 3)
    ppo = learner_class("ppo")(PPOConfig(critic=CRITIC), 4, 2, 2, actor=iql.actor)
    ppo.adopt(iql.state_dict())
    for p in range(2):
        torch.testing.assert_close(ppo.v(data.obs)[p], iql.v(data.obs)[0])
    assert ppo.extra["reward_scale"] == iql.extra["reward_scale"] != 1.0
    other = learner_class("ppo")(PPOConfig(critic=CriticConfig(hidden=(8,))), 4, 2, actor=iql.actor)
    other.adopt(iql.state_dict())  # of another shape: left as it was drawn
    assert other.v.net.hidden == (8,)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_of_the_table_can_be_named_and_configured(name):
    config = config_class(name)()
    assert name_of(config) == name
    assert set(learner_class(name).phases) <= {"offline", "online"}


def test_an_unknown_learner_is_answered_with_the_known_ones():
    with pytest.raises(LookupError, match="bc, iql"):
        learner_class("idl")
    with pytest.raises(LookupError, match="not the options"):
        name_of(object())
    with pytest.raises(LookupError, match="not the options"):
        name_of(type("IQLConfig", (), {})())  # of that name, but another's
