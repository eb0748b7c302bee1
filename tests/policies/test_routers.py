"""Laws that every router keeps, and what each of them, the gates and the smoother promise."""

import itertools
import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from policies.gates import SDMGate, SoftmaxGate, WeibullTail, class_thresholds
from policies.routers import DEFAULT_ROUTER, ROUTERS
from policies.routers.exchange import load_contributions, save_contributions
from policies.routers.ridge import Ridge
from policies.smoothing import Smoother, lame

WIDTH, NAMES = 6, ("reach", "push", "turn")


def _contexts(name, rows=40, seed=0, shift=0.0):
    """Clusters with a common nuisance direction."""
    rng = torch.Generator().manual_seed(seed * 10 + NAMES.index(name))
    centre = torch.eye(WIDTH)[NAMES.index(name)] * 3
    nuisance = torch.randn(rows, 1, generator=rng) * torch.tensor([0, 0, 0, 1.0, 1.0, -1.0])
    return centre + torch.randn(rows, WIDTH, generator=rng) * 0.5 + nuisance + shift


def _taught(kind, robot="a", seed=0, names=NAMES, **settings):
    router = ROUTERS[kind](WIDTH, robot=robot, **settings)
    for name in names:
        router.observe(_contexts(name, seed=seed), name)
    return router


def _answers(router, seed=9):
    contexts = torch.cat([_contexts(name, seed=seed) for name in NAMES])
    labels = [name for name in NAMES for _ in range(40)]
    best = router.select(contexts).indices[:, 0].tolist()
    return sum(i >= 0 and router.skills[i] == name for i, name in zip(best, labels, strict=True)) / len(labels)


PROBE = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(5))


def merging_commutes_and_repeats_change_nothing(kind, merge):
    robots = [_taught(kind, robot, seed) for seed, robot in enumerate("abc")]
    reference = None
    for order in itertools.permutations(range(3)):
        collector = ROUTERS[kind](WIDTH, robot="collector")
        for i in (*order, order[0], order[2]):  # some twice
            merge(collector, robots[i])
        logits = collector.logits(PROBE)
        reference = logits if reference is None else reference
        assert torch.equal(logits, reference)


@pytest.mark.parametrize("kind", ROUTERS)
def test_merging_commutes_and_repeats_change_nothing(kind):
    merging_commutes_and_repeats_change_nothing(kind, lambda mine, other: mine.merge(other))


def test_a_merge_that_adds_what_it_already_knows_is_caught():
    def adds(mine, other):
        for robot, part in other.contributions.items():
            mine.contributions[f"{robot}-{len(mine.contributions)}"] = part
        mine._changed()

    with pytest.raises(AssertionError):
        merging_commutes_and_repeats_change_nothing("nearest_mean", adds)


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_robot_that_learned_on_supersedes_what_it_sent_before(kind):
    early, late = _taught(kind, "a"), _taught(kind, "a")
    late.observe(_contexts("push", seed=3), "push")
    one, other = ROUTERS[kind](WIDTH, robot="b"), ROUTERS[kind](WIDTH, robot="c")
    for router, parts in ((one, (early, late)), (other, (late, early))):
        for part in parts:
            router.merge(part)
    assert torch.equal(one.logits(PROBE), late.logits(PROBE)) and torch.equal(other.logits(PROBE), late.logits(PROBE))


@pytest.mark.parametrize("kind", ["nearest_mean", "ridge"])
def test_merged_robots_know_what_one_robot_with_all_contexts_knows(kind):
    alone = ROUTERS[kind](WIDTH)
    collector = _taught(kind, "a", 0)
    collector.merge(_taught(kind, "b", 1))
    for seed, name in itertools.product((1, 0), NAMES):
        alone.observe(_contexts(name, seed=seed), name)
    torch.testing.assert_close(collector.logits(PROBE), alone.logits(PROBE), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ROUTERS)
def test_the_right_skill_is_chosen_and_each_row_on_its_own(kind):
    router = _taught(kind)
    assert _answers(router) > 0.9
    selection = router.select(PROBE, k=2)
    assert selection.indices.shape == (11, 2) and (selection.scores[:, 0] >= selection.scores[:, 1]).all()
    for i in range(11):
        assert torch.equal(router.select(PROBE[i]).indices[0], selection.indices[i, :1])


@pytest.mark.parametrize("kind", ROUTERS)
def test_failures_are_not_learned_from(kind):
    router, same = _taught(kind), _taught(kind)
    success = torch.arange(40) % 2 == 0
    router.observe(_contexts("turn", seed=4), "reach", outcome=torch.zeros(40))
    assert torch.equal(router.logits(PROBE), same.logits(PROBE))
    router.observe(_contexts("reach", seed=4), "reach", outcome=success)
    same.observe(_contexts("reach", seed=4)[success], "reach")
    assert torch.equal(router.logits(PROBE), same.logits(PROBE))


@pytest.mark.parametrize("kind", ROUTERS)
def test_contributions_travel_as_a_file_bit_for_bit(kind, tmp_path):
    router = _taught(kind)
    save_contributions(router.contributions, tmp_path / "r.safetensors")
    again = ROUTERS[kind](WIDTH)
    again.contributions = load_contributions(tmp_path / "r.safetensors")
    assert torch.equal(again.logits(PROBE), router.logits(PROBE))
    (tmp_path / "r.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="does not hold a router's contributions"):
        load_contributions(tmp_path / "r.safetensors")


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        ({"counts": ["reach"]}, {}),
        ({"counts": {"reach": -1.0}}, {}),
        ({"counts": {"reach": float("nan")}}, {}),
        ({"extra": {"reach": 1}}, {}),
        ({"counter": "x"}, {}),
        ({}, {"0.0.mean": torch.zeros(2)}),
        ({}, {"0.0.m2": torch.full((WIDTH,), -1.0)}),
        ({}, {"0.gram": torch.eye(WIDTH + 1)}),
    ],
)
def test_contributions_that_do_not_fit_themselves_are_refused(change, tensors, tmp_path):
    path = tmp_path / "r.safetensors"
    save_contributions(_taught("nearest_mean", names=("reach",)).contributions, path)
    with safe_open(path, "pt") as file:
        index = json.loads(file.metadata()["contributions"])
        whole = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    index["a"] |= change
    safetensors.torch.save_file({**whole, **tensors}, path, {"contributions": json.dumps(index)})
    with pytest.raises(ValueError, match="does not hold a router's contributions"):
        load_contributions(path)


@pytest.mark.parametrize("kind", ROUTERS)
def test_unknown_contexts_are_refused_and_score_as_open(kind):
    router = _taught(kind)
    held = torch.cat([_contexts(name, rows=120, seed=2) for name in NAMES])
    router.fit_gate(held, [name for name in NAMES for _ in range(120)])
    known = torch.cat([_contexts(name, seed=6) for name in NAMES])
    strange = known + 6 * torch.tensor([1.0, -1, 1, 0, 0, 0])
    assert _answers(router) > 0.8
    assert (router.select(strange, k=2).indices == -1).float().mean() > 0.9
    assert (router.select(known).exemplar >= 0).all()
    assert router.open_set_score(strange).min() > router.open_set_score(known).quantile(0.9)


@pytest.mark.parametrize("kind", ROUTERS)
def test_mistakes_are_named(kind):
    router = ROUTERS[kind](WIDTH)
    with pytest.raises(LookupError, match="not observed any skill"):
        router.select(PROBE)
    with pytest.raises(ValueError, match="width 4, this router reads 6"):
        router.observe(torch.zeros(2, 4), "push")
    with pytest.raises(ValueError, match="NaN"):
        router.observe(torch.full((2, WIDTH), torch.nan), "push")
    router = _taught(kind, names=NAMES[:2])
    with pytest.raises(LookupError, match="'turn' was never observed"):
        router.fit_gate(_contexts("turn"), ["turn"] * 40)
    router.fit_gate(torch.cat([_contexts("push"), _contexts("reach")]), ["push"] * 40 + ["reach"] * 40)
    router.observe(_contexts("turn"), "turn")
    with pytest.raises(LookupError, match="fit it again"):
        router.select(PROBE)
    other = "ridge" if kind != "ridge" else "nearest_mean"
    with pytest.raises(ValueError, match="cannot merge"):
        router.merge(_taught(other))


def test_ridge_in_any_order_is_recursive_least_squares_is_the_joint_solution():
    parts = [(name, _contexts(name, rows=20, seed=seed)) for seed in range(3) for name in NAMES]
    rng, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        router = Ridge(WIDTH, features=32, balanced=False)
        for i in torch.randperm(len(parts), generator=rng).tolist():
            for chunk in parts[i][1].split(7):
                router.observe(chunk, parts[i][0])
        found.append(router.weights)
    x = router.features(torch.cat([c for _, c in parts]))
    y = torch.stack([torch.tensor([float(s == name) for s in router.skills]) for name, c in parts for _ in c]).double()
    joint = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y)
    inverse, recursive = torch.eye(x.shape[1], dtype=torch.float64), torch.zeros_like(joint)
    for rows, target in zip(x.split(5), y.split(5), strict=True):
        gain = inverse @ rows.T @ torch.linalg.inv(torch.eye(len(rows)) + rows @ inverse @ rows.T)
        inverse = inverse - gain @ rows @ inverse
        recursive = recursive + inverse @ rows.T @ (target - rows @ recursive)
    for weights in (*found, recursive):
        assert (weights - joint).norm() < 1e-5


def test_balancing_lets_a_rare_skill_win_its_own_contexts():
    def around(centre, rows, seed):
        noise = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
        return noise + centre * torch.eye(WIDTH)[0]

    def rare_share(balanced):
        router = Ridge(WIDTH, balanced=balanced)
        router.observe(around(0.0, 3000, 0), "reach")
        router.observe(around(2.0, 30, 1), "turn")
        return router.select(around(2.0, 400, 2)).indices.float().mean()  # "turn" is index 1

    assert rare_share(True) > 0.7 > 0.5 > rare_share(False)


def test_distillation_keeps_the_other_prototypes_relations():
    def relation_change(distill):
        router = ROUTERS["prototypes"](WIDTH, distill=distill, lr=0.5)
        for name in NAMES:
            router.observe(_contexts(name), name)
        z = router.embed(_contexts("push", seed=3).double())
        others = [router.skills.index(n) for n in ("reach", "turn")]

        def relation():
            return torch.softmax(router.logits(_contexts("push", seed=3))[:, others], 1)

        before = relation()
        for seed in range(8):
            router.observe(_contexts("push", seed=seed) + torch.tensor([2.0, 0, 0, 0, 0, 0]), "push")
        assert z.norm(dim=1).sub(1).abs().max() < 1e-9
        return (relation() - before).abs().mean()

    assert relation_change(5.0) < 0.8 * relation_change(0.0)


def test_the_default_router_is_the_analytic_one():
    assert ROUTERS[DEFAULT_ROUTER] is Ridge


# ------------------------------------------------------------------------------------------------ gates
def _case(rows, seed, wrong=0.0, at=0.0):
    """Two classes along one axis, logits with the class's sign, a share of them wrong."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (rows,), generator=rng)
    features = torch.randn(rows, 3, generator=rng) * 0.3 + (label[:, None] * 2 - 1) * torch.tensor([1.0, 0, 0]) + at
    sure = torch.rand(rows, generator=rng) >= wrong
    shown = torch.where(sure, label, 1 - label)
    return features, torch.nn.functional.one_hot(shown, 2).double() * 3, label


def test_sdm_is_the_softmax_where_similarity_and_distance_say_nothing():
    gate = SDMGate().fit(*_case(400, 0))
    features, logits, _ = _case(50, 1)
    z = logits / gate.temperature
    distance = torch.cdist(features.double(), gate.bank).min(1).values
    d = 1 - torch.searchsorted(gate.distances, distance) / len(gate.distances)
    run = SDMGate(longest=1)  # q is 0 or 1
    run.fit(*_case(400, 0))
    p = run.probability(features, logits)
    agree = (p.argmax(1) == z.argmax(1)) | (d == 0)
    assert agree.all()
    expected = torch.softmax(torch.log(torch.tensor(3.0, dtype=torch.float64)) * d[:, None] * z, 1)
    similar = (p - expected).abs().max(1).values < 1e-9
    assert similar.float().mean() > 0.9


def test_far_from_all_exemplars_nothing_is_probable_however_sure_the_logits():
    sdm, softmax = SDMGate().fit(*_case(400, 0)), SoftmaxGate().fit(*_case(400, 0))
    features, logits, _ = _case(100, 1, at=50.0)
    assert (sdm.probability(features, logits) - 0.5).abs().max() < 1e-9
    assert not sdm(features, logits).admitted.any() and softmax(features, logits).admitted.all()
    assert sdm(*_case(100, 2)[:2]).admitted.float().mean() > 0.8


def test_a_threshold_admits_as_much_as_the_target_accuracy_allows():
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.5]).double()
    label = torch.tensor([0, 0, 1, 0, 1, 0])
    predicted = torch.zeros(6, dtype=torch.long)
    for target, expected in ((0.99, 0.8), (0.75, 0.6), (0.6, 0.5)):
        assert class_thresholds(score, predicted, label, 2, target, 1)[0] == pytest.approx(expected)
    assert class_thresholds(score, predicted, label, 2, 0.99, 3)[0] == torch.inf
    assert class_thresholds(score, predicted, label, 2, 0.5, 1)[1] == torch.inf


def test_the_weibull_tail_finds_the_parameters_of_its_own_draws():
    rng = torch.Generator().manual_seed(0)
    draws = 2.0 * (-torch.log(torch.rand(50000, generator=rng))) ** (1 / 1.7)
    tail = WeibullTail.fit(draws, share=0.999)
    assert tail.shape == pytest.approx(1.7, rel=0.05) and tail.scale == pytest.approx(2.0, rel=0.05)
    ordinary = WeibullTail.fit(draws)
    assert ordinary(torch.tensor([0.5]))[0] == 0 and ordinary(torch.tensor([12.0]))[0] > 0.99
    with pytest.raises(ValueError, match="ten known distances"):
        WeibullTail.fit(draws[:9])


# ------------------------------------------------------------------------------------------------ smoothing
def test_smoothing_steadies_what_lasts_and_spares_what_changes():
    def stream(persistent, smooth):
        rng, right = torch.Generator().manual_seed(1), 0
        smoother = Smoother()
        for i in range(300):
            label = (i // 50) % 3 if persistent else int(torch.randint(0, 3, (1,), generator=rng))
            features = torch.eye(8)[label] * 2 + torch.randn(8, generator=rng) * 1.2
            log_p = torch.log_softmax(features[:3], 0)
            p = smoother(log_p, features) if smooth else log_p
            right += int(p.argmax()) == label
        return right / 300

    assert stream(True, True) > stream(True, False) + 0.03
    assert stream(False, True) > stream(False, False) - 0.02


def test_a_fixed_point_is_reached_and_rows_that_agree_confirm_each_other():
    features = torch.tensor([[1.0, 0], [1, 0.1], [1, -0.1], [0, 1.0]])
    log_p = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.45, 0.55], [0.1, 0.9]]).log()
    y = lame(log_p, features, neighbours=2)
    assert y[2].argmax() == 0 and y[3].argmax() == 1
    assert torch.equal(lame(log_p[:1], features[:1]), torch.softmax(log_p[:1], 1))
    torch.testing.assert_close(y, lame(log_p, features, neighbours=2, steps=1000), rtol=1e-4, atol=1e-4)
    smoother = Smoother(window=2)
    first = smoother(log_p[0], features[0])
    smoother(log_p[1], features[1])
    smoother.reset()
    assert torch.equal(smoother(log_p[0], features[0]), first)
