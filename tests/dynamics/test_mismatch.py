from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from dynamics import mismatch
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import nll
from policies.networks import generators

D, A = 3, 1


def ensemble(gaussian: bool = True, members: int = 2) -> Ensemble:
    config = EnsembleConfig(members, 1, (16,), (8,), gaussian=gaussian)
    return Ensemble(D, A, config, generators(0, members))


def walk(count: int = 400, seed: int = 0) -> SimpleNamespace:
    """One long episode of a stable linear system, as transitions."""
    rng = torch.Generator().manual_seed(seed)
    action, obs = torch.rand(count, A, generator=rng) * 2 - 1, torch.zeros(count + 1, D)
    matrix = torch.tensor([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.0], [0.0, 0.1, 0.8]])
    for t in range(count):
        obs[t + 1] = obs[t] @ matrix.T + 0.5 * action[t]
    zero = torch.zeros(count)
    return SimpleNamespace(obs=obs[:-1], action=action, reward=zero, next_obs=obs[1:], terminated=zero)


def pieces(data: SimpleNamespace, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts = range(0, len(data.obs) - steps, steps)
    obs = torch.stack([torch.cat([data.obs[s : s + steps], data.next_obs[s + steps - 1 : s + steps]]) for s in starts])
    return obs, torch.stack([data.action[s : s + steps] for s in starts])


def fitted(steps: int = 300) -> Ensemble:
    model = ensemble()
    fit(model, walk(), nll, FitConfig(batch=64, lr=3e-3, max_steps=steps), torch.Generator().manual_seed(0))
    return model


def test_correlations_are_those_of_scipy_ties_included() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=30).astype(float), rng.normal(size=30)
    y += 0.5 * x
    assert mismatch.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert mismatch.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    np.testing.assert_allclose(mismatch.ranks(x), scipy.stats.rankdata(x) - 1)
    assert np.isnan(mismatch.pearson(np.ones(5), y[:5]))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        x = rng.normal(size=40)
        y = 0.6 * x + 0.8 * rng.normal(size=40)  # correlation 0.6
        got = mismatch.with_interval(mismatch.pearson, x, y, rng, 200)
        inside += got.low <= 0.6 <= got.high
    assert 84 <= inside <= 100


def test_open_loop_error_of_one_step_is_the_one_step_error_and_grows_with_the_horizon() -> None:
    model, data = fitted(), walk(seed=1)
    obs, action = pieces(data, 20)
    one = mismatch.open_loop_error(model, obs, action, 1)
    delta, _ = model.means(obs[:, 0], action[:, 0], with_reward=False)
    by_hand = ((obs[:, 0] + delta - obs[:, 1]) / obs.flatten(0, 1).std(0)).square().mean((-1, -2))
    torch.testing.assert_close(one, by_hand.detach())
    assert (mismatch.open_loop_error(model, obs, action, 20) > one).all()
    with pytest.raises(ValueError, match="20 steps"):
        mismatch.open_loop_error(model, obs, action, 21)


def test_all_scores_improve_with_fitting() -> None:
    data = walk(seed=1)

    def all_scores(model: Ensemble) -> dict[str, torch.Tensor]:
        return mismatch.scores(model, data, pieces(data, 20), lambda s: s[:, 0] ** 2 + s[:, 1])

    before, after = all_scores(fitted(10)), all_scores(fitted(400))
    assert set(before) == set(mismatch.METRICS)
    assert all((after[k] < before[k]).all() and after[k].shape == (2,) for k in before)


def test_a_deterministic_models_likelihood_is_that_of_its_residuals() -> None:
    model, data = ensemble(gaussian=False), walk()
    model.measure(data.obs, data.action, data.reward, data.next_obs)
    z = (model.means(data.obs, data.action)[0] - (data.next_obs - data.obs)) / model.delta_scale
    var = z.var(1)
    by_hand = 0.5 * (z.square().mean(1) / var + var.log()).mean(-1)
    torch.testing.assert_close(mismatch.one_step_errors(model, data)["nll"], by_hand.detach())


def test_the_report_finds_the_metric_that_ranks_by_return() -> None:
    rng = np.random.default_rng(0)
    returns = rng.normal(size=24)
    metrics = {"noise": rng.normal(size=24), "good": np.exp(-returns), "bad": returns + 0.1 * rng.normal(size=24)}
    slices = {"all": np.ones(24, bool), "half": np.arange(24) < 12}
    rows = mismatch.report(metrics, returns, slices, rng)
    assert len(rows) == 6
    found = {(r.slice, r.metric): r for r in rows}
    assert mismatch.best_metric(rows, "all") == mismatch.best_metric(rows, "half") == "good"
    assert found["all", "good"].spearman.value == pytest.approx(-1.0)
    assert found["all", "good"].regret == 0.0
    assert found["all", "bad"].spearman.low > 0.8 and found["all", "bad"].regret > 1.0
    with pytest.raises(LookupError, match="half"):
        mismatch.best_metric(rows, "none")


def test_few_models_are_refused_and_an_infinite_error_ranks_last() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="12"):
        mismatch.report({"m": np.ones(11)}, np.ones(11), {"all": np.ones(11, bool)}, rng)
    error = np.arange(12.0)
    error[11] = np.inf
    rows = mismatch.report({"m": error}, -np.arange(12.0), {"all": np.ones(12, bool)}, rng)
    assert rows[0].spearman.value == pytest.approx(-1.0)


def test_stopping_by_error_costs_the_return_between_the_two_epochs() -> None:
    assert mismatch.epoch_regret(np.array([3.0, 1.0, 2.0]), np.array([5.0, 6.0, 9.0])) == (1, 2, 3.0)
    diverged = np.array([np.nan, 1.0, np.nan])
    assert mismatch.epoch_regret(diverged, np.array([5.0, 6.0, 9.0])) == (1, 2, 3.0)


def test_exploitation_gap_is_predicted_minus_real() -> None:
    assert mismatch.exploitation_gap(np.array([3.0, 5.0]), np.array([1.0, 1.0])) == 3.0


def test_the_evolution_strategy_finds_the_minimum_of_a_skewed_bowl() -> None:
    scale, centre = np.array([1.0, 10.0, 0.1, 3.0]), np.array([1.0, -2.0, 0.5, 0.0])
    best, cost = mismatch.cma_es(
        lambda x: float((scale * (x - centre)) @ (x - centre)), np.zeros(4), 0.5, 150, np.random.default_rng(0)
    )
    np.testing.assert_allclose(best, centre, atol=0.02)
    assert cost < 1e-4


def test_an_attack_lowers_the_return_within_the_likelihood_and_gives_the_model_back() -> None:
    model, data = fitted(), walk(seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def nll_of(m: Ensemble) -> float:
        return float(mismatch.one_step_errors(m, data)["nll"].mean())

    def return_of(m: Ensemble) -> float:  # stands for a planner that trusts the model's first change
        return float(m.means(data.obs[:20], data.action[:20])[0][..., 0].mean().detach())

    gap = mismatch.adversarial_gap(model, nll_of, return_of, np.random.default_rng(0), generations=10)
    assert gap.after < gap.before
    assert gap.nll_after <= gap.nll_before + 0.05 * abs(gap.nll_before) + 1e-6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
