import pytest
import torch

from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.data.recording import Recording
from robot_cl.data.sampler import Sampler, packed_rows
from robot_cl.data.store import write_dataset


@pytest.fixture(scope="module")
def data(clean: Recording, tmp_path_factory: pytest.TempPathFactory) -> Transitions:
    return write_dataset("toy/a-v0", clean, root=tmp_path_factory.mktemp("root")).transitions()


def row_numbers(batch: Transitions, data: Transitions) -> torch.Tensor:
    """The dataset's row of each sampled transition, found by its next observation, (P, B)."""
    same = (batch.next_obs.unsqueeze(-2) == data.next_obs).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.float().argmax(-1)


def test_every_field_of_a_sample_comes_from_one_row(data: Transitions) -> None:
    batch = Sampler.over(data, generators(0, 2)).sample(64)
    rows = row_numbers(batch, data)
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        assert torch.equal(getattr(batch, name), getattr(data, name)[rows]), name


def test_a_member_draws_alone_what_it_draws_in_company(data: Transitions) -> None:
    together = Sampler.over(data, generators(5, 3))
    alone = Sampler.over(data, generators(6, 1))
    for _ in range(3):
        assert torch.equal(together.sample(32).obs[1], alone.sample(32).obs[0])


def test_members_draw_different_batches(data: Transitions) -> None:
    batch = Sampler.over(data, generators(0, 2)).sample(64)
    assert not torch.equal(batch.obs[0], batch.obs[1])


def test_restored_state_continues_bit_for_bit(data: Transitions) -> None:
    sampler = Sampler.over(data, generators(0, 2))
    sampler.sample(16)
    state = sampler.state()
    expected = [sampler.sample(16).pack() for _ in range(3)]
    fresh = Sampler.over(data, generators(99, 2))
    fresh.restore(state)
    assert all(torch.equal(fresh.sample(16).pack(), wanted) for wanted in expected)


def test_a_later_batch_leaves_an_earlier_one_alone(data: Transitions) -> None:
    sampler = Sampler.over(data, generators(0, 1))
    first = sampler.sample(16)
    kept = first.pack()
    sampler.sample(16)
    assert torch.equal(first.pack(), kept)


def test_every_row_is_drawn_and_about_equally_often(data: Transitions) -> None:
    drawn = row_numbers(Sampler.over(data[:200], generators(0, 1)).sample(5000), data[:200])[0]
    counts, expected = torch.bincount(drawn, minlength=200), 5000 / 200
    assert counts.min() >= 1
    # Chi-square over N − 1 degrees of freedom: mean N, deviation sqrt(2 N); six deviations never happen by chance.
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 200) < 6 * (2 * 200) ** 0.5


def test_packing_a_mapped_dataset_copies_it_into_memory(data: Transitions) -> None:
    rows = packed_rows(data)
    assert rows.data_ptr() != data.obs.data_ptr()
    assert torch.equal(rows, data.pack())


def test_a_dataset_of_many_megabytes_packs_equal_and_is_free_to_change() -> None:
    rows = torch.randn(60_000, 15, generator=torch.Generator().manual_seed(0))
    packed = packed_rows(Transitions.unpack(rows, 5, 2))
    assert torch.equal(packed, rows)
    packed.zero_()
    assert rows.abs().sum() > 0


def test_a_slice_of_the_dataset_and_loose_tensors_pack_the_same(data: Transitions) -> None:
    part = data[7:50]
    loose = Transitions(*(getattr(part, name).clone() for name in vars(part)))
    assert torch.equal(packed_rows(part), packed_rows(loose))
    assert torch.equal(packed_rows(part), data.pack()[7:50])


def test_unpack_inverts_pack(data: Transitions) -> None:
    again = Transitions.unpack(data.pack(), data.obs_dim, data.act_dim)
    assert all(torch.equal(getattr(again, name), getattr(data, name)) for name in vars(data))


def test_wrong_rows_population_or_state_are_refused(data: Transitions) -> None:
    rows = data.pack()
    with pytest.raises(ValueError, match=r"expected float32 \(N, 15\)"):
        Sampler(rows[:, :-1], data.obs_dim, data.act_dim, generators(0, 1))
    with pytest.raises(ValueError, match="no transitions"):
        Sampler(rows[:0], data.obs_dim, data.act_dim, generators(0, 1))
    with pytest.raises(ValueError, match="one generator per member"):
        Sampler(rows, data.obs_dim, data.act_dim, [])
    sampler = Sampler(rows, data.obs_dim, data.act_dim, generators(0, 2))
    with pytest.raises(ValueError, match="of 1 members, this sampler has 2"):
        sampler.restore(sampler.state()[:1])
