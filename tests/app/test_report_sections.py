"""What a report says about streams of tasks and compositions is what their files say."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl import svg_maps
from robot_cl.activity import activity, read_activity, write_activity
from robot_cl.commands.gate import _data
from robot_cl.commands.report import figures
from robot_cl.continual.release_gate import GateVerdict, TaskVerdict
from robot_cl.evaluate import Film
from robot_cl.report import write_report
from robot_cl.report_composition import placed
from robot_cl.report_continual import continual_section, learning_chart
from robot_cl.run_folder import open_run
from robot_cl.svg import Row


def sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted = sibling("planted")


def test_a_stream_is_told_method_by_method(tmp_path: Path) -> None:
    planted.planted_continual(tmp_path / "run")
    section = continual_section(open_run(tmp_path / "run"))
    assert section is not None
    library, finetune = section["rows"]
    assert library["cells"]["forgetting"] == (0.0, "0.00", "−0.05 to 0.05")
    assert finetune["cells"]["bwt"][1] == "−0.33" and finetune["bytes"] == (4470.0, "4.5 kB")
    html = write_report([tmp_path / "run"]).read_text()
    assert "3 tasks, one after the other: library ends at 0.80 [0.75, 0.85]" in html
    assert "A walker on three grounds: 3 tasks, borders between tasks announced, 2 training seeds" in html
    assert "planted 1" in html and html.count('class="chart heat"') == 3  # two matrices, one of coefficients


def test_a_matrix_shows_every_entry_with_its_interval(tmp_path: Path) -> None:
    planted.planted_continual(tmp_path / "run")
    section = continual_section(open_run(tmp_path / "run"))
    assert section is not None
    chart = str(section["matrices"][1]["svg"])
    assert "3 ice → hill: 0.4 [0.3, 0.5]" in chart and "untrained → ice: 0.1" in chart
    assert chart.count("<rect") == 12 and chart.count("±0.10") == 9


def test_each_task_begins_a_curve_of_its_own(tmp_path: Path) -> None:
    chart = learning_chart(planted.planted_continual(tmp_path / "run"))
    assert chart.count("<polyline") == 2 * 3 and chart.count("<polygon") == 2 * 3
    assert chart.count('class="mark"') == 2


def test_numbers_and_figures_lie_beside_the_page(tmp_path: Path) -> None:
    data = planted.planted_continual(tmp_path / "run")
    made = {path.name: path for path in figures(tmp_path / "run")}
    assert made.keys() == {"continual_metrics.csv", "continual_R.csv", "continual.png", "continual.pdf"}
    rows = list(csv.DictReader(made["continual_R.csv"].open()))
    assert len(rows) == 2 * 2 * 4 and [float(rows[-1][t]) for t in planted.TASKS] == [0.4, 0.4, 0.6]
    first = next(csv.DictReader(made["continual_metrics.csv"].open()))
    assert float(first["estimate"]) == data["methods"]["library"]["metrics"]["acc"]["estimate"]
    assert made["continual.png"].read_bytes()[:4] == b"\x89PNG" and made["continual.pdf"].read_bytes()[:4] == b"%PDF"


def test_a_composition_tells_what_each_skill_is_worth(tmp_path: Path) -> None:
    planted.planted_composition(tmp_path / "run")
    html = write_report([tmp_path / "run"]).read_text()
    assert "composition: the lowest held-out loss" in html and "fresh: too few demonstrations" in html
    (left_out,) = re.findall(r'<svg class="chart rows"[^>]*aria-label="% more held-out loss.*?</svg>', html)
    assert [float(v) for v in re.findall(r'class="value"[^>]*>([-\d.]+)<', left_out)] == pytest.approx([50.0, -10.0])
    assert re.findall(r'class="name"[^>]*>([^<]+)<', left_out) == ["without hop", "without kick"]


def test_bars_start_at_zero_and_go_either_way() -> None:
    chart = svg_maps.bars([Row("up", 2.0, 1.0, 3.0), Row("down", -1.0)], "difference").partition("</svg>")[0]
    found = re.findall(r'class="bar c\d" x="([\d.]+)"[^>]*?width="([\d.]+)"', chart)
    up, down = [(float(x), float(w)) for x, w in found]
    assert up[0] == pytest.approx(down[0] + down[1], abs=0.2) and up[1] == pytest.approx(2 * down[1], abs=0.3)


def test_near_skills_are_near_on_the_map() -> None:
    at, kept = placed(np.array([[0.0, 0, 0], [0.1, 0, 0], [5.0, 5, 0], [5.0, 5, 0.1]]))
    near, far = np.linalg.norm(at[0] - at[1]), np.linalg.norm(at[0] - at[2])
    assert near <= 0.1 and far == pytest.approx(50**0.5, rel=0.01) and 0.99 < kept <= 1.0
    flat = np.array([[0.0, 0], [3.0, 4], [1.0, -2]])
    at, kept = placed(flat)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(at[i] - at[j]) == pytest.approx(np.linalg.norm(flat[i] - flat[j]))
    assert kept == pytest.approx(1.0)


class Mixed:
    """A policy that mixes two skills by the first number it sees."""

    obs_dim, act_dim = 11, 3

    class mixture:  # noqa: N801
        names = ("hop", "kick")

    def coefficients(self, obs: Any) -> Any:
        import torch

        return torch.stack([obs[:, 0], 1.0 - obs[:, 0]], dim=1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 3), dtype=np.float32)

    def reset(self, rows: Any = None) -> None:
        """Nothing to forget."""


def test_the_strip_says_what_was_mixed_along_the_filmed_episode(tmp_path: Path) -> None:
    import sim

    world = sim.make("hopper", 1)
    world.reset(seed=1002)
    seen = [float(world.reset(seed=1002)[0, 0])] + [float(world.step(np.zeros((1, 3)))[0][0, 0]) for _ in range(9)]
    film = Film("hopper", np.zeros((5, 6)), 0.016, 1002, 1.0)
    found = activity(Mixed(), film)
    assert found is not None and found.skills == ["hop", "kick"] and found.dt == 0.008
    assert [row[0] for row in found.values] == pytest.approx(seen, abs=1e-4)
    assert [sum(row) for row in found.values] == pytest.approx([1.0] * 10, abs=1e-3)
    write_activity(found, tmp_path / "a.mp4")
    assert read_activity(tmp_path / "a.mp4") == found
    chart = svg_maps.strip(found.skills, np.array(found.values), found.dt)
    assert 'data-seconds="0.080"' in chart and chart.count('class="lane"') == 2


@pytest.mark.parametrize("text", ["", "{}", '{"skills": ["a"], "dt": 0.1, "values": [[1, 2]]}', '{"skills": 1}'])
def test_a_damaged_strip_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.activity.json").write_text(text)
    assert read_activity(tmp_path / "a.mp4") is None



def test_a_plain_policy_has_no_strip() -> None:
    assert activity(object(), Film("hopper", np.zeros((5, 6)), 0.016, 1, 1.0)) is None


def test_the_gates_verdict_is_told_task_by_task(tmp_path: Path) -> None:
    planted.planted_composition(tmp_path / "run")
    kept = TaskVerdict("hopper", 100.0, 104.0, -1.0, 5.0, {10: (80.0, 82.0)}, 60, 20)
    lost = TaskVerdict("hopper:ice", 50.0, 30.0, -28.0, 2.5, {10: (40.0, 20.0)}, 60, 20)
    told = _data(GateVerdict([kept, lost])) | {"against": "the old one"}
    (tmp_path / "run" / "gate.json").write_text(json.dumps(told))
    html = write_report([tmp_path / "run"]).read_text()
    assert "Not promoted: judged against the old one" in html and "10 %: 80 → 82" in html
    assert lost.sentence() in html and kept.sentence() not in html
    (chart,) = re.findall(r'<svg class="chart rows"[^>]*aria-label="change of the mean.*?</svg>', html)
    assert [float(v) for v in re.findall(r'class="value"[^>]*>([-\d.]+)<', chart)] == pytest.approx([4.0, -40.0])


def test_transfer_is_told_row_by_row_with_what_it_leaves_out(tmp_path: Path) -> None:
    planted.planted_transfer(tmp_path / "run")
    html = write_report([tmp_path / "run"]).read_text()
    assert "hopper under friction0.2: 2 disjoint draws of 10 demonstrations" in html and "80 %" in html
    assert "learned α(s) reaches 80 % of the demonstrations&#39; return with 10 demonstrations" in html
    assert "fresh adapter does not reach 80 %" in html and "OUTSIDE the trained range" in html
    (left_out,) = re.findall(r'<svg class="chart rows"[^>]*aria-label="change of return.*?</svg>', html)
    assert [float(v) for v in re.findall(r'class="value"[^>]*>([-\d.]+)<', left_out)] == [-20.0, 1.0]
    (matrix,) = re.findall(r'<svg class="chart heat".*?</svg>', html)
    assert "base → ice: 1 [0.75, 1.25]" in matrix and "base → hopper: 0.5 [" in matrix
