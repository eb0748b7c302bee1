"""The report and the served pages in a real browser: nothing complains, all is drawn, nothing leaves the machine."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from robot_cl.activity import Activity, write_activity
from robot_cl.report import write_report
from robot_cl.serve.app import make_app
from robot_cl.serve.index import RunIndex


def sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted, driver = sibling("planted"), sibling("browser")
PROGRAM = driver.executable()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")

# A figure is drawn if it has a size on the page and marks of its own.
UNDRAWN = """[...document.querySelectorAll("svg.chart")].filter(svg => svg.checkVisibility()).filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 100 || box.height < 30 || !svg.querySelector("polyline, polygon, rect, circle, line.estimate");
}).map(svg => svg.getAttribute("aria-label"))"""
FIGURES = 'document.querySelectorAll("svg.chart").length'
WIDER = "document.documentElement.scrollWidth - window.innerWidth"
FIRST_COLUMN = '[...document.querySelectorAll("table[data-sortable] tbody tr")].map(r => r.cells[0].innerText.trim())'
PLAYS = '(v => v.currentTime > 0.05 && v.videoWidth > 0)(document.querySelector("video"))'
SIZES = pytest.mark.parametrize(("width", "dark"), [(1100, False), (390, True)])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    tab = driver.Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pages(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a trained run with its film, of a stream of tasks, of a composition, and of transfer."""
    root = tmp_path_factory.mktemp("pages")
    (original,) = place.glob("runs/*critic")
    trained = Path(shutil.copytree(original, root / "trained"))
    (film,) = trained.glob("videos/*.mp4")
    values = np.stack([np.linspace(0, 1, 40), np.linspace(1, -0.3, 40)], axis=1)
    write_activity(Activity(["hop", "kick"], 0.01, values.tolist()), film)
    planted.planted_continual(root / "continual")
    planted.planted_composition(root / "composition")
    planted.planted_transfer(root / "transfer")
    return {name: write_report([root / name]) for name in ("trained", "continual", "composition", "transfer")}


def local(requests: list[str]) -> bool:
    return all(r.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")) for r in requests)


@pytest.mark.parametrize("name", ["trained", "continual", "composition", "transfer"])
@SIZES
def test_a_report_is_drawn_without_a_complaint(
    browser: Any, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name].as_uri(), width, 900, dark)
    assert browser.ask(FIGURES) >= 2 and browser.ask(UNDRAWN) == []
    assert browser.ask(WIDER) <= 0, "the page scrolls sideways"
    assert browser.complaints == [] and local(browser.requests)
    picture = browser.screenshot(f"report-{name}-{width}{'-dark' if dark else ''}")
    assert _colours(picture) > 20


def test_dark_is_dark_and_paper_is_white(browser: Any, pages: dict[str, Path]) -> None:
    background = 'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)'
    browser.open(pages["trained"].as_uri(), dark=True)
    assert browser.ask(background) < 100
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask(background) == 765
    assert len(browser.call("Page.printToPDF", printBackground=True)["data"]) > 10_000
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_click_on_a_heading_sorts_the_table(browser: Any, pages: dict[str, Path]) -> None:
    browser.open(pages["continual"].as_uri())
    assert browser.ask(FIRST_COLUMN) == ["library", "finetune"]
    click = 'document.querySelectorAll("table[data-sortable] th button")[{}].click()'
    browser.ask(click.format(2))  # forgetting, largest first
    assert browser.ask(FIRST_COLUMN) == ["finetune", "library"]
    browser.ask(click.format(2))
    assert browser.ask(FIRST_COLUMN) == ["library", "finetune"]
    browser.ask(click.format(0))
    assert browser.ask(FIRST_COLUMN) == ["library", "finetune"]
    assert browser.ask('document.querySelector("th[aria-sort]").getAttribute("aria-sort")') == "descending"


def test_the_film_plays_and_the_line_under_it_moves(browser: Any, pages: dict[str, Path]) -> None:
    browser.open(pages["trained"].as_uri())
    browser.ask('document.querySelector("video").play()')
    browser.until(PLAYS)
    browser.ask('(v => { v.pause(); v.currentTime = v.duration / 2; })(document.querySelector("video"))')
    line = 'document.querySelector(".playhead").getAttribute("x1")'
    start = 'document.querySelector("svg.strip").dataset.left'
    browser.until(f"+{line} > +{start} + 20")


@pytest.fixture(scope="module")
def address(pages: dict[str, Path]) -> Iterator[str]:
    """A served folder with the four runs."""
    root = pages["trained"].parent.parent
    index = RunIndex(root)
    index.refresh()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(make_app(index, root / "library"), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("path", ["/runs", "/runs/trained", "/runs/continual", "/skills", "/runs/composition/report"])
@SIZES
def test_a_served_page_is_drawn_without_a_complaint(
    browser: Any, address: str, path: str, width: int, dark: bool
) -> None:
    browser.open(address + path, width, 900, dark)
    if path == "/runs/trained":
        browser.until(f"{FIGURES} >= 2")
    assert browser.ask(UNDRAWN) == [] and browser.ask(WIDER) <= 0
    browser.screenshot(f"serve{path.replace('/', '-')}-{width}{'-dark' if dark else ''}")
    assert browser.complaints == [] and local(browser.requests)


def test_curves_follow_a_run_that_goes_on(browser: Any, address: str, pages: dict[str, Path]) -> None:
    browser.open(f"{address}/runs/trained")
    browser.until(f"{FIGURES} >= 2")
    metrics = pages["trained"].parent / "metrics.csv"
    header = metrics.read_text().splitlines()[0].split(",")
    fresh = {"step": "777", "phase": "online", "member": "0", "time_s": "1", header[4]: "1.5"}
    with metrics.open("a") as file:
        file.write(",".join(fresh.get(name, "") for name in header) + "\n")
    browser.until('document.getElementById("step").textContent === "777"')
    assert browser.ask('document.getElementById("live").checkVisibility()')


def test_a_report_cannot_read_the_other_pages(browser: Any, address: str, pages: dict[str, Path]) -> None:
    spy = pages["composition"].parent / "spy.html"
    reading = 'fetch("/api/runs").then(a => a.text(), () => "refused").then(t => document.title = t)'
    spy.write_text(f"<!doctype html><title>waiting</title><script>{reading}</script>")
    browser.open(f"{address}/runs/composition/files/spy.html")
    assert browser.until('document.title !== "waiting" && document.title') == "refused"
    assert json.loads(browser.ask('JSON.stringify(window.origin)')) == "null"


def _colours(picture: bytes) -> int:
    from PIL import Image

    small = Image.open(io.BytesIO(picture)).convert("RGB").resize((200, 400))
    return len(small.getcolors(100_000) or [])
