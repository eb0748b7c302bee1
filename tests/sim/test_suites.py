"""Existing suites behind one view: the suite's own numbers, flat observations, actions in [-1, 1]."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import sim
from sim import suites

ONE_EACH = {
    "gymnasium/Reacher-v5": 10,
    "gymnasium/Pendulum-v1": 3,
    "gymnasium_robotics/FetchReach-v4": 16,
    "gymnasium_robotics/PointMaze_UMaze-v3": 8,
    "dm_control/cartpole-swingup": 5,
    "metaworld/reach-v3": 39,
    "ogbench/antmaze-medium-v0": 29,
    "ogbench/cube-single-v0": 28,
}
# Its first observation holds a velocity that still knows the last episode's pose.
FORGETS_NOTHING = ("ogbench/cube-single-v0",)


@pytest.mark.parametrize("name", sorted(ONE_EACH))
def test_one_environment_of_each_suite_steps(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    env = sim.make_env(name)
    obs, _ = env.reset(seed=3)
    assert obs.shape == (ONE_EACH[name],) and obs.dtype == np.float64 and env.interface.obs_dim == obs.size
    total = 0.0
    rng = np.random.default_rng(0)
    for k in range(5):
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.interface.act_dim))
        total += reward
        assert np.isfinite(obs).all() and type(terminated) is bool and type(truncated) is bool
        assert info["episode_length"] == k + 1 and info["episode_return"] == pytest.approx(total)
    if name not in FORGETS_NOTHING:
        np.testing.assert_array_equal(env.reset(seed=3)[0], env.reset(seed=3)[0])
    env.close()


def test_a_dicts_channels_are_named_in_the_order_of_flattening() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = sim.make_env("gymnasium_robotics/FetchReach-v4")
    obs, _ = env.reset(seed=0)
    named = dict(zip((c.name for c in env.interface.obs), obs, strict=True))
    inner = env.inner.unwrapped._get_obs()  # type: ignore[union-attr, attr-defined]
    for key, part in inner.items():
        np.testing.assert_array_equal([named[f"{key}.{i}"] for i in range(part.size)], part)


def test_numbers_are_the_suites_own_and_actions_reach_it_in_its_range() -> None:
    ours, original = sim.make_env("gymnasium/Pendulum-v1"), gymnasium.make("Pendulum-v1")
    np.testing.assert_array_equal(ours.reset(seed=2)[0], original.reset(seed=2)[0])
    assert (ours.interface.action[0].low, ours.interface.action[0].high) == (-2.0, 2.0)
    for action in np.linspace(-1, 1, 30, dtype=np.float32):
        obs, reward, *_ = ours.step(np.array([action]))
        expected, expected_reward, *_ = original.step(np.array([2 * action]))
        np.testing.assert_array_equal(obs, expected)
        assert reward == float(expected_reward)


def test_a_dm_control_task_as_it_is_equals_our_port_of_it() -> None:
    pytest.importorskip("dm_control")
    as_is, ported = suites.make("dm_control/walker-walk"), sim.make_env("dm_control/walker-walk")
    assert isinstance(as_is, suites.SuiteEnv) and not isinstance(ported, suites.SuiteEnv)
    np.testing.assert_array_equal(as_is.reset(seed=4)[0], ported.reset(seed=4)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)):
        np.testing.assert_array_equal(as_is.step(action)[0], ported.step(action)[0])
    assert as_is.interface.control_dt == pytest.approx(ported.interface.control_dt)
    assert [c.name for c in as_is.interface.obs][14] == "height.0"


def test_a_dm_control_time_limit_truncates() -> None:
    pytest.importorskip("dm_control")
    env = suites.make("dm_control/cheetah-run")
    env.reset(seed=0)
    ends = [env.step(np.zeros(6))[2:4] for _ in range(1000)]
    assert not any(any(end) for end in ends[:-1]) and ends[-1] == (False, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gymnasium/Humanid-v5", "did you mean Humanoid-v5"),
        ("atari/Pong", "write SUITE/ID with a suite of gymnasium"),
        ("gymnasium/CartPole-v1", "only continuous actions"),
        ("gymnasium/CarRacing-v3", "no images|not installed|pip install"),
    ],
)
def test_a_mistake_is_explained(name: str, message: str) -> None:
    with pytest.raises((LookupError, ValueError, gymnasium.error.DependencyNotInstalled), match=message):
        suites.make(name)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(suites.importlib, "import_module", missing)
    with pytest.raises(LookupError, match=r'suite ogbench is not installed; run: pip install "robot-cl\[suites\]"'):
        suites.make("ogbench/cube-single-v0")


def test_suites_list_their_ids() -> None:
    assert "Humanoid-v5" in suites.names("gymnasium")
    with pytest.raises(LookupError, match="suites: gymnasium"):
        suites.names("atari")


def test_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        suites.obs_names("x", spaces.Box(0, 255, (64, 64, 3), np.uint8))
