"""Laws that every merge operator keeps, and broken operators that each law catches."""

import pytest
import torch

from policies.adapter import Adapter, Factors, distance, linear_combination
from policies.merging import MERGE
from policies.merging.adapters import merge_adapters, merge_deltas
from policies.merging.concrete import concrete, concrete_ranks
from policies.merging.operator import weighted_sum

SHAPE = (12, 17)


def _deltas(count=3, shape=SHAPE, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def one_skill_with_weight_one_is_that_skill(merge):
    deltas = _deltas()
    assert torch.equal(merge(deltas[:1], torch.ones(1), _rng()), deltas[0])
    for k in range(3):
        assert torch.equal(merge(deltas, torch.eye(3)[k], _rng()), deltas[k])


def a_lone_skill_follows_its_weight_once(merge):
    deltas = _deltas(1)
    kept = deltas[0] if merge is MERGE["average"] else 3.0 * deltas[0]
    _close(merge(deltas, torch.full((1,), 3.0), _rng()), kept)


def order_does_not_matter(merge):
    deltas, weights, order = _deltas(4), torch.tensor([1.0, 0.5, 2.0, 1.5]), [2, 0, 3, 1]
    _close(merge(deltas[order], weights[order], _rng()), merge(deltas, weights, _rng()))


def a_zero_skill_changes_nothing_except_that_it_dilutes_an_average(merge):
    deltas = _deltas()
    more = torch.cat([deltas, torch.zeros(1, *SHAPE)])
    expected = merge(deltas, torch.ones(3), _rng()) * (0.75 if merge is MERGE["average"] else 1.0)
    _close(merge(more, torch.ones(4), _rng()), expected)


def small_tensors_survive(merge):
    for n in (1, 2, 3, 7, 10, 50, 99):
        merged = merge(_deltas(3, (n,)).abs(), torch.ones(3), _rng())
        assert merged.shape == (n,) and (merged != 0).all(), n


def the_generator_decides(merge):
    args = (_deltas(), torch.ones(3))
    assert torch.equal(merge(*args, _rng(5)), merge(*args, _rng(5)))
    assert torch.equal(merge(*args), merge(*args))


def nothing_given_is_changed(merge):
    deltas, weights = _deltas(), torch.tensor([1.0, 0.0, 2.0])
    copies = deltas.clone(), weights.clone()
    merge(deltas, weights, _rng())
    assert torch.equal(deltas, copies[0]) and torch.equal(weights, copies[1])


def what_cannot_be_merged_is_refused(merge):
    for deltas, weights, words in (
        (torch.full((2, 3), torch.nan), torch.ones(2), "NaN"),
        (torch.ones(2, 3), torch.tensor([1.0, torch.inf]), "infinite"),
        (torch.ones(0, 3), torch.ones(0), "nothing to merge"),
        (torch.ones(2, 0), torch.ones(2), "nothing to merge"),
        (torch.ones(2, 3), torch.ones(3), "2 skills need weights"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(deltas, weights, _rng())


TENSOR_LAWS = (
    one_skill_with_weight_one_is_that_skill,
    a_lone_skill_follows_its_weight_once,
    order_does_not_matter,
    a_zero_skill_changes_nothing_except_that_it_dilutes_an_average,
    small_tensors_survive,
    the_generator_decides,
    nothing_given_is_changed,
    what_cannot_be_merged_is_refused,
)


@pytest.mark.parametrize("law", TENSOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("how", MERGE)
def test_every_operator_keeps(how, law):
    law(MERGE[how])


def _skills(count=3):
    def factors(seed, rank):
        draw = _rng(seed)
        return Factors(torch.randn(rank, 11, generator=draw), torch.randn(9, rank, generator=draw))

    return {f"s{k}": Adapter({"a": factors(k, 2 + k), "b": factors(10 + k, 1)}) for k in range(count)}


def low_rank_equals_dense(merge, how):
    skills, weights = _skills(), [1.0, 0.5, -2.0]
    merged = merge(skills, how, weights)
    for name, delta in merge_deltas(skills, how, weights).items():
        _close(merged.delta(name), delta, 1e-4)


def low_rank_equals_dense_where_skills_change_different_layers(merge, how):
    skills = _skills()
    for name in ("s1", "s2"):
        skills[name] = Adapter({"b": skills[name].layers["b"]})
    skills["still"] = Adapter({"a": Factors(torch.ones(1, 11), torch.zeros(9, 1))})
    settings = {"scale": 0.5} if how == "task_arithmetic" else {}
    merged = merge(skills, how, **settings)
    for name, delta in merge_deltas(skills, how, **settings).items():
        _close(merged.delta(name), delta, 1e-4)


def a_skill_that_changes_nothing_changes_nothing(merge, how):
    skills = {"s1": _skills()["s1"]}
    still = Adapter({"a": Factors(torch.ones(1, 11), torch.zeros(9, 1))})
    settings = {"scale": 0.5} if how == "task_arithmetic" else {}
    expected = 0.5 if how == "average" else 1.0  # which it dilutes
    assert distance(merge({**skills, "still": still}, how, **settings), skills["s1"].scaled(expected)) < 1e-5


def one_adapter_with_weight_one_is_that_adapter(merge, how):
    skills = _skills()
    assert distance(merge({"s1": skills["s1"]}, how), skills["s1"]) < 1e-6
    assert distance(merge(skills, how, [0.0, 1.0, 0.0]), skills["s1"]) < 1e-5


def a_layer_merges_alike_alone_and_among_others(merge, how):
    skills = _skills()
    alone = merge({n: Adapter({"b": s.layers["b"]}) for n, s in skills.items()}, how)
    _close(alone.delta("b"), merge(skills, how).delta("b"), 1e-4)


def the_same_skill_twice_is_refused(merge, how):
    skills = _skills()
    with pytest.raises(ValueError, match="'s0' and 'again' are the same"):
        merge({**skills, "again": skills["s0"]}, how)


ADAPTER_LAWS = (
    low_rank_equals_dense,
    low_rank_equals_dense_where_skills_change_different_layers,
    a_skill_that_changes_nothing_changes_nothing,
    one_adapter_with_weight_one_is_that_adapter,
    a_layer_merges_alike_alone_and_among_others,
    the_same_skill_twice_is_refused,
)


@pytest.mark.parametrize("law", ADAPTER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("how", MERGE)
def test_every_merged_adapter_keeps(how, law):
    law(merge_adapters, how)


# ------------------------------------------------------------------------------------------------ planted mutants
def _scale_twice(deltas, weights, rng=None):
    return weighted_sum(deltas, weights.to(deltas) ** 2)


def _small_tensors_dropped(deltas, weights, rng=None, drop=0.05):
    n = deltas[0].numel()
    kept = deltas.abs().flatten(1).argsort(1).argsort(1) < n - 1 - int(drop * n)
    return weighted_sum(deltas * kept.view_as(deltas) if len(deltas) > 1 else deltas, weights)


def _trims_a_single_skill(deltas, weights, rng=None):
    return weighted_sum(deltas * (deltas.abs() > 0.1), weights)


def _draws_in_order(deltas, weights, rng=None):
    kept = torch.rand(deltas.shape, generator=rng) > 0.5
    return weighted_sum(deltas * kept if len(deltas) > 1 else deltas, weights)


def _global_randomness(deltas, weights, rng=None):
    return weighted_sum(deltas, weights) + torch.rand(()) * 1e-3


def _in_place(deltas, weights, rng=None):
    return weighted_sum(deltas.mul_(weights.view(-1, 1, 1)), torch.ones_like(weights))


def _mean_over_all(deltas, weights, rng=None):
    return weighted_sum(deltas, weights) / len(deltas)


def _accepts_anything(deltas, weights, rng=None):
    return deltas.nan_to_num().sum(0)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (_scale_twice, a_lone_skill_follows_its_weight_once),
        (_small_tensors_dropped, small_tensors_survive),
        (_trims_a_single_skill, one_skill_with_weight_one_is_that_skill),
        (_draws_in_order, order_does_not_matter),
        (_global_randomness, the_generator_decides),
        (_in_place, nothing_given_is_changed),
        (_mean_over_all, a_zero_skill_changes_nothing_except_that_it_dilutes_an_average),
        (_accepts_anything, what_cannot_be_merged_is_refused),
    ],
    ids=lambda x: x.__name__,
)
def test_a_broken_operator_is_caught(mutant, law):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(mutant)


def _cross_terms(skills, how="task_arithmetic", weights=None, seed=0):
    """Downs and ups added separately, padded to one rank."""
    weights, rank = weights or [1.0] * len(skills), max(max(s.ranks.values()) for s in skills.values())
    layers = {}
    for name in next(iter(skills.values())).layers:
        pad = [(0, 0, 0, rank - s.layers[name].rank) for s in skills.values()]
        downs = [torch.nn.functional.pad(s.layers[name].down, p) for s, p in zip(skills.values(), pad, strict=True)]
        ups = [torch.nn.functional.pad(s.layers[name].up, (0, p[3])) for s, p in zip(skills.values(), pad, strict=True)]
        w = [abs(x) ** 0.5 for x in weights]
        down = sum(x * d for x, d in zip(w, downs, strict=True))
        layers[name] = Factors(down, sum(x * u for x, u in zip(w, ups, strict=True)))
    return Adapter(layers)


def _alpha_over_rank(skills, how="task_arithmetic", weights=None, seed=0):
    merged = linear_combination(list(skills.values()), weights or [1.0] * len(skills))
    return Adapter({n: Factors(f.down, f.up * (16 / f.rank)) for n, f in merged.layers.items()})


def _scale_in_both_factors(skills, how="task_arithmetic", weights=None, seed=0):
    weights = weights or [1.0] * len(skills)
    scaled = [
        Adapter({n: Factors(f.down * w, f.up * w) for n, f in s.layers.items()})
        for s, w in zip(skills.values(), weights, strict=True)
    ]
    return linear_combination(scaled, [1.0] * len(scaled))


def _one_generator_for_all_layers(skills, how="dare", weights=None, seed=0):
    rng, layers = _rng(seed), {}
    for name in next(iter(skills.values())).layers:
        kept = torch.stack([s.delta(name) for s in skills.values()])
        layers[name] = Factors(torch.eye(11), (kept * (torch.rand(kept.shape, generator=rng) > 0.5)).sum(0))
    return Adapter(layers)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (_cross_terms, low_rank_equals_dense),
        (_alpha_over_rank, one_adapter_with_weight_one_is_that_adapter),
        (_scale_in_both_factors, low_rank_equals_dense),
        (_one_generator_for_all_layers, a_layer_merges_alike_alone_and_among_others),
        (_cross_terms, the_same_skill_twice_is_refused),
    ],
    ids=lambda x: x.__name__,
)
def test_a_broken_adapter_merge_is_caught(mutant, law):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(mutant, "task_arithmetic")


# ------------------------------------------------------------------------------------- each operator's own formula
def test_ties_follows_the_paper_on_a_worked_example():
    deltas = torch.tensor([[4.0, -1.0, 0.5, 2.0], [2.0, 3.0, -0.6, -5.0]])
    expected = torch.tensor([3.0, 3.0, -0.6, -5.0])  # small: nothing trimmed; sign by sum; mean of those that agree
    _close(MERGE["ties"](deltas, torch.ones(2)), expected)


def test_ties_trims_to_its_density():
    deltas = torch.stack([torch.arange(1.0, 201.0), torch.arange(200.0, 0.0, -1.0)])
    merged = MERGE["ties"](deltas, torch.ones(2), density=0.1)
    assert (merged != 0).sum() == 40
    assert (merged[20:180] == 0).all()


def test_dare_keeps_the_expected_value():
    deltas = torch.stack([torch.full((100, 100), 1.0), torch.full((100, 100), 3.0)])
    merged = MERGE["dare"](deltas, torch.tensor([1.0, 2.0]), _rng(), drop=0.5)
    assert merged.mean().item() == pytest.approx(7.0, rel=0.02)
    assert set(merged.unique().tolist()) == {0.0, 2.0, 12.0, 14.0}


def test_breadcrumbs_leaves_out_outliers_and_noise():
    ramp = torch.arange(1.0, 201.0)
    merged = MERGE["breadcrumbs"](torch.stack([ramp, ramp]), torch.ones(2), density=0.8, top=0.05)
    assert (merged[190:] == 0).all() and (merged[:30] == 0).all()
    assert torch.equal(merged[30:190], 2 * ramp[30:190])


def test_doge_keeps_skills_apart_better_than_their_sum():
    deltas = _deltas(3, (20, 30))

    def gap(merged):
        return sum(((t * (merged - t)).sum(1) ** 2).sum().item() for t in deltas)

    settings = {"density": 1.0, "subspace": 0.2}
    still = MERGE["doge"](deltas, torch.ones(3), steps=0, **settings)
    assert gap(MERGE["doge"](deltas, torch.ones(3), steps=100, **settings)) < 0.5 * gap(still)


def test_concrete_answers_better_than_the_sum_on_each_skills_observations():
    deltas = _deltas(3, (20, 30))
    inputs = torch.randn(3, 5, 30, generator=_rng(1))

    def gap(merged):
        return sum(((x @ (merged - d).T) ** 2).sum().item() for x, d in zip(inputs, deltas, strict=True))

    assert gap(concrete(deltas, torch.ones(3), _rng(), inputs=inputs)) < 0.8 * gap(deltas.sum(0))


def test_concrete_on_ranks_answers_better_than_the_sum_and_leaves_a_lone_skill_alone():
    skills = list(_skills().values())
    inputs = {name: torch.randn(3, 6, 11, generator=_rng(1)) for name in ("a", "b")}

    def gap(merged, name):
        return sum(((x @ (merged.delta(name) - s.delta(name)).T) ** 2).sum().item()
                   for x, s in zip(inputs[name], skills, strict=True))  # fmt: skip

    merged, total = concrete_ranks(skills, inputs, _rng()), linear_combination(skills, [1.0, 1.0, 1.0])
    assert all(gap(merged, name) < 0.9 * gap(total, name) for name in inputs)
    assert merged.ranks == total.ranks
    assert concrete_ranks(skills[:1], inputs, _rng()) is skills[0]


def test_settings_out_of_range_are_refused():
    for how, settings in (("ties", {"density": 0.0}), ("dare", {"drop": 1.0}), ("breadcrumbs", {"top": 0.9})):
        with pytest.raises(ValueError, match="expected"):
            MERGE[how](_deltas(), torch.ones(3), **settings)
    with pytest.raises(LookupError, match="no merge operator 'soup'; operators: average"):
        merge_adapters(_skills(), "soup")
