"""Pessimism on finite problems: exact, and held against cloning and against trusting the data."""

import numpy as np
import pytest

from robot_cl.learners.tabular import Counts, FiniteMDP, bonus, clone, greedy, value_iteration, vi_lcb

SIZE, PITS, SLIP, DISCOUNT = 5, (6, 12, 18), 0.1, 0.95


def grid() -> FiniteMDP:
    """A slippery 5 × 5 walk from the first cell to the last (+1, then back to the start), around pits (−0.5)."""
    states, moves = SIZE * SIZE, ((0, 1), (1, 0), (0, -1), (-1, 0))
    transition, gain = np.zeros((states, 4, states)), np.zeros(states)
    gain[-1], gain[list(PITS)] = 1.0, -0.5
    for s in range(states):
        y, x = divmod(s, SIZE)
        for b, (dy, dx) in enumerate(moves):
            to = min(max(y + dy, 0), SIZE - 1) * SIZE + min(max(x + dx, 0), SIZE - 1)
            for a in range(4):
                transition[s, a, to] += SLIP / 4 + (1.0 - SLIP) * (a == b)
    transition[-1] = np.eye(states)[0]
    return FiniteMDP(transition, transition @ gain, np.eye(states)[0], DISCOUNT)


@pytest.fixture(scope="module")
def fractions_of_best() -> dict[float, np.ndarray]:
    """Expert share -> mean over 5 datasets of 1000 transitions: return of (cloning, greedy, LCB) over the best."""
    mdp = grid()
    expert = greedy(mdp.q_star())
    states, actions = expert.shape
    best, uniform = mdp.value_of(expert), np.full((states, actions), 1 / actions)
    table = {}
    for share in (1.0, 0.9, 0.5, 0.1, 0.0):
        rows = []
        for seed in range(5):
            rng, many = np.random.default_rng(seed), round(1000 * share)
            parts = [mdp.sample(p, n, 100, rng) for p, n in ((expert, many), (uniform, 1000 - many)) if n]
            counts = Counts.of(*(np.concatenate(column) for column in zip(*parts, strict=True)), states, actions)
            plans = clone(counts), *(greedy(vi_lcb(counts, mdp.v_max, DISCOUNT, c)) for c in (0.0, 0.005))
            rows.append([mdp.value_of(plan) / best for plan in plans])
        table[share] = np.mean(rows, 0)
    return table


def test_pessimism_stays_within_six_percent_of_the_best_on_every_mixture(fractions_of_best: dict) -> None:
    for share, (cloned, trusting, pessimistic) in fractions_of_best.items():
        assert pessimistic >= max(cloned, trusting) - 0.06, share


def test_cloning_fails_on_random_data_and_trusting_the_data_fails_on_expert_data(fractions_of_best: dict) -> None:
    assert fractions_of_best[1.0][0] > 0.95 and fractions_of_best[0.0][0] < 0.0
    assert fractions_of_best[0.0][1] > 0.9 and fractions_of_best[1.0][1] < 0.2


def test_value_iteration_solves_the_bellman_equation_of_the_returned_policy() -> None:
    mdp = grid()
    q = mdp.q_star()
    assert np.allclose(q, mdp.reward + DISCOUNT * mdp.transition @ q.max(1))
    assert mdp.value_of(greedy(q)) == pytest.approx(mdp.start @ q.max(1), abs=1e-8)


def test_the_bonus_falls_with_the_root_of_the_visits_and_covers_what_was_never_seen() -> None:
    b = bonus(np.array([[0.0, 100.0], [400.0, 1.0]]), v_max=20.0, scale=0.01)
    assert b[0, 0] == 20.0
    assert b[0, 1] / b[1, 0] == pytest.approx(2.0)


def test_no_value_lies_below_what_is_possible_and_no_bonus_above() -> None:
    mdp = grid()
    nothing = Counts(np.zeros_like(mdp.reward), np.full_like(mdp.transition, 1.0 / len(mdp.reward)), 0.0 * mdp.reward)
    assert (vi_lcb(nothing, mdp.v_max, DISCOUNT) == -mdp.v_max).all()
    assert bonus(np.ones((3, 2)), v_max=20.0, scale=50.0).max() == 20.0


def test_without_a_penalty_the_pessimist_is_the_greedy_planner() -> None:
    mdp = grid()
    counts = Counts(np.ones_like(mdp.reward), mdp.transition, mdp.reward)
    plain = value_iteration(mdp.transition, mdp.reward, DISCOUNT)
    assert np.allclose(vi_lcb(counts, mdp.v_max, DISCOUNT, 0.0), plain)
    with pytest.raises(ValueError, match="optimism"):
        vi_lcb(counts, mdp.v_max, DISCOUNT, -1.0)
