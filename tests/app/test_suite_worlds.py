"""Environments of other suites are evaluated as their own loop would, and tell of success."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robot_cl.evaluate import evaluate
from robot_cl.film import write_film
from robot_cl.scores import combine, success_text
from robot_cl.suite_worlds import SuiteWorlds, is_suite
from sim.env import make_env

PENDULUM = "gymnasium/InvertedPendulum-v5"


class Constant:
    """The same action always."""

    def __init__(self, obs_dim: int, act_dim: int):
        self.obs_dim, self.act_dim = obs_dim, act_dim

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.full((len(obs), self.act_dim), 0.3, dtype=np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def test_our_own_tasks_are_not_suites() -> None:
    assert is_suite(PENDULUM) and not is_suite("hopper") and not is_suite("Hopper-v5")


def test_returns_equal_the_environments_own_loop(tmp_path) -> None:  # type: ignore[no-untyped-def]
    name, policy = PENDULUM, Constant(4, 1)
    got = evaluate(policy, name, episodes=3, seed=7, worlds=2, film_seconds=0.2)
    expected = []
    for seed in got.seeds:
        env = make_env(name)
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(policy.act(np.zeros((1, 4)))[0])
            total, over = total + reward, terminated or truncated
        expected.append(total)
    assert got.returns == expected and all(got.fell) and got.success is None and got.score is None
    assert got.simulator.startswith(f"{name} mujoco 3.11.0 gymnasium ")
    assert got.film is not None and write_film(got.film, tmp_path / "a.mp4", 64, 48, "skeleton").frames >= 1


def telling(worlds: SuiteWorlds, said: dict[int, list[float]]) -> SuiteWorlds:
    """Environment i says at its steps whether it succeeds, as gymnasium-robotics and Meta-World do."""
    for i, values in said.items():
        source, original = iter(values), worlds._envs[i].step

        def step(action: np.ndarray, source=source, original=original):  # type: ignore[no-untyped-def]
            *rest, info = original(action)
            return (*rest, {**info, "is_success": next(source, 0.0)})

        worlds._envs[i].step = step
    return worlds


def test_success_once_is_success_of_the_episode() -> None:
    worlds = telling(SuiteWorlds(PENDULUM, 3), {0: [0.0, 1.0, 0.0], 1: [0.0, 0.0, 0.0]})
    worlds.reset(0)
    for _ in range(3):
        *_, info = worlds.step(np.zeros((3, 1)))
    assert info["success"].tolist() == [1, 0, -1]


def test_the_success_rate_has_wilsons_interval_or_one_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "robot_cl.evaluate.SuiteWorlds", lambda task, count: telling(SuiteWorlds(task, count), {0: [1.0], 1: [], 2: []})
    )
    got = evaluate(Constant(4, 1), PENDULUM, episodes=3)
    assert got.success == [True, False, False]
    assert success_text(combine("x", "x", None, [got])) == "33 % [6, 79]"
    lucky = replace(got, success=[True, True, True])
    assert success_text(combine("x", "x", None, [got, lucky])) == "67 % [0, 100]"  # 30 to 90 if of six networks


def test_shifts_are_for_our_own_tasks() -> None:
    with pytest.raises(ValueError, match="environment of a suite"):
        evaluate(Constant(4, 1), PENDULUM, shift="gravity0.5")
