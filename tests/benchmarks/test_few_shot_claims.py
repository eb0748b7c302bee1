"""What the few-shot table claims: which row stands for a task, how the library's choice is scored, who demonstrates."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from few_shot_parts import walker
from few_shot_parts.choice import ORDER
from few_shot_parts.claims import CLAIMED, CLAIMS, TEN
from few_shot_parts.results import CHOICES, Results
from few_shot_parts.rows import LEARNED, TASKS

ZERO = {"expert": 900, "base zero-shot": 150, "stand skill zero-shot": 160}


def kept(folder: Path, row: str, returns: list[float], trials: list[float] | None = None, count: int = TEN) -> None:
    """Two draws of one row, one episode each."""
    cells = [{"draw": d, "count": count, "returns": [r], "fell": [False]} for d, r in enumerate(returns)]
    for cell, trial in zip(cells, trials or [], strict=False):
        cell["trials"] = [trial]
    record = {"row": row, "expert": "experts/x", "cells": cells}
    (folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path):
    """stand → walk: in the trial episodes the residual is better in the first draw, the fresh adapter in the second."""
    for row, value in ZERO.items():
        kept(tmp_path, row, [value, value], [value, value], 0)
    kept(tmp_path, "scratch", [400, 600])
    kept(tmp_path, "composition", [170, 170], [165, 165])
    kept(tmp_path, "guarded residual", [300, 300], [300, 300])
    kept(tmp_path, "residual", [500, 990], [800, 700])
    kept(tmp_path, "fresh adapter", [900, 700], [700, 800])
    return Results(tmp_path, TASKS["stand-walk"])


def test_one_row_stands_for_each_task_and_it_exists():
    assert CLAIMED.keys() == TASKS.keys() == CLAIMS.keys()
    assert set(CLAIMED.values()) <= {*LEARNED, *CHOICES} and set(ORDER[1:]) <= set(LEARNED)


def test_the_choice_by_episodes_looks_at_trials_not_at_what_is_scored(results):
    chosen = results.scores("choice by episodes", TEN)
    np.testing.assert_array_equal(chosen, [[500.0], [700.0]])  # not the 900 and 990 of the other route


def test_the_claims_are_about_the_named_row_even_where_another_scored_higher(results):
    claims = {c.claim: c for c in CLAIMS["stand-walk"](results)}
    assert claims["walk, 10 demonstrations: choice by episodes"].value == 600.0
    gain = claims["walk, 10 demonstrations: paired gain of choice by episodes over scratch"]
    assert gain.value == 100.0 and gain.holds


def test_without_a_routes_trials_there_is_no_choice(tmp_path, results):
    for path in tmp_path.iterdir():
        if json.loads(path.read_text())["row"] == "composition":
            path.unlink()
    assert Results(tmp_path, TASKS["stand-walk"]).scores("choice by episodes", TEN) is None


@pytest.mark.parametrize("task", walker.SOURCES)
def test_our_own_experts_demonstrate(task):
    behaviour, where = walker.expert(task)
    assert where == f"experts/{task}-own.safetensors"
    assert (behaviour.card.task, behaviour.obs_dim, behaviour.act_dim) == (task, walker.OBS, walker.ACT)


def test_the_walk_skill_is_shown_by_a_walker_and_the_task_by_a_runner():
    speeds = []
    for expert in (walker.skill_expert("walk"), walker.expert("walker-walk")[0]):
        episodes = walker.roll(expert.act, "walker-walk", [1, 2, 3], 1, 150)
        speeds.append(episodes.obs[:, 80:, 16].mean())  # m/s
    assert 1.0 < speeds[0] < 1.7 < 2.2 < speeds[1]
