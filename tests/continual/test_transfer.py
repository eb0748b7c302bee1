"""The rows of a transfer table on planted skills: the teacher is one of them, so every row's place is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, ActorPolicy, StackedGaussianActor
from policies.adapter import Adapter, Factors
from policies.lora import layer_shapes
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl import transfer
from robot_cl.coverage import coverage
from robot_cl.demonstrations import Demonstrations
from robot_cl.routes import Known, RouteSettings
from robot_cl.skills import with_skills

SETTINGS = RouteSettings(steps=40, adapter_steps=40, rank=2, batch=64, lr=1e-2, adapter_lr=1e-2)


def adapter(base: StackedGaussianActor, seed: int) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(base)
    return Adapter({
        name: Factors(torch.randn(2, d_in, generator=rng) * 0.5, torch.randn(d_out, 2, generator=rng) * 0.5)
        for name, (d_out, d_in) in shapes.items()
    })  # fmt: skip


@pytest.fixture(scope="module")
def known() -> Known:
    statistics = Normalizer(4).fit(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    base = StackedGaussianActor(4, 2, generators(0, 1), ActorConfig(hidden=(16,), squash_mean=True), statistics)
    return Known(base.eval().requires_grad_(False), {"a": adapter(base, 1), "b": adapter(base, 2)})


def teacher(known: Known) -> Any:
    return with_skills(known.base, known.skills, {"a": 1.0})


@pytest.fixture(scope="module")
def demos(known: Known) -> Demonstrations:
    obs = torch.randn(120, 4, generator=torch.Generator().manual_seed(3))
    return Demonstrations(obs, teacher(known).mode(obs)[0], torch.arange(120) // 30)


def play_against(known: Known, skill: str = "a") -> transfer.Play:
    """ "Returns": 1 − the error of actions on states the demonstrations did not show, in five parts."""
    obs = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))
    wanted: Any = transfer.alone(known, skill)
    wanted = wanted.mode(obs)[0]

    @torch.no_grad()
    def play(module: Any) -> np.ndarray:
        error = (module.mode(obs)[0] - wanted).square().sum(-1)
        return (1.0 - error.view(5, -1).mean(1)).numpy()

    return play


def test_every_row_and_intervention_is_played_and_the_teacher_is_found_among_the_skills(
    known: Known, demos: Demonstrations
) -> None:
    names = [*transfer.ROWS, *transfer.INTERVENTIONS]
    rows = {r.name: r for r in transfer.table(known, [demos, demos], SETTINGS, play_against(known), 1.0, names)}
    assert list(rows) == names
    assert rows["best skill"].mean == pytest.approx(1.0, abs=1e-5)
    assert rows["base"].mean < rows["best skill"].mean and rows["base"].demonstrations == 0
    assert rows["fixed α"].mean > rows["base"].mean
    assert rows["residual"].mean > 0.99  # on top of the best composition there is nothing left to learn
    assert rows["learned α(s)"].mean > rows["I3 exchanged skills"].mean
    assert transfer.jump_start(rows) == pytest.approx(1.0 - rows["base"].mean, abs=1e-5)
    for row in rows.values():
        assert row.interval is not None and row.interval[0] <= row.mean <= row.interval[1]
        assert row.share == pytest.approx(row.mean) and np.shape(row.returns) == (2, 5)


def test_the_best_skill_is_the_one_that_does_best_on_other_starts_not_the_one_that_imitates_best(
    known: Known, demos: Demonstrations
) -> None:
    """The demonstrations are of skill a, other starts say b, and what counts is a's again: nothing was chosen by it."""
    play, other = play_against(known), play_against(known, "b")
    (row,) = transfer.table(known, [demos, demos], SETTINGS, play, 1.0, ["best skill"], audition=other)
    assert row.what.endswith("zero-shot: b") and row.demonstrations == 0
    np.testing.assert_array_equal(row.returns, [play(transfer.alone(known, "b"))] * 2)


def test_with_one_skill_the_exchange_is_left_out_and_a_row_that_fails_says_so(
    known: Known, demos: Demonstrations
) -> None:
    one, play = replace(known, skills={"a": known.skills["a"]}), play_against(known)
    names = ["best skill", "I3 exchanged skills"]
    assert [r.name for r in transfer.table(one, [demos], SETTINGS, play, 1.0, names)] == ["best skill"]
    with pytest.raises(ValueError, match="smaller learning rate"):
        transfer.table(one, [demos], replace(SETTINGS, adapter_lr=1e30), play, 1.0, ["scratch"])


@pytest.mark.parametrize("expert", [None, 0.0, -3.0])
def test_there_is_no_share_of_a_return_that_is_not_above_zero(expert: float | None) -> None:
    assert transfer.Row.of("base", "", 0, [np.array([-6.0, -6.0])], expert).share is None


def test_scratch_forgets_the_base_and_fine_tuning_starts_from_it(known: Known, demos: Demonstrations) -> None:
    rows = transfer.TransferRows(known, demos, replace(SETTINGS, adapter_steps=0))
    obs = demos.obs[:8]
    torch.testing.assert_close(rows.fine_tune().mode(obs), known.base.mode(obs))
    assert not torch.allclose(rows.scratch().mode(obs), known.base.mode(obs), atol=1e-3)
    assert torch.equal(rows.scratch().normalizer.mean, known.base.normalizer.mean)


def test_blind_coefficients_do_not_depend_on_the_observation_and_seeing_ones_do(
    known: Known, demos: Demonstrations
) -> None:
    rows = transfer.TransferRows(known, demos, SETTINGS)
    blind, seeing = (module.coefficients(demos.obs) for module in (rows.blind_gate(), rows.gate()))
    assert (blind == blind[0]).all()
    assert seeing.std(0).max() > 0


def test_exchanging_skills_keeps_the_coefficients_and_changes_the_actions(known: Known, demos: Demonstrations) -> None:
    rows = transfer.TransferRows(known, demos, SETTINGS)
    learned, turned = rows.gate(), rows.permuted()
    torch.testing.assert_close(learned.coefficients(demos.obs), turned.coefficients(demos.obs))
    assert not torch.allclose(learned.mode(demos.obs), turned.mode(demos.obs), atol=1e-3)


def test_a_random_subspace_ends_as_an_actor_that_can_be_played(known: Known, demos: Demonstrations) -> None:
    module: Any = transfer.TransferRows(known, demos, SETTINGS).subspace()
    assert not torch.allclose(module.mode(demos.obs), known.base.mode(demos.obs), atol=1e-3)
    obs = demos.obs[:5]
    played = ActorPolicy(module).act(obs.numpy())
    torch.testing.assert_close(torch.from_numpy(played), module.mode(obs)[0])


def test_demonstrations_to_80_per_cent_and_the_area_are_the_hand_computed_ones() -> None:
    means = {1: 20.0, 10: 80.0, 100: 100.0}
    assert transfer.demonstrations_to(means, 100.0) == 10
    assert transfer.demonstrations_to(means, 200.0) == float("inf")
    assert transfer.area_over_demonstrations(means, 100.0) == pytest.approx((0.5 + 0.9) / 2)
    assert transfer.area_over_demonstrations({10: 80.0}, 100.0) == pytest.approx(0.8)


def test_leaving_the_teacher_out_costs_and_leaving_the_other_out_does_not(known: Known, demos: Demonstrations) -> None:
    found = {name: r.mean() for name, r in transfer.leave_one_out(known, demos, SETTINGS, play_against(known)).items()}
    assert set(found) == {"", "a", "b"}
    assert found["a"] < found["b"]


def test_the_matrix_plays_the_base_and_each_skill_on_each_task(known: Known) -> None:
    play = play_against(known)
    matrix = transfer.cross_matrix(known, ["x", "y"], lambda actor, task: play(actor) + (task == "y"))
    assert set(matrix) == {"", "a", "b"}
    np.testing.assert_allclose(matrix["a"]["x"], 1.0, atol=1e-5)
    np.testing.assert_allclose(matrix["b"]["y"] - matrix["b"]["x"], 1.0)


def test_coverage_names_what_lies_outside_and_what_no_skill_met_together(known: Known, demos: Demonstrations) -> None:
    trained = {"a": "gravity0.5", "b": "friction0.3"}
    said = coverage("gravity0.6+friction0.2", trained, demos, known.base)
    assert said[0] == "gravity 0.6: inside the trained range 0.5 to 1"
    assert said[1] == "friction 0.2: OUTSIDE the trained range 0.3 to 1"
    assert "no skill met them together" in said[2] and "deviations" in said[3]
    together = coverage("gravity0.6+friction0.5", {"c": "gravity0.5+friction0.3"}, demos, known.base)
    assert "skill c met all of them at once" in together[2]
    assert "goal" in coverage(None, trained, demos, known.base)[0]
