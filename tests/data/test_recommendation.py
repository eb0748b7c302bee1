"""Which learner fits a dataset: what is read off it, and what follows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robot_cl.data.coverage import Coverage
from robot_cl.data.coverage import recommend as recommend_from
from robot_cl.data.doctor import examine, recommend
from robot_cl.data.recording import Recording
from robot_cl.data.store import write_dataset
from robot_cl.learners.returns import near_best_rows


def behave(data: Recording, action: np.ndarray, reward: np.ndarray) -> Recording:
    return replace(data, action=np.clip(action, -1, 1), reward=reward)


def test_actions_that_follow_the_state_disagree_less_than_random_ones(tmp_path: Path, make_recording) -> None:
    data = make_recording(40, 60)
    rng = np.random.default_rng(0)
    follow = behave(data, np.tanh(data.obs[:, :2]), data.reward)
    random = behave(data, rng.uniform(-1, 1, data.action.shape), data.reward)
    seen = [examine(write_dataset(f"toy/{n}-v0", d, root=tmp_path)).coverage for n, d in (("f", follow), ("r", random))]
    assert seen[0].action_disagreement < 0.5 < 0.9 < seen[1].action_disagreement < 1.1
    assert seen[1].action_spread == pytest.approx(1.0, abs=0.03)


def test_coverage_counts_the_spread_of_returns_and_the_dimensions_used(tmp_path: Path, clean: Recording) -> None:
    rng = np.random.default_rng(0)
    line = np.repeat(rng.normal(size=(len(clean) + 30, 1)).astype(np.float32), 5, axis=1)
    rows = np.delete(np.arange(len(line)), clean.stops + np.arange(30))
    level = np.repeat(np.where(np.arange(30) < 15, 1.0, 3.0) / clean.lengths, clean.lengths)
    flat = replace(clean, obs=line[rows], next_obs=line[rows + 1], reward=level)
    found = examine(write_dataset("toy/a-v0", flat, root=tmp_path)).coverage
    assert found.return_quantiles == pytest.approx((1.0, 2.0, 3.0), abs=1e-3)
    assert found.return_spread == pytest.approx(2.0 / 3.0, abs=1e-3)
    assert found.effective_dimensions == pytest.approx(1.0, abs=1e-3)


def coverage_of(spread: float, disagreement: float) -> Coverage:
    return Coverage(10, 1000, (0.0, 0.0, 0.0), spread, disagreement, 1.0, 3.0)


@pytest.mark.parametrize(
    ("spread", "disagreement", "score", "informative", "learner"),
    [
        (0.02, 0.1, 95.0, True, "bc"),
        (0.02, 0.1, None, True, "bc"),
        (0.02, 0.1, 30.0, True, "iql"),
        (0.80, 0.1, 95.0, True, "iql"),
        (0.02, 0.8, 95.0, True, "iql"),
        (0.80, 0.8, None, False, "bc"),
        (0.47, 1.0, None, True, "lcb"),
    ],
)
def test_the_learner_follows_from_spread_disagreement_and_score(
    spread: float, disagreement: float, score: float | None, informative: bool, learner: str
) -> None:
    advice = recommend_from(coverage_of(spread, disagreement), score, informative)
    assert advice.learner == learner
    assert f"{spread:.0%}" in " ".join(advice.evidence) and f"{disagreement:.2f}" in " ".join(advice.evidence)


@pytest.mark.parametrize(
    ("best_share", "best_disagreement", "best_score", "learner"),
    [(0.1, 0.4, 97.0, "percent_bc"), (0.1, 0.4, 60.0, "iql"), (0.1, 0.4, None, "iql"), (0.1, 0.8, 97.0, "iql"),
     (0.01, 0.4, 97.0, "iql")],
)  # fmt: skip
def test_best_episodes_of_one_near_expert_behaviour_are_cloned_alone(
    best_share: float, best_disagreement: float, best_score: float | None, learner: str
) -> None:
    found = replace(coverage_of(0.9, 0.7), best_share=best_share, best_disagreement=best_disagreement)
    assert recommend_from(found, 50.0, True, best_score).learner == learner


def test_bad_luck_of_an_expert_is_cloned_with_the_rest() -> None:
    """Actions that differ no more among all episodes than among the best are of one behaviour, whatever it earned."""
    for everywhere, learner in ((0.5, "bc"), (0.6, "percent_bc")):
        found = replace(coverage_of(0.36, everywhere), best_share=0.6, best_disagreement=0.55)
        assert recommend_from(found, 95.0, True, 113.0).learner == learner


@pytest.fixture
def hundred(make_recording) -> Recording:
    """Episodes that come everywhere."""
    obs = np.random.default_rng(1).normal(size=(4000, 5)).astype(np.float32)
    return replace(make_recording(100, 40, terminate=0.0), obs=obs, next_obs=np.roll(obs, -1, axis=0))


@pytest.mark.parametrize(
    ("percent", "learner"),
    [(0, "lcb"), (2, "lcb"), *((p, "percent_bc") for p in (6, 9, 10, 11, 50, 89, 90, 91, 95, 98)), (99, "bc"),
     (100, "bc")],
)  # fmt: skip
def test_random_episodes_among_an_experts_are_seen_however_few(
    percent: int, learner: str, tmp_path: Path, hundred: Recording
) -> None:
    """Not by the tenths' returns alone: with a tenth of random episodes, and fewer, these hardly spread."""
    rng, expert = np.random.default_rng(0), np.repeat(np.arange(100) >= 100 - percent, hundred.lengths)
    follow = np.tanh(2.0 * hundred.obs[:, :2])
    action = np.where(expert[:, None], follow, rng.uniform(-1, 1, follow.shape))
    reward = np.where(expert, 2.5, -0.05) + 0.01 * hundred.obs[:, 0]
    written = write_dataset("toy/e-v0", behave(hundred, action, reward), root=tmp_path)
    found = examine(written).coverage
    assert found.poor_share == pytest.approx(1.0 - percent / 100 if percent else found.poor_share)
    advice = recommend_from(found, 100.0 * reward.mean() / 2.5, True, found.best_return)
    assert advice.learner == learner
    if 89 < percent < 99:
        assert f"{100 - percent}% of the steps are of episodes far below" in " ".join(advice.evidence)


def test_few_poor_episodes_are_left_out_where_there_is_no_scale_either() -> None:
    """Unless they act as the others do; and the whole is no better for them where the best is no expert's."""
    found = replace(coverage_of(0.02, 0.46), best_share=0.9, best_disagreement=0.44, poor_share=0.05)
    assert recommend_from(found, None).learner == "percent_bc"
    assert recommend_from(replace(found, poor_share=0.01), None).learner == "bc"
    assert recommend_from(replace(found, best_disagreement=0.5), None).learner == "bc"
    assert recommend_from(found, 40.0, True, 45.0).learner == "iql"
    assert recommend_from(found, 78.0, True, 90.0).learner == "percent_bc"


def test_returns_below_zero_are_far_apart_by_their_magnitudes(tmp_path: Path, hundred: Recording) -> None:
    worse = np.repeat(np.arange(100) < 30, hundred.lengths)
    for factor, share in ((1.1, 0.0), (3.0, 0.3)):
        data = replace(hundred, reward=np.where(worse, -factor, -1.0))
        found = examine(write_dataset(f"toy/by-{factor:.0f}-v0", data, root=tmp_path)).coverage
        assert found.poor_share == pytest.approx(share)


def test_the_best_episodes_are_those_that_percent_bc_clones(tmp_path: Path, make_recording) -> None:
    """Also where many short ones share the top tenth with them, and where episodes are of several lengths."""
    data = make_recording(40, 60)
    better = np.repeat(np.arange(40) >= 37, data.lengths)
    rng = np.random.default_rng(0)
    action = np.where(better[:, None], np.tanh(data.obs[:, :2]), rng.uniform(-1, 1, (len(data), 2)))
    reward = np.where(better, 2.0 * 60 / np.repeat(data.lengths, data.lengths), 0.5)
    written = write_dataset("toy/b-v0", behave(data, action, reward), root=tmp_path)
    found, rows = examine(written).coverage, near_best_rows(written.transitions())
    assert found.best_share == pytest.approx(len(rows) / len(data)) == pytest.approx(better.mean())
    assert found.best_return == pytest.approx(120.0)
    assert found.best_disagreement < 0.6 < found.action_disagreement


def test_mixed_data_is_recommended_another_learner_than_narrow_data(tmp_path: Path, make_recording) -> None:
    data = make_recording(40, 60, terminate=0.0)
    rng = np.random.default_rng(0)
    follow = np.tanh(data.obs[:, :2])
    narrow = behave(data, follow, 1.0 + 0.01 * data.obs[:, 0])
    worse = np.repeat(rng.random(40) < 0.5, data.lengths)
    mixed = behave(
        data, np.where(worse[:, None], rng.uniform(-1, 1, follow.shape), follow), narrow.reward - 0.5 * worse
    )
    assert recommend(write_dataset("toy/n-v0", narrow, root=tmp_path)).learner == "bc"
    assert recommend(write_dataset("toy/m-v0", mixed, root=tmp_path)).learner == "iql"
