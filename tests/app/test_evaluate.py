"""An evaluation is what a plain Gymnasium loop gives, whatever plays it, and says what it does not know."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest

import sim
from robot_cl import stats
from robot_cl.data.behaviours import list_behaviours, load_behaviour
from robot_cl.evaluate import evaluate, task_of
from sim.spec import Interface


class Linear:
    """Actions from a fixed random matrix: on the hopper it falls after a few steps, at once or later."""

    def __init__(self, obs_dim: int, act_dim: int, seed: int = 0):
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.weight = np.random.default_rng(seed).normal(size=(obs_dim, act_dim)).astype(np.float32)
        self.rows_seen: list[int] = []

    def act(self, obs: np.ndarray) -> np.ndarray:
        assert obs.dtype == np.float32
        self.rows_seen.append(len(obs))
        return np.tanh(obs @ self.weight)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


class Counting(Linear):
    """Remembers how often it has acted in each row since the last reset, and acts by that."""

    remembers = True

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.count = 0

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.rows_seen.append(len(obs))
        self.count += 1
        return np.full((len(obs), self.act_dim), np.sin(self.count), dtype=np.float32)


def plain_loop(env_id: str, policy: Linear, seeds: list[int]) -> tuple[list[float], list[int]]:
    """The loop of every tutorial."""
    env = gymnasium.make(env_id)
    returns, lengths = [], []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        total, steps, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs.astype(np.float32)[None])[0])
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    return returns, lengths


def test_returns_equal_a_plain_gymnasium_loop_bit_for_bit() -> None:
    policy = Linear(11, 3)
    got = evaluate(policy, "hopper", episodes=7, seed=1000)
    assert (got.returns, got.lengths) == plain_loop("Hopper-v5", policy, got.seeds)
    assert got.seeds == list(range(1000, 1007)) and len(set(got.lengths)) > 1 and all(got.fell)


def test_a_whole_chaotic_episode_equals_a_plain_gymnasium_loop_bit_for_bit() -> None:
    name = next(name for name, card in list_behaviours().items() if card.task == "halfcheetah")
    got = evaluate(name, episodes=2, seed=5)
    assert (got.returns, got.lengths) == plain_loop("HalfCheetah-v5", load_behaviour(name), [5, 6])  # type: ignore[arg-type]
    assert got.lengths == [1000, 1000] and not any(got.fell)


@pytest.mark.parametrize(("worlds", "threads"), [(1, 1), (3, 1), (3, 2), (64, 2)])
def test_the_number_of_worlds_and_threads_changes_nothing(worlds: int, threads: int) -> None:
    policy = Linear(11, 3, seed=2)
    alone = evaluate(policy, "hopper", episodes=7, seed=30, worlds=7, threads=2)
    assert evaluate(policy, "hopper", episodes=7, seed=30, worlds=worlds, threads=threads).returns == alone.returns


def test_an_episode_does_not_depend_on_the_others() -> None:
    policy = Linear(11, 3)
    many, one = evaluate(policy, "hopper", episodes=5, seed=10), evaluate(policy, "hopper", episodes=1, seed=13)
    assert one.returns == many.returns[3:4]


def test_a_policy_that_remembers_sees_all_rows_at_once() -> None:
    policy = Counting(11, 3)
    got = evaluate(policy, "hopper", episodes=4, seed=0)
    assert set(policy.rows_seen) == {4}
    assert got.returns == evaluate(Counting(11, 3), "hopper", episodes=4, seed=0, worlds=2).returns


def test_statistics_are_those_of_the_returns() -> None:
    got = evaluate(Linear(11, 3), "hopper", episodes=8, seed=0)
    assert got.mean == pytest.approx(np.mean(got.returns))
    assert got.iqm == pytest.approx(np.sort(got.returns)[2:6].mean())
    ends = stats.stratified_bootstrap(np.array(got.returns), np.random.default_rng(0), stats.mean)
    assert got.mean_interval == (ends.low, ends.high)
    assert got.score == pytest.approx(100 * (got.mean + 20.272305) / (3234.3 + 20.272305))
    assert got.reference is not None and "not D4RL" in got.reference


def test_one_episode_has_no_interval() -> None:
    got = evaluate(Linear(11, 3), "hopper", episodes=1)
    assert got.mean_interval is None and got.iqm_interval is None and got.mean == got.returns[0]


def test_a_shift_changes_the_world_and_is_recorded() -> None:
    policy = Linear(11, 3)
    plain, light = evaluate(policy, "hopper", 3), evaluate(policy, "hopper", 3, shift="gravity0.3")
    assert light.shift == "gravity0.3" and plain.shift is None
    assert light.returns != plain.returns
    assert evaluate(policy, "hopper", 3, shift="none").returns == plain.returns


def test_the_film_is_of_the_median_episode_and_ends_with_it() -> None:
    policy = Linear(11, 3)
    got = evaluate(policy, "hopper", episodes=5, seed=10, film_seconds=100.0)
    assert got.film is not None
    middle = got.seeds.index(got.film.seed)
    assert got.film.total == got.returns[middle] == sorted(got.returns)[2]
    every = round(got.film.dt / 0.008)
    assert len(got.film.qpos) == -(-got.lengths[middle] // every)
    world = sim.make("hopper", seed=got.film.seed)
    np.testing.assert_array_equal(got.film.qpos[0], world.get_qpos()[0])
    assert evaluate(policy, "hopper", 2).film is None
    short = evaluate(policy, "hopper", 2, film_seconds=0.001).film  # less than a control step
    assert short is not None and len(short.qpos) == 1
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="film is"):
            evaluate(policy, "hopper", 2, film_seconds=seconds)


def test_progress_ends_at_the_number_of_episodes() -> None:
    said: list[tuple[float, float]] = []
    evaluate(Linear(11, 3), "hopper", episodes=5, worlds=2, progress=lambda done, total: said.append((done, total)))
    assert said[-1] == (5, 5) and all(b[0] >= a[0] for a, b in itertools.pairwise(said))


def test_a_policy_of_another_interface_is_refused_by_the_channel_that_differs() -> None:
    policy = Linear(11, 3)
    theirs = sim.make("hopper").interface.to_dict()
    theirs["obs"][2][0] = "knee.position"
    policy.interface = Interface.from_dict(theirs)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"does not fit task 'hopper': obs channel 2 is knee\.position"):
        evaluate(policy, "hopper")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: evaluate(Linear(17, 6), "hopper"), "17 observations"),
        (lambda: evaluate(Linear(11, 3), "hoper"), "hopper"),
        (lambda: evaluate(Linear(11, 3), "hopper", episodes=0), "at least 1"),
        (lambda: evaluate(Linear(11, 3)), "add task="),
        (lambda: evaluate(Linear(11, 3), "hopper", shift="gravty0.5"), "gravity"),
        (lambda: evaluate("no-such-policy", "hopper"), "no-such-policy"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, LookupError, OSError), match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_task_is_the_one_the_policy_was_made_for() -> None:
    assert task_of(load_behaviour(next(iter(list_behaviours())))) == "halfcheetah"
