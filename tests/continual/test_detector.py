"""A jump is found soon, noise and outliers are not, and learning is not a shift."""

import numpy as np
import pytest

from robot_cl.continual.detector import DetectorConfig, ShiftDetector


def losses(rng: np.random.Generator, steps: int, level: float = 1.0) -> np.ndarray:
    return level * rng.lognormal(0.0, 0.7, steps)


def test_a_doubled_loss_is_found_within_a_few_windows() -> None:
    rng, detector = np.random.default_rng(0), ShiftDetector()
    assert detector.observe(losses(rng, 3000)) is None
    delay = detector.observe(losses(rng, 3000, 2.0))
    assert delay is not None
    assert delay < 200


def test_fewer_than_two_false_alarms_in_a_hundred_thousand_steps() -> None:
    rng, detector = np.random.default_rng(1), ShiftDetector()
    alarms = sum(detector.observe(losses(rng, 1000)) is not None for _ in range(100))
    assert alarms <= 1


def test_a_single_huge_loss_is_no_shift() -> None:
    rng, detector = np.random.default_rng(2), ShiftDetector()
    detector.observe(losses(rng, 2000))
    outlier = losses(rng, 500)
    outlier[7] = np.inf
    assert detector.observe(outlier) is None


def test_a_falling_loss_is_learning_and_a_return_to_the_old_level_is_a_shift() -> None:
    rng, detector = np.random.default_rng(3), ShiftDetector()
    falling = losses(rng, 20_000) * np.geomspace(1.0, 0.05, 20_000)
    assert detector.observe(falling) is None
    assert detector.observe(losses(rng, 2000, 1.0)) is not None


def test_an_alarm_restarts_so_that_the_new_regime_becomes_normal() -> None:
    rng, detector = np.random.default_rng(4), ShiftDetector()
    detector.observe(losses(rng, 2000))
    assert detector.observe(losses(rng, 2000, 5.0)) is not None
    assert not detector.ready
    assert detector.observe(losses(rng, 5000, 5.0)) is None


def test_windows_do_not_depend_on_how_the_losses_are_handed_over() -> None:
    stream = np.concatenate([losses(np.random.default_rng(5), 2000), losses(np.random.default_rng(6), 500, 4.0)])
    one, many = ShiftDetector(), ShiftDetector()
    rang = [i * 7 + t for i in range(0, len(stream) // 7) if (t := many.observe(stream[i * 7 : i * 7 + 7])) is not None]
    assert one.observe(stream) == rang[0]


def test_bad_settings_and_negative_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup"):
        DetectorConfig(warmup=1)
    with pytest.raises(ValueError, match="negative"):
        ShiftDetector().observe(np.array([-1.0]))
