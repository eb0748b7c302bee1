from pathlib import Path

import numpy as np
import pytest

import sim
from robot_cl.data.behaviours import Behaviour, BehaviourCard
from robot_cl.data.collect import REPLAY_NOISE, Part, UniformPolicy, collect, random_part, record, replay_like, shares
from robot_cl.data.store import list_datasets


def linear(gain: float = 0.3, noise: bool = True) -> Behaviour:
    """A small policy for hopper; falls after some tens of steps."""
    rng = np.random.default_rng(4)
    arrays = {"W0": rng.normal(size=(3, 11)).astype(np.float32) * gain, "b0": np.zeros(3, np.float32)}
    return Behaviour(arrays | ({"log_std": np.full(3, -1.0, np.float32)} if noise else {}), BehaviourCard("linear"))


def test_the_same_arguments_give_the_same_dataset_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        collect("hopper", linear(), 300, f"toy/{n}-v0", noise=0.2, seed=seed, num_worlds=3, root=tmp_path).meta.hash
        for n, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_a_recorded_seed_gives_the_recorded_episode_in_the_original_environment() -> None:
    import gymnasium

    recording, _ = record("hopper", [Part(linear(), noise=0.3)], 600, seed=40, num_worlds=4)
    for episode in np.flatnonzero(recording.ordinals == 0):
        env = gymnasium.make("Hopper-v5")
        obs, _ = env.reset(seed=int(recording.seeds[episode]))
        for t in range(recording.starts[episode], recording.stops[episode]):
            assert np.array_equal(recording.obs[t], obs.astype(np.float32))
            obs, reward, terminated, _, _ = env.step(recording.action[t])
            assert recording.reward[t] == np.float32(reward)
            assert np.array_equal(recording.next_obs[t], obs.astype(np.float32))
            assert recording.terminated[t] == terminated


def test_episodes_lie_one_after_the_other_and_only_cut_ones_are_incomplete() -> None:
    recording, _ = record("hopper", [Part(linear(), noise=0.3)], 500, num_worlds=4)
    assert len(recording) == 500
    inside = np.ones(500, bool)
    inside[recording.stops - 1] = False
    steps = np.flatnonzero(inside)
    assert np.array_equal(recording.next_obs[steps], recording.obs[steps + 1])
    assert not (recording.terminated | recording.truncated)[steps].any()
    assert (recording.terminated | recording.truncated)[recording.stops - 1].all()
    assert (~recording.complete).sum() <= 4
    assert recording.truncated[recording.stops - 1][~recording.complete].all()
    for world in np.unique(recording.seeds):
        assert recording.ordinals[recording.seeds == world].tolist() == list(range((recording.seeds == world).sum()))


@pytest.mark.parametrize(("steps", "worlds"), [(7, 3), (1, 4), (5, 5), (100, 7)])
def test_exactly_the_asked_number_of_steps_is_recorded(steps: int, worlds: int) -> None:
    recording, _ = record("hopper", [Part(linear())], steps, num_worlds=worlds)
    assert len(recording) == steps == recording.lengths.sum()


def test_noisy_actions_are_stored_as_executed_within_bounds() -> None:
    recording, _ = record("hopper", [Part(linear(gain=3.0), noise=1.0)], 400, num_worlds=4)
    assert np.abs(recording.action).max() == 1.0
    quiet, _ = record("hopper", [Part(linear(gain=0.01), noise=0.2)], 2000, num_worlds=4)
    means = linear(gain=0.01).act(quiet.obs)
    assert (quiet.action - means).std() == pytest.approx(0.2, rel=0.05)


def test_a_stochastic_part_draws_from_the_policys_own_distribution() -> None:
    policy = linear(gain=0.01)
    recording, _ = record("hopper", [Part(policy, stochastic=True)], 2000, num_worlds=4)
    before_tanh = np.arctanh(recording.action) - np.arctanh(policy.act(recording.obs))
    assert before_tanh.std() == pytest.approx(np.exp(-1.0), rel=0.05)


def test_a_mixture_has_its_parts_in_their_shares_and_order(tmp_path: Path) -> None:
    parts = [Part(UniformPolicy(11, 3), share=1.0, stochastic=True), Part(linear(gain=0.0), share=3.0)]
    dataset = collect("hopper", parts, 400, "toy/mix-v0", num_worlds=2, root=tmp_path)
    action = dataset.recording().action
    assert (np.abs(action[:100]) > 0).all() and (action[100:] == 0).all()
    listed = dataset.meta.source["parts"]
    assert [p["policy"] for p in listed] == ["random", "linear"]
    assert [p["share"] for p in listed] == [0.25, 0.75]
    assert listed[1]["digest"] == linear(gain=0.0).digest
    assert dataset.meta.simulator["mujoco"] and dataset.meta.source["kind"] == "collect"


def test_a_random_part_covers_all_actions_uniformly() -> None:
    recording, _ = record("hopper", [random_part("hopper")], 2000, num_worlds=4)
    assert recording.action.std() == pytest.approx(3**-0.5, rel=0.02)


def test_parts_of_a_mixture_never_share_a_seed() -> None:
    recording, _ = record("hopper", [Part(linear()), Part(linear())], 200, num_worlds=3)
    first, second = (set(recording.seeds[recording.starts < 100]), set(recording.seeds[recording.starts >= 100]))
    assert not first & second


def test_replay_like_starts_random_and_gets_better() -> None:
    alone = replay_like([linear()], random_share=0.2)
    assert isinstance(alone[0].policy, UniformPolicy) and alone[0].stochastic
    assert tuple(part.noise for part in alone[1:]) == REPLAY_NOISE
    assert alone[0].share / sum(part.share for part in alone) == pytest.approx(0.2)
    worst, best = linear(0.1), linear(0.2)
    assert [part.policy for part in replay_like([worst, best])[1:]] == [worst, best]


@pytest.mark.parametrize(("steps", "weights"), [(10, [1, 1, 1]), (1, [0.5, 0.5]), (1000, [0.1, 0.2, 0.7]), (7, [3])])
def test_shares_sum_exactly(steps: int, weights: list[float]) -> None:
    assert sum(shares(steps, weights)) == steps


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    record("hopper", [Part(linear()), Part(linear())], 300, num_worlds=2, progress=lambda *at: seen.append(at))
    assert seen[-1] == (300, 300) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_policy_that_remembers_is_told_which_episodes_ended() -> None:
    class Counting(Behaviour):
        """Steps since the last reset of each row."""

        age = np.zeros(3, int)

        def act(self, obs: np.ndarray) -> np.ndarray:
            self.age += 1
            return super().act(obs)

        def reset(self, rows: np.ndarray | None = None) -> None:
            self.age[slice(None) if rows is None else rows] = 0

    policy = Counting(linear().arrays, BehaviourCard("counting"))
    recording, _ = record("hopper", [Part(policy, noise=0.3)], 300, num_worlds=3)
    last_of_world = [recording.lengths[recording.seeds == seed][-1] for seed in range(3)]
    ended = recording.complete[[np.flatnonzero(recording.seeds == seed)[-1] for seed in range(3)]]
    assert policy.age.tolist() == [0 if done else n for n, done in zip(last_of_world, ended, strict=True)]


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"task": "halfcheetah"}, "reads 11 observations and gives 3 actions, task halfcheetah has 17 and 6"),
        ({"steps": 0}, "at least"),
        ({"name": "../x-v0"}, "outside the data root"),
        ({"name": "hopper-medium-v2"}, "D4RL name"),
        ({"noise": -1.0}, "standard deviation"),
        ({"noise": float("nan")}, "standard deviation"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_anything_is_written(
    tmp_path: Path, kwargs: dict, sentence: str
) -> None:
    arguments = {"task": "hopper", "policy": linear(), "steps": 100, "name": "toy/a-v0", "num_worlds": 2} | kwargs
    with pytest.raises(ValueError, match=sentence):
        collect(**arguments, root=tmp_path)
    assert not list_datasets(tmp_path) and not list(tmp_path.iterdir())


def test_an_unknown_task_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="hopper"):
        collect("hoper", linear(), 100, "toy/a-v0", root=tmp_path)


def test_sampling_a_policy_without_a_distribution_is_refused() -> None:
    class Fixed:
        obs_dim, act_dim, name = 11, 3, "fixed"

        def act(self, obs: np.ndarray) -> np.ndarray:
            return np.zeros((len(obs), 3), np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None: ...

    with pytest.raises(ValueError, match="'fixed' has no distribution"):
        Part(Fixed(), stochastic=True)
    assert len(record("hopper", [Part(Fixed())], 20, num_worlds=2)[0]) == 20


def test_world_options_reach_the_world(tmp_path: Path) -> None:
    dataset = collect(
        "hopper", linear(), 50, "toy/a-v0", num_worlds=2, world_options={"action_repeat": 2}, root=tmp_path
    )
    assert dataset.interface.control_dt == pytest.approx(2 * sim.make("hopper").interface.control_dt)
    assert dataset.meta.source["world_options"] == {"action_repeat": "2"}
