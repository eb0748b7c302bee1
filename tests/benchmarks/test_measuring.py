"""What benchmarks and profiles share: which scripts there are, parts that are kept, stacks as pictures."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in ("benchmarks", "tools"):
    sys.path.insert(0, str(ROOT / folder))

import common  # noqa: E402
import flame  # noqa: E402
import profile_all  # noqa: E402
import run_all  # noqa: E402

STACKS = """<module> (tools/p.py:9);timed (/x/tools/profiled.py:6);go (robot_cl/run.py:7);step (policies/x.py:2) 60
<module> (tools/profiled.py:9);timed (/x/tools/profiled.py:61);go (robot_cl/run.py:70);each (sim/pool.py:7) 30
<module> (tools/profiled.py:9);_find_and_load (<frozen importlib._bootstrap>) 500
 70
Thread._bootstrap (threading.py:1);Condition.wait (threading.py:5) 80
Thread._bootstrap (threading.py:1);step (sim/stepping.py:5) 10
"""


def test_every_script_that_make_bench_runs_reports_claims() -> None:
    silent = [name for name in run_all.names() if "report(" not in (ROOT / f"benchmarks/{name}.py").read_text()]
    assert {"scale", "stacking"} <= set(run_all.names()) and not silent


def test_a_part_that_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    asked: list[int] = []

    def measure() -> dict[str, float]:
        asked.append(1)
        return {"seconds": 1.5}

    for quick in (False, False, True):
        found = common.measured("some", "part", quick, measure)
        assert found["seconds"] == 1.5 and "measured at commit" in found
    assert len(asked) == 2 and sorted(p.name for p in tmp_path.rglob("*.json")) == ["part-quick.json", "part.json"]


def test_only_what_is_timed_and_works_is_counted() -> None:
    stacks = [(profile_all.within(frames), count) for frames, count in flame.read_stacks(STACKS)]
    kept = [(frames, count) for frames, count in stacks if frames]
    assert [count for _, count in kept] == [60, 30, 10] and kept[0][0][0] == "go (robot_cl/run.py)"
    assert profile_all.shares(kept) == {"forward pass": 0.6, "physics": 0.4}


def test_a_flame_graph_is_a_picture_whose_bars_are_as_wide_as_their_share() -> None:
    stacks = [(["a", "b"], 75), (["a", "c <&>"], 25)]
    drawn = ET.fromstring(flame.draw(flame.tree(stacks), "two", lambda name: "#123456"))
    ns = "{http://www.w3.org/2000/svg}"
    bars = {g.find(f"{ns}title").text: float(g.find(f"{ns}rect").get("width")) for g in drawn.iter(f"{ns}g")}
    assert bars == {"a: 100.0 %": flame.WIDTH, "b: 75.0 %": 0.75 * flame.WIDTH, "c <&>: 25.0 %": 0.25 * flame.WIDTH}
