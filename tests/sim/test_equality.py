"""Ported tasks equal their originals: bit for bit running free, to 1e-9 when put to the original's state each step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

import sim

STEPS = 1000
PORTED = sorted(name for name, task in sim.TASKS.items() if not task.original.startswith("robot_cl/"))


class Gymnasium:
    """Original environment of gymnasium behind the few calls the comparison needs."""

    def __init__(self, original: str, seed: int):
        self.env = gymnasium.make(original)
        self.seed: int | None = seed

    def reset(self) -> np.ndarray:
        seed, self.seed = self.seed, None
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, float(reward), bool(terminated), bool(truncated)

    def settle_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Put the original to its own qpos, qvel, so that nothing but these carries over."""
        env: Any = self.env.unwrapped
        qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
        env.set_state(qpos, qvel)
        return qpos, qvel


class DmControl:
    def __init__(self, original: str, seed: int):
        suite = pytest.importorskip("dm_control.suite")
        domain, task = original.removeprefix("dm_control/").split("-")
        kwargs = {"environment_kwargs": {"flat_observation": True}, "task_kwargs": {"random": seed}}
        self.env = suite.load(domain, task, **kwargs)

    def reset(self) -> np.ndarray:
        return self.env.reset().observation["observations"]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        now = self.env.step(action.astype(np.float64))
        return now.observation["observations"], float(now.reward), now.discount == 0, now.last()

    def settle_state(self) -> tuple[np.ndarray, np.ndarray]:
        data = self.env.physics.data
        self.env.physics.forward()
        return data.qpos.copy(), data.qvel.copy()


def original_of(task: str, seed: int) -> Gymnasium | DmControl:
    name = sim.TASKS[task].original
    return DmControl(name, seed) if name.startswith("dm_control/") else Gymnasium(name, seed)


def actions(seed: int, act_dim: int, dtype: type) -> np.ndarray:
    """Half of them small, so that walkers stay up for a while."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(STEPS) % 60 < 30, 0.2, 1.0)[:, None]
    return (scale * rng.uniform(-1, 1, (STEPS, act_dim))).astype(dtype)


@pytest.mark.parametrize("task", PORTED)
def test_a_free_run_with_resets_equals_the_original_bit_for_bit(task: str) -> None:
    original, world = original_of(task, seed=7), sim.make(task, num_worlds=2, threads=2, seed=6)
    np.testing.assert_array_equal(original.reset(), world.reset(seed=6)[1])
    ends, total, length = 0, 0.0, 0
    # float32 as policies send them: the control cost is then summed in float32, as in the original
    for action in actions(0, world.interface.act_dim, np.float32):
        obs, reward, terminated, truncated = original.step(action)
        now, rewards, terminateds, truncateds, info = world.step(np.stack([-action, action]))
        total, length = total + reward, length + 1
        np.testing.assert_array_equal(info["final_obs"][1], obs)
        assert (rewards[1], terminateds[1], truncateds[1]) == (reward, terminated, truncated)
        assert (info["episode_return"][1], info["episode_length"][1]) == (total, length)
        if terminated or truncated:
            obs, ends, total, length = original.reset(), ends + 1, 0.0, 0
        np.testing.assert_array_equal(now[1], obs)
    assert ends > 0, "the run must go through a reset to prove anything about resets"


@pytest.mark.parametrize("task", PORTED)
def test_put_to_the_originals_state_each_step_agrees_to_1e_9(task: str) -> None:
    original, world = original_of(task, seed=3), sim.make(task)
    original.reset()
    seen_end = False
    for action in actions(1, world.interface.act_dim, np.float64):
        world.set_state(*(x[None] for x in original.settle_state()))
        obs, reward, terminated, truncated = original.step(action)
        _, rewards, terminateds, _, info = world.step(action[None])
        np.testing.assert_allclose(info["final_obs"][0], obs, rtol=0, atol=1e-9)
        assert abs(rewards[0] - reward) < 1e-9
        assert terminateds[0] == terminated
        if terminated or truncated:
            seen_end |= terminated
            original.reset()
    assert seen_end == (task in ("hopper", "walker2d", "ant"))


@pytest.mark.parametrize("task", PORTED)
def test_spaces_and_limits_are_the_originals(task: str) -> None:
    world = sim.make(task)
    original = original_of(task, seed=0)
    assert world.interface.obs_dim == original.reset().shape[0]
    if isinstance(original, Gymnasium):
        box: Any = original.env.action_space
        low, high, dt = box.low, box.high, original.env.unwrapped.dt  # type: ignore[attr-defined]
    else:
        spec = original.env.action_spec()
        low, high, dt = spec.minimum, spec.maximum, original.env.control_timestep()
    np.testing.assert_array_equal([c.low for c in world.interface.action], low)
    np.testing.assert_array_equal([c.high for c in world.interface.action], high)
    assert world.interface.control_dt == pytest.approx(dt, rel=1e-12)
