import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig, wrap
from policies.networks import generators

D, A = 5, 2


def ensemble(**options: object) -> Ensemble:
    config = EnsembleConfig(**{"members": 4, "elites": 2, "hidden": (16, 16), "reward_hidden": (8,), **options})
    return Ensemble(D, A, config, generators(0, config.members))


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """obs, action, reward, next_obs with very different scales per dimension."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    obs = torch.randn(count, D, generator=rng) * scale + 2.0
    action = torch.rand(count, A, generator=rng) * 2 - 1
    delta = torch.randn(count, D, generator=rng) * scale * 0.1
    return obs, action, 50.0 * torch.randn(count, generator=rng), obs + delta


def test_a_routed_row_gets_exactly_its_members_answer() -> None:
    model = ensemble()
    model.measure(*rows(200))
    obs, action, _, _ = rows(37, seed=1)
    member = torch.randint(4, (37,), generator=torch.Generator().manual_seed(2))
    next_obs, reward = model.predict(obs, action, member)
    everyone = model(obs, action)
    at = torch.arange(37)
    torch.testing.assert_close(next_obs, obs + everyone.delta[member, at])
    torch.testing.assert_close(reward, everyone.reward[member, at])


@pytest.mark.parametrize("gaussian", [True, False])
def test_changes_are_those_of_the_whole_prediction(gaussian: bool) -> None:
    model = ensemble(gaussian=gaussian)
    model.measure(*rows(200))
    obs, action, _, _ = rows(9, seed=1)
    delta, log_var = model.changes(obs, action)
    whole = model(obs, action)
    torch.testing.assert_close(delta, whole.delta)
    assert (log_var is None) == (not gaussian)
    if log_var is not None:
        torch.testing.assert_close(log_var, whole.delta_log_var)


def test_routing_reaches_only_elites_and_evenly() -> None:
    model = ensemble()
    model.elites.copy_(torch.tensor([1, 3]))
    member = model.route(101, torch.Generator().manual_seed(0))
    counts = torch.bincount(member, minlength=4).tolist()
    assert counts[0] == counts[2] == 0
    assert sorted(counts[1::2]) == [50, 51]


def test_a_subset_answers_as_its_members_did() -> None:
    model = ensemble()
    model.measure(*rows(200))
    obs, action, _, _ = rows(9, seed=1)
    small = model.subset(torch.tensor([3, 1]))
    torch.testing.assert_close(small(obs, action).delta, model(obs, action).delta[[3, 1]])
    assert small.elites.tolist() == [0, 1]


def test_sampling_has_the_predicted_spread_in_the_datas_units() -> None:
    model = ensemble()
    model.measure(*rows(200))
    obs, action, _, _ = (x[:1].expand(40_000, *x.shape[1:]) for x in rows(1, seed=1))
    member = torch.ones(40_000, dtype=torch.int64)
    drawn, reward = model.predict(obs, action, member, torch.Generator().manual_seed(0))
    said = model(obs[:1], action[:1])
    assert said.delta_log_var is not None and said.reward_log_var is not None
    spread = torch.exp(0.5 * said.delta_log_var[1, 0]) * model.delta_scale
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.03, atol=0.0)
    torch.testing.assert_close(
        reward.std(), torch.exp(0.5 * said.reward_log_var[1, 0]) * model.reward_scale, rtol=0.03, atol=0.0
    )


def test_state_and_reward_are_normalised_apart_and_share_no_parameter() -> None:
    model = ensemble()
    obs, action, reward, next_obs = rows(500)
    model.measure(obs, action, reward, next_obs)
    torch.testing.assert_close(model.delta_scale, (next_obs - obs).std(0, unbiased=False))
    torch.testing.assert_close(model.reward_scale, reward.std(unbiased=False))
    model(obs, action).reward.sum().backward()
    assert all(p.grad is None for p in model.state_net.parameters())
    assert all(p.grad is not None for p in model.reward_net.parameters())


def test_log_variance_is_clamped_softly() -> None:
    model = ensemble()
    x = torch.tensor([-1e3, -5.0, 0.0, 1e3], requires_grad=True)
    y = model.soft_clamp(x)
    assert (y >= -10.0).all() and (y <= 0.5 + 1e-4).all()
    y[1:3].sum().backward()
    assert (x.grad[1:3] > 0).all()


def test_angles_are_continuous_across_pi_in_input_and_target() -> None:
    model = ensemble(angles=(1,))
    obs, action, reward, next_obs = rows(300)
    obs, next_obs = obs.clone(), next_obs.clone()
    obs[:, 1] = math.pi - 0.05
    next_obs[:, 1] = -math.pi + 0.05 + 0.01 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    model.measure(obs, action, reward, next_obs)
    assert abs(model.delta_norm.mean[1].item() - 0.1) < 0.01
    round_trip = obs.clone()
    round_trip[:, 1] += 2 * math.pi
    torch.testing.assert_close(model(obs, action).delta, model(round_trip, action).delta, rtol=1e-3, atol=1e-4)
    next_angle = model.predict(obs, action, torch.zeros(300, dtype=torch.int64))[0][:, 1]
    assert (next_angle.abs() <= math.pi).all()


def test_an_unseen_dimension_does_not_change_the_prediction() -> None:
    model = ensemble(unseen=(0, 2), angles=(1,))
    obs, action, reward, next_obs = rows(100)
    model.measure(obs, action, reward, next_obs)
    moved = obs.clone()
    moved[:, [0, 2]] += 100.0
    torch.testing.assert_close(model(obs, action).delta, model(moved, action).delta)
    assert model(obs, action).delta.shape == (4, 100, D)


def test_wrap_brings_an_angle_into_one_turn() -> None:
    angle = torch.linspace(-20, 20, 401)
    torch.testing.assert_close(torch.sin(wrap(angle)), torch.sin(angle), atol=1e-5, rtol=0)
    assert (wrap(angle).abs() <= math.pi + 1e-6).all()


def test_a_saved_ensemble_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = ensemble(angles=(1,), gaussian=False)
    model.measure(*rows(100))
    model.elites.copy_(torch.tensor([1, 3]))
    model.save(tmp_path / "model.safetensors")
    back = Ensemble.load(tmp_path / "model.safetensors")
    assert back.config == model.config
    for (name, a), (_, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    obs, action, _, _ = rows(5)
    assert torch.equal(model(obs, action).delta, back(obs, action).delta)


def test_loading_what_is_no_ensemble_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(OSError, match="no dynamics model"):
        Ensemble.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="holds no dynamics model"):
        Ensemble.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"certainly no tensors in here")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        Ensemble.load(tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("told", "change", "message"),
    [
        ({"config": {"hidden": [10**6, 10**6]}}, {}, "cannot be in"),  # before a terabyte is asked for
        ({"config": {"members": 10**9, "elites": 1}}, {}, "cannot be in"),
        ({"config": {"depth": 3}}, {}, "unexpected keyword argument 'depth'"),
        ({"obs_dim": 7}, {}, "does not hold the model"),
        ({"obs_dim": "many"}, {}, "does not hold the model"),
        ({}, {"delta_norm.var": torch.nan}, "has NaN in 'delta_norm.var'"),
        ({}, {"state_net.layers.0.weight": torch.inf}, "infinity in 'state_net.layers.0.weight'"),
        ({}, {"elites": 9}, "elites"),
        ({}, {"elites": None}, "does not hold the model"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(told: dict, change: dict, message: str, tmp_path: Path) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    ensemble().save(path)
    with safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()["robot_cl.ensemble"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name].view(-1)[0] = value
    about |= {**told, "config": about["config"] | told.get("config", {})}
    save_file(tensors, str(path), {"robot_cl.ensemble": json.dumps(about)})
    with pytest.raises(ValueError, match=r"\w") as refused:
        Ensemble.load(path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elites": 9}, "elites"),
        ({"activation": "swoosh"}, "swoosh"),
        ({"log_var_min": 1.0}, "log_var_min"),
        ({"angles": (7,)}, "dimensions"),
    ],
)
def test_an_impossible_shape_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensemble(**options)
