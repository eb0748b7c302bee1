"""Observation statistics, shared or one set per member."""

import pytest
import torch

from policies.normalizer import Normalizer


def test_batches_merge_to_the_statistics_of_all_rows():
    rows = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 7
    norm = Normalizer(3)
    for part in rows.split([1, 40, 59]):
        norm.update(part)
    torch.testing.assert_close(norm.mean, rows.mean(0))
    torch.testing.assert_close(norm.var, rows.var(0, unbiased=False))
    torch.testing.assert_close(norm.inverse(norm(rows)), rows)


def test_members_keep_their_own_statistics():
    rows = torch.randn(2, 50, 3) + torch.tensor([0.0, 10.0]).view(2, 1, 1)
    stacked = Normalizer(3, population=2)
    stacked.update(rows[:, :20])
    stacked.update(rows[:, 20:])
    for p in range(2):
        alone = Normalizer(3)
        alone.update(rows[p, :20])
        alone.update(rows[p, 20:])
        torch.testing.assert_close(stacked(rows)[p], alone(rows[p]))
        assert stacked.member(p).digest == alone.digest
    assert stacked.member(0).digest != stacked.member(1).digest


def test_a_frozen_normaliser_refuses_new_rows_and_so_does_its_copy():
    norm = Normalizer(2).fit(torch.randn(10, 2))
    for frozen in (norm, norm.member(0)):
        with pytest.raises(RuntimeError, match="frozen"):
            frozen.update(torch.zeros(1, 2))


def test_extreme_observations_are_clipped():
    norm = Normalizer(1, clip=3.0).fit(torch.tensor([[-1.0], [1.0]]))
    assert norm(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [3.0, -3.0]


def test_no_rows_change_nothing():
    norm = Normalizer(2)
    norm.update(torch.randn(10, 2))
    before = norm.digest
    norm.update(torch.zeros(0, 2))
    assert norm.digest == before and norm.count == 10


@pytest.mark.parametrize("options", [{"clip": float("nan")}, {"clip": 0.0}, {"eps": -1.0}, {"eps": float("nan")}])
def test_a_normaliser_that_could_only_give_nonsense_is_refused(options):
    with pytest.raises(ValueError, match="a normaliser's clip is"):
        Normalizer(2, **options)
