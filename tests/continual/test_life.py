"""A life among hidden borders that was left off at any moment comes to the same end as one that never was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.checkpoint import save_tensors
from robot_cl.continual import change
from robot_cl.continual.change import ChangeWatch
from robot_cl.continual.detector import DetectorConfig
from robot_cl.continual.life import run_hidden
from robot_cl.continual.loop import Measuring, restore
from robot_cl.continual.method import Setup
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.route import Route
from robot_cl.continual.stage_training import write_facts

EVERY_ROUND = Measuring(episodes=1, points=1, curve_episodes=1, save_every=1)
MakeSetup = Callable[..., Setup]


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def lived(setup: Setup, measuring: Measuring = EVERY_ROUND, reports: int | None = None) -> list[float]:
    """Go on for so many reports (None: to the end) -> the steps of each."""
    told = list[float]()

    def tell(what: str, done: float, total: float) -> None:
        told.append(done)
        if len(told) == reports:
            raise Killed

    try:
        run_hidden(setup, measuring, tell)
    except Killed:
        return told
    return told


def outcome(setup: Setup) -> dict[str, Any]:
    """All that must be equal."""
    files = sorted(setup.folder.glob("seed-*/*.json"))
    found: dict[str, Any] = {f"{file.parent.name}/{file.name}": json.loads(file.read_text()) for file in files}
    for name, rows in found.items():
        if name.endswith("rows.json"):
            assert all(row.pop("wall_s") > 0.0 for row in rows)
    cards = sorted(setup.folder.glob("libraries-*/library/*/*/card.json"))
    skills = {str(card.parent.relative_to(setup.folder)): json.loads(card.read_text())["content"] for card in cards}
    return found | {"skills": skills}


@pytest.fixture
def made(make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Setup]:
    """Lives whose watch rings within a few rollouts, in tasks of five rounds."""
    config = DetectorConfig(window=4, warmup=4, drift=0.5, threshold=3.0, memory=0.9)
    monkeypatch.setattr(change, "FOLLOWING", config)
    monkeypatch.setattr(change, "BATCH", 32)

    def make(name: str, seeds: int = 1, tasks: int = 2, **options: Any) -> Setup:
        setup = make_setup(name, seeds=seeds, tasks=tasks)
        stream = setup.stream.scaled(steps=160).hidden()
        first, *others = stream.stages
        stages = (first, *others[:1], *(replace(first, name="first again") for _ in others[1:]))
        return replace(setup, stream=replace(stream, stages=stages), config=replace(setup.config, **options))

    return make


@pytest.mark.parametrize("options", [{"look": 0, "seeds": 2}, {"look": 64, "checks": 2, "tasks": 3, "reach": 0.01}])
def test_a_life_left_off_in_every_round_goes_on_as_if_it_never_had_been(
    options: dict[str, int], made: Callable[..., Setup]
) -> None:
    whole, stopped = made("whole", **options), made("stopped", **options)
    reports, parts = lived(whole), list[list[float]]()
    while not parts or len(parts[-1]) == 3:
        parts.append(lived(stopped, reports=3))
    assert all(facts["alarms"] for name, facts in outcome(whole).items() if name.endswith("facts.json"))
    assert len(parts) > len(reports) / 3
    assert outcome(stopped) == outcome(whole)
    assert not list(stopped.folder.glob("progress/*/*"))


def test_where_worlds_cannot_be_stored_a_life_goes_on_from_the_last_finished_task(made: Callable[..., Setup]) -> None:
    rarely = replace(EVERY_ROUND, save_every=10**9)
    whole, stopped = made("whole"), made("stopped")
    reports = lived(whole, rarely)
    assert lived(stopped, rarely, len(reports) - 1) == reports[:-1]
    (folder,) = (stopped.folder / "progress" / "0").iterdir()
    life = json.loads((folder / "life.json").read_text())
    (folder / "life.json").write_text(json.dumps(life | {"wall_s": 1000.0}))
    again = lived(stopped, rarely)
    assert again == reports[-len(again) :] and len(again) > 2 and again[0] > 160  # the second task, all of it
    assert json.loads((stopped.folder / "seed-0" / "rows.json").read_text())[1]["wall_s"] > 1000.0
    assert outcome(stopped) == outcome(whole)


def test_skills_of_a_life_that_begins_anew_are_not_known(made: Callable[..., Setup]) -> None:
    whole, stopped = made("whole"), made("stopped")
    reports = lived(whole)
    lived(stopped, reports=len(reports))
    shutil.rmtree(stopped.folder / "progress")
    assert list(stopped.folder.glob("libraries-0/library/*/context-1"))
    assert lived(stopped) == reports
    assert outcome(stopped) == outcome(whole)


def test_a_watch_taken_up_again_sees_what_it_would_have_seen() -> None:
    def rollout() -> Transitions:
        obs, action = torch.randn(1, 8, 4, 3, generator=rng), torch.rand(1, 8, 4, 1, generator=rng) - 0.5
        ends = torch.zeros(1, 8, 4)
        return Transitions(obs, action, ends, obs + 0.1 * action, ends, ends)

    def watch() -> ChangeWatch:
        return ChangeWatch(Normalizer(3), 1, config=config, updates=3)

    rng, config = torch.Generator().manual_seed(0), DetectorConfig(window=5, warmup=4)
    for seen in range(6):
        one, other = watch(), watch()
        for _ in range(seen):
            one.see(rollout())
        state = {name: value.clone() for name, value in one.state_dict().items()}
        other.load_state_dict(state)
        fresh = [rollout() for _ in range(3)]
        assert [one.see(part) for part in fresh] == [other.see(part) for part in fresh]
        ours, theirs = one.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_of_two_skills_that_count_the_same_the_first_stays_the_first(make_setup: MakeSetup, tmp_path: Path) -> None:
    one, other = (SkillLibrary(make_setup(name, seeds=1)) for name in ("one", "other"))
    one.from_task, one.sketches = [{"a": 1, "b": 2}], [np.zeros((1, 3), dtype=np.float32)]
    one.routes = [[Route("t", {"b": 0.5, "a": 0.5}, "mean", 0.0, None, True)]]
    write_facts(tmp_path, one.facts())
    save_tensors(tmp_path / "method.safetensors", one.tensors())
    restore(other, tmp_path)
    assert [method._values_of(0, method.routes[0][0].mix) for method in (one, other)] == [2, 2]
