"""The library: how it decides about a task, what it begins with, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from small_methods import learned, mode

from robot_cl.continual.likeness import nearest
from robot_cl.continual.loop import Measuring, run_method
from robot_cl.continual.method import MethodConfig, Setup
from robot_cl.continual.methods import method_class
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.route import Route, Tried, played, promising, worse
from robot_cl.continual.stage_training import StageTraining

MakeSetup = Callable[..., Setup]
QUICK = Measuring(episodes=2, points=1, curve_episodes=1, save_every=32)
REMEMBERING = ("library", "fresh", "packnet")  # whose old tasks cannot change


def test_a_route_is_counted_against_the_budget_and_the_skill_is_the_composition_plus_the_residual(
    make_setup: MakeSetup,
) -> None:
    method = learned("library", make_setup(), 1)
    learner, spent = method.begin(1)
    # Base and skill play four steps each; both as finalists, and the outcome, 15: half of 0.5 of 240, shared by four.
    bare, (known, _) = (
        method._meet(method.stage(1))[0],
        method.trial([[("skill", {"steering-reversed": 1.0})]] * 2, method.stage(1)),
    )
    left_open = any(promising(Tried("base", {}, base), tried, 0.2) for tried, base in zip(known, bare, strict=True))
    assert spent == 2 * 4 + left_open * 2 * 15 and method.afterwards(1) == 15
    if learner is not None:
        np.testing.assert_allclose(mode(method.current(1, learner)), mode(learner.policy()), atol=1e-5)


def test_what_is_learned_on_a_composition_is_played_with_it(make_setup: MakeSetup) -> None:
    method = learned("library", make_setup(), 1)
    mixes = [{"steering-reversed": 1.0}, {"steering-reversed": 0.5}]
    method.now = [Route("t", mix, "skill", 0.0, 1.0, reached=False) for mix in mixes]
    learner = method.learner(1, method._composed(mixes), method.setup.values, skill=True)
    StageTraining(learner, method.world(1), method.stage(1), 1).round()
    assert not np.allclose(mode(learner.policy()), mode(method._composed(mixes)), atol=1e-4)
    np.testing.assert_allclose(mode(method.current(1, learner)), mode(learner.policy()), atol=1e-5)


@pytest.mark.parametrize(("level", "enough", "short"), [(100.0, 96.0, 94.0), (-100.0, -104.0, -106.0)])
def test_a_composition_is_enough_near_the_best_any_skill_has_reached_and_the_bare_base_never_is(
    make_setup: MakeSetup, level: float, enough: float, short: float
) -> None:
    method = method_class("library")(make_setup())
    stage = method.stage(0)

    def reached(kind: str, mix: dict[str, float], score: float) -> bool:
        return method._route(stage, 0, Tried(kind, mix, np.array([score - 1.0, score + 1.0]))).reached

    assert not reached("skill", {"a": 1.0}, enough)  # nothing is known yet
    method.levels[0] = {"a": level, "b": level - 50.0}
    assert reached("skill", {"a": 1.0}, enough)
    assert not reached("skill", {"a": 1.0}, short)
    assert not reached("base", {}, enough)
    assert not reached("skill", {"a": 1.0}, level + 6.0)  # an easier task than its own
    assert not reached("skill", {"b": 1.0}, enough)


@pytest.mark.parametrize(("levels", "begun"), [
    ({"a": 45.0}, True),  # 10 above the base: asked for are 0.1 * 45 = 4.5, and 0.25 * (45 - 6) = 9.75
    ({"a": 47.0}, False),  # 0.25 * (47 - 6) = 10.25
    ({"a": 45.0, "b": -110.0}, False),  # 0.1 * 110
    ({"a": -60.0, "b": 90.0}, True),  # what the base gains over a skill's own task asks for nothing
])  # fmt: skip
def test_only_a_composition_that_fits_is_begun_with(
    levels: dict[str, float], begun: bool, make_setup: MakeSetup
) -> None:
    method = method_class("library")(make_setup(config=MethodConfig(margin=0.1, fit=0.25)))
    base, skill = Tried("base", {}, np.array([5.0, 7.0])), Tried("skill", {"a": 1.0}, np.array([15.0, 17.0]))
    method.levels[0] = levels
    assert method._best(0, [base, skill]) is (skill if begun else base)
    assert method._best(1, [base]) is base


def test_a_composition_whose_trial_varies_must_be_further_ahead(make_setup: MakeSetup) -> None:
    base = Tried("base", {}, np.array([5.0, 7.0]))
    steady, varied = (Tried("skill", {"a": 1.0}, 16.0 + spread * np.array([-1.0, 1.0])) for spread in (1.0, 5.0))
    for caution, begun in ((0.0, [steady, varied]), (1.0, [steady, base]), (10.0, [base, base])):
        method = method_class("library")(make_setup(config=MethodConfig(caution=caution)))
        method.levels[0] = {"a": 40.0}  # 0.25 * (40 - 6) = 8.5 ahead of 6, by errors of 1 and 5
        assert [method._best(0, [base, tried]) for tried in (steady, varied)] == begun
    with pytest.raises(ValueError, match="caution is -1"):
        MethodConfig(caution=-1.0)


def test_a_task_that_returns_is_begun_with_its_own_skill_without_a_margin(make_setup: MakeSetup) -> None:
    method = method_class("library")(make_setup(config=MethodConfig(margin=0.1, fit=0.25)))
    method.levels[0] = {"a": 12.0, "b": 200.0}
    base, own, other = (
        Tried(kind, mix, np.array([score]))
        for kind, mix, score in (("base", {}, 6.0), ("skill", {"a": 1.0}, 12.0), ("skill", {"b": 1.0}, 14.0))
    )
    assert method._best(0, [base, own, other]) is base  # 0.1 * 200 are asked for
    assert method._best(0, [base, own, other], alike=own.mix) is own
    method.levels[0]["a"] = 60.0  # and 0.25 * (60 - 6) = 13.5 of what does a quarter of that elsewhere
    assert method._best(0, [base, own, other], alike=own.mix) is base


def test_a_task_met_before_is_begun_with_what_is_played_on_it_unless_the_base_is_better_beyond_doubt(
    make_setup: MakeSetup,
) -> None:
    method = method_class("library")(make_setup(config=MethodConfig(margin=0.1, fit=0.6, caution=1.0, doubt=0.2)))
    method.levels[0] = {"a": 60.0, "b": 200.0}
    own, other = (Tried("skill", {name: 1.0}, np.array([2.0, 12.0])) for name in "ab")
    for scores, begun in (([9.0, 9.5], True), ([16.0, 16.5], True), ([17.5, 18.0], False)):  # 7 ± 5
        base = Tried("base", {}, np.array(scores))
        assert method._finals([base, own, other], own.mix) == [base, own]  # though a short trial would rule both out
        assert method._best(0, [base, own], own.mix, own.mix) is (own if begun else base)
        assert method._best(0, [base, own], own.mix) is base


def test_a_task_is_known_again_by_what_the_base_meets(make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=6)
    first, second, _ = setup.stream.stages
    stream = replace(setup.stream, stages=(first, second, replace(first, name="again")))
    method = learned("library", replace(setup, stream=stream), 2)
    assert isinstance(method, SkillLibrary)
    sketches = [method._meet(method.stage(k))[2] for k in range(3)]
    for p, (first, second) in enumerate(zip(*method.routes, strict=True)):
        assert method._met_before(p, sketches[2][p]) == played(first)
        assert method._met_before(p, sketches[1][p]) == played(second)
        assert method._met_before(p, sketches[0][p] * 1.01) == {}
    assert any(played(first) != played(second) for first, second in zip(*method.routes, strict=True))
    method.config = replace(method.config, fit=1e6)  # nothing is begun with for what it does in a trial
    begun = [route.mix for route in method.decide(method.stage(2)).routes]
    assert all(mix in ({}, played(first)) for mix, first in zip(begun, method.routes[0], strict=True)) and any(begun)


def test_finals_are_played_by_what_a_short_trial_left_open_the_most_alike_first() -> None:
    def tried(**scores: float) -> list[Tried]:
        return [Tried(kind, {}, np.array([score])) for kind, score in scores.items()]

    base, *others = tried(base=2.0, alike=1.7, b=1.5, c=3.0, d=1.9)
    assert [t.kind for t in promising(base, others, doubt=0.2)] == ["alike", "c", "d"]
    base, *others = tried(base=-2.0, alike=-2.5, b=-2.3, c=-1.0)
    assert [t.kind for t in promising(base, others, doubt=0.2)] == ["c", "b"]
    assert [t.kind for t in promising(base, others, doubt=0.0)] == ["c"]
    assert promising(base, [], doubt=0.2) == []


def test_learning_stops_where_the_rest_of_the_budget_is_needed_for_the_trial_of_its_outcome(
    make_setup: MakeSetup,
) -> None:
    (row,) = run_method("library", make_setup(tasks=1), QUICK)
    rounds = 1 + (240 - 15 - 4 - 1) // 32  # of 32 steps; four were spent on meeting the base, 15 are kept back
    assert row["steps"] == 4 + 32 * rounds + 15


def test_a_task_that_returns_is_reached_by_the_skill_learned_for_it_or_something_better(make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=6)
    setup = replace(setup, config=replace(setup.config, trial_steps=15))
    first = setup.stream.stages[0]
    twice = replace(setup.stream, stages=(first, replace(first, name="steering reversed once more")))
    method = learned("library", replace(setup, stream=twice), 1)
    routes, spent, _ = method.decide(method.stage(1))
    assert spent == 2 * 15 + 2 * 15
    pairs = [(before, now) for before, now in zip(method.routes[0], routes, strict=True) if before.learned]
    assert any(now.mix for _, now in pairs), "no skill beat the base at home; the rest would be empty"
    for before, now in pairs:
        assert now.trial >= before.level or now.mix  # the same starts: the skill scores again what it scored
        assert now.reached == bool(now.mix)
    method.begin(1)
    assert isinstance(method, SkillLibrary) and method.snapshots.leads == [not now.mix for now in routes]


def test_a_skill_is_thrown_away_only_where_the_composition_did_better_beyond_doubt() -> None:
    route = (10.0, 1.0)
    assert worse(np.array([6.0, 8.0]), *route)  # 7 ± 1 against 10 ± 1: two errors of the difference are 2.8
    assert not worse(np.array([6.5, 8.5]), *route)
    assert not worse(np.array([0.0, 14.0]), *route)  # its own episodes do not agree
    assert not worse(np.array([11.0, 12.0]), *route)
    assert worse(np.array([7.9]), *route) and not worse(np.array([8.1]), *route)


def test_nothing_is_trained_where_every_seed_has_reached_the_task(make_setup: MakeSetup) -> None:
    method = learned("library", make_setup(), 1)
    played_first = mode(method.policy(0))
    done = [replace(route, mix=played(route), reached=True, learned=False) for route in method.routes[0]]
    method.now = done
    method.end(1, None, None)
    assert method.routes[1] == done
    np.testing.assert_array_equal(mode(method.policy(1)), played_first)


def test_skills_of_a_library_are_files_that_know_their_parents(make_setup: MakeSetup) -> None:
    setup = make_setup(tasks=2)
    rows = run_method("library", setup, QUICK)
    method = method_class("library")(setup)
    assert len(rows) == 2
    for library in method.libraries:
        assert library.check() == []
        assert (library.folder / ".base" / "policy.json").exists()


# -- the others --------------------------------------------------------------------------------------------------------


def met(library, mixes: list[dict[str, float]], sketches: list[float]) -> None:  # type: ignore[no-untyped-def]
    """Tasks on which every seed plays a mix, and that began with these numbers."""
    seeds = library.setup.seeds
    for mix, number in zip(mixes, sketches, strict=True):
        library.routes.append([Route("t", mix, "skill", 0.0, None, True) for _ in range(seeds)])
        library.sketches.append(np.full((seeds, 3), number))


def test_what_is_played_on_several_tasks_is_tried_once_and_the_base_not_again(make_setup: MakeSetup) -> None:
    library = method_class("library")(make_setup())
    met(library, [{"one": 1.0}, {}, {"one": 1.0}, {"one": 0.5, "two": 0.5}, {"one": 1.0}], [0.0, 1.0, 2.0, 3.0, 4.0])
    asked = [mix for _, mix in library._known([], np.full(3, 9.0), 0)]
    assert asked == [{"one": 1.0}, {"one": 0.5, "two": 0.5}]


def test_what_was_played_where_tasks_began_most_alike_is_tried_first_and_no_more_than_the_shortlist(
    make_setup: MakeSetup,
) -> None:
    library = method_class("library")(make_setup(config=MethodConfig(shortlist=3)))
    met(library, [{f"skill-{k}": 1.0} for k in range(20)], [float(k) for k in range(20)])
    for p in range(library.setup.seeds):
        asked = [mix for _, mix in library._known([], np.full(3, 7.1), p)]
        assert asked == [{"skill-7": 1.0}, {"skill-8": 1.0}, {"skill-6": 1.0}]


def test_a_task_that_returns_is_the_nearest_to_itself_and_trials_cost_no_more_than_the_shortlist(
    make_setup: MakeSetup,
) -> None:
    setup = make_setup(seeds=1, config=replace(make_setup().config, shortlist=2))
    library = learned("library", setup, 1)
    stages = [replace(setup.stream.stages[0], shift=f"command.turn={turn}") for turn in (-1.0, -0.5, 0.5, 0.75, 1.5)]
    skill = library.routes[0][0].skill
    library.routes = [[Route("t", {skill: 0.5**k}, "skill", 0.0, None, True)] for k in range(len(stages))]
    library.sketches = [library.decide(stage).sketch for stage in stages]
    for k, stage in enumerate(stages):
        found = library.decide(stage)
        assert nearest([sketch[0] for sketch in library.sketches], found.sketch[0])[0] == k
        # base, shortlist, mean and sum play four steps each; the base and at most two that did better than it 15
        assert found.spent - (1 + 2 + 2) * 4 in (0, 2 * 15, 3 * 15)
