"""Trials on the way: what is played while a skill is learned, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors
from robot_cl.continual.method import Setup
from robot_cl.continual.methods import method_class
from robot_cl.continual.methods.fresh import Fresh
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.stage_training import StageTraining
from robot_cl.continual.trials import Snapshots

MakeSetup = Callable[..., Setup]


def skill(value: float) -> Adapter:
    return Adapter({"layer": Factors(torch.full((1, 2), value), torch.ones(3, 1))})


def values(skills: Sequence[Adapter | None]) -> list[float | None]:
    return [None if s is None else round(float(s.layers["layer"].down[0, 0]), 3) for s in skills]


def mode(actor: StackedGaussianActor) -> np.ndarray:
    obs = torch.linspace(-1, 1, 12).view(3, 4)
    return actor.mode(obs.expand(actor.population, 3, 4)).detach().numpy()


def checking(setup: Setup, checks: int) -> Setup:
    return replace(setup, config=replace(setup.config, checks=checks))


def test_trials_are_equally_spaced_and_each_is_due_once() -> None:
    snapshots = Snapshots(2, [0.0], [True])
    assert [snapshots.due(done) for done in (0.1, 0.33, 0.34, 0.5, 0.7, 0.9, 1.0)] == [0, 0, 1, 0, 1, 0, 0]
    assert not any(Snapshots(0, [0.0], [True]).due(done) for done in (0.0, 0.5, 1.0))
    late = Snapshots(3, [0.0], [True])
    assert late.due(0.8) and not late.due(0.9)  # those that a long rollout has passed by are not made up for


def test_the_best_skill_of_each_seed_is_kept_and_the_present_one_played_while_it_leads() -> None:
    snapshots = Snapshots(3, [1.0, -np.inf], [False, True])
    kept: list[list[float | None]] = [[None, None]]
    shown = [values(snapshots.played([skill(0.5), skill(0.6)]))]
    for value, found in ((1.0, [[0, 1], [2, 4]]), (2.0, [[3, 0], [1, 4]]), (3.0, [[1.4, 1.4], [4, 4]])):
        snapshots.heard([skill(value), skill(10 * value)], np.array(found))
        again = Snapshots(3, [0.0, 0.0], [False, False])
        again.restore(snapshots.tensors(), snapshots.facts())
        assert again.facts() == snapshots.facts()
        kept.append(values(again.skills))
        shown.append(values(again.played([skill(value + 0.5), skill(value + 0.6)])))
    assert kept == [[None, None], [None, 10.0], [2.0, 10.0], [2.0, 30.0]]
    assert shown == [[None, 0.6], [None, 1.6], [2.5, 10.0], [2.0, 3.6]]
    assert snapshots.best == [1.5, 4.0]


def test_a_composition_is_played_until_a_snapshot_of_what_is_learned_on_it_is_better(make_setup: MakeSetup) -> None:
    method = method_class("library")(checking(make_setup(), 2))
    assert isinstance(method, SkillLibrary)
    learner, _ = method.begin(0)
    assert learner is not None
    method.snapshots.best, method.snapshots.leads = [-np.inf, np.inf], [False, False]
    fresh = StageTraining(learner, method.world(0), method.stage(0), 1).round()
    learned, base = mode(learner.policy()), mode(method.setup.base)
    assert not np.isclose(learned, base, atol=1e-4).all((1, 2)).any()
    np.testing.assert_array_equal(mode(method.current(0, learner)), base)
    steps = [method.during(0, learner, fresh, done) for done in (0.1, 0.4, 0.5, 0.7, 1.0)]
    assert steps == [0, 15, 0, 15, 0]  # one world each
    np.testing.assert_allclose(mode(method.current(0, learner)), [learned[0], base[1]], atol=1e-5)
    method.end(0, learner, fresh)
    assert [route.learned for route in method.routes[0]] == [True, False]
    np.testing.assert_allclose(mode(method.policy(0)), [learned[0], base[1]], atol=1e-5)


def test_a_fresh_skill_is_kept_as_it_was_when_it_did_best(make_setup: MakeSetup) -> None:
    method = method_class("fresh")(checking(make_setup(), 1))
    assert isinstance(method, Fresh) and method.afterwards(0) == 15
    learner, _ = method.begin(0)
    assert learner is not None
    fresh = StageTraining(learner, method.world(0), method.stage(0), 1).round()
    assert method.during(0, learner, fresh, 0.6) == 15
    before = mode(learner.policy())
    method.snapshots.best[1] = np.inf  # the second will not be beaten, the first by anything
    method.snapshots.best[0] = -np.inf
    with torch.no_grad():
        for weights in (p for p in learner.actor.parameters() if p.requires_grad):
            weights.mul_(1.1)
    after = mode(learner.policy())
    assert not np.allclose(after, before, atol=1e-4)
    method.end(0, learner, fresh)
    np.testing.assert_allclose(mode(method.policy(0)), [after[0], before[1]], atol=1e-5)
