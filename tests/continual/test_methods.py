"""What every method promises, and what each keeps that the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_methods import learn_one, learned, mode

from robot_cl.continual.actors import chosen, copied, mixed_states, side_by_side, with_skills
from robot_cl.continual.loop import Measuring
from robot_cl.continual.method import MethodConfig, Setup, learner_values
from robot_cl.continual.methods import METHODS, method_class
from robot_cl.continual.methods.ewc import fisher_diagonal
from robot_cl.continual.methods.multitask import JoinedWorlds, told, widened
from robot_cl.continual.methods.one_network import body, head
from robot_cl.continual.methods.packnet import FREE, largest
from robot_cl.continual.stage_training import StageTraining
from robot_cl.continual.stage_worlds import stage_world

MakeSetup = Callable[..., Setup]
QUICK = Measuring(episodes=2, points=1, curve_episodes=1, save_every=32)
REMEMBERING = ("library", "fresh", "packnet")  # whose old tasks cannot change


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_up_its_state_and_plays_the_same(name: str, make_setup: MakeSetup) -> None:
    method = learned(name, make_setup("one"))
    again = method_class(name)(make_setup("one"))
    again.restore({k: v.clone() for k, v in method.tensors().items()}, method.facts())
    for j in range(3):
        np.testing.assert_array_equal(mode(again.policy(j)), mode(method.policy(j)))
    assert again.kept_bytes() == method.kept_bytes() > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_learned_something_and_seeds_differ(name: str, make_setup: MakeSetup) -> None:
    setup = make_setup()
    played = mode(learned(name, setup, 1).policy(0))
    if name != "library":  # whose gate may keep the base after three rollouts
        assert not np.allclose(played, mode(setup.base))
    assert not np.allclose(played[0], played[1])


@pytest.mark.parametrize("name", REMEMBERING)
def test_what_was_learned_first_is_played_the_same_after_everything(name: str, make_setup: MakeSetup) -> None:
    method = learned(name, make_setup(), 1)
    first = mode(method.policy(0))
    for k in (1, 2):
        learn_one(method, k)
    np.testing.assert_array_equal(mode(method.policy(0)), first)


def test_fine_tuning_changes_what_was_learned_first(make_setup: MakeSetup) -> None:
    method = learned("finetune", make_setup(), 1)
    first = mode(method.policy(0))
    learn_one(method, 1)
    assert not np.allclose(mode(method.policy(0)), first)


def test_every_method_starts_from_the_same_weights(make_setup: MakeSetup) -> None:
    setup = make_setup()
    for name in METHODS:
        method = method_class(name)(setup)
        np.testing.assert_allclose(mode(method.policy(0)), mode(setup.base), atol=1e-6)


# -- the library -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fresh", "finetune"])
def test_every_task_begins_with_the_noise_asked_for_and_an_adapter_trains_it_too(
    name: str, make_setup: MakeSetup
) -> None:
    setup = make_setup("one")
    method = method_class(name)(replace(setup, config=replace(setup.config, explore=-1.0)))
    for k in range(2):
        learner, _ = method.begin(k)
        assert learner is not None and (learner.actor.log_std == -1.0).all()
        training = StageTraining(learner, method.world(k), method.stage(k), k)
        method.end(k, learner, training.round())
        assert (learner.actor.log_std != -1.0).all()


def test_what_a_task_leaves_to_the_next_are_values_and_no_actor(make_setup: MakeSetup) -> None:
    learner, _ = method_class("library")(make_setup()).begin(0)
    assert learner is not None
    kept = {name.split(".")[1] for name in learner_values(learner) if name.startswith("nets.")}
    assert kept == {"v"} and {"actor", "start"} < set(learner.nets)


def test_packnet_owns_a_share_of_each_layer_per_task_and_all_of_it_at_the_end(make_setup: MakeSetup) -> None:
    method = learned("packnet", make_setup(), 2)
    for owner in method.owner.values():
        for task in (0, 1):
            assert (owner == task).flatten(1).sum(1).tolist() == [owner[0].numel() // 3] * 2
    learn_one(method, 2)
    assert all((owner != FREE).all() for owner in method.owner.values())


def test_the_largest_free_weights_are_kept_and_never_more_than_the_quota() -> None:
    magnitude = torch.tensor([[[5.0, 1.0], [4.0, 3.0]]])
    free = torch.tensor([[[False, True], [True, True]]])
    assert largest(magnitude, free, 2).tolist() == [[[False, False], [True, True]]]
    assert largest(magnitude, free, 9).equal(free)


def test_the_fisher_diagonal_is_the_squared_gradient_of_the_mean_over_the_variance(make_setup: MakeSetup) -> None:
    actor = copied(make_setup(seeds=1).base)
    obs = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    mean, log_std = actor(obs)
    exact = {name: torch.zeros_like(p) for name, p in body(actor).items()}
    for s in range(6):
        for d in range(2):
            scaled = (mean * (-log_std).exp())[0, s, d]
            grads = torch.autograd.grad(scaled, list(body(actor).values()), retain_graph=True)
            for name, g in zip(exact, grads, strict=True):
                exact[name] += g.square() / 6
    drawn = fisher_diagonal(actor, obs, torch.Generator().manual_seed(0), draws=400)
    for name in exact:
        torch.testing.assert_close(drawn[name], exact[name], rtol=0.3, atol=0.1 * float(exact[name].max()))


def test_springs_hold_the_body_and_leave_the_head(make_setup: MakeSetup) -> None:
    loose, held = (make_setup(f"ewc{w}", config=MethodConfig(ewc=w, memory=32)) for w in (0.0, 1e6))
    moved = {}
    for name, setup in (("loose", loose), ("held", held)):
        method = learned("ewc", setup, 1)
        before = copied(method.actor)
        learn_one(method, 1)
        now = dict(method.actor.named_parameters())
        moved[name] = sum(float((now[n] - p).norm()) for n, p in body(before).items())
    assert moved["held"] < moved["loose"]
    assert set(head(held.base)) | set(body(held.base)) == {n for n, _ in held.base.named_parameters()}


def test_cloning_keeps_an_old_actor_closer_than_fine_tuning_does(make_setup: MakeSetup) -> None:
    options = type(make_setup().config)(clone=1000.0, memory=32)
    gap = {}
    for name in ("clonex", "finetune"):
        method = learned(name, make_setup(name, config=options), 1)
        first = mode(method.policy(0))
        learn_one(method, 1)
        gap[name] = np.abs(mode(method.policy(0)) - first).max()
    assert gap["clonex"] < gap["finetune"]


def test_the_multi_task_network_is_told_its_task_by_a_bias(make_setup: MakeSetup) -> None:
    base = make_setup().base
    wide = widened(base, 3)
    with torch.no_grad():
        wide.net.layers[0].weight[..., 4:] = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    obs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    for task in range(3):
        marked = torch.cat([obs, torch.eye(3)[task].expand(2, 5, 3)], -1)
        torch.testing.assert_close(told(wide, base, task).mode(obs), wide.mode(marked))


def test_joined_worlds_keep_each_members_rows_together_and_mark_the_task(stream) -> None:  # type: ignore[no-untyped-def]
    joined = JoinedWorlds([stage_world([stage] * 4) for stage in stream.stages], members=2)
    alone = stage_world([stream.stages[1]] * 4)
    obs, single = joined.reset(0), alone.reset(4)
    rows = [2, 3, 8, 9]  # task 1's rows of member 0 and 1
    np.testing.assert_array_equal(obs[rows, :4], single)
    assert (obs[rows, 4:] == [0, 1, 0]).all()
    action = np.linspace(-1, 1, 24).reshape(12, 2)
    np.testing.assert_array_equal(joined.step(action)[0][rows, :4], alone.step(action[rows])[0])


# -- arithmetic on actors ----------------------------------------------------------------------------------------------


def test_actors_side_by_side_act_as_each_alone(make_setup: MakeSetup) -> None:
    a = make_setup().base
    b = with_skills(a, [None, None])
    with torch.no_grad():
        b.net.layers[0].weight += 0.3
    both = side_by_side([a, b])
    np.testing.assert_allclose(mode(both), np.concatenate([mode(a), mode(b)]), atol=1e-6)
    np.testing.assert_allclose(mode(chosen([a, b], [1, 0])), np.stack([mode(b)[0], mode(a)[1]]), atol=1e-6)


def test_each_member_goes_on_with_the_values_of_its_own_parent() -> None:
    states = [{"nets.v.w": torch.full((2, 3), float(k)), "extra.m": torch.full((3, 2), float(k))} for k in range(2)]
    mixed = mixed_states(states, [1, 0])
    assert mixed["nets.v.w"].tolist() == [[1.0] * 3, [0.0] * 3]
    assert mixed["extra.m"].tolist() == [[1.0, 0.0]] * 3
