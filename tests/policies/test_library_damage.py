"""What may be lost or damaged in a library's folder, and what must go on all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from policies.adapter import Adapter, Factors
from policies.card import SkillCard
from policies.library import Library
from tests.policies.conftest import HEADER, SHAPES, random_skill


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Skills s0, s1 and s2."""
    made = Library.create(tmp_path, HEADER, SHAPES, durable=False)
    for k in range(3):
        made.publish(f"s{k}", random_skill(k))
    return made


def _spoil(library: Library, name: str) -> None:
    data = bytearray(library.path(name).read_bytes())
    data[-2] ^= 1
    library.path(name).write_bytes(bytes(data))


def test_a_copy_without_its_empty_folders_can_be_written_to(library: Library) -> None:
    shutil.rmtree(library.folder / ".tmp")
    Library(library.folder, durable=False).publish("new", random_skill(9))
    assert Library(library.folder).names() == ["new", "s0", "s1", "s2"]


@pytest.mark.parametrize("data", [b"", bytes(4 * 3 * 5)])
def test_a_pack_whose_sketches_are_cut_short_is_not_used(data: bytes, library: Library) -> None:
    library.pack()
    (next(library.folder.glob(".pack-*")) / "sketches.f32").write_bytes(data)
    again = Library(library.folder)
    assert again.names() == ["s0", "s1", "s2"] and again.search(random_skill(1), 1)[0][0] == "s1"


@pytest.mark.parametrize("index", ["[]", "{}", '{"folder": "x", "rank": 1, "entries": []}'])
def test_an_index_of_a_pack_that_is_none_is_not_used(index: str, library: Library) -> None:
    library.pack()
    (library.folder / "pack.json").write_text(index)
    assert Library(library.folder).names() == ["s0", "s1", "s2"]


@pytest.mark.parametrize("shapes", [{"net.0": 5}, {"net.0": [1]}, {"net.0": [-1, 2]}, {}, [1]])
def test_a_damaged_base_is_named(shapes: object, library: Library) -> None:
    about = json.loads((library.folder / "base.json").read_text())
    (library.folder / "base.json").write_text(json.dumps(about | {"shapes": shapes}))
    with pytest.raises(ValueError, match=r"base\.json is damaged"):
        Library(library.folder)


def test_a_skill_that_cannot_be_read_does_not_close_the_library(library: Library) -> None:
    (library.folder / "odd" / "skill.safetensors").mkdir(parents=True)
    again = Library(library.folder)
    assert again.names() == ["s0", "s1", "s2"] and list(again.damaged) == ["odd"]


def test_a_skill_that_is_taken_out_while_it_is_read_is_not_there(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, plain = Library(library.folder, durable=False), Library._read

    def late(self: Library, name: str) -> object:
        if library.path("s1").exists():
            library.remove("s1")
        return plain(self, name)

    library.publish("s1", random_skill(7), replace=True)
    monkeypatch.setattr(Library, "_read", late)
    other.refresh()
    assert other.names() == ["s0", "s2"] and not other.damaged


def test_a_skill_damaged_under_an_open_library_is_no_longer_offered_until_it_is_replaced(library: Library) -> None:
    _spoil(library, "s1")
    library.refresh()
    assert library.names() == ["s0", "s2"] and list(library.damaged) == ["s1"]
    with pytest.raises(ValueError, match="was changed after"):
        library.search("s1")
    library.publish("s1", random_skill(8), replace=True)
    assert library.names() == ["s0", "s1", "s2"] and not library.damaged
    _spoil(library, "s2")
    library.refresh()
    library.remove("s2")
    assert not library.damaged


def test_an_open_intent_about_a_damaged_skill_is_settled(library: Library) -> None:
    library.path("s1").write_bytes(b"no skill")
    library.store.journal.append({"at": 0.0, "op": "begin", "do": "remove", "skill": "s1", "content": ""})
    Library(library.folder, durable=False).publish("new", random_skill(9))
    again = Library(library.folder, durable=False)
    assert again.names() == ["new", "s0", "s2"] and list(again.damaged) == ["s1"]


def test_a_folder_in_which_people_keep_notes_can_lose_its_skill(library: Library) -> None:
    (library.folder / "s1" / "notes.txt").write_text("walks")
    library.remove("s1")
    library.publish("new", random_skill(9))
    assert Library(library.folder).names() == ["new", "s0", "s2"]
    assert library.store.journal.entries()[-1]["op"] == "done"


def test_versions_may_be_thrown_away_and_old_ones_damaged(library: Library) -> None:
    for seed in (11, 12, 13):
        library.publish("s0", random_skill(seed), replace=True)
    oldest, second, last = library.store.versions("s0")
    oldest.unlink()
    library.publish("s0", random_skill(14), replace=True)
    assert [p.stem for p in library.store.versions("s0")] == [second.stem, last.stem, "000004"]
    second.write_bytes(b"no skill")
    assert library.rollback("s0").content == Library(library.folder).card("s0").content


def test_a_card_that_could_not_be_read_again_is_refused_before_it_is_written(library: Library) -> None:
    before = library.store.journal.size
    with pytest.raises(ValueError, match="scores = 'nan'"):
        library.publish("new", random_skill(9), SkillCard("new", scores={"walk": float(np.nan)}))
    assert library.store.journal.size == before and Library(library.folder).names() == ["s0", "s1", "s2"]


def test_a_skill_in_double_precision_is_stored_whole(library: Library) -> None:
    plain = random_skill(9)
    double = Adapter({n: Factors(f.down.double().requires_grad_(), f.up.double()) for n, f in plain.layers.items()},
                     HEADER)  # fmt: skip
    content = library.publish("new", double).card.content
    again = Library(library.folder)
    assert again.load("new").card.content == content and not again.damaged
    with pytest.raises(ValueError, match="does the same as 'new'"):
        library.publish("again", plain)
