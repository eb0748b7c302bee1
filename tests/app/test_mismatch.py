"""robot-cl mismatch: which error of a model tells what it is worth, from a dataset or a run, in files and a page."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamics.mismatch import METRICS
from dynamics.planner import PlannerConfig
from robot_cl.batch import Transitions
from robot_cl.mismatch import Bench, StudyConfig, episodes_of, halves, pieces, split
from robot_cl.replay_files import lived

Cli = Callable[..., Any]
SMALL = ["widths=[8]", "steps=[3,9,27]", "losses=[nll,vagram]", "length=4", "episodes=2", "samples=8", "horizon=2"]


@pytest.fixture(scope="module", autouse=True)
def walking(place: Path, run_in: Cli) -> None:
    """hopper/walk-v0, whose episodes last longer than open-loop errors look, and the run "walker" that cloned it."""
    walks = ["data", "collect", "task=hopper", "policy=hopper-medium", "name=hopper/walk-v0", "steps=1200", "noise=0.6"]
    clones = ["train", "learner=bc", "data=hopper/walk-v0", "offline_steps=20", "name=walker", "seeds=1"]
    for words in (walks, [*clones, "learner.actor.hidden=[8]", "eval_every=0", "tensorboard=false"]):
        ran = run_in(place, *words)
        assert ran.code == 0, ran.err


def experience(*lengths: int, terminated: bool = True, seed: int = 0) -> Transitions:
    """Episodes of these lengths, one after the other; every reward of an episode is its number."""
    rng, parts = torch.Generator().manual_seed(seed), []
    for k, n in enumerate(lengths):
        obs = torch.randn(n + 1, 3, generator=rng)
        end = (torch.arange(n) == n - 1).float()
        flags = (end, torch.zeros(n)) if terminated else (torch.zeros(n), end)
        action = torch.rand(n, 1, generator=rng)
        parts.append(Transitions(obs[:-1], action, torch.full((n,), float(k)), obs[1:], *flags))
    return Transitions.cat(parts)


def test_a_study_of_a_dataset_prints_what_it_writes(cli: Cli, place: Path) -> None:
    ran = cli("mismatch", "hopper/walk-v0", *SMALL, "attack=1", "name=studied")
    assert ran.code == 0, ran.err
    last = ran.out.strip().splitlines()[-1]
    assert re.fullmatch(r"wrote runs/\S+-studied  ·  next: robot-cl train learner=mbpo \S+ data=\S+ task=hopper", last)
    (folder,) = place.glob("runs/*studied")
    models = list(csv.DictReader((folder / "models.csv").open()))
    written = json.loads((folder / "mismatch.json").read_text())
    assert len(models) == len(written["members"]) == 2 * 3 * 2
    assert {m["slice"] for m in models} == {"all episodes", "poor episodes"}
    assert {m["loss"] for m in models} == {"nll", "vagram"} and {m["steps"] for m in models} == {"3", "9", "27"}
    found = {(c["slice"], c["metric"]): c for c in csv.DictReader((folder / "correlations.csv").open())}
    assert set(found) == {(s, m) for s in ("all", "all episodes", "poor episodes") for m in METRICS}
    assert written["attack"]["after"] <= written["attack"]["before"]
    assert len(written["epochs"]) == 4 and all(row["return_lost"] >= 0.0 for row in written["epochs"])
    assert f"{float(found['all', 'vagram']['spearman']):+.2f}" in ran.out
    assert all((folder / "plots" / f"{name}.png").stat().st_size > 1000 for name in ("metrics", "lengths", "gaps"))
    page = (folder / "mismatch.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "<svg" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing is fetched


def test_a_run_gives_its_data_and_its_policy_and_one_seed_gives_one_answer(cli: Cli, place: Path) -> None:
    first, again = (cli("mismatch", "walker", *SMALL, "attack=0", "--json").json for _ in range(2))
    assert first["members"] == again["members"] and first["attack"] is None
    assert first["wrote"] != again["wrote"]
    (folder,) = place.glob("runs/*studied")
    without = json.loads((folder / "mismatch.json").read_text())["members"]
    pairs = list(zip(first["members"], without, strict=True))
    assert all(a["metrics"] == b["metrics"] for a, b in pairs)  # the same data
    assert any(a["return"] != b["return"] for a, b in pairs)  # other plans


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hopper/wlk-v0"], "hopper/walk-v0"),
        (["hopper/tiny-v0", *SMALL], "no episode of the held-out data has 20 steps"),
        (["hopper/walk-v0", "losses=[nlll]"], "losses are some of"),
        (["hopper/walk-v0", "widths=[8]", "steps=[5]"], "models are too few"),
        (["hopper/walk-v0", "task=ant", *SMALL], "has 11 observations"),
        (["hopper/walk-v0", "steps=[0]"], "at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(cli: Cli, words: list[str], says: str) -> None:
    ran = cli("mismatch", *words)
    assert ran.code == 2 and says in ran.err and ran.err.count("\n") == 1, ran.err


def test_training_and_held_out_rows_are_different_episodes() -> None:
    data = experience(*[7] * 10)
    train, held = split(data)
    assert {*held.reward.tolist()} == {4.0, 9.0} and len(train) + len(held) == 70
    single = experience(50)
    train, held = split(single)
    assert (len(train), len(held)) == (40, 10) and torch.equal(held.obs, single.obs[40:])


def test_pieces_never_cross_the_end_of_an_episode() -> None:
    data = experience(30, 8, 25, terminated=False)
    assert torch.equal(torch.bincount(episodes_of(data)), torch.tensor([30, 8, 25]))
    obs, action = pieces(data, 20)
    assert obs.shape[1:] == (21, 3) and action.shape[1:] == (20, 1) and len(obs) == 11 + 6
    for row, moves in zip(obs, action, strict=True):
        (start,) = torch.nonzero((data.obs == row[0]).all(-1)).flatten().tolist()
        assert torch.equal(row[1:], data.next_obs[start : start + 20])
        assert torch.equal(moves, data.action[start : start + 20])
    with pytest.raises(ValueError, match="20 steps"):
        pieces(experience(15, 15), 20)


def test_poor_episodes_are_the_half_with_the_lower_returns() -> None:
    slices = halves(experience(5, 5, 5, 5))
    assert {*slices["poor episodes"].reward.tolist()} == {0.0, 1.0}
    assert list(halves(experience(40))) == ["all episodes"]


def test_what_a_plan_earns_is_what_the_world_gives_and_the_world_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    obs, rows = rng.normal(size=(6, 41, 11)), []
    for k in range(6):
        flags = torch.zeros(40), (torch.arange(40) == 39).float()
        o = torch.tensor(obs[k], dtype=torch.float32)
        rows.append(Transitions(o[:-1], torch.zeros(40, 3), torch.rand(40), o[1:], *flags))
    config = StudyConfig(episodes=2, planner=PlannerConfig(samples=4, horizon=3), discount=0.9)
    bench = Bench({"noise": Transitions.cat(rows)}, "hopper", config, None)
    bench.worlds.reset(seed=3)
    before, plan = bench.worlds.get_state(), torch.tensor(rng.uniform(-1, 1, (2, 3, 3)), dtype=torch.float32)
    earned = bench.realised(plan)
    assert all(np.array_equal(value, before[name]) for name, value in bench.worlds.get_state().items())
    by_hand = np.zeros(2)
    for h in range(3):
        after, reward, *_ = bench.worlds.step(plan[:, h].numpy())
        by_hand += 0.9**h * reward
    by_hand += 0.9**3 * bench.value(torch.tensor(after, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(earned, by_hand, rtol=1e-5)


def test_a_replay_buffer_comes_back_world_by_world_in_the_order_of_time(tmp_path: Path) -> None:
    from robot_cl.learners.replay import ReplayBuffer
    from robot_cl.replay_files import save_replay

    buffer = ReplayBuffer(100, 2, 1, 1)
    time, world = torch.arange(6.0).view(1, 6, 1), torch.tensor([0.0, 100.0]).view(1, 1, 2)
    reward = time + world + torch.tensor([0.0, 1000.0]).view(2, 1, 1)
    wide, flags = reward.unsqueeze(-1), torch.zeros(2, 6, 2)
    stored = 0
    for part in (slice(0, 4), slice(4, 6)):
        buffer.add(Transitions(*(x[:, part] for x in (wide, wide, reward, wide, flags, flags))))
        stored = save_replay(tmp_path, buffer, stored)
    found = lived(tmp_path, 1, 1, worlds=2)
    assert found is not None
    assert found.reward.tolist() == [s + w + t for s in (0, 1000) for w in (0, 100) for t in range(6)]
    assert lived(tmp_path / "none", 1, 1) is None
