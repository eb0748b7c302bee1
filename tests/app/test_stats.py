"""Statistics against numbers worked out by hand and against rliable 1.2.0.

The rliable numbers come from tests/app/rliable_golden.py, run once in an environment with rliable 1.2.0, arch 7.2.0
and pandas 2 (they are not among our dependencies).
"""

import json
from pathlib import Path

import numpy as np
import pytest

from robot_cl import stats

GOLDEN = json.loads((Path(__file__).parent / "rliable_golden.json").read_text())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_iqm_drops_a_quarter_from_either_end() -> None:
    assert stats.iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert stats.iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)  # floor(3/4) = 0: nothing is cut
    np.testing.assert_allclose(stats.iqm(np.array([[0.0, 1, 2, 9], [4, 4, 4, 4]])), [1.5, 4.0])


def test_wilson_equals_the_textbook_numbers() -> None:
    ten = stats.wilson(0, 10)  # z² / (n + z²) = 3.8415 / 13.8415
    assert (ten.estimate, ten.low) == (0.0, 0.0)
    assert ten.high == pytest.approx(0.27753, abs=1e-5)
    half = stats.wilson(5, 10)
    assert (half.low, half.high) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))
    assert stats.wilson(10, 10).low == pytest.approx(1 - 0.27753, abs=1e-5)


def test_a_success_rate_of_one_seed_has_wilsons_interval_and_of_several_one_over_seeds() -> None:
    luck = np.array([np.ones(20), np.zeros(20)])  # one network always succeeds, the other never
    assert stats.success_rate(luck[:1], rng()) == stats.wilson(20, 20)
    assert stats.success_rate(luck.reshape(-1, 1), rng()) == stats.wilson(20, 40)  # one episode each: independent
    both = stats.success_rate(luck, rng())
    assert (both.estimate, both.low, both.high) == (0.5, 0.0, 1.0)  # either may be drawn twice
    mixed = np.array([[1.0, 0.0] * 10, [0.0, 1.0] * 10])
    assert stats.success_rate(mixed, rng()).low > 0.2


def test_a_success_rate_is_never_surer_than_of_independent_episodes() -> None:
    assert stats.success_rate(np.ones((3, 10)), rng()) == stats.wilson(30, 30)
    assert stats.success_rate(np.zeros((3, 10)), rng()) == stats.wilson(0, 30)


def test_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0])  # pairs: 0, 0, ½, ½, 1, 1
    assert stats.probability_of_improvement(x, y, rng()).estimate == pytest.approx(0.5)
    assert stats.probability_of_improvement(x + 10, y, rng()).low == 1.0
    two_tasks = stats.probability_of_improvement([x + 10, x], [y, y + 10], rng())
    assert two_tasks.estimate == pytest.approx(0.5)  # tasks weigh equally: (1 + 0) / 2


def test_performance_profile_is_the_fraction_strictly_above() -> None:
    profile = stats.performance_profile(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 4.0]))
    np.testing.assert_allclose(profile, [1.0, 0.5, 0.0])
    low, high = stats.profile_band(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 4.0]), rng(), 200)
    assert low[0] == high[0] == 1.0 and low[1] < 0.5 < high[1] and high[2] == 0.0


def test_a_bootstrap_of_two_scores_is_their_exact_distribution() -> None:
    """Redrawing {0, 1} twice gives mean 0, ½, 1 with probability ¼, ½, ¼: the 60 % interval is [0, 1], 40 % [½, ½]."""
    scores = np.array([0.0, 1.0])
    wide = stats.stratified_bootstrap(scores, rng(), stats.mean, 20000, 0.60)
    narrow = stats.stratified_bootstrap(scores, rng(), stats.mean, 20000, 0.40)
    assert (wide.estimate, wide.low, wide.high) == (0.5, 0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_tasks_are_redrawn_apart() -> None:
    """Two tasks with constant but different scores leave no uncertainty, as no run ever changes its task."""
    interval = stats.stratified_bootstrap(np.array([[0.0, 10.0]] * 5), rng(), stats.mean)
    assert (interval.low, interval.estimate, interval.high) == (5.0, 5.0, 5.0)
    uneven = stats.stratified_bootstrap([np.zeros(2), np.ones(6)], rng(), stats.mean)
    assert uneven.low == uneven.high == 0.75


def test_pairing_by_seed_removes_the_spread_the_seeds_share() -> None:
    shared = rng(1).normal(0, 100, 20)
    better = stats.nested_difference([shared + 1.0], [shared], rng())
    assert better.low == pytest.approx(1.0) and better.high == pytest.approx(1.0)
    unpaired = stats.stratified_bootstrap(shared, rng(), stats.mean)
    assert unpaired.high - unpaired.low > 20


def test_comparisons_of_few_training_seeds_do_not_take_their_luck_for_a_difference() -> None:
    """Two sides of one distribution, in which training seeds differ five times as much as episodes."""
    source = rng(7)

    def side() -> list[np.ndarray]:
        return list(source.normal(0, 5, (8, 1)) + source.normal(0, 1, (8, 10)))

    def missed(intervals: list[stats.Interval], truth: float) -> float:
        return float(np.mean([not i.low <= truth <= i.high for i in intervals]))

    pairs = [(side(), side()) for _ in range(60)]
    assert missed([stats.nested_difference(x, y, rng(), 300) for x, y in pairs], 0.0) <= 0.15
    assert missed([stats.nested_improvement(x, y, rng(), 100) for x, y in pairs], 0.5) <= 0.15
    pooled = [stats.probability_of_improvement(np.ravel(x), np.ravel(y), rng(), 100) for x, y in pairs]
    assert missed(pooled, 0.5) > 0.5


def test_the_interval_of_the_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    source = rng(3)
    intervals = [stats.stratified_bootstrap(source.normal(size=30), rng(k), stats.mean, 500, 0.9) for k in range(200)]
    assert 0.82 <= np.mean([i.low <= 0.0 <= i.high for i in intervals]) <= 0.95


def test_the_same_generator_state_gives_the_same_interval() -> None:
    scores = rng(5).normal(size=12)
    assert stats.stratified_bootstrap(scores, rng(2)) == stats.stratified_bootstrap(scores, rng(2))
    assert stats.stratified_bootstrap(scores, rng(2)) != stats.stratified_bootstrap(scores, rng(4))


def test_point_estimates_equal_rliable() -> None:
    x, y = np.array(GOLDEN["x"]), np.array(GOLDEN["y"])
    assert float(stats.iqm(x.ravel())) == pytest.approx(GOLDEN["iqm"], abs=1e-9)
    assert float(stats.mean(x.ravel())) == pytest.approx(GOLDEN["mean"], abs=1e-9)
    assert stats.probability_of_improvement(x, y, rng(), 10).estimate == pytest.approx(GOLDEN["improvement"], abs=1e-9)
    np.testing.assert_allclose(stats.performance_profile(x, np.array(GOLDEN["thresholds"])), GOLDEN["profile"])


def test_intervals_agree_with_rliable() -> None:
    """Two random resamplings of the same distribution: the ends differ by the noise of the percentiles only."""
    x, y = np.array(GOLDEN["x"]), np.array(GOLDEN["y"])
    ours = stats.stratified_bootstrap(x, rng(), stats.iqm, 20000)
    np.testing.assert_allclose((ours.low, ours.high), GOLDEN["iqm_interval"], atol=0.3)
    improvement = stats.probability_of_improvement(x, y, rng(), 5000)
    np.testing.assert_allclose((improvement.low, improvement.high), GOLDEN["improvement_interval"], atol=0.015)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.stratified_bootstrap(np.array([1.0]), rng()), "at least two"),
        (lambda: stats.stratified_bootstrap(np.array([1.0, np.nan]), rng()), "NaN"),
        (lambda: stats.strata(np.zeros((0,))), "at least one run"),
        (lambda: stats.wilson(3, 2), "not a rate"),
        (lambda: stats.success_rate([np.array([0.5, 1.0])], rng()), "0 or 1"),
        (lambda: stats.success_rate(np.ones(3), rng()), r"\(seeds, episodes\)"),
        (lambda: stats.nested_difference([np.zeros(3)], [np.zeros(4)], rng()), "equally many"),
        (lambda: stats.nested_improvement([np.zeros(1)], [np.zeros(4)], rng()), "at least two"),
        (lambda: stats.probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)), rng()), "same tasks"),
        (lambda: stats.stratified_bootstrap(np.arange(4.0), rng(), confidence=95.0), "fraction"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        call()
