import io
import os
import pickle
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from robot_cl.data.sb3_agent import is_sb3_zip, load_sb3
from robot_cl.data.statistics_pickle import read_statistics

# Pendulum acts in [-2, 2] and sees 3 numbers: limits other than ±1 must be read, not assumed.
OBS = (np.random.default_rng(0).normal(size=(32, 3)) * 3).astype(np.float32)


def pendulum() -> DummyVecEnv:
    return DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh, torch.nn.SiLU])
@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "SAC", "TD3"])
def test_the_behaviour_acts_as_the_agent_does(
    tmp_path: Path, algorithm: str, activation: type[torch.nn.Module]
) -> None:
    options = {"net_arch": [12, 8], "activation_fn": activation}
    agent = getattr(sb3, algorithm)("MlpPolicy", pendulum(), policy_kwargs=options, seed=1)
    agent.save(tmp_path / "agent.zip")
    policy = load_sb3(tmp_path / "agent.zip")
    expected, _ = agent.predict(OBS, deterministic=True)
    assert policy.act(OBS) == pytest.approx(expected / 2.0, abs=1e-5)
    assert policy.stochastic == (algorithm != "TD3")


def test_samples_of_an_agent_have_its_deviation_in_action_units(tmp_path: Path) -> None:
    agent = sb3.PPO("MlpPolicy", pendulum(), policy_kwargs={"net_arch": [8], "log_std_init": -1.5}, seed=1)
    agent.save(tmp_path / "agent.zip")
    policy = load_sb3(tmp_path / "agent.zip")
    obs = np.repeat(OBS[:1] * 0, 20_000, 0)
    # exp(-1.5) in the pendulum's newton-metres is half of that in [-1, 1].
    assert policy.sample(obs, np.random.default_rng(0)).std() == pytest.approx(np.exp(-1.5) / 2.0, rel=0.03)


def test_statistics_beside_the_agent_normalise_its_observations(tmp_path: Path) -> None:
    env = VecNormalize(pendulum(), clip_obs=2.0)
    agent = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=1)
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    env.training = False
    expected, _ = agent.predict(env.normalize_obs(OBS), deterministic=True)
    policy = load_sb3(tmp_path / "agent.zip")
    assert policy.card.notes["statistics"] == "vec_normalize.pkl" and policy.card.obs_clip == 2.0
    assert policy.act(OBS) == pytest.approx(expected / 2.0, abs=1e-5)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def agent_zip(path: Path, weights: bytes, settings: bytes = b"{}") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", weights)
        archive.writestr("data", settings)
    return path


def saved(weights: object) -> bytes:
    stream = io.BytesIO()
    torch.save(weights, stream)
    return stream.getvalue()


def test_code_hidden_in_weights_is_refused_and_never_runs(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "exploded")
    for weights in (pickle.dumps(bomb), saved({"action_net.weight": bomb})):
        with pytest.raises(ValueError, match="not plain tensors"):
            load_sb3(agent_zip(tmp_path / "agent.zip", weights))
    assert not (tmp_path / "exploded").exists()


def test_code_hidden_in_the_settings_never_runs(tmp_path: Path) -> None:
    import base64
    import json

    agent = sb3.PPO("MlpPolicy", pendulum(), seed=1)
    agent.save(tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as archive:
        settings, weights = json.loads(archive.read("data")), archive.read("policy.pth")
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "exploded"))).decode()
    for value in settings.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = bomb
    policy = load_sb3(agent_zip(tmp_path / "agent.zip", weights, json.dumps(settings).encode()))
    assert policy.obs_dim == 3 and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda p: pickle.dumps(Bomb(p)), id="a command"),
        pytest.param(lambda p: pickle.dumps({"obs_rms": Bomb(p)}), id="a command inside"),
        pytest.param(lambda p: b"cbuiltins\neval\n(S'open(\"" + str(p).encode() + b"\",\"w\")'\ntR.", id="eval"),
        pytest.param(lambda p: b"\x80\x04\x95", id="cut off"),
        pytest.param(lambda p: b"", id="empty"),
        pytest.param(lambda p: pickle.dumps([1, 2]), id="a list"),
        pytest.param(lambda p: pickle.dumps(np.zeros(3)), id="an array"),
    ],
)
def test_statistics_that_are_something_else_are_refused_and_never_run(tmp_path: Path, content) -> None:
    target = tmp_path / "exploded"
    (tmp_path / "vec_normalize.pkl").write_bytes(content(target))
    with pytest.raises(ValueError, match=r"vec_normalize\.pkl (is not plain|is damaged|has no)") as caught:
        read_statistics(tmp_path / "vec_normalize.pkl")
    assert not target.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"features_extractor.cnn.0.weight": torch.zeros(1)}, "only MlpPolicy"),
        ({"something.weight": torch.zeros(2, 2)}, "no actor of a known form"),
        ({"action_net.weight": torch.zeros(1, 3), "action_net.bias": torch.zeros(1)}, "does not act in a Box"),
        ({"actor.mu.0.weight": torch.zeros(1, 3), "actor.latent_pi.0.weight": torch.zeros(3, 3)}, "gSDE"),
    ],
)
def test_an_agent_of_another_kind_is_refused(tmp_path: Path, weights: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_sb3(agent_zip(tmp_path / "agent.zip", saved(weights)))


def test_a_zip_is_told_by_its_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.zip.npz", x=np.zeros(3))
    (tmp_path / "b.zip").write_bytes(b"no zip")
    assert is_sb3_zip(agent_zip(tmp_path / "c.bin", b""))
    assert not is_sb3_zip(tmp_path / "a.zip.npz") and not is_sb3_zip(tmp_path / "b.zip")
    with pytest.raises(ValueError, match=r"no policy\.pth"):
        load_sb3(tmp_path / "a.zip.npz")
    with pytest.raises(ValueError, match="not a whole"):
        load_sb3(tmp_path / "b.zip")
