import json
from pathlib import Path

import numpy as np
import pytest

from robot_cl.data.behaviours import (
    EMBEDDED,
    Behaviour,
    BehaviourCard,
    list_behaviours,
    load_behaviour,
    save_behaviour,
)


def arrays(squash_head: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"W0": (8, 4), "b0": (8,), "W1": (8, 8), "b1": (8,), "W2": (2, 8), "b2": (2,)}
    made = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    made |= {"obs_mean": rng.normal(size=4), "obs_var": rng.uniform(0.5, 2.0, 4)}
    head = {"log_std_W": rng.normal(size=(2, 8)), "log_std_b": rng.normal(size=2)}
    return made | ({k: v.astype(np.float32) for k, v in head.items()} if squash_head else {})


def by_hand(a: dict[str, np.ndarray], obs: np.ndarray, clip: float) -> tuple[np.ndarray, np.ndarray]:
    x = np.clip((obs - a["obs_mean"]) / np.sqrt(a["obs_var"] + 1e-8), -clip, clip)
    for i in range(2):
        x = np.maximum(x @ a[f"W{i}"].T.astype(float) + a[f"b{i}"], 0.0)
    return x @ a["W2"].T.astype(float) + a["b2"], x


def test_the_action_is_the_network_written_out_by_hand() -> None:
    a, obs = arrays(), np.random.default_rng(1).normal(size=(16, 4)) * 3
    policy = Behaviour(a, BehaviourCard("toy", obs_clip=1.5))
    assert policy.act(obs) == pytest.approx(np.tanh(by_hand(a, obs, 1.5)[0]), abs=1e-5)
    assert policy.act(obs).dtype == np.float32


def test_clip_squashes_by_clipping() -> None:
    a, obs = arrays(), np.random.default_rng(1).normal(size=(16, 4)) * 3
    policy = Behaviour(a, BehaviourCard("toy", squash="clip", obs_clip=None))
    assert policy.act(obs) == pytest.approx(np.clip(by_hand(a, obs, np.inf)[0], -1, 1), abs=1e-5)


def test_samples_have_the_mean_and_deviation_of_the_distribution() -> None:
    a, obs = arrays(), np.random.default_rng(1).normal(size=(1, 4))
    # Small, so that tanh saturates nothing; the deviations differ between the two actions.
    a |= {"W2": a["W2"] * 0.05, "log_std_W": a["log_std_W"] * 0.05, "log_std_b": np.array([-2.0, -0.7], np.float32)}
    policy = Behaviour(a, BehaviourCard("toy", obs_clip=10.0))
    draws = np.arctanh(policy.sample(np.repeat(obs, 40_000, 0), np.random.default_rng(2)).astype(float))
    mean, hidden = by_hand(a, obs, 10.0)
    std = np.exp(hidden @ a["log_std_W"].T + a["log_std_b"])
    assert draws.mean(0) == pytest.approx(mean[0], abs=0.015)
    assert draws.std(0) == pytest.approx(std[0], rel=0.03)


def test_a_behaviour_without_a_distribution_cannot_be_sampled() -> None:
    policy = Behaviour(arrays(squash_head=False), BehaviourCard("toy"))
    assert not policy.stochastic
    with pytest.raises(ValueError, match="no log_std to sample with; give a noise"):
        policy.sample(np.zeros((1, 4)), np.random.default_rng(0))


def test_a_saved_behaviour_loads_equal_with_its_card(tmp_path: Path) -> None:
    card = BehaviourCard("toy", task="hopper", activation="tanh", squash="clip", obs_clip=5.0, mean_return=812.5)
    saved = Behaviour(arrays(), card)
    save_behaviour(tmp_path / "toy.safetensors", saved)
    loaded = load_behaviour(tmp_path / "toy.safetensors")
    assert loaded.card == card and loaded.digest == saved.digest
    obs = np.random.default_rng(1).normal(size=(4, 4))
    assert np.array_equal(loaded.act(obs), saved.act(obs))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.safetensors"]


def test_the_digest_tells_weights_and_reading_apart() -> None:
    a = arrays()
    digest = Behaviour(a, BehaviourCard("toy")).digest
    assert digest == Behaviour(a, BehaviourCard("other name")).digest
    assert digest != Behaviour(a, BehaviourCard("toy", squash="clip")).digest
    assert digest != Behaviour(a | {"b2": a["b2"] + 1e-6}, BehaviourCard("toy")).digest


def test_an_npz_is_read_with_the_manifest_beside_it(tmp_path: Path) -> None:
    a = arrays()
    np.savez(tmp_path / "agent.npz", **a)
    with pytest.raises(ValueError, match="does not say its activation"):
        load_behaviour(tmp_path / "agent.npz")
    entry = {"file": "agent.npz", "env": "Hopper-v5", "hidden_activation": "relu"}
    entry |= {"squash_output": "tanh", "obs_clip": 2.0}
    (tmp_path / "manifest.json").write_text(json.dumps({"policies": [entry]}))
    policy = load_behaviour(tmp_path / "agent.npz")
    obs = np.random.default_rng(1).normal(size=(4, 4)) * 3
    assert policy.card.task == "hopper"
    assert policy.act(obs) == pytest.approx(np.tanh(by_hand(a, obs, 2.0)[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"W1": np.zeros((8, 7), np.float32)}, "W1 reads 7 numbers"),
        ({"b1": np.zeros(3, np.float32)}, "b1 does not fit"),
        ({"W0": np.full((8, 4), np.nan, np.float32)}, "layer 0 has NaN"),
        ({"obs_var": np.zeros(3)}, "obs_mean and obs_var"),
        ({"log_std_W": np.zeros((3, 8), np.float32)}, "log_std_W is"),
    ],
)
def test_arrays_that_form_no_network_are_refused(change: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Behaviour(arrays() | change, BehaviourCard("toy"))


def test_an_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="activation 'sine' is unknown; one of relu, tanh"):
        BehaviourCard("toy", activation="sine")


def test_an_unknown_name_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no behaviour 'no-such-thing'"):
        load_behaviour("no-such-thing")
    for content, sentence in ((b"", "not a readable"), (b"\x80\x04not a pickle", "not a readable")):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_behaviour(tmp_path / "x.safetensors")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="but not a behaviour"):
        load_behaviour(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("name", sorted(path.stem for path in EMBEDDED.glob("*.safetensors")))
def test_every_embedded_behaviour_fits_its_task(name: str) -> None:
    import sim

    policy = load_behaviour(name)
    assert list_behaviours()[name] == policy.card
    interface = sim.make(policy.card.task, threads=1).interface
    assert (policy.obs_dim, policy.act_dim) == (interface.obs_dim, interface.act_dim)


def test_a_published_agent_reaches_its_published_return(shared: Path) -> None:
    import gymnasium

    policy = load_behaviour(shared / "behaviours" / "hopper-ppo.npz")
    env = gymnasium.make(policy.card.notes["env"])
    obs, _ = env.reset(seed=1000)
    total, ended = 0.0, False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs[None])[0])
        total, ended = total + float(reward), terminated or truncated
    assert total == pytest.approx(policy.card.mean_return, rel=0.02)
