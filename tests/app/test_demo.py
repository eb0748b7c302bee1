"""The demo, rehearsed with a few updates: every part runs, and what it says is what its files say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robot_cl.demo import DemoOptions, DemoResult
from robot_cl.scores import Entry, read_scores

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory, run_in: Command) -> tuple[Any, Path]:
    """What `robot-cl demo quick=true --json` answered, and where."""
    place = tmp_path_factory.mktemp("demo")
    return run_in(place, "demo", "quick=true", "--json"), place


def test_it_tells_the_story_and_leaves_film_and_report(rehearsed: tuple[Any, Path]) -> None:
    ran, place = rehearsed
    assert ran.code == 0, ran.err
    assert [line[:3] for line in ran.err.splitlines() if re.match(r"\d/5", line)] == [f"{k}/5" for k in range(1, 6)]
    assert (place / ran.json["film"]).stat().st_size > 1000 and (place / ran.json["report"]).exists()
    assert (place / "demo/behaviour.mp4").exists() and 0 < ran.json["first_film_s"] < ran.json["seconds"]
    assert 0.1 < ran.json["peak_gb"] < 3.0


def test_its_numbers_are_those_of_the_evaluations(rehearsed: tuple[Any, Path]) -> None:
    ran, place = rehearsed
    (offline,), (online,) = (read_scores(next(place.glob(f"demo/runs/*demo-{name}"))) for name in ("offline", "online"))
    assert ran.json["offline_mean"] == offline.mean and ran.json["online_mean"] == online.mean
    assert offline.members == online.members == 2 and offline.seeds == online.seeds
    page = (place / "demo/report.html").read_text()
    assert f"{offline.mean:,.0f}" in page and f"{online.mean:,.0f}" in page and "whole episodes" in page
    assert page.count("<video") == 3


def test_the_online_run_continues_the_offline_one(rehearsed: tuple[Any, Path]) -> None:
    _, place = rehearsed
    (offline,) = place.glob("demo/runs/*demo-offline")
    (online,) = place.glob("demo/runs/*demo-online")
    assert f"init_from: {offline.relative_to(place).as_posix()}" in (online / "config.yaml").read_text()


def test_its_runs_can_be_verified_and_used_like_any_other(rehearsed: tuple[Any, Path], run_in: Command) -> None:
    _, place = rehearsed
    (offline,) = place.glob("demo/runs/*demo-offline")
    assert run_in(place, "verify", str(offline), "updates=3").code == 0
    assert run_in(place, "evaluate", str(offline), "episodes=1", "film=0").code == 0


def test_improvement_is_said_only_where_every_stage_improved(tmp_path: Path) -> None:
    blank: dict[str, Any] = dict.fromkeys(Entry.__dataclass_fields__)
    low, high = (replace(Entry(**blank), mean=mean) for mean in (2.0, 3.0))
    result = DemoResult(tmp_path, tmp_path, 1.0, low, high, 1.0, 1.0, 1.0)
    assert result.improves
    assert not replace(result, behaviour=2.5).improves
    assert not replace(result, online=low).improves
    assert not replace(result, offline=high, online=low).improves


def test_quick_is_smaller_than_the_default_in_everything() -> None:
    quick, usual = DemoOptions(quick=True), DemoOptions()
    for name in ("steps", "offline_steps", "online_steps", "episodes", "film"):
        assert getattr(quick, name) < getattr(usual, name)
