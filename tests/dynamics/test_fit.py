from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, OnlineConfig, OnlineFit, fit, gradient_step, member_errors, optimiser
from dynamics.losses import GradientCache, VaGraM, mse, nll, normalised_mse
from policies.networks import generators

D, A = 3, 1
MATRIX = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0], [0.0, 0.2, 0.8]])


def linear_world(count: int = 600, seed: int = 0, gain: float = 1.0) -> SimpleNamespace:
    rng = torch.Generator().manual_seed(seed)
    obs = torch.randn(count, D, generator=rng)
    action = torch.rand(count, A, generator=rng) * 2 - 1
    next_obs = obs @ MATRIX.T + gain * 0.5 * action
    return SimpleNamespace(
        obs=obs, action=action, reward=100.0 * obs[:, 0], next_obs=next_obs, terminated=torch.zeros(count)
    )


def ensemble(members: int = 3, **options: object) -> Ensemble:
    shape = {"elites": min(2, members), "hidden": (24,), "reward_hidden": (16,), **options}
    return Ensemble(D, A, EnsembleConfig(members=members, **shape), generators(0, members))


def held_out(model: Ensemble) -> Tensor:
    """Normalised squared error of every member on fresh data, (E,)."""
    data = linear_world(seed=9)
    index = torch.arange(len(data.obs)).expand(model.config.members, -1)
    return normalised_mse(member_errors(model, data, index)).detach()


@pytest.mark.parametrize("loss", [nll, mse, normalised_mse])
def test_a_fit_explains_a_linear_world(loss: object) -> None:
    model = ensemble()
    before = held_out_after_measure(model)
    report = fit(model, linear_world(), loss, FitConfig(batch=64, max_steps=400), torch.Generator().manual_seed(0))
    assert (held_out(model) < 0.05 * before).all()
    assert report.steps <= 400 and len(report.history) == report.epochs


def held_out_after_measure(model: Ensemble) -> Tensor:
    data = linear_world()
    model.measure(data.obs, data.action, data.reward, data.next_obs)
    return held_out(model)


def test_same_generator_same_weights() -> None:
    twins = []
    for _ in range(2):
        model = ensemble()
        fit(model, linear_world(), nll, FitConfig(batch=64, max_steps=40), torch.Generator().manual_seed(5))
        twins.append(model.state_dict())
    assert all(torch.equal(twins[0][k], twins[1][k]) for k in twins[0])


def test_members_differ_by_their_bootstrap_and_not_without_it() -> None:
    def spread(bootstrap: bool) -> float:
        model = ensemble(members=2)
        with torch.no_grad():
            for p in model.parameters():
                p[1] = p[0]
        config = FitConfig(batch=1024, max_steps=20, bootstrap=bootstrap)
        fit(model, linear_world(), nll, config, torch.Generator().manual_seed(0))
        return max((p[1] - p[0]).abs().max().item() for p in model.parameters())

    assert spread(True) > 1e-3
    assert spread(False) < 1e-4


def test_every_member_ends_at_its_own_best_epoch_and_the_best_become_elites() -> None:
    model = ensemble(members=4)
    report = fit(model, linear_world(200), nll, FitConfig(batch=64, max_steps=300), torch.Generator().manual_seed(0))
    history = torch.tensor(report.history)
    torch.testing.assert_close(torch.tensor(report.best), history.amin(0))
    assert sorted(report.elites) == sorted(torch.tensor(report.best).argsort()[:2].tolist())
    assert model.elites.tolist() == report.elites


def test_a_fit_on_noise_stops_early_and_returns_to_its_best() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = SimpleNamespace(
        obs=torch.randn(80, D, generator=rng), action=torch.randn(80, A, generator=rng),
        reward=torch.randn(80, generator=rng), next_obs=torch.randn(80, D, generator=rng), terminated=torch.zeros(80),
    )
    model = ensemble()
    report = fit(model, noise, normalised_mse, FitConfig(batch=16, lr=3e-2, max_steps=5000), rng)
    assert report.steps < 5000
    assert min(report.best) < report.history[-1][report.best.index(min(report.best))]


def test_a_warm_start_begins_where_the_last_fit_ended() -> None:
    model, rng = ensemble(), torch.Generator().manual_seed(0)
    fit(model, linear_world(), normalised_mse, FitConfig(batch=64, max_steps=400), rng)
    ready = held_out(model)
    fit(model, linear_world(seed=1), normalised_mse, FitConfig(batch=64, max_steps=1), rng)
    assert (held_out(model) < 2 * ready).all()


def test_members_trained_together_equal_members_trained_alone() -> None:
    data, together = linear_world(), ensemble(members=3)
    together.measure(data.obs, data.action, data.reward, data.next_obs)
    index = torch.stack([torch.randperm(600, generator=g)[:64] for g in generators(7, 3)])
    alone = together.subset(torch.tensor([1]))
    for model, rows in ((together, index), (alone, index[1:2])):
        opt = optimiser(model, 1e-3, (1e-4, 2e-4))
        for _ in range(10):
            gradient_step(model, opt, nll, data, rows)
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a[1], b[0], rtol=1e-4, atol=1e-5)


def test_weight_decay_is_per_layer_and_spares_biases() -> None:
    model = ensemble(hidden=(8, 8, 8))
    groups = optimiser(model, 1e-3, (0.1, 0.2, 0.3)).param_groups
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert [decays[id(layer.weight)] for layer in model.state_net.layers] == [0.1, 0.2, 0.3, 0.3]
    assert all(decays[id(layer.bias)] == 0.0 for layer in model.state_net.layers)
    assert set(decays) == {id(p) for p in model.parameters()}


def test_a_value_that_ignores_a_dimension_spends_no_capacity_on_it() -> None:
    data = linear_world()

    def errors_of(weighted: bool) -> Tensor:
        model = ensemble(members=1, gaussian=False, hidden=(2,))
        cache = GradientCache([lambda x: 3.0 * x[:, 2]])
        loss = VaGraM(cache) if weighted else normalised_mse
        fit(model, data, loss, FitConfig(batch=64, lr=1e-2, max_steps=400), torch.Generator().manual_seed(0))
        e = member_errors(model, data, torch.arange(600).expand(1, -1))
        return e.state.square().mean((0, 1)).detach()

    assert errors_of(True)[2] < 0.2 * errors_of(False)[2]


def test_an_online_update_follows_a_change_and_keeps_its_optimiser() -> None:
    model, rng = ensemble(), torch.Generator().manual_seed(0)
    fit(model, linear_world(), normalised_mse, FitConfig(batch=64, max_steps=400), rng)
    online = OnlineFit(model, OnlineConfig(capacity=300, steps=10, lr=3e-3), rng)
    changed = linear_world(300, seed=2, gain=-1.0)

    def miss() -> float:
        index = torch.arange(300).expand(3, -1)
        return float(normalised_mse(member_errors(model, changed, index)).mean())

    before = miss()
    online.observe(changed.obs, changed.action, changed.reward, changed.next_obs)
    for _ in range(20):
        online.update()
    assert miss() < 0.2 * before
    steps = [state["step"].item() for state in online.opt.state.values()]
    assert steps and all(s == 200 for s in steps)


def test_the_online_memory_keeps_the_newest() -> None:
    online = OnlineFit(ensemble(), OnlineConfig(capacity=4), torch.Generator().manual_seed(0))
    data = linear_world(7)
    for start, end in ((0, 1), (1, 7)):
        rows = slice(start, end)
        online.observe(data.obs[rows], data.action[rows], data.reward[rows], data.next_obs[rows])
    assert sorted(online.reward.tolist()) == sorted(data.reward[3:].tolist())


def test_an_online_update_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match="observe"):
        OnlineFit(ensemble(), OnlineConfig(), torch.Generator()).update()


@pytest.mark.parametrize("options", [{"holdout": 0.0}, {"batch": 0}, {"weight_decay": ()}, {"lr": -1.0}])
def test_an_impossible_fit_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        FitConfig(**options)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ValueError, match="collect more"):
        fit(ensemble(), linear_world(1), nll, FitConfig(), torch.Generator())
