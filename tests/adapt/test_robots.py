"""Robots prepared for changes: exploration, questions, learning, missions, folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.adaptation import RowModels
from robot_cl.adapt.chase import chase, cost
from robot_cl.adapt.explore import Exploration, explore, pool_of, runs_of
from robot_cl.adapt.learn import LearnConfig, Learned, family, learn
from robot_cl.adapt.missions import LEARNER, fly
from robot_cl.adapt.robots import ROBOTS, prepared
from sim.robots.fleet import Fleet
from sim.robots.regimes import QUADROTOR_COUPLED, QUADROTOR_GAINS, UNCHANGED, VEHICLE_COUPLED, VEHICLE_GAINS, Regime

TINY = LearnConfig(nominal=16, regimes=12, model_steps=200, first_updates=20, flow_updates=40)


@pytest.fixture(scope="module")
def vehicle() -> Learned:
    torch.set_num_threads(1)
    return learn("vehicle", TINY, log=lambda line: None)


def test_questions_are_answered_by_the_simulation_and_leave_it_as_it_is(vehicle: Learned) -> None:
    gains = [Regime("half", gain=(0.5, 0.5)), Regime("back", gain=(-1.0, 1.0)), UNCHANGED] * 4
    told = explore(vehicle.robot, gains, 3, 20, model=vehicle.model)
    plain = explore(vehicle.robot, gains, 3, 20)
    assert torch.equal(told.obs[:, :5], plain.obs[:, :5])  # the first question draws from the generator
    assert told.answer.shape == (12, 4, 2) and plain.answer.shape == (12, 0, 2) and told.counts.all()
    half, back, same = (told.answer[k::3] * told.planned[k::3] for k in range(3))
    assert back[..., 0].mean() < -0.2 < 0.2 < same[..., 0].mean()
    moved = (told.answer[2::3] - told.planned[2::3]).abs().mean()
    assert moved < 0.25 * (told.answer[1::3] - told.planned[1::3]).abs()[..., 0].mean()
    weak = told.planned[0::3].abs() < 0.45
    assert (half[weak] / told.planned[0::3][weak].square()).median() == pytest.approx(2.0, abs=0.5)


def test_a_robot_that_died_early_repeats_what_it_lived_or_is_left_out(vehicle: Learned) -> None:
    runs = explore(vehicle.robot, [UNCHANGED] * 3, 0, 20, model=vehicle.model)
    runs.alive[1, 13:], runs.alive[2, 3:] = False, False
    runs.counts[1, 2:], runs.counts[2] = False, False
    pool, seen = pool_of(runs, vehicle.model, vehicle.coder), runs_of(runs, vehicle.model, vehicle.coder)
    assert len(pool.evidence) == len(seen.obs) == 2
    torch.testing.assert_close(pool.evidence[1, 13:], pool.evidence[1, :7])
    torch.testing.assert_close(seen.obs[1, 13:], runs.obs[1, :7])
    with pytest.raises(ValueError, match="no robot lived long enough"):
        pool_of(Exploration(*(getattr(runs, f)[2:] for f in runs.__dataclass_fields__)), vehicle.model, vehicle.coder)


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_no_test_regime_is_ever_drawn_but_its_kind_is(name: str) -> None:
    tests = {"vehicle": (*VEHICLE_GAINS, *VEHICLE_COUPLED), "quadrotor": (*QUADROTOR_GAINS, *QUADROTOR_COUPLED)}[name]
    drawn = family(prepared(name), 300, 0)
    assert not {(r.gain, r.slip, r.cross, r.weak_rotor, r.wind, r.payload) for r in tests} & {
        (r.gain, r.slip, r.cross, r.weak_rotor, r.wind, r.payload) for r in drawn
    }
    assert UNCHANGED in drawn
    for kind in ("gain", "slip", "cross", "weak_rotor", "payload"):
        assert any(getattr(r, kind) for r in drawn) >= any(getattr(r, kind) for r in tests)


def test_a_mission_counts_waypoints_steps_and_progress(vehicle: Learned) -> None:
    p, rows = vehicle.robot, RowModels(vehicle.model, LEARNER, torch.Generator().manual_seed(0))
    planner = chase(p, vehicle.model, torch.Generator().manual_seed(0), rows.returns(cost(p)))
    told: list[np.ndarray] = []
    outcome = fly(Fleet(p.robot, "yard", [UNCHANGED, VEHICLE_GAINS[5]]), vehicle.around(planner, rows), planner,
                  vehicle.model, 40, told.append)  # fmt: skip
    assert outcome.fraction[0] >= 3 / 18 and (outcome.steps == 40).all() and not outcome.success.any()
    assert len(told) == 40 and told[-1][0] and (outcome.early >= 0).all() and np.isfinite(outcome.miss).all()


def test_what_was_learned_comes_back_from_disk(vehicle: Learned, tmp_path: Path) -> None:
    vehicle.save(tmp_path)
    back, pose = Learned.load(tmp_path), np.zeros((2, 5), dtype=np.float32)
    goal = np.ones((2, 2), dtype=np.float32)
    actions = []
    for learned in (vehicle, back):
        planner = chase(learned.robot, learned.model, torch.Generator().manual_seed(0))
        policy = learned.around(planner)
        planner.goal = goal
        actions.append(np.stack([policy.act(pose + k) for k in range(4)]))
    np.testing.assert_array_equal(*actions)
    for one, other in zip(vehicle.context.parameters(), back.context.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(OSError, match=r"no card\.json"):
        Learned.load(tmp_path / "elsewhere")
    with pytest.raises(LookupError, match="robots: vehicle, quadrotor"):
        prepared("car")


@pytest.mark.parametrize("options", [{"regimes": 0}, {"rounds": -1}])
def test_impossible_sizes_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        LearnConfig(**options)
