"""continual, gate and transfer as typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.actor import ActorConfig, StackedGaussianActor
from policies.networks import generators
from robot_cl.continual.base_policy import save_base
from sim import make

Cli = Callable[..., Any]
TINY = [
    "stream=vehicle_regimes", "seeds=2", "steps=64", "base_steps=32", "tasks=2", "num_worlds=4", "threads=1",
    "learner.horizon=8", "learner.minibatch=32", "learner.epochs=1", "learner.actor.hidden=[8]",
    "learner.critic.hidden=[8]", "measuring.episodes=2", "measuring.points=2", "measuring.curve_episodes=1",
    "options.trial_worlds=1", "options.trial_steps=4",
]  # fmt: skip


def test_a_stream_is_learned_and_its_numbers_stand_in_a_table_and_in_a_file(run_in: Cli, tmp_path: Path) -> None:
    ran = run_in(tmp_path, "continual", "methods=[library,reset]", "name=two", *TINY)
    assert ran.code == 0, ran
    assert "library" in ran.out and "forward transfer is against reset" in ran.out
    again = run_in(tmp_path, "continual", "last", "--json")
    assert again.code == 0, again
    data = again.json["continual"]
    assert data["methods"]["library"]["metrics"]["forgetting"]["estimate"] == 0.0
    assert [task["name"] for task in data["tasks"]] == ["steering reversed", "drive reversed"]
    assert len(data["methods"]["library"]["R"]) == 2 and len(data["methods"]["library"]["R"][0]) == 3
    resumed = run_in(tmp_path, "resume", "two")
    assert resumed.code == 0, resumed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stream=vehicles"], "did you mean 'vehicle_regimes'"),
        (["stream=walker", "methods=[packnt]"], "did you mean 'packnet'"),
        (["methods=[]"], "methods is empty"),
        (["options.prune_at=2"], "between 0 and 1"),
        (["stepps=3"], "steps"),
        (["base=nowhere"], "no run 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(run_in: Cli, tmp_path: Path, words: list[str], said: str) -> None:
    ran = run_in(tmp_path, "continual", *words)
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()


def test_a_base_of_another_robot_is_refused_before_anything_is_written(
    run_in: Cli, place: Path, tmp_path: Path
) -> None:
    (run,) = place.glob("runs/*cloned")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / run.name).symlink_to(run)
    for base in (str(run), "cloned"):  # as a path, and by its name
        ran = run_in(tmp_path, "continual", *TINY, f"base={base}")
        assert ran.code == 2 and "does not fit vehicle-waypoint" in ran.err and "Traceback" not in ran.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]


def test_a_base_of_another_number_of_members_is_refused_before_anything_is_written(run_in: Cli, tmp_path: Path) -> None:
    face = make("vehicle-waypoint").interface
    actor = StackedGaussianActor(face.obs_dim, face.act_dim, generators(0, 3), ActorConfig(hidden=(4,)))
    save_base(tmp_path / "three", actor, {}, "vehicle-waypoint", face.to_dict())
    ran = run_in(tmp_path, "continual", *TINY, "base=three")
    assert ran.code == 2 and "3 members" in ran.err and "seeds=2" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()


def test_streams_and_methods_are_listed(run_in: Cli, tmp_path: Path) -> None:
    found = run_in(tmp_path, "list", "streams", "methods", "--json").json
    assert "halfcheetah_shifts" in found["streams"] and "6 tasks" in found["streams"]["halfcheetah_shifts"]
    assert set(found["methods"]) >= {"library", "ewc", "packnet", "multitask"}
    assert all(found["methods"].values())


def test_the_gate_plays_both_and_its_exit_code_is_its_verdict(run_in: Cli, place: Path) -> None:
    same = run_in(place, "gate", "cloned", "cloned", "tasks=[hopper,hopper:gravity0.8]", "episodes=3", "--json")
    assert same.code == 0 and same.json["promoted"] and len(same.json["tasks"]) == 2
    other = run_in(place, "gate", "walk.safetensors", "cloned", "tasks=[hopper]", "episodes=3", "margin=1e-9", "--json")
    assert other.code == (0 if other.json["promoted"] else 1)
    assert "percentiles" in other.json["tasks"][0] and len(other.json["tasks"][0]["percentiles"]) == 3
    assert "two policies" in run_in(place, "gate", "cloned").err
