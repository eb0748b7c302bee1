"""Trials on the way: what is played while a skill is learned, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_methods import mode

from policies.adapter import Adapter, Factors
from robot_cl.continual.actors import with_skills
from robot_cl.continual.life import Life, member_setup
from robot_cl.continual.loop import Measuring, run_method
from robot_cl.continual.method import Setup
from robot_cl.continual.methods import method_class
from robot_cl.continual.methods.fresh import Fresh
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.route import Route
from robot_cl.continual.stage_training import StageTraining
from robot_cl.continual.trials import Snapshots, Trials, stored

MakeSetup = Callable[..., Setup]


def skill(value: float) -> Adapter:
    return Adapter({"layer": Factors(torch.full((1, 2), value), torch.ones(3, 1))})


def values(skills: Sequence[Adapter | None]) -> list[float | None]:
    return [None if s is None else round(float(s.layers["layer"].down[0, 0]), 3) for s in skills]


def checking(setup: Setup, checks: int) -> Setup:
    return replace(setup, config=replace(setup.config, checks=checks))


def test_trials_are_equally_spaced_and_each_is_due_once() -> None:
    snapshots = Snapshots(2, [True], 100)
    assert [snapshots.due(more) for more in (10, 23, 1, 16, 20, 20, 10, 100)] == [0, 0, 1, 0, 1, 0, 0, 0]
    assert not any(Snapshots(0, [True], 100).due(more) for more in (0, 50, 50))
    late = Snapshots(3, [True], 100)
    assert late.due(80) and not late.due(10)  # those that a long rollout has passed by are not made up for


def test_trials_come_at_the_same_steps_of_learning_whatever_was_spent_before(make_setup: MakeSetup) -> None:
    """A library that tries what it has, and one that has nothing to try, keep the same skills of the same training."""
    setup, kept = checking(make_setup(tasks=1), 2), []
    for spent in (0, 96):
        method = method_class("fresh")(setup)
        learner, _ = method.begin(0)
        training = StageTraining(learner, method.world(0), method.stage(0), 1, spent)
        looked = []
        while not training.over:
            fresh = training.round()
            training.steps += method.during(0, training.learner, fresh, training.steps / training.stage.steps)
            looked.append((method.snapshots.looked, method.snapshots.levels.copy()))
        kept.append(looked)
    short, long = sorted(kept, key=len)
    assert len(short) < len(long) and short == long[: len(short)] and short[-1][0] == 2


def test_what_wins_is_kept_and_the_present_one_played_while_it_leads_by_a_tenth() -> None:
    snapshots = Snapshots(3, [False, True])
    kept: list[list[float | None]] = [[None, None]]
    shown = [values(snapshots.played([skill(0.5), skill(0.6)]))]
    found = (
        ([[0, 1], [2, 4]], [[3, 0], [1, 1]]),
        ([[3, 0], [3, 3.1]], [[1, 1], [3, 3]]),
        ([[2, 2], [4, 4]], [[2, 2], [5, 5]]),
    )
    for value, (now, before) in zip((1.0, 2.0, 3.0), found, strict=True):
        snapshots.heard([skill(value), skill(10 * value)], np.array(now), np.array(before))
        again = Snapshots(3, [False, False])
        again.restore(snapshots.tensors(), snapshots.facts())
        assert again.facts() == snapshots.facts()
        kept.append(values(again.skills))
        shown.append(values(again.played([skill(value + 0.5), skill(value + 0.6)])))
    assert kept == [[None, None], [None, 10.0], [2.0, 20.0], [2.0, 20.0]]
    assert shown == [[None, 0.6], [None, 1.6], [2.5, 20.0], [2.0, 20.0]]
    assert snapshots.levels == [2.0, 5.0]


def test_less_bad_is_better_and_little_better_does_not_lead() -> None:
    snapshots = Snapshots(1, [False])
    snapshots.heard([skill(1.0)], np.array([[-95.0]]), np.array([[-100.0]]))
    assert values(snapshots.skills) == [1.0] and snapshots.leads == [False]
    snapshots.heard([skill(2.0)], np.array([[-80.0]]), np.array([[-100.0]]))
    assert snapshots.leads == [True]


def test_every_trial_has_starts_of_its_own_and_both_play_from_the_same(make_setup: MakeSetup) -> None:
    setup = make_setup()
    trials, stage = Trials(setup), setup.stream.stages[0]
    one, other, steps = trials.between(setup.base, setup.base, stage, 1)
    np.testing.assert_array_equal(one, other)
    assert steps == 2 * 15 and one.shape == (2, 1)
    assert (trials.long(setup.base, stage, 2)[0] != one).all()
    np.testing.assert_allclose(trials.long(setup.base, stage, 1)[0], one, rtol=1e-6)


@pytest.mark.parametrize("name", ["library", "fresh"])
def test_what_is_played_and_published_is_what_won_the_last_trial(name: str, make_setup: MakeSetup) -> None:
    method = method_class(name)(checking(make_setup(seeds=4), 2))
    assert isinstance(method, SkillLibrary | Fresh)
    learner, _ = method.begin(0)
    assert learner is not None and method.afterwards(0) == 30  # two policies in one world each
    fresh, stage = StageTraining(learner, method.world(0), method.stage(0), 1).round(), method.stage(0)
    method.snapshots.leads = [False] * 4
    base, first = mode(method.setup.base), learner.policy()
    np.testing.assert_array_equal(mode(method.current(0, learner)), base)
    third = method.trials.learning(stage) // 3  # of the steps to learn from
    method.snapshots.learned = third - 2 * fresh.reward[0].numel()
    assert [method.during(0, learner, fresh, 0.0) for _ in range(3)] == [0, 30, 0]
    again = method_class(name)(method.setup)
    again.begin(0)
    again.restore(method.tensors(), method.facts())
    assert stored(again.snapshots.skills).keys() == stored(method.snapshots.skills).keys() != set()
    now, before, _ = method.trials.between(first, method.setup.base, stage, 1)
    won = now.mean(-1) > before.mean(-1)
    kept = np.where(won[:, None, None], mode(first), base)
    assert 0 < won.sum() < 4
    np.testing.assert_allclose(mode(method.current(0, learner)), kept, atol=1e-5)
    for weights in (p for p in learner.actor.parameters() if p.requires_grad):
        weights.data.mul_(1.5)
    shown = np.where(np.array(method.snapshots.leads)[:, None, None], mode(learner.policy()), kept)
    np.testing.assert_allclose(mode(method.current(0, learner)), shown, atol=1e-5)
    now, before, _ = method.trials.between(
        learner.policy(), with_skills(method.setup.base, method.snapshots.skills), stage, 2
    )
    last = now.mean(-1) > before.mean(-1)
    method.end(0, learner, fresh)
    np.testing.assert_allclose(
        mode(method.policy(0)), np.where(last[:, None, None], mode(learner.policy()), kept), atol=1e-5
    )
    if isinstance(method, SkillLibrary):
        assert [route.learned for route in method.routes[0]] == (won | last).tolist()


def test_a_composition_is_played_first_and_a_skill_on_the_bare_base_as_it_goes_on(make_setup: MakeSetup) -> None:
    method = method_class("library")(checking(make_setup(), 2))
    assert isinstance(method, SkillLibrary)
    learner, _ = method.begin(0)
    assert learner is not None and method.snapshots.leads == [True, True]
    StageTraining(learner, method.world(0), method.stage(0), 1).round()
    np.testing.assert_allclose(mode(method.current(0, learner)), mode(learner.policy()), atol=1e-5)
    method.end(0, learner, None)
    (name,) = {name for library in method.libraries for name in library.names()} or {None}
    assert name is not None
    mixes = [{name: 0.5} if name in library.names() else {} for library in method.libraries]
    method.now = [Route("t", mix, "skill", 0.0, 1.0, reached=False) for mix in mixes]
    method.snapshots = Snapshots(2, [not mix for mix in mixes])
    again = method.learner(1, method._composed(mixes), method.setup.values, skill=True)
    StageTraining(again, method.world(1), method.stage(1), 1).round()
    expected = np.where(
        np.array([bool(mix) for mix in mixes])[:, None, None], mode(method._composed(mixes)), mode(again.policy())
    )
    np.testing.assert_allclose(mode(method.current(1, again)), expected, atol=1e-5)


def test_trials_on_the_way_are_paid_for_out_of_the_budget(make_setup: MakeSetup) -> None:
    done: list[float] = []
    setup = checking(make_setup(tasks=1), 2)
    quick = Measuring(episodes=1, points=1, curve_episodes=1)
    run_method("fresh", setup, quick, lambda what, steps, total: done.append(steps))
    trained = 8 * 4 * len(done)  # control steps of a rollout
    trials = (2 + 1) * 2 * 15  # two on the way and the last: two policies, one world
    assert setup.stream.stages[0].steps <= trained + trials < setup.stream.stages[0].steps + 2 * 32


def test_where_borders_are_hidden_too_what_is_learned_is_tried_on_the_way(make_setup: MakeSetup) -> None:
    setup = member_setup(checking(make_setup(seeds=1, tasks=1), 2), 0)
    life = Life(setup, Measuring(episodes=1, points=1, curve_episodes=1), setup.folder)
    life.live(0, life.setup.stream.stages[0], None)
    assert not life.alarms and life.method.snapshots.looked == 2
