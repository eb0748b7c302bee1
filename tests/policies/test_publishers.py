"""Several processes publish into one library at once."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from policies.journal import Journal
from policies.library import Library
from tests.policies.conftest import HEADER, SHAPES, random_skill


def publisher(root: str, who: int, count: int, barrier: object) -> None:
    """Its own skills, and under its own names some that everybody publishes."""
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    library = Library.create(Path(root), HEADER, SHAPES, durable=False)
    for k in range(count):
        library.publish(f"own-{who}-{k}", random_skill(1000 * who + k))
        try:
            library.publish(f"shared-{who}-{k}", random_skill(10**6 + k))
        except ValueError as refused:
            assert "does the same as" in str(refused)


def test_publishers_at_the_same_time_lose_nothing_and_publish_no_copy_twice(tmp_path: Path) -> None:
    context, count, people = multiprocessing.get_context("fork"), 6, 4
    barrier = context.Barrier(people)
    crowd = [context.Process(target=publisher, args=(str(tmp_path), who, count, barrier)) for who in range(people)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * people
    library = Library.create(tmp_path, HEADER, SHAPES)
    names = library.names()
    assert [name for name in names if name.startswith("own")] == sorted(
        f"own-{who}-{k}" for who in range(people) for k in range(count)
    )
    assert sorted(int(name.split("-")[2]) for name in names if name.startswith("shared")) == list(range(count))
    assert not library.check()
    lines = [json.loads(line) for line in (library.folder / "journal.jsonl").read_text().splitlines()]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    assert all((a["op"], b["op"]) == ("begin", "done") and a["skill"] == b["skill"] for a, b in pairs)
    assert sorted(a["skill"] for a, _ in pairs) == names


def test_a_library_that_is_open_learns_from_the_journal_only_what_is_new(tmp_path: Path, monkeypatch) -> None:
    mine = Library.create(tmp_path, HEADER, SHAPES, durable=False)
    other = Library(mine.folder, durable=False)
    for k in range(3):
        other.publish(f"skill-{k}", random_skill(k))
    assert mine.names() == ["skill-0", "skill-1", "skill-2"]
    looked: list[str] = []
    plain = mine._look_at
    monkeypatch.setattr(mine, "_look_at", lambda name: (looked.append(name), plain(name)))
    other.publish("skill-3", random_skill(3))
    other.publish("skill-1", random_skill(4), replace=True)
    other.remove("skill-0")
    assert mine.names() == ["skill-1", "skill-2", "skill-3"] and sorted(looked) == ["skill-0", "skill-1", "skill-3"]
    assert mine.search(random_skill(4), 1)[0][0] == "skill-1" and mine.search(random_skill(4), 1)[0][1] < 1e-6


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_line_that_was_being_written_is_read_when_it_is_whole(cut: int, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", durable=False)
    journal.append({"op": "done", "skill": "one"})
    first = journal.size
    line = json.dumps({"op": "done", "skill": "two"}).encode() + b"\n"
    part = min(cut, len(line) - 1)
    with journal.path.open("ab") as file:
        file.write(line[:part])
    assert journal.since(0) == (["one"], first) and journal.since(first) == ([], first)
    seen = journal.size  # by somebody who looked at the size alone
    with journal.path.open("ab") as file:
        file.write(line[part:])
    assert journal.since(first) == (["two"], journal.size)
    assert "two" in journal.since(seen)[0] and journal.since(journal.size) == ([], journal.size)
