"""Hand-computed numbers on a planted matrix."""

import numpy as np
import pytest

from robot_cl.continual import metrics

R = np.array([[0.8, 0.1, 0.3], [0.6, 0.9, 0.2], [0.5, 0.7, 1.0]])


def test_the_planted_matrix_gives_the_hand_computed_numbers() -> None:
    assert metrics.accuracy(R) == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2)
    assert metrics.forgetting(R) == pytest.approx((0.3 + 0.2 + 0.0) / 3)
    assert metrics.jump_start(R, np.array([0.0, 0.05, 0.0])) == pytest.approx(((0.1 - 0.05) + 0.2) / 2)


def test_the_transposed_matrix_is_noticed() -> None:
    """The usual mistake, rows and columns exchanged, changes every number."""
    for name in ("accuracy", "backward_transfer", "forgetting"):
        number = getattr(metrics, name)
        assert number(R) != pytest.approx(number(R.T))


def test_seeds_are_a_leading_axis() -> None:
    stacked = np.stack([R, R * 0.5])
    assert metrics.accuracy(stacked) == pytest.approx([metrics.accuracy(R), metrics.accuracy(R) * 0.5])


def test_forward_transfer_is_relative_to_what_was_left_to_learn() -> None:
    curves = np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 1.0]])  # areas 0.5 and 0.875
    alone = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]])  # area 0.5 each
    assert metrics.forward_transfer(curves, alone) == pytest.approx((0.0 + 0.375 / 0.5) / 2)


def test_a_reference_that_needs_no_learning_is_refused() -> None:
    with pytest.raises(ValueError, match="area 1"):
        metrics.forward_transfer(np.ones((1, 3)), np.ones((1, 3)))


def test_steps_to_a_level_that_is_never_reached_are_infinite() -> None:
    curves = np.array([[0.1, 0.8, 0.9], [0.1, 0.2, 0.3]])
    assert metrics.steps_to(curves, np.array([1, 3, 10]), 0.8).tolist() == [3.0, np.inf]


def test_an_incomplete_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        metrics.accuracy(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="shape"):
        metrics.accuracy(np.ones((2, 3)))


def test_scaling_puts_untrained_at_zero_and_solved_at_one() -> None:
    scaled = metrics.scaled(np.array([-280.0, 6000.0]), np.array([-280.0, 0.0]), np.array([1e4, 6000.0]))
    assert scaled.tolist() == [0.0, 1.0]
