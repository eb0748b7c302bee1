"""The page stands alone, shows what the files say, and escapes what it did not write."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from robot_cl import svg, svg_maps
from robot_cl.curves import Metrics, curve, load_metrics, write_csv, write_png
from robot_cl.report import write_report
from robot_cl.run_folder import open_run
from robot_cl.scores import interval_text, read_scores
from robot_cl.svg import Row

Cli = Callable[..., Any]
VOID = {"meta", "br", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest; collects attributes, the text, and the charts."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run that has an offline and an online part."""
    (original,) = place.glob("runs/*critic")
    return Path(shutil.copytree(original, tmp_path / original.name))


def page_of(run: Path, **options: Any) -> Page:
    return Page(write_report([run], **options).read_text())


def test_the_page_asks_for_nothing_from_outside(run: Path) -> None:
    page = page_of(run)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "poster", "data", "action")]
    assert links and all(value.startswith("data:video/mp4;base64,") for value in links)
    html = (run / "report.html").read_text()
    assert "url(" not in html and "@import" not in html
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    assert html.count("<script>") == 1 and not re.search(r"fetch|http:|https:|import|eval", script)


def test_the_film_in_the_page_is_the_film_of_the_run(run: Path) -> None:
    (film,) = run.glob("videos/*.mp4")
    (source,) = [value for tag, name, value in page_of(run).attributes if (tag, name) == ("video", "src")]
    assert base64.b64decode(source.split(",", 1)[1]) == film.read_bytes()


def test_the_numbers_are_those_of_the_files(run: Path) -> None:
    page, (entry,) = page_of(run), read_scores(run)
    assert interval_text(entry.mean, entry.mean_interval) in page.text
    assert interval_text(entry.iqm, entry.iqm_interval) in page.text
    assert entry.simulator in page.text and entry.reference is not None and entry.reference in page.text
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["commit"] in page.text and provenance["dataset"]["hash"][:16] in page.text
    assert "expectile: 0.7" in page.text and f"robot-cl verify {run.as_posix()}" in page.text
    assert entry.members == 2 and "seed 1" in page.text


def test_the_behaviour_in_the_data_is_shown_while_the_dataset_is_here(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    meta = json.loads((place / "datasets/hopper/tiny-v0/meta.json").read_text())
    there = page_of(run).text
    assert "behaviour in the data" in there and f"{meta['steps']:,} steps in {meta['episodes']:,} episodes" in there
    monkeypatch.chdir(run)
    assert "behaviour in the data" not in page_of(run).text


def test_charts_are_well_formed_and_say_where_the_online_part_begins(run: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", write_report([run]).read_text(), re.DOTALL)
    assert len(charts) >= 4
    for chart in charts:
        ElementTree.fromstring(chart)
    assert any('class="mark"' in chart for chart in charts) and any('class="band' in chart for chart in charts)


def test_a_run_without_evaluation_or_film_or_metrics_still_has_a_page(run: Path) -> None:
    (run / "evaluation.json").unlink()
    shutil.rmtree(run / "videos")
    assert "Not evaluated yet" in page_of(run).text
    (run / "metrics.csv").unlink()
    (run / "provenance.json").unlink()
    page = page_of(run)
    assert "Learning" not in page.text and "none was recorded" in page.text


def test_what_the_page_did_not_write_is_escaped(run: Path) -> None:
    for file in ("config.yaml", "provenance.json", "evaluation.json"):
        text = (run / file).read_text().replace("hopper", "<script>alert(1)</script>hopper")
        (run / file).write_text(text.replace('"label": "', '"label": "<img src=x onerror=y>'))
    page = page_of(run, title="<script>title</script>")
    tags = {tag for tag, _, _ in page.attributes}
    assert "img" not in tags
    html = (run / "report.html").read_text()
    assert html.count("<script") == 1 and "<script>alert" not in html and "<script>title" not in html
    assert "<script>title</script>" in page.text


def test_several_runs_make_one_page(place: Path, tmp_path: Path) -> None:
    runs = sorted(place.glob("runs/*cloned")) + sorted(place.glob("runs/*critic"))
    text = Page(write_report(runs, tmp_path / "both.html").read_text()).text
    assert "cloned" in text and "critic" in text and "report of 2 runs" in text
    assert "bc offline, 20 updates" in text and "iql online, 10 steps" in text


def test_the_verb_writes_page_table_and_figure(cli: Cli, tmp_path: Path) -> None:
    targets = [tmp_path / name for name in ("page.html", "curves.csv", "curves.png")]
    ran = cli("report", "critic", f"out={targets[0]}", f"csv={targets[1]}", f"png={targets[2]}", "--json")
    assert ran.code == 0 and ran.json["files"] == [str(t) for t in targets]
    assert targets[2].read_bytes().startswith(b"\x89PNG")


def test_the_table_for_papers_holds_mean_and_ends_over_seeds(run: Path, tmp_path: Path) -> None:
    write_csv(run, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = load_metrics(run)
    step, values = metrics.series("q_loss")
    first = next(row for row in rows if float(row["step"]) == step[0])
    assert float(first["q_loss_mean"]) == pytest.approx(values[0].mean(), rel=1e-6)
    assert float(first["q_loss_max"]) == pytest.approx(values[0].max(), rel=1e-6)
    with pytest.raises(LookupError, match="did you mean q_loss"):
        write_png(run, tmp_path / "c.png", ["q_los"])


def test_a_curve_is_the_mean_and_the_band_the_worst_and_best_seed() -> None:
    columns = {
        "step": np.array([1.0, 1, 2, 2, 3, 3]),
        "member": np.array([0.0, 1, 0, 1, 0, 1]),
        "phase": np.array(["offline"] * 4 + ["online"] * 2),
        "time_s": np.zeros(6),
        "loss": np.array([1.0, 3, 2, np.nan, np.nan, np.nan]),
    }
    metrics = Metrics(columns)
    drawn = curve("loss", *metrics.series("loss"))
    np.testing.assert_allclose(drawn.x, [1, 2])
    np.testing.assert_allclose(drawn.y, [2, 2])
    assert drawn.low is not None and drawn.high is not None
    np.testing.assert_allclose([drawn.low, drawn.high], [[1, 2], [3, 2]])
    assert metrics.online_from == 2 and metrics.x_label("loss") == "updates"


def test_long_curves_are_averaged_not_cut() -> None:
    step = np.arange(10_000.0)
    drawn = curve("x", step, np.stack([step, step], axis=1))
    assert len(drawn.x) == 300 and drawn.y.mean() == pytest.approx(step.mean(), rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3]), (0.12, 0.19, [0.12, 0.14, 0.16, 0.18])],
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(svg.ticks(low, high), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345, "12.3k"), (2_000_000, "2M"), (0.00034, "3.4e-4"), (-1500, "-1500"), (0.25, "0.25")],
)
def test_labels_are_short(value: float, text: str) -> None:
    assert svg.number(value) == text


def test_a_chart_of_one_value_or_none_is_drawn_too() -> None:
    ElementTree.fromstring(svg.curves([svg.Curve("a", np.array([1.0]), np.array([5.0]))], "x", "y"))
    assert "no values" in svg.curves([svg.Curve("a", np.array([1.0]), np.array([np.nan]))], "x", "y")
    ElementTree.fromstring(f'<both>{svg.intervals([svg.Row("only", 3.0)], "return")}</both>')


def test_points_lie_where_their_values_are() -> None:
    chart = ElementTree.fromstring(svg.curves([svg.Curve("a", np.array([0.0, 10.0]), np.array([0.0, 4.0]))], "x", "y"))
    circles = [e for e in chart.iter() if e.tag.endswith("circle")]
    (x0, y0), (x1, y1) = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in circles]
    assert x0 == svg.LEFT and x1 == svg.WIDTH - svg.RIGHT and y0 > y1 > svg.TOP


def test_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no config\.yaml"):
        open_run(tmp_path)


def test_rows_are_drawn_for_a_phone_too_with_names_above_what_they_name() -> None:
    rows = [Row("a name that would not leave a phone any room for the chart", 1.0, 0.5, 1.5), Row("b", 2.0)]
    for drawn in (svg.intervals(rows, "return"), svg_maps.bars(rows, "return")):
        wide, slim = (ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", drawn))
        assert (wide.get("class"), slim.get("class")) == ("chart rows", "chart slim")
        width = float(slim.attrib["viewBox"].split()[2])
        assert width < 340
        drawn_at = [float(mark.attrib[key]) for mark in slim.iter() for key in ("x", "x1", "x2") if key in mark.attrib]
        assert min(drawn_at) >= 0 and max(drawn_at) <= width


def test_a_legend_is_text_as_well_which_a_phone_can_break() -> None:
    lines = [svg.Curve(name, np.arange(2.0), np.arange(2.0)) for name in ("one", "two")]
    assert '<span class="keys"><span><i class="c0"></i>one</span>' in svg.curves(lines, "x", "y")
    assert "keys" not in svg.curves(lines[:1], "x", "y")
