"""Evidence of no harm, not absence of evidence."""

import numpy as np
import pytest

from robot_cl.continual.release_gate import GateConfig, judge, student


def returns(rng: np.random.Generator, mean: float, episodes: int = 120) -> np.ndarray:
    return rng.normal(mean, 0.1 * abs(mean), episodes)


@pytest.mark.parametrize("sign", [1.0, -1.0])  # costs are returns below zero
def test_one_task_ten_per_cent_worse_is_refused_and_an_equal_policy_passes(sign: float) -> None:
    rng, refused, passed, trials = np.random.default_rng(0), 0, 0, 50
    for _ in range(trials):
        old = {name: returns(rng, sign * 1000.0) for name in ("walk", "run", "stand")}
        equal = {name: returns(rng, sign * 1000.0) for name in old}
        worse = equal | {"run": returns(rng, sign * 1000.0) - 100.0}
        refused += not judge(worse, old, GateConfig(), rng).promoted
        passed += judge(equal, old, GateConfig(), rng).promoted
    assert refused >= 0.95 * trials
    assert passed >= 0.9 * trials


def test_noise_that_hides_the_difference_refuses_and_says_how_many_episodes_would_tell() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.normal(100.0, 60.0, 10), rng.normal(100.0, 60.0, 10)
    verdict = judge({"a": new}, {"a": old}, GateConfig(), rng)
    assert not verdict.promoted
    assert verdict.tasks[0].episodes_needed > 10


@pytest.mark.parametrize("episodes", [2, 3, 5, 10])
def test_few_episodes_pass_what_is_worse_no_more_often_than_the_confidence_says(episodes: int) -> None:
    rng, old, passed = np.random.default_rng(4), np.full(episodes, 100.0), 0
    for _ in range(300):
        worse = old - 5.0 + rng.normal(0, 10, episodes)  # by all that is tolerated
        passed += judge({"a": worse}, {"a": old}, GateConfig(resamples=200), rng).promoted
    assert passed <= 0.08 * 300


def test_students_quantiles_are_those_of_the_tables() -> None:
    found = [student(0.95, freedom) for freedom in (1, 2, 4, 9, 29)]
    np.testing.assert_allclose(found, [6.3138, 2.9200, 2.1318, 1.8331, 1.6991], rtol=1e-3)


def test_a_mean_of_zero_has_no_share_to_lose() -> None:
    old, new = np.array([-1.0, 1.0, 0.0]), np.array([1.0, -1.0, 0.5])
    (task,) = judge({"a": new}, {"a": old}, GateConfig(), np.random.default_rng(0)).tasks
    assert not task.passed and "no share can be tolerated" in task.sentence()


def test_the_same_policy_on_the_same_seeds_passes_exactly() -> None:
    old = {"a": np.array([1.0, 500.0, 3.0])}
    verdict = judge(old, old, GateConfig(), np.random.default_rng(0))
    assert verdict.promoted
    assert verdict.tasks[0].lower == 0.0


def test_pairing_sees_what_unpaired_noise_would_hide() -> None:
    rng = np.random.default_rng(2)
    start = rng.normal(1000.0, 500.0, 30)  # start states matter more than the policies
    assert judge({"a": start * 1.0 + rng.normal(0, 5, 30)}, {"a": start}, GateConfig(), rng).promoted
    assert not judge({"a": start * 0.9}, {"a": start}, GateConfig(), rng).promoted


def test_different_tasks_or_seeds_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same tasks"):
        judge({"a": np.ones(3)}, {"b": np.ones(3)}, GateConfig(), rng)
    with pytest.raises(ValueError, match="same two or more seeds"):
        judge({"a": np.ones(3)}, {"a": np.ones(4)}, GateConfig(), rng)
    with pytest.raises(ValueError, match="not finite"):
        judge({"a": np.array([1.0, np.nan])}, {"a": np.ones(2)}, GateConfig(), rng)
