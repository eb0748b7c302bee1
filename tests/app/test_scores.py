"""evaluation.json keeps what was measured, and tables mix only what may be mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.compare import compare
from robot_cl.continual import summary
from robot_cl.scores import Entry, add_score, headline_entry, interval_text, read_scores

Cli = Callable[..., Any]


def entry(returns: list[list[float]], **changes: Any) -> Entry:
    seeds = list(range(len(returns[0])))
    blank = [[0 for _ in seeds] for _ in returns]
    plain = Entry(
        "a", "run", 10, "hopper", None, seeds, returns, blank, blank, float(np.mean(returns)), None, 0.0, None,
        None, None, None, "mujoco 1", "digest", 0.1,
    )  # fmt: skip
    return replace(plain, **changes)


def test_every_training_seed_is_in_the_file(place: Path) -> None:
    (run,) = place.glob("runs/*critic")
    first = next(e for e in read_scores(run) if len(e.seeds) == 3)
    assert np.shape(first.returns) == (2, 3) and first.returns[0] != first.returns[1]
    assert first.mean == pytest.approx(np.mean(first.returns)) and first.seeds == [1000, 1001, 1002]
    assert first.mean_interval is not None and first.mean_interval[0] <= first.mean <= first.mean_interval[1]
    assert (run / str(first.film)).stat().st_size > 0 and first.step == 20 and first.task == "hopper"


def test_the_interval_over_seeds_is_wider_than_over_episodes_alone() -> None:
    from robot_cl.scores import _interval
    from robot_cl.stats import mean

    apart = np.array([np.zeros(20), np.full(20, 10.0)])
    low, high = _interval(apart, 0, mean) or (0.0, 0.0)
    assert (low, high) == (0.0, 10.0)


def test_the_same_evaluation_replaces_itself_and_another_is_added(tmp_path: Path) -> None:
    add_score(tmp_path, entry([[1.0, 2.0]]))
    add_score(tmp_path, entry([[3.0, 4.0]]))
    add_score(tmp_path, entry([[5.0, 6.0]], shift="gravity0.5"))
    assert [e.mean for e in read_scores(tmp_path)] == [3.5, 5.5]
    assert not list(tmp_path.glob("*.part"))


def test_the_headline_is_the_latest_checkpoint_without_a_shift() -> None:
    entries = [entry([[1.0]], step=20), entry([[2.0]], step=10), entry([[3.0]], step=30, shift="gravity0.5")]
    assert headline_entry(entries).mean == 1.0
    assert headline_entry(entries[2:]).mean == 3.0
    assert headline_entry([entry([[1.0], [3.0]]), entry([[9.0]], policy="run seed 1")]).mean == 2.0
    with pytest.raises(LookupError, match="robot-cl evaluate"):
        headline_entry([])


def test_one_training_seed_does_not_take_the_place_of_all(run_in: Cli, place: Path, tmp_path: Path) -> None:
    for words in ([], ["member=1"], ["member=1"]):
        ran = run_in(place, "evaluate", "critic", "episodes=2", "film=0", f"out={tmp_path}", *words)
        assert ran.code == 0, ran
    whole, single = read_scores(tmp_path)
    assert whole.members == 2 and single.members == 1 and single.returns[0] == whole.returns[1]
    assert single.label == f"{whole.label}, seed 1" and headline_entry([whole, single]) is whole


def test_an_evaluation_outlives_its_film(run_in: Cli, place: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("where films would go")
    ran = run_in(place, "evaluate", "critic", "episodes=2", "film=0.2", f"out={tmp_path}")
    assert ran.code == 2 and "videos" in ran.err
    (entry,) = read_scores(tmp_path)
    assert len(entry.returns) == 2 and entry.film is None
    (tmp_path / "videos").unlink()
    assert run_in(place, "evaluate", "critic", "episodes=2", "film=0.2", f"out={tmp_path}").code == 0
    (again,) = read_scores(tmp_path)
    assert again.returns == entry.returns and again.film is not None and (tmp_path / again.film).exists()


def test_entries_added_at_once_are_all_kept(tmp_path: Path) -> None:
    def add(k: int) -> None:
        for i in range(5):
            add_score(tmp_path, entry([[1.0, 2.0]], shift=f"gravity0.{k}{i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(1, 5)))
    assert len(read_scores(tmp_path)) == 20


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    for text in ("{", '{"format": 1}', '{"format": 1, "entries": [{"label": "x"}]}', '{"format": 99, "entries": []}'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(ValueError, match=r"evaluation\.json") as caught:
            read_scores(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "evaluation.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        read_scores(tmp_path)
    (tmp_path / "continual.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"continual\.json is damaged"):
        summary.read(tmp_path)


def test_a_better_run_is_said_to_be_better() -> None:
    worse, better = entry([[1.0, 2.0, 3.0, 4.0]]), entry([[11.0, 12.0, 13.0, 14.0]])
    _, row = compare([("a", worse), ("b", better)])
    assert row.improvement is not None and row.improvement.estimate == row.improvement.low == 1.0
    assert row.difference is not None and row.difference.low == row.difference.high == 10.0
    _, row = compare([("b", better), ("a", worse)])
    assert row.improvement is not None and row.improvement.high == 0.0


def test_differences_are_paired_only_over_the_same_seeds() -> None:
    _, row = compare([("a", entry([[1.0, 2.0]])), ("b", entry([[1.0, 2.0]], seeds=[5, 6]))])
    assert row.difference is None and row.improvement is not None and row.improvement.estimate == 0.5


def test_a_difference_of_training_seeds_is_not_one_of_runs() -> None:
    """The same three outcomes, one seed of three luckier: no number of episodes makes that sure."""
    first = entry([[100.0 + k for k in range(20)], [200.0 + k for k in range(20)], [300.0 + k for k in range(20)]])
    other = entry([[100.0 + k for k in range(20)], [250.0 + k for k in range(20)], [300.0 + k for k in range(20)]])
    _, row = compare([("a", first), ("b", other)])
    assert row.difference is not None and row.difference.low < 0.0 < row.difference.estimate < row.difference.high
    assert row.improvement is not None and row.improvement.low < 0.5 < row.improvement.high
    _, row = compare([("a", entry([[1.0]])), ("b", entry([[2.0]]))])
    assert row.improvement is None and row.difference is None


def test_every_evaluation_keeps_its_own_film() -> None:
    """The report writes return and seed of the median episode under it."""
    from robot_cl.commands.evaluate import EvaluateOptions, film_file

    others = [{}, {"seed": 7}, {"episodes": 100}, {"shift": "gravity0.5"}, {"task": "hopper"}]
    assert film_file("bc, 20 updates", EvaluateOptions()) == "videos/bc-20-updates.mp4"
    assert len({film_file("bc", EvaluateOptions(**other)) for other in others}) == len(others)


def test_the_report_says_which_starts_its_rows_share(tmp_path: Path) -> None:
    from robot_cl.report_sections import scores_section
    from robot_cl.run_folder import RunFolder

    add_score(tmp_path, entry([[1.0, 2.0]]))
    add_score(tmp_path, entry([[1.0, 2.0]], shift="gravity0.5"))
    section = scores_section([RunFolder(tmp_path)])
    assert section is not None and section["about"].endswith("seed 0 + k in every row.")
    add_score(tmp_path, entry([[1.0, 2.0]], seeds=[50, 51]))
    section = scores_section([RunFolder(tmp_path)])
    assert section is not None and section["about"].endswith("seed 0 or 50 + k: not all rows share their starts.")


def test_simulators_are_not_mixed_unasked() -> None:
    here, there = entry([[1.0, 2.0]]), entry([[1.0, 2.0]], simulator="mujoco 2")
    with pytest.raises(ValueError, match=r"mujoco 2.*mujoco 1.*mixed=true"):
        compare([("a", here), ("b", there)])
    assert len(compare([("a", here), ("b", there)], mixed=True)) == 2


@pytest.mark.parametrize("change", [{"task": "ant"}, {"shift": "gravity0.5"}])
def test_different_tasks_are_never_mixed(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="evaluate both on the same"):
        compare([("a", entry([[1.0]])), ("b", entry([[1.0]], **change))], mixed=True)


def test_the_verb_compares_and_refuses(cli: Cli, place: Path) -> None:
    ran = cli("compare", "cloned", "critic", "--json")
    assert ran.code == 0 and [row["name"][-6:] for row in ran.json["rows"]] == ["cloned", "critic"]
    assert ran.json["rows"][0]["improvement"] is None and 0 <= ran.json["rows"][1]["improvement"]["estimate"] <= 1
    (run,) = place.glob("runs/*critic")
    path = run / "evaluation.json"
    text = path.read_text()
    data = json.loads(text)
    for one in data["entries"]:
        one["simulator"] = "hopper mujoco 2.0"
    path.write_text(json.dumps(data))
    try:
        refused = cli("compare", "cloned", "critic")
        assert refused.code == 2 and "mixed=true" in refused.err
        assert cli("compare", "cloned", "critic", "mixed=true").code == 0
    finally:
        path.write_text(text)


def test_intervals_read_as_one_would_write_them() -> None:
    assert interval_text(1234.6, (1000.2, 1500.7)) == "1,235 [1,000, 1,501]"
    assert interval_text(0.456, None, 2) == "0.46"
