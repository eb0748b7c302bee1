"""Stable-Baselines3 as a baseline: its policy here is its policy there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC

from robot_cl.checkpoint import load_policy
from robot_cl.learners.sb3 import SB3, SB3Config
from robot_cl.learners.sb3_arguments import arguments
from robot_cl.metrics import read_metrics
from robot_cl.train import TrainConfig, resume, train, verify

SMALL = {"policy_kwargs": {"net_arch": [16, 16]}}
CASES = {
    "PPO": {"n_steps": 16, "batch_size": 16, "n_epochs": 1} | SMALL,
    "A2C": {"policy_kwargs": {"net_arch": [16], "activation_fn": "relu"}},
    "SAC": {"learning_starts": 16, "batch_size": 8, "buffer_size": 500} | SMALL,
    "TD3": {"learning_starts": 16, "batch_size": 8, "buffer_size": 500} | SMALL,
}


@pytest.mark.parametrize("algorithm", CASES)
def test_the_converted_policy_acts_as_the_original(algorithm):
    config = SB3Config(algorithm, num_envs=2, arguments=CASES[algorithm])
    agent = SB3(config, "hopper", seed=0, threads=1, device="cpu")
    agent.learn(40, lambda step, values: None, every=10)
    obs = np.random.default_rng(0).normal(size=(20, 11)) * 3
    theirs, _ = agent.model.predict(agent.env.normalize_obs(obs), deterministic=True)
    assert agent.env.obs_rms.count > 40
    ours = agent.actor().mode(torch.from_numpy(obs.astype(np.float32)))[0].detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_run_of_sb3_leaves_a_folder_like_any_other_with_all_seeds(tmp_path):
    config = TrainConfig(
        task="hopper", online_steps=64, seeds=2, threads=1, eval_every=32, eval_episodes=1, out=str(tmp_path),
        device="cpu", tensorboard=False,
    )  # fmt: skip
    run = train(config, SB3Config("PPO", num_envs=2, arguments=CASES["PPO"]))
    read = read_metrics(run)
    assert {0, 1} == {int(m) for m, x in zip(read["member"], read["eval_return"], strict=True) if not np.isnan(x)}
    obs = np.random.default_rng(0).normal(size=(3, 11))
    assert not np.allclose(load_policy(run, 0).act(obs), load_policy(run, 1).act(obs))
    for again in (resume, verify):
        with pytest.raises(ValueError, match="neither resumed nor verified"):
            again(run)


@pytest.mark.parametrize(
    ("algorithm", "given", "match"),
    [
        ("PPO", {"n_steps": 1, "batch_size": 1}, "does not take these arguments: `batch_size` must be greater"),
        ("PPO", {"learning_rate": "fast"}, "learning_rate expects a number, got 'fast'"),
        ("PPO", {"gamma": [0.99]}, "gamma expects a number"),
        ("SAC", {"ent_coef": "much", "buffer_size": 500}, "does not take these arguments: could not convert"),
        ("PPO", {"policy_kwargs": {"net_arch": []}}, "no activations has no counterpart"),
        ("PPO", {"use_sde": True}, "use_sde"),
        ("SAC", {"use_sde": True, "buffer_size": 500}, "no counterpart"),
    ],
)
def test_what_cannot_be_trained_or_kept_is_refused_before_anything_is_written(algorithm, given, match, tmp_path):
    config = TrainConfig(task="hopper", online_steps=64, threads=1, eval_every=0, out=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=match):
        train(config, SB3Config(algorithm, num_envs=1, arguments=given))
    with pytest.raises(ValueError, match="leave out init_from"):
        train(replace(config, init_from="somewhere"), SB3Config(algorithm))
    assert not list(tmp_path.iterdir())


def test_unknown_algorithms_are_refused():
    with pytest.raises(ValueError, match="PPO, A2C, SAC"):
        SB3Config("PPPO")


@pytest.mark.parametrize(
    ("algorithm", "given", "match"),
    [
        (PPO, {"lr": 1.0}, "no argument 'lr'"),
        (PPO, {"policy_kwargs": {"hidden": [8]}}, r"no argument 'policy_kwargs\.hidden'"),
        (PPO, {"seed": 1}, "no argument 'seed'"),
        (PPO, {"n_epochs": 1.5}, "n_epochs expects a whole number, got 1.5"),
        (PPO, {"n_steps": True}, "n_steps expects a whole number, got True"),
        (PPO, {"clip_range": None}, "clip_range expects a number, got None"),
        (PPO, {"normalize_advantage": 1}, "normalize_advantage expects true or false"),
        (PPO, {"policy_kwargs": 3}, "policy_kwargs expects a map"),
        (PPO, {"policy_kwargs": {"net_arch": [8, "x"]}}, r"net_arch expects a list \(each a whole number\) or a map"),
        (PPO, {"policy_kwargs": {"net_arch": {"pi": [8.5]}}}, "net_arch expects a list"),
        (PPO, {"policy_kwargs": {"activation_fn": "rleu"}}, "tanh, relu"),
        (PPO, {"rollout_buffer_class": "x"}, "no option can name"),
        (SAC, {"train_freq": [1, 2]}, r"train_freq expects a whole number or \[a whole number, text\]"),
        (SAC, {"train_freq": [1, "step", "step"]}, "train_freq expects"),
    ],
)
def test_arguments_that_would_fail_in_training_are_refused_by_name(algorithm, given, match):
    with pytest.raises((ValueError, LookupError), match=match):
        arguments(algorithm, given)


def test_what_yaml_can_write_becomes_what_the_constructor_takes():
    given = {"buffer_size": 2e5, "learning_rate": 1, "train_freq": [1, "step"], "ent_coef": "auto_0.1"}
    taken = arguments(SAC, given | {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [16]}, "activation_fn": "silu"}})
    assert isinstance(taken["buffer_size"], int) and taken["buffer_size"] == 200_000
    assert taken["train_freq"] == (1, "step") and taken["ent_coef"] == "auto_0.1" and taken["learning_rate"] == 1
    assert taken["policy_kwargs"] == {"net_arch": {"pi": [8], "qf": [16]}, "activation_fn": torch.nn.SiLU}
    assert arguments(PPO, {"target_kl": None, "policy_kwargs": None}) == {"target_kl": None, "policy_kwargs": None}
