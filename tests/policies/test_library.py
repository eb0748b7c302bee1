import json
import os
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import Adapter, Factors, Header, distance, linear_combination
from policies.card import Parent, SkillCard
from policies.composed import ComposedActor
from policies.composers import COMPOSERS, CompositionShape
from policies.hashing import content_digest, output_hash
from policies.library import Library
from policies.library_base import bases
from policies.lora import base_digest, layer_shapes
from policies.mixture import Mixture
from policies.networks import generators
from policies.skill_file import read_skill, skill_bytes


@pytest.fixture
def actor():
    return StackedGaussianActor(5, 3, generators(0, 1), ActorConfig(hidden=(16, 16)))


@pytest.fixture
def shapes(actor):
    return layer_shapes(actor)


@pytest.fixture
def header(actor):
    return Header(base_digest(actor), "1f" * 32, actor.normalizer.digest)


@pytest.fixture
def library(tmp_path, header, shapes):
    return Library.create(tmp_path / "skills", header, shapes, now=lambda: 1.7e9, durable=False)


@pytest.fixture
def skill(actor, header, make_skill):
    return lambda seed, rank=2: make_skill(actor, seed, rank).with_header(header)


def _tree(folder):
    """Every file of the library but the lock, with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_published_skill_comes_back_with_its_card(library, skill, header, tmp_path):
    given = SkillCard("walk", learner="psec", seed=3, datasets={"walker/demo-v0": "ab12"}, scores={"walk": 812.5})
    library.publish("walk", skill(1), given)
    again = Library(library.folder)
    loaded = again.load("walk")
    assert content_digest(loaded.adapter) == content_digest(skill(1)) == loaded.card.content
    assert loaded.card.scores == {"walk": 812.5} and loaded.card.header == header and loaded.card.created == 1.7e9
    assert SkillCard.from_json((library.folder / "walk/card.json").read_text()) == loaded.card
    assert library.folder.name == header.base[:12] and bases(tmp_path / "skills") == [library.folder]
    assert again.names() == ["walk"] and again.search_text("psec walk") == ["walk"]
    assert isinstance(json.loads((library.folder / "walk/card.json").read_text())["parents"], list)


def test_versions_are_kept_and_can_be_brought_back(library, skill):
    library.publish("walk", skill(1))
    with pytest.raises(ValueError, match="'walk' already"):
        library.publish("walk", skill(2))
    library.publish("walk", skill(2), replace=True)
    assert library.rollback("walk").content == content_digest(skill(1))
    assert library.rollback("walk").content == content_digest(skill(2))
    library.remove("walk")
    assert library.names() == [] and not (library.folder / "walk").exists()
    with pytest.raises(LookupError, match="no skill 'walk'"):
        library.load("walk")
    library.rollback("walk")
    assert content_digest(Library(library.folder).adapter("walk")) == content_digest(skill(2))
    done = [(e["do"], e["skill"]) for e in library.store.journal.entries() if e["op"] == "done"]
    assert done == [("publish", "walk")] * 4 + [("remove", "walk"), ("publish", "walk")]


def test_other_writers_are_noticed(library, skill):
    other = Library(library.folder, durable=False)
    other.publish("walk", skill(1))
    assert library.names() == ["walk"]
    other.publish("run", skill(2))
    assert [name for name, _ in library.search(skill(2), 1)] == ["run"]


def test_a_copy_in_other_factors_is_refused_and_a_near_one_announced(library, skill):
    library.publish("walk", skill(1))
    copy = Adapter({n: Factors(f.down * 2, f.up / 2) for n, f in skill(1).layers.items()}, skill(1).header)
    with pytest.raises(ValueError, match="'gait' does the same as 'walk'"):
        library.publish("gait", copy)
    published = library.publish("slower", skill(1).scaled(0.98))
    assert [name for name, _ in published.near] == ["walk"]
    assert library.publish("run", skill(2)).near == ()
    assert [name for name, _ in library.search("walk", 2)] == ["slower", "run"]


def test_a_residual_is_stored_whole_and_outlives_its_parents(library, skill):
    library.publish("stand", skill(1))
    library.publish("walk", skill(2))
    residual = skill(3, rank=1)
    library.publish("run", residual, parents={"stand": 0.25, "walk": 1.0})
    card = library.card("run")
    assert [(p.skill, p.coefficient) for p in card.parents] == [("stand", 0.25), ("walk", 1.0)]
    assert card.parents[1].content == content_digest(skill(2))
    whole = linear_combination([skill(1), skill(2), residual], [0.25, 1.0, 1.0])
    library.remove("stand")
    library.publish("walk", skill(7), replace=True)
    assert distance(library.adapter("run"), whole) < 1e-5


def test_no_skill_is_changed_by_what_happens_to_others(library, skill, actor):
    """Forgetting is zero: the actions of each skill on probe observations, bit for bit."""
    obs = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)

    def hashes():
        found = {}
        for name in library.names():
            mixture = Mixture(actor, {name: library.adapter(name)})
            composer = COMPOSERS["fixed"](CompositionShape.of(mixture, 5), [1.0])
            found[name] = output_hash(ComposedActor(mixture, composer).act, obs)
        return found

    for seed in range(4):
        library.publish(f"s{seed}", skill(seed))
    before = hashes()
    library.publish("new", skill(9))
    library.publish("s3", skill(10), replace=True)
    library.remove("s2")
    library.pack()
    after = hashes()
    assert {n: after[n] for n in ("s0", "s1")} == {n: before[n] for n in ("s0", "s1")}
    assert after["s3"] != before["s3"]
    library.rollback("s3")
    library.rollback("s2")
    assert {n: h for n, h in hashes().items() if n != "new"} == before


def test_packed_skills_are_the_skills_and_a_stale_row_is_not_used(library, skill):
    for seed in range(5):
        library.publish(f"s{seed}", skill(seed, rank=1 + seed // 2))
    library.pack()
    packed = Library(library.folder, durable=False)
    for seed in range(5):
        assert content_digest(packed.adapter(f"s{seed}")) == content_digest(skill(seed, rank=1 + seed // 2))
    assert packed.search(skill(3, 2), 1)[0] == ("s3", pytest.approx(0, abs=1e-6))
    packed.publish("s0", skill(20), replace=True)
    assert content_digest(packed.adapter("s0")) == content_digest(skill(20))
    assert content_digest(Library(library.folder).adapter("s0")) == content_digest(skill(20))
    rows = next(library.folder.glob(".pack-*")) / "rows.f32"
    rows.write_bytes(bytes(len(rows.read_bytes())))
    assert content_digest(Library(library.folder).adapter("s1")) == content_digest(skill(1, 1))
    (library.folder / "pack.json").write_text("{")
    assert Library(library.folder).names() == [f"s{i}" for i in range(5)]


def test_a_library_of_another_base_is_named(tmp_path, library, header, shapes):
    with pytest.raises(ValueError, match="belongs to another base: interface 1f1f1f1f1f1f against 2e2e"):
        Library.create(tmp_path / "skills", Header(header.base, "2e" * 32, header.normalizer), shapes)
    with pytest.raises(LookupError, match="is no skill library"):
        Library(tmp_path / "skills" / "nowhere")


# ------------------------------------------------------------------------------------------------ malformed skills
def _file(tmp_path, skill, **change):
    """A valid skill file with parts of it replaced."""
    adapter = change.get("adapter", skill(5))
    card = SkillCard("odd", header=adapter.header, content=content_digest(adapter), ranks=adapter.ranks)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(skill_bytes(adapter, card.filled(**change.get("card", {}))))
    return path


def _raw(tmp_path, tensors, metadata=None, card=None):
    path = tmp_path / "odd.safetensors"
    full = {"format": "robot-cl skill 1", "card": card or '{"name": "odd"}'} if metadata is None else metadata
    path.write_bytes(safetensors.torch.save(tensors, full))
    return path


def _bytes(tmp_path, data):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data)
    return path


def _with_header(skill, **digests):
    return skill(5).with_header(Header(**{**vars(skill(5).header), **digests}))


def _tampered(tmp_path, skill):
    path = _file(tmp_path, skill)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    return _bytes(tmp_path, bytes(data))


def _pickled(tmp_path):
    path = tmp_path / "odd.safetensors"
    torch.save({"net.layers.0.down": torch.zeros(1)}, path)
    return path


PAIR = {"net.layers.0.down": torch.ones(1, 5), "net.layers.0.up": torch.ones(16, 1)}
MALFORMED = {
    "other base": (lambda t, s: _file(t, s, adapter=_with_header(s, base="9" * 64)), "base 999999999999 against"),
    "other interface": (lambda t, s: _file(t, s, adapter=_with_header(s, interface="8" * 64)), "interface 8888888"),
    "other normaliser": (lambda t, s: _file(t, s, adapter=_with_header(s, normalizer="7" * 64)), "normalizer 7777777"),
    "truncated": (lambda t, s: _bytes(t, _file(t, s).read_bytes()[:-100]), "damaged or cut short"),
    "truncated header": (lambda t, s: _bytes(t, _file(t, s).read_bytes()[:200]), "not a whole safetensors file"),
    "empty": (lambda t, s: _bytes(t, b""), "not a whole safetensors file"),
    "endless header": (lambda t, s: _bytes(t, struct.pack("<Q", 1 << 60) + b"{}"), "not a whole safetensors file"),
    "torch.save": (lambda t, s: _pickled(t), "pickle"),
    "pickle": (lambda t, s: _bytes(t, b"\x80\x04\x95cposix\nsystem\n."), "pickle"),
    "text": (lambda t, s: _bytes(t, b"def skill(): pass  # not weights"), "not a whole safetensors file"),
    "changed weights": (_tampered, "was changed after"),
    "NaN": (lambda t, s: _raw(t, {**PAIR, "net.layers.0.up": torch.full((16, 1), torch.nan)}), "NaN or infinity"),
    "infinity": (lambda t, s: _raw(t, {**PAIR, "net.layers.0.up": torch.full((16, 1), torch.inf)}), "NaN or infinity"),
    "half a layer": (lambda t, s: _raw(t, {"net.layers.0.down": torch.ones(1, 5)}), "only one of its two factors"),
    "ranks apart": (lambda t, s: _raw(t, {**PAIR, "net.layers.0.up": torch.ones(16, 2)}), "do not fit"),
    "rank 0": (lambda t, s: _raw(t, {"a.down": torch.ones(0, 5), "a.up": torch.ones(16, 0)}), "do not fit"),
    "integers": (lambda t, s: _raw(t, {**PAIR, "net.layers.0.up": torch.ones(16, 1).int()}), "expected float32"),
    "foreign tensor": (lambda t, s: _raw(t, {**PAIR, "optimizer": torch.ones(1)}), "'optimizer'"),
    "no tensors": (lambda t, s: _raw(t, {}), "at least one layer"),
    "no card": (lambda t, s: _raw(t, PAIR, metadata={"format": "pt"}), "format is 'pt'"),
    "no metadata": (lambda t, s: _bytes(t, safetensors.torch.save(PAIR)), "carries no card"),
    "card not JSON": (lambda t, s: _raw(t, PAIR, card="skill: walk"), "not JSON"),
    "card of text": (lambda t, s: _raw(t, PAIR, card='{"name": "odd", "seed": "three"}'), "seed = 'three'"),
    "card of secrets": (lambda t, s: _raw(t, PAIR, card='{"name": "odd", "exec": "x"}'), "unknown field 'exec'"),
    "nested without end": (
        lambda t, s: _bytes(t, struct.pack("<Q", 400002) + b"[" * 200001 + b"]" * 200001),
        "carries no card",
    ),
    "score of text": (lambda t, s: _file(t, s, card={"scores": {"walk": "much"}}), "scores = 'much'; expected number"),
    "score of NaN": (lambda t, s: _file(t, s, card={"scores": {"walk": float("nan")}}), "scores = 'nan'"),
    "date beyond calendars": (lambda t, s: _file(t, s, card={"created": 1e20}), "created = 1e+20"),
    "hash of a number": (lambda t, s: _file(t, s, card={"datasets": {"walker": 5}}), "datasets = '5'; expected str"),
    "interface of numbers": (lambda t, s: _file(t, s, card={"interface": {"obs": 5}}), "interface = '5'"),
    "parent of a number": (lambda t, s: _file(t, s, card={"parents": (Parent("walk", 7, 1.0),)}), "content of parents"),
    "ranks of others": (lambda t, s: _file(t, s, card={"ranks": {"net.layers.0": 7}}), "its card says"),
    "unknown layer": (
        lambda t, s: _file(t, s, adapter=Adapter({"net.elbow": Factors(*PAIR.values())}, s(5).header)),
        "changes a layer 'net.elbow'",
    ),
    "other width": (
        lambda t, s: _file(
            t, s, adapter=Adapter({"net.layers.0": Factors(torch.ones(1, 6), torch.ones(16, 1))}, s(5).header)
        ),
        "6 → 16; the base expects 5 → 16",
    ),
    "climbing name": (lambda t, s: _file(t, s, card={"name": "../../walk"}), "cannot name a skill"),
    "absolute name": (lambda t, s: _file(t, s, card={"name": "/etc/walk"}), "cannot name a skill"),
    "hidden name": (lambda t, s: _file(t, s, card={"name": ".history"}), "cannot name a skill"),
    "no name": (lambda t, s: _file(t, s, card={"name": ""}), "cannot name a skill"),
    "long name": (lambda t, s: _file(t, s, card={"name": "w" * 65}), "cannot name a skill"),
    "a copy": (lambda t, s: _file(t, s, adapter=s(1)), "does the same as 'walk'"),
    "a taken name": (lambda t, s: _file(t, s, card={"name": "walk"}), "'walk' already"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_skill_is_refused_with_a_sentence_and_leaves_no_trace(case, library, skill, tmp_path):
    make, words = MALFORMED[case]
    library.publish("walk", skill(1))
    before = _tree(library.folder)
    path = make(tmp_path, skill)
    with pytest.raises((ValueError, OSError), match=r"\w") as refused:
        library.add_file(path)
    message = str(refused.value)
    assert words in message and "\n" not in message
    assert _tree(library.folder) == before
    assert Library(library.folder).names() == ["walk"]


def test_a_well_formed_file_from_elsewhere_is_taken(library, skill, tmp_path):
    library.add_file(_file(tmp_path, skill))
    assert content_digest(library.adapter("odd")) == content_digest(skill(5))


def test_a_missing_file_is_an_ordinary_error(library, tmp_path):
    with pytest.raises(FileNotFoundError):
        library.add_file(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("cut", [lambda text: text[:-20], lambda text: b"\xff" + text, lambda text: b""])
def test_a_damaged_copy_of_a_card_is_named_and_the_skill_is_whole(cut, library, skill):
    library.publish("walk", skill(1))
    copy = library.folder / "walk/card.json"
    assert library.check() == []
    copy.write_bytes(cut(copy.read_bytes()))
    (problem,) = library.check()
    assert problem.startswith(f"{copy} is damaged") and library.load("walk").card.name == "walk"
    copy.unlink()
    assert library.check() == []


def test_a_skill_damaged_on_disk_is_named_and_the_others_stay_usable(library, skill):
    library.publish("walk", skill(1))
    library.publish("run", skill(2))
    path = library.folder / "run/skill.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    again = Library(library.folder, durable=False)
    assert again.names() == ["walk"]
    assert [m for m in again.check() if "run/skill.safetensors is damaged" in m]
    again.remove("run")
    assert again.check() == []


# ------------------------------------------------------------------------------------------------ killed writers
def _killed_at_line(number, action):
    """Run `action` in a child that is killed (SIGKILL) at its n-th line inside the storing code. True if it was."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        left = number

        def trace(frame, event, argument):
            nonlocal left
            if not frame.f_code.co_filename.endswith(("skill_store.py", "skill_file.py", "journal.py")):
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


ACTIONS = {
    "publish": (lambda library, skill: library.publish("new", skill(5)), "new"),
    "replace": (lambda library, skill: library.publish("walk", skill(6), replace=True), "walk"),
    "remove": (lambda library, skill: library.remove("walk"), "walk"),
    "roll back": (lambda library, skill: library.rollback("run"), "run"),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_any_line_the_library_opens_with_the_state_before_or_after(action, library, skill):
    library.publish("walk", skill(1))
    library.publish("run", skill(2))
    library.publish("run", skill(3), replace=True)
    do, name = ACTIONS[action]

    def state(lib):
        assert lib.check() == []
        return {n: lib.card(n).content for n in lib.names()}

    before, killed, outcomes = state(library), 0, set()
    while True:
        folder = library.folder.with_name(f"copy-{killed}")
        shutil.copytree(library.folder, folder)
        if not _killed_at_line(killed, lambda at=folder: do(Library(at, durable=False), skill)):
            break
        killed += 8  # every line takes minutes on a busy machine
        now = state(Library(folder, durable=False))
        assert {n: c for n, c in now.items() if n != name} == {n: c for n, c in before.items() if n != name}
        outcomes.add(now.get(name))
        writer = Library(folder, durable=False)
        writer.publish("other", skill(8))  # the next writer settles what is open, and can write
        assert state(writer) == {**now, "other": content_digest(skill(8))}
        assert not list((folder / ".tmp").iterdir())
        assert writer.store.journal.entries()[-1]["op"] == "done"
    assert killed > 40 and len(outcomes) == 2


def test_a_journal_line_cut_short_is_dropped(library, skill):
    library.publish("walk", skill(1))
    whole = library.store.journal.entries()
    with library.store.journal.path.open("ab") as file:
        file.write(b'{"op": "begin", "do": "publ')
    assert library.store.journal.entries() == whole
    library.publish("run", skill(2))
    assert [e["skill"] for e in library.store.journal.entries()] == ["walk", "walk", "run", "run"]


def test_a_file_read_directly_is_verified_too(library, skill):
    library.publish("walk", skill(1))
    adapter, card = read_skill(library.path("walk"))
    assert card.name == "walk" and content_digest(adapter) == card.content
