"""The browser's pages: what is on disk is shown, what should not be read is refused, nothing is ever written."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from robot_cl.serve import files
from robot_cl.serve.app import make_app
from robot_cl.serve.index import RunIndex, read_line

CONFIG = "task: hopper\ndata: hopper/tiny-v0\noffline_steps: 100\nonline_steps: 50\nlearner:\n  name: {learner}\n"
METRICS = "step,phase,member,time_s,loss\n1,offline,0,1,1\n1,offline,1,1,1\n2,offline,0,1,.5\n2,offline,1,1,.5\n"


def make_run(root: Path, name: str, learner: str = "iql", mean: float | None = None) -> Path:
    run = root / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(learner=learner))
    (run / "metrics.csv").write_text(METRICS)
    if mean is not None:
        entry = {"mean": mean, "mean_interval": [mean - 1, mean + 1], "simulator": "mujoco 3.11.0 abc"}
        (run / "evaluation.json").write_text(json.dumps({"format": 1, "entries": [entry]}))
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "2026-01-31-120000-first", "bc", 10.0)
    make_run(root, "2026-02-01-120000-second", "iql", 20.0)
    return root


@pytest.fixture
def index(root: Path) -> RunIndex:
    clock = itertools.count(time.time(), 60)  # a minute passes between any two looks, so that no list is too fresh
    index = RunIndex(root, lambda: next(clock))
    index.refresh()
    return index


@pytest.fixture
def client(index: RunIndex, tmp_path: Path) -> TestClient:
    return TestClient(make_app(index, tmp_path / "library"), base_url="http://127.0.0.1")


def names(client: TestClient, query: str = "") -> list[str]:
    return [line["label"] for line in client.get(f"/api/runs{query}").json()["runs"]]


def test_runs_are_listed_searched_and_sorted(client: TestClient) -> None:
    assert sorted(names(client)) == ["first", "second"]
    assert names(client, "?q=iql+hopper") == ["second"]
    assert names(client, "?sort=-return") == ["second", "first"] == names(client, "?sort=return")[::-1]
    line = client.get("/api/runs?q=second").json()["runs"][0]
    assert (line["score"], line["interval"], line["step"], line["steps"]) == (20.0, [19.0, 21.0], 2, 150)
    page = client.get("/runs").text
    assert "second" in page and "[19, 21]" in page


def test_what_changes_on_disk_changes_in_the_list(client: TestClient, index: RunIndex, root: Path) -> None:
    before = index.refresh()
    assert index.refresh() is before
    make_run(root, "2026-03-01-third")
    with (root / "2026-02-01-120000-second" / "metrics.csv").open("a") as file:
        file.write("7,offline,0,1.0,0.1\n7,off")
    index.refresh()
    assert set(names(client)) == {"first", "second", "third"}
    assert client.get("/api/runs?q=second").json()["runs"][0]["step"] == 7, "half a row is not a row yet"
    for file in (root / "2026-03-01-third").iterdir():
        file.unlink()
    (root / "2026-03-01-third").rmdir()
    index.refresh()
    assert set(names(client)) == {"first", "second"}


def test_a_quick_look_finds_new_runs_and_rows_of_those_in_training(root: Path) -> None:
    clock = [time.time()]
    index = RunIndex(root, lambda: clock[0])
    index.refresh()
    run = root / "2026-02-01-120000-second"
    with (run / "metrics.csv").open("a") as file:
        file.write("3,offline,0,1.0,0.1\n")
    make_run(root, "2026-03-01-third")
    index.refresh(full=False)
    assert index.line(run.name).step == 3 and index.line("2026-03-01-third") is not None
    clock[0] += 1000.0  # by now nothing is in training any more, and a row in an old run waits for the next full look
    index.refresh(full=False)
    with (run / "metrics.csv").open("a") as file:
        file.write("4,offline,0,1.0,0.1\n")
    index.refresh(full=False)
    assert index.line(run.name).step == 3
    index.refresh()
    assert index.line(run.name).step == 4


def test_curves_are_sent_once_per_change(client: TestClient, root: Path) -> None:
    address = "/api/runs/2026-02-01-120000-second/curves"
    first = client.get(address)
    assert first.json()[0]["name"] == "loss" and first.json()[0]["mean"] == [1.0, 0.5]
    tag = {"if-none-match": first.headers["etag"]}
    assert client.get(address, headers=tag).status_code == 304
    with (root / "2026-02-01-120000-second" / "metrics.csv").open("a") as file:
        file.write("3,offline,0,1.0,0.25\n")
    assert client.get(address, headers=tag).json()[0]["mean"][-1] == 0.25


def test_a_run_shows_its_options_files_and_report(client: TestClient, root: Path) -> None:
    address = "/runs/2026-02-01-120000-second"
    page = client.get(address).text
    assert "online_steps: 50" in page and "metrics.csv" in page and "No report yet" in page
    assert client.get(f"{address}/report").status_code == 404
    (root / "2026-02-01-120000-second" / "report.html").write_text("<h1>of this run</h1>")
    answer = client.get(f"{address}/report")
    assert answer.text == "<h1>of this run</h1>" and "sandbox" in answer.headers["content-security-policy"]


def test_what_a_file_says_is_never_code(client: TestClient, root: Path, index: RunIndex) -> None:
    evil = "<script>alert(1)</script>"
    run = make_run(root, "2026-04-01-evil")
    (run / "config.yaml").write_text(f"task: '{evil}'\nlearner:\n  name: '{evil}'\n")
    (run / f"{evil.replace('/', '')}.txt").write_text("")
    index.refresh()
    for address in ("/runs", "/runs?q=%3Cscript%3E", "/runs/2026-04-01-evil"):
        answer = client.get(address)
        assert "<script>alert" not in answer.text
        assert "script-src 'self'" in answer.headers["content-security-policy"]


OUTSIDE = [
    "/runs/..", "/runs/../secret.txt", "/runs/%2e%2e/secret.txt", "/runs/..%2fsecret.txt", "/runs/%2e%2e%2fsecret.txt",
    "/runs/RUN/files/../../secret.txt", "/runs/RUN/files/..%2f..%2fsecret.txt",
    "/runs/RUN/files/%2e%2e/%2e%2e/secret.txt",
    "/runs/RUN/files//etc/passwd", "/runs/RUN/files/%2fetc%2fpasswd", "/runs/RUN/files/..%5c..%5csecret.txt",
    "/runs/RUN/files/link.txt", "/runs/RUN/files/folder/secret.txt", "/runs/RUN/files/.hidden.txt",
    "/runs/RUN/files/huge.csv", "/runs/RUN/files/pipe.txt", "/runs/RUN/files/weights.safetensors",
    "/runs/RUN/files/config.yaml%00.txt", "/runs/RUN/files/" + "a" * 300 + ".txt", "/runs/linked", "/runs/RUN/files/",
    "/runs/RUN/files/" + "a/" * 3000 + "a.txt", "/runs/linked/files/config.yaml", "/skills/../RUN",
    "/skills/%2e%2e/runs", "/page/report.html.j2", "/page/../cli.py",
    "/api/runs/..%2f../curves", "/runs?page=0", "/runs?page=-1", "/runs?page=x", "/runs?sort=__class__", "/nowhere",
    "/runs?q=" + "a" * 1000, "/page/..%2f..%2fcli.py",
]  # fmt: skip


async def raw(app: Any, address: str) -> tuple[int, bytes]:
    """Status and body of a request as an attacker sends it: no client tidies the path."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "headers": [(b"host", b"127.0.0.1")], "scheme": "http",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_nothing_outside_a_run_is_read(client: TestClient, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    run = root / "2026-02-01-120000-second"
    (run / "link.txt").symlink_to(tmp_path / "secret.txt")
    (run / "folder").symlink_to(tmp_path)
    (run / ".hidden.txt").write_text("the secret")
    (run / "weights.safetensors").write_text("the secret")
    os.mkfifo(run / "pipe.txt")
    with (run / "huge.csv").open("wb") as file:
        file.truncate(files.MAX_FILE + 1)
    outside = make_run(tmp_path / "elsewhere", "run")
    (root / "linked").symlink_to(outside)
    for address in OUTSIDE:
        status, body = asyncio.run(raw(client.app, address.replace("RUN", run.name)))
        assert 400 <= status < 500, (address, status)
        assert b"the secret" not in body and b"root:" not in body, address
    assert "the secret" not in client.get(f"/runs/{run.name}").text


def test_a_linked_file_is_not_read_for_the_list_either(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("task: the secret\n")
    run = make_run(root, "2026-05-01-tricky")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "other.yaml")
    assert read_line(run).task == "" and "link" in read_line(run).problem


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(client: TestClient, method: str) -> None:
    assert client.request(method, "/runs").status_code == 405


def test_a_page_elsewhere_cannot_reach_in_by_a_name_of_its_own(client: TestClient) -> None:
    assert client.get("/runs", headers={"host": "evil.example:8000"}).status_code == 400
    assert client.get("/runs", headers={"host": "localhost:8000"}).status_code == 200


def test_a_damaged_run_is_a_line_with_its_problem(client: TestClient, index: RunIndex, root: Path) -> None:
    run = make_run(root, "2026-06-01-damaged", mean=1.0)
    (run / "config.yaml").write_text("a: [1, 2\nb: }")
    index.refresh()
    assert read_line(run).problem and "damaged" in names(client)
    (run / "config.yaml").write_text(f"task: !!python/object/apply:os.mkdir ['{root / 'made'}']\n")
    assert "constructor" in read_line(run).problem and not (root / "made").exists()
    (run / "config.yaml").write_text("task: hopper\n")
    (run / "evaluation.json").write_text('{"entries": [{"mean": "much"}]}')
    assert "could not convert" in read_line(run).problem
    assert client.get(f"/runs/{run.name}").status_code == 200


def no_config(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("/nowhere")


def a_folder_as_config(run: Path) -> None:
    (run / "metrics.csv").unlink()
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()


def scores(text: str) -> Callable[[Path], Any]:
    return lambda run: (run / "evaluation.json").write_text(text)


def endless(run: Path) -> None:
    (run / "config.yaml").write_text("offline_steps: .inf\n")


@pytest.mark.parametrize(
    "harm",
    [
        no_config, a_folder_as_config, endless, scores('{"entries": [{"mean": 1, "mean_interval": [1]}]}'),
        scores("[" * 100_000), scores('{"entries": [{"mean": NaN}]}'),
    ],
)  # fmt: skip
def test_no_file_of_one_run_hides_the_others(
    client: TestClient, index: RunIndex, root: Path, harm: Callable[[Path], None]
) -> None:
    run = make_run(root, "2026-06-01-harmed")
    harm(run)
    index.refresh()
    assert read_line(run).problem and sorted(names(client)) == ["first", "harmed", "second"]


def test_what_is_removed_meanwhile_is_not_an_error(root: Path, tmp_path: Path) -> None:
    (run,) = root.glob("*first")
    looking = files.listing(run)
    assert next(looking)[0] == "config.yaml"
    (run / "metrics.csv").unlink()
    assert [name for name, _, _ in looking] == ["evaluation.json"]
    (tmp_path / "gone").write_text("no folder any more")
    assert RunIndex(tmp_path / "gone").refresh().lines == ()


def test_skills_are_shown_by_their_cards(client: TestClient, tmp_path: Path) -> None:
    card = tmp_path / "library" / "abc123" / "hop" / "card.json"
    card.parent.mkdir(parents=True)
    (tmp_path / "library" / "abc123" / "base.json").write_text("{}")
    card.write_text(json.dumps({"name": "hop", "description": "hops high", "scores": {"hopper": 12.0}}))
    assert "hops high" in client.get("/skills").text
    assert "12.0" in client.get("/skills/abc123/hop").text
    parents = [{"skill": "walk", "coefficient": 0.5}]
    card.write_text(json.dumps({"name": "hop", "created": 1_700_000_000.0, "parents": parents}))
    page = client.get("/skills/abc123/hop").text
    assert "2023-11-1" in page and "walk 0.5" in page and "1700000000" not in page
    strange = ('{"scores": [1], "learner": {"a": 1}}', '{"created": 1e300, "parents": [1]}')
    for text in ("not json", "[1]", *strange, "{}", "[" * 100_000):
        card.write_text(text)
        assert client.get("/skills").status_code == client.get("/skills/abc123/hop").status_code == 200, text


def test_the_command_listens_on_this_machine_alone_and_says_where(root: Path) -> None:
    code = f"from robot_cl.cli import main; main(['serve', 'port=0', 'runs={root}'])"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline(), server.stdout.readline()]
        address = lines[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        port = int(address.rsplit(":", 1)[1])
        assert _answer(port).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError), socket.create_connection((_own_address(), port), timeout=0.5):
            pass
    finally:
        server.terminate()
        server.wait()


def _answer(port: int) -> bytes:
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return connection.recv(4096)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _own_address() -> str:
    """Another address of this machine than 127.0.0.1; 127.0.0.2 is one on Linux."""
    return "127.0.0.2"


def test_a_taken_port_is_one_sentence(cli: Callable[..., Any], root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = cli("serve", f"port={taken.getsockname()[1]}", f"runs={root}")
    assert ran.code == 2 and "cannot be had" in ran.err and "Traceback" not in ran.err
