"""A world seen as gymnasium's Env and VectorEnv and as Stable-Baselines3's VecEnv."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim
import sim.env  # registers the ids
from sim.registration import ENV_IDS


@pytest.mark.parametrize("task", sorted(sim.TASKS))
def test_gymnasiums_checker_accepts_every_task(task: str) -> None:
    check_env(sim.make_env(task), skip_render_check=True)


@pytest.mark.parametrize("name", sorted(ENV_IDS))
def test_every_task_is_registered_with_its_time_limit(name: str) -> None:
    env = gymnasium.make(f"robot_cl/{name}")
    assert env.spec is not None and env.spec.max_episode_steps == sim.TASKS[ENV_IDS[name]].time_limit
    assert env.reset(seed=0)[0].shape == env.observation_space.shape
    assert sorted(ENV_IDS.values()) == sorted(sim.TASKS)


@pytest.mark.parametrize("name", ["Hopper", "Ant"])
def test_our_env_equals_the_original_over_resets(name: str) -> None:
    ours, original = gymnasium.make(f"robot_cl/{name}-v0"), gymnasium.make(f"{name}-v5")
    rng, ends, seed = np.random.default_rng(0), 0, 5
    np.testing.assert_array_equal(ours.reset(seed=seed)[0], original.reset(seed=seed)[0])
    for k in range(250):
        action = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        (obs, *mine, info), (expected, *theirs, _) = ours.step(action), original.step(action)
        np.testing.assert_array_equal(obs, expected)
        assert mine == theirs
        if mine[1] or mine[2]:
            ends, again = ends + 1, 77 if ends == 1 else None  # one reset in between is seeded
            assert info["episode_length"] <= k + 1
            np.testing.assert_array_equal(ours.reset(seed=again)[0], original.reset(seed=again)[0])
    assert ends >= 2


def test_a_reset_in_the_middle_of_an_episode_draws_a_new_start() -> None:
    env = sim.make_env("hopper")
    first, _ = env.reset(seed=1)
    env.step(np.zeros(3, dtype=np.float32))
    second, _ = env.reset()
    assert (first != second).all()


def test_the_last_picture_of_an_episode_is_of_its_end() -> None:
    env = sim.make_env("hopper", render_mode="rgb_array")
    env.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(np.ones(3, dtype=np.float32))
        over = terminated or truncated
    end = env.render()
    env.reset()
    start = env.render()
    env.close()
    assert end is not None and start is not None and (end != start).any()


def test_the_vector_env_resets_in_the_same_step_like_gymnasiums() -> None:
    modes = gymnasium.vector.AutoresetMode
    ours = gymnasium.make_vec("robot_cl/Hopper-v0", num_envs=3)
    kwargs = {"autoreset_mode": modes.SAME_STEP}
    theirs = gymnasium.make_vec("Hopper-v5", num_envs=3, vectorization_mode="sync", vector_kwargs=kwargs)
    assert ours.metadata["autoreset_mode"] == modes.SAME_STEP
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(80):
        action = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        (*mine, info), (*expected, their_info) = ours.step(action), theirs.step(action)
        for a, b in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert ("final_obs" in info) == ("final_obs" in their_info)
        if "final_obs" in info:
            ends += 1
            np.testing.assert_array_equal(info["_final_obs"], their_info["_final_obs"])
            for a, b in zip(info["final_obs"], their_info["final_obs"], strict=True):
                assert (a is None) == (b is None) and (a is None or (a == b).all())
    assert ends > 0


def test_a_row_of_a_vector_env_that_gets_no_seed_goes_on() -> None:
    """As gymnasium's own do: its generator draws the next start, whatever the other rows are told."""
    mixed, plain = (sim.env.make_vector_env("hopper", 2, shift="noise0.1+gravity0.9") for _ in range(2))
    for env in (mixed, plain):
        env.reset(seed=3)
    action = np.ones((2, 3), dtype=np.float32)
    starts, onward = mixed.reset(seed=[9, None])[0], plain.reset()[0]
    seeded = sim.env.make_vector_env("hopper", 2, shift="noise0.1+gravity0.9").reset(seed=[9, 77])[0]
    for found, other in ((starts, [seeded[0], onward[1]]), (mixed.step(action)[0][1:], [plain.step(action)[0][1]])):
        np.testing.assert_array_equal(found, np.stack(other))
    assert (starts[0] != onward[0]).any()


def test_gymnasium_may_shorten_a_vector_envs_episodes() -> None:
    env = gymnasium.make_vec("robot_cl/HalfCheetah-v0", num_envs=2, max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3].all() for _ in range(6)]
    assert ends == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("given", "ends_at"),
    [
        ({}, 200),
        ({"max_episode_steps": 260}, 260),
        ({"max_episode_steps": 7}, 7),
        ({"max_episode_steps": -1}, None),
        ({"action_repeat": 2}, 100),
    ],
)
def test_gymnasium_may_shorten_and_lengthen_an_envs_episodes(given: dict[str, int], ends_at: int | None) -> None:
    env = gymnasium.make("robot_cl/ArmReach-v0", **given)
    for _ in range(2):  # the second episode is as long as the first
        env.reset(seed=0)
        step = next((k for k in range(1, 300) if env.step(np.zeros(env.action_space.shape, np.float32))[3]), None)
        assert step == ends_at
    assert gymnasium.make("robot_cl/ArmReach-v0").unwrapped.spec.id == "robot_cl/ArmReach-v0"


def test_the_sb3_view_equals_sb3s_own_vectorisation_of_the_original() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    ours = sim.make_sb3_env("hopper", 3)
    theirs = DummyVecEnv([lambda: Monitor(gymnasium.make("Hopper-v5"))] * 3)
    ours.seed(11)
    theirs.seed(11)
    np.testing.assert_array_equal(ours.reset(), theirs.reset().astype(np.float32))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(80):
        action = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        obs, reward, done, infos = ours.step(action)
        their_obs, their_reward, their_done, their_infos = theirs.step(action)
        np.testing.assert_array_equal(obs, their_obs.astype(np.float32))
        np.testing.assert_array_equal(reward, their_reward)
        np.testing.assert_array_equal(done, their_done)
        for mine, expected in zip(infos, their_infos, strict=True):
            assert ("episode" in mine) == ("episode" in expected)
            if "episode" in mine:
                ends += 1
                last = expected["terminal_observation"].astype(np.float32)
                np.testing.assert_array_equal(mine["terminal_observation"], last)
                assert mine["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
                assert mine["episode"]["l"] == expected["episode"]["l"]
                assert mine["episode"]["r"] == pytest.approx(expected["episode"]["r"], abs=1e-5)
    assert ends > 0


def test_sb3_trains_on_it() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    agent = sb3.PPO("MlpPolicy", sim.make_sb3_env("hopper", 4), n_steps=32, batch_size=64, device="cpu", seed=0)
    agent.learn(128)
    assert agent.num_timesteps == 128


def test_shift_and_repeat_reach_the_world_through_gymnasium() -> None:
    env = gymnasium.make("robot_cl/Hopper-v0", shift="gravity0.5", action_repeat=2)
    world = env.unwrapped.world  # type: ignore[attr-defined]
    assert world.disturbance.now[0].gravity == 0.5 and world.interface.control_dt == pytest.approx(0.016)
