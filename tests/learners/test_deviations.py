"""Advantages of deviations: the action's share is found beside a state's that is far larger, and only there."""

import pytest
import torch

from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.learners.deviations import (
    DeviationAdvantage,
    blocks,
    deviation,
    sameness,
    trajectory_advantages,
    within,
)

ROWS = 4000


def noisy(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z (N, 2), deviations (1, N, 2) and advantages (1, N): a state's share of 5, and (z₀, −1) · deviation."""
    rng = torch.Generator().manual_seed(0)
    z, d = torch.randn(rows, 2, generator=rng), torch.randn(1, rows, 2, generator=rng)
    share = z[:, 0] * d[..., 0] - d[..., 1]
    return z, d, 5.0 * torch.sin(z[:, 1]) + share + torch.randn(1, rows, generator=rng)


@pytest.fixture(scope="module")
def fitted() -> DeviationAdvantage:
    z, d, found = noisy()
    net = DeviationAdvantage(2, 2, generators(0, 1), (32, 32), 2)
    net.fit(z, d, found, blocks(ROWS, 2, z.device), generators(1, 1), 500, lr=3e-3)
    return net


def test_the_share_of_the_action_is_found_beside_a_larger_one_of_the_state(fitted):
    z, d = torch.randn(1, 500, 2), torch.randn(1, 500, 2)
    wanted = z[..., 0] * d[..., 0] - d[..., 1]
    claimed = fitted.each(z, d).mean(1)
    assert torch.corrcoef(torch.cat([claimed, wanted]))[0, 1] > 0.9
    torch.testing.assert_close(fitted(z, -d), -fitted(z, d))  # what the clone itself does is worth nothing


def test_no_slope_is_longer_than_the_median_one(fitted):
    extreme = torch.tensor([[[8.0, 0.0], [0.1, 0.0]]])
    slope = torch.stack([fitted(extreme, axis.expand(1, 2, -1)) for axis in torch.eye(2)], -1)
    assert (slope.norm(dim=-1) <= fitted.longest * 1.001).all()
    assert fitted.slopes(extreme).mean(1).norm(dim=-1)[0, 0] > 2.0 * fitted.longest


def test_a_network_never_sees_its_own_fold():
    """Noise that only the rows of fold 0 carry is learned by network 1, never by network 0."""
    z, d, _ = noisy()
    fold = blocks(ROWS, 2, z.device)
    found = torch.where(fold == 0, 3.0 * d[..., 0], torch.zeros(1, ROWS))
    net = DeviationAdvantage(2, 2, generators(0, 1), (16,), 2)
    net.fit(z, d, found, fold, generators(1, 1), 300, lr=3e-3)
    said = net.each(z[None], d)[0].square().mean(-1)
    assert said[1] > 4.0 and said[0] < 0.1
    # Held against rows that it has not seen, network 1 is right where those of fold 1 are so, too, and else not at all.
    right = torch.where(fold == 1, 3.0 * d[..., 0], torch.zeros(1, ROWS))
    assert net.borne_out(z, d, right, fold, rows=900) > 0.9 and net.borne_out(z, d, found, fold) < 0.1
    assert net.borne_out(z, d + 100.0, right, fold) == 0.0  # nobody near the data


def test_rows_of_another_behaviour_are_left_out():
    z, d, found = noisy()
    far, wrong = d.clone(), found.clone()
    far[:, ::3] += 100.0
    wrong[:, ::3] = 1e4
    net = DeviationAdvantage(2, 2, generators(0, 1), (32, 32), 2)
    net.fit(z, far, wrong, blocks(ROWS, 2, z.device), generators(1, 1), 300, lr=3e-3)
    assert net.unit < 10.0
    assert within(torch.tensor([[2.9, -2.9], [0.0, 3.1]])).tolist() == [True, False]


def test_deviations_that_stay_alike_over_an_episode_are_of_several_behaviours():
    """A tenth of a deviation either way, which no single step tells from noise."""
    episode = torch.arange(20_000) // 1000
    noise = torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(2))
    other = noise + 0.1 * (2.0 * (episode % 2) - 1.0).view(1, -1, 1)
    assert sameness(torch.cat([noise, other]), episode).tolist() == [1.0, 0.0]


def test_a_few_episodes_in_which_it_stumbled_make_no_other_behaviour_of_it():
    episode = torch.arange(20_000) // 1000
    noise = torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(2))
    stumbled = noise + (episode % 10 == 3).view(1, -1, 1)  # in two of twenty by a whole deviation
    half = noise + (episode % 2).view(1, -1, 1)
    assert sameness(torch.cat([stumbled, half]), episode).tolist() == [1.0, 0.0]


def test_it_is_not_one_behaviour_where_the_clone_does_not_know_most_of_the_actions():
    """Its own third looks as it should, and of the rest there is next to nothing to look at."""
    episode = torch.arange(21_000) // 1000
    noise = torch.randn(1, 21_000, 2, generator=torch.Generator().manual_seed(2))
    others = noise + 30.0 * (episode % 3 > 0).view(1, -1, 1)
    assert sameness(torch.cat([noise, others]), episode).tolist() == [1.0, 0.0]


def test_a_clone_far_from_all_data_claims_nothing():
    z, d, found = noisy()
    net = DeviationAdvantage(2, 2, generators(0, 1), (8,), 2)
    net.fit(z, d + 100.0, found, blocks(ROWS, 2, z.device), generators(1, 1), 5)
    assert not net(z[None], d).any()


def test_a_clone_far_from_all_data_takes_nothing_from_those_beside_it():
    z, d, found = noisy()
    fold, both = blocks(ROWS, 2, z.device), (torch.cat([d + 100.0, d]), torch.cat([found, found]))
    alone, beside = (DeviationAdvantage(2, 2, generators(seed, count), (8,), 2) for seed, count in ((1, 1), (0, 2)))
    alone.fit(z, d, found, fold, generators(3, 1), 20)
    rngs = generators(2, 2)
    beside.fit(z, *both, fold, rngs, 20)
    claims = beside(z.expand(2, -1, -1), torch.cat([d, d]))
    assert not claims[0].any()
    torch.testing.assert_close(claims[1:], alone(z[None], d), rtol=1e-4, atol=1e-5)
    assert torch.equal(rngs[0].get_state(), generators(2, 1)[0].get_state())  # it has drawn nothing


def test_advantages_along_a_trajectory_by_hand():
    obs = torch.arange(4.0).unsqueeze(1)
    flags = torch.tensor([0.0, 1.0, 0.0]), torch.zeros(3)
    data = Transitions(obs[:-1].clone(), torch.zeros(3, 1), torch.tensor([1.0, 2.0, 4.0]), obs[1:], *flags)
    found = trajectory_advantages(data, torch.zeros(1, 3), torch.full((1, 3), 10.0), 0.5, 0.5)
    assert found[0].tolist() == pytest.approx([1.0 + 5.0 + 0.25 * 2.0, 2.0, 9.0])  # terminal, then the data's end


def test_folds_are_stretches_of_equal_number_and_deviations_are_in_sigmas():
    fold = blocks(400, 4, torch.device("cpu"))
    assert torch.bincount(fold).tolist() == [100] * 4 and (fold[:5] == 0).all() and (fold[5:10] == 1).all()
    torch.testing.assert_close(deviation(torch.ones(1), torch.zeros(1), torch.tensor([0.5]).log()), torch.tensor([2.0]))
