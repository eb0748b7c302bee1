"""Claimed advantages against what came of the actions."""

import pytest
import torch

from robot_cl.batch import Transitions
from robot_cl.learners.evidence import STEPS, realised, trust


def walk(rewards, terminated=(), truncated=()) -> Transitions:
    """Numbered states in a row, one transition each."""
    n = len(rewards)
    at = torch.arange(n + 1.0).unsqueeze(1)

    def flags(rows):
        return torch.tensor([float(i in rows) for i in range(n)])

    ends = flags(terminated), flags(truncated)
    return Transitions(at[:-1].clone(), torch.zeros(n, 1), torch.tensor(rewards), at[1:], *ends)


def test_what_came_of_an_action_is_summed_to_the_horizon_or_the_end():
    data = walk([1.0, 2.0, 4.0, 8.0], terminated=[1])
    value, after = torch.full((1, 4), 10.0), torch.full((1, 4), 100.0)
    found = realised(data, value, after, 0.5, steps=2)
    ended = 1.0 + 0.5 * 2.0 - 10.0  # nothing is bootstrapped after a terminal
    assert found[0].tolist() == pytest.approx([ended, 2.0 - 10.0, 4.0 + 4.0 + 25.0 - 10.0, 8.0 + 50.0 - 10.0])


def test_a_time_limit_and_a_gap_in_the_data_are_bootstrapped():
    value, after = torch.zeros(1, 3), torch.full((1, 3), 100.0)
    cut = realised(walk([1.0, 1.0, 1.0], truncated=[0]), value, after, 0.5, steps=3)
    assert cut[0, 0].item() == pytest.approx(1.0 + 50.0)
    gap = walk([1.0, 1.0, 1.0])
    gap.obs[1] += 7.0  # the second row is of another episode
    assert realised(gap, value, after, 0.5, steps=3)[0, 0].item() == pytest.approx(51.0)


def test_trust_is_the_share_that_was_found_and_none_for_noise():
    rng = torch.Generator().manual_seed(0)
    claimed = torch.randn(3, 20_000, generator=rng)
    noise = torch.randn(3, 20_000, generator=rng)
    found = torch.stack([claimed[0] + noise[0], 0.4 * claimed[1] + noise[1], noise[2]])
    share = trust(claimed, found, steps=1)
    assert share[0] > 0.95 and 0.35 < share[1] < 0.42 and share[2] < 0.02
    assert trust(-claimed, found, steps=1)[0] == 0.0


def test_rows_that_look_ahead_over_the_same_steps_count_once():
    """With as many rows that see the same, an error is larger by the root of their number."""
    rng = torch.Generator().manual_seed(0)
    claimed, noise = torch.randn(1, 5000, generator=rng), torch.randn(1, 5000, generator=rng)
    one, many = (trust(claimed, 0.5 * claimed + noise, steps=steps).item() for steps in (1, 16))
    assert one - many == pytest.approx(2.0 * 3.0 / 5000**0.5, rel=0.05)


def test_a_claim_that_is_small_beside_what_else_happens_is_found_all_the_same():
    """As measured on steady data: claims of deviation 0.14, beside 0.7 of other things per step, of 200,000 steps."""
    rng = torch.Generator().manual_seed(0)
    claimed, noise = 0.14 * torch.randn(1, 200_000, generator=rng), 0.7 * torch.randn(1, 200_000, generator=rng)
    assert trust(claimed, 0.6 * claimed + STEPS**0.5 * noise) > 0.2
    assert trust(claimed, STEPS**0.5 * noise) < 0.1
