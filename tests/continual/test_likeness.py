"""Tasks that begin alike are found, whatever the units of what differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robot_cl.continual.likeness import LOOKS, nearest, same, sketch_of


def opening(seed: int, steps: int = 16) -> np.ndarray:
    """Two members, three starts, `steps` steps, four observations and a reward."""
    return np.random.default_rng(seed).normal(size=(2, 3, steps, 5))


def test_a_sketch_is_the_mean_over_starts_at_the_looks_of_each_member_alone() -> None:
    seen = opening(0)
    sketch = sketch_of(seen)
    assert sketch.shape == (2, len(LOOKS) * 5)
    for member in (0, 1):
        wanted = np.concatenate([seen[member, :, look - 1].mean(0) for look in LOOKS])
        np.testing.assert_allclose(sketch[member], wanted, rtol=1e-6)
    short = sketch_of(seen[:, :, :3])  # a trial of three steps: the later looks see the third
    np.testing.assert_allclose(short[0, -5:], seen[0, :, 2].mean(0), rtol=1e-6)


def found(order: Callable[[list[np.ndarray], np.ndarray], np.ndarray]) -> bool:
    """Whether tasks that differ in one small number, and in rewards alone, are put in order."""
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=4) * [1e-4, 1.0, 0.0, 0.0] for _ in range(12)]
    gravity = [np.array([1e3, 0.0, 0.0, 1e-3 * k]) + n for k, n in enumerate(noise)]
    now = gravity[6] + [0.0, 0.0, 0.0, 2e-4]
    return list(order(gravity, now)[:1]) == [6] and list(order([gravity[0]] * 2, gravity[0])) == [1, 0]


def test_the_most_alike_come_first_in_units_of_their_deviation_and_the_later_of_two_equals() -> None:
    assert found(nearest)


@pytest.mark.parametrize("mutant", ["largest number decides", "farthest first", "earliest first"])
def test_a_planted_fault_in_the_order_is_noticed(mutant: str) -> None:
    def broken(known: list[np.ndarray], now: np.ndarray) -> np.ndarray:
        if mutant == "largest number decides":
            return np.argsort([np.square(k - now).sum() for k in known])
        order = nearest(known, now)
        return order[::-1] if mutant == "farthest first" else np.arange(len(known))

    assert not found(broken)


def test_a_small_number_counts_as_much_as_a_large_one() -> None:
    known = [np.array([100.0 * k, 1e-3 * (k % 2)]) for k in range(4)]
    # Nearer the third in the large number, equal to the second in the small one.
    assert nearest(known, np.array([160.0, 1e-3]))[0] == 1


def test_sketches_are_of_one_task_where_nothing_differs_by_a_thousandth() -> None:
    now = np.array([0.0, 5.0, -200.0])
    assert same(now, now + np.array([9e-4, 5e-3, 0.19]))
    assert not any(same(now, now + np.array(off)) for off in ([2e-3, 0, 0], [0, 7e-3, 0], [0, 0, 0.3]))
