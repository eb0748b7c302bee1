"""Skills on disk: <root>/<base digest 12>/<skill>/{skill.safetensors, card.json} and an append-only journal.

skill.safetensors is the skill: weights and card in one file, replaced in one step. card.json is the card's copy for
reading; .pack-* and pack.json are derived from the skills. Earlier versions stay in .history.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from policies.adapter import Adapter, Header, compress, linear_combination
from policies.card import Parent, SkillCard, check_name
from policies.hashing import Sketch, content_digest, functional_hash
from policies.library_base import make_folder, read_base
from policies.packing import Pack, SketchTable, Stamp, stamp_of, write_pack
from policies.skill_file import as_stored, read_card, read_skill, skill_bytes
from policies.skill_store import SkillStore

SAME, NEAR = 1e-4, 0.05  # relative distance of sketches: the same skill; worth a warning


class Skill(NamedTuple):
    adapter: Adapter
    card: SkillCard


@dataclass(frozen=True)
class Published:
    """What publishing said: the completed card, and skills that do nearly the same with their relative distance."""

    card: SkillCard
    near: tuple[tuple[str, float], ...] = ()


class Library:
    """The skills of one base. Remembers names, stamps and sketches of what is on disk, and looks again when the
    journal has grown. `now` gives seconds since 1970; `durable` False skips fsync (for tests and bulk loads)."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time, durable: bool = True):
        """Open a base's folder. Raises LookupError if there is none, ValueError if its base.json is damaged."""
        self.folder, self.now = Path(folder), now
        base = read_base(self.folder)
        self.header, self.shapes = base.header, base.shapes
        self.sketch = Sketch(self.shapes)
        self.store = SkillStore(self.folder, now, durable)
        self._table = SketchTable(self.sketch.size)
        self._known: dict[str, tuple[Stamp, str]] = {}  # name -> stamp, content
        self._pack = Pack.open(self.folder, self.shapes, self.sketch.size)
        self.damaged: dict[str, str] = {}  # name -> why it cannot be read
        self._seen = -1
        self.refresh()

    @classmethod
    def create(
        cls,
        root: Path,
        header: Header,
        shapes: Mapping[str, tuple[int, int]],
        now: Callable[[], float] = time.time,
        durable: bool = True,
    ) -> Library:
        """The library of a base (`shapes`: layer -> (d_out, d_in)), made if it is not there yet.

        Raises ValueError if the folder belongs to another base, interface or normaliser.
        """
        folder = make_folder(root, header, shapes, now, durable)
        library = cls(folder, now, durable)
        clause = library.header.mismatch(header)
        if clause:
            raise ValueError(f"{folder} belongs to another base: {clause}; use another library folder")
        return library

    def refresh(self) -> None:
        """Look at the disk again, reading only what is new or changed."""
        self._seen = self.store.journal.size
        self.damaged = {}
        present = self.store.present()
        for name in set(self._known) - set(present):
            self._forget(name)
        for name in present:
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        """One skill as it is on disk now."""
        try:
            stamp = stamp_of(self.path(name))
        except FileNotFoundError:
            if name in self._known:
                self._forget(name)
            return
        if name not in self._known or self._known[name][0] != stamp:
            self._learn(name, stamp)

    def _learn(self, name: str, stamp: Stamp) -> None:
        packed = self._pack.entry(name, stamp) if self._pack else None
        if packed and self._pack:
            self._remember(name, stamp, packed["content"], torch.from_numpy(self._pack.sketches[packed["row"]].copy()))
            return
        try:
            adapter, card = self._read(name)
        except (ValueError, OSError) as problem:
            if name in self._known:
                self._forget(name)
            if not isinstance(problem, FileNotFoundError):  # then another process has just taken it out
                self.damaged[name] = str(problem)
            return
        self._remember(name, stamp, card.content, self.sketch(adapter))

    def _remember(self, name: str, stamp: Stamp, content: str, vector: Tensor) -> None:
        self.damaged.pop(name, None)
        self._known[name] = (stamp, content)
        self._table.set(name, vector)

    def _forget(self, name: str) -> None:
        del self._known[name]
        self._table.drop(name)

    def _look(self) -> None:
        """Learn what the journal says others have changed since the last look; the rest is not looked at."""
        if self.store.journal.size == self._seen:
            return
        changed, self._seen = self.store.journal.since(self._seen)
        for name in changed:
            self.damaged.pop(name, None)
            self._look_at(name)

    def names(self) -> list[str]:
        self._look()
        return sorted(self._known)

    def __len__(self) -> int:
        self._look()
        return len(self._known)

    def path(self, name: str) -> Path:
        return self.store.path(name)

    def card(self, name: str) -> SkillCard:
        return read_card(self._existing(name))

    def load(self, name: str) -> Skill:
        """The skill as published, digests verified. Raises LookupError for an unknown name, ValueError for a damaged
        skill or one of another base."""
        path = self._existing(name)
        packed = self._pack.load(name, stamp_of(path), self.header) if self._pack else None
        return Skill(packed, read_card(path)) if packed else self._read(name)

    def adapter(self, name: str) -> Adapter:
        """Only the weights: one row of the memory map, where the library is packed."""
        path = self._existing(name)
        packed = self._pack.load(name, stamp_of(path), self.header) if self._pack else None
        return packed or self._read(name).adapter

    def _read(self, name: str) -> Skill:
        adapter, card = read_skill(self.path(name))
        self.check_fit(name, adapter)
        return Skill(adapter, card)

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not path.exists():
            near = difflib.get_close_matches(name, self._known, 3) or sorted(self._known)[:5]
            raise LookupError(f"no skill {name!r} in {self.folder}; there are {', '.join(near) or 'none yet'}")
        return path

    def check_fit(self, name: str, adapter: Adapter) -> None:
        """Raises ValueError, naming the skill, for an adapter of another base or of layers that the base has not."""
        clause = adapter.header.mismatch(self.header)
        if clause:
            raise ValueError(
                f"skill {name!r} does not belong to this library's base: {clause}; "
                "rebase it, train it again, or open the library it came from"
            )
        for layer, (down, up) in adapter.layers.items():
            wanted = self.shapes.get(layer)
            if wanted != (up.shape[0], down.shape[1]):
                has = f"{down.shape[1]} → {up.shape[0]}"
                expected = f"{wanted[1]} → {wanted[0]}" if wanted else f"one of {', '.join(self.shapes)}"
                raise ValueError(f"skill {name!r} changes a layer {layer!r} of {has}; the base expects {expected}")

    def search(self, query: str | Adapter, k: int = 5) -> list[tuple[str, float]]:
        """The k skills that do most nearly the same as a skill (by name or value), with relative distances."""
        self._look()
        if isinstance(query, Adapter):
            return self._table.nearest(self.sketch(query), k)
        self._existing(query)
        own = self._table.vector(query) if query in self._known else self.sketch(self._read(query).adapter)
        found = self._table.nearest(own, k + 1)
        return [(name, distance) for name, distance in found if name != query][:k]

    def search_text(self, words: str, k: int = 10) -> list[str]:
        """Names whose card holds most of the words (name, description, learner, tasks), best first."""
        wanted = words.lower().split()
        scored = []
        for name in self.names():
            card = self.card(name)
            text = " ".join([name, card.description, card.learner, *card.scores, *card.datasets]).lower()
            hits = sum(word in text for word in wanted)
            if hits:
                scored.append((-hits, name))
        return [name for _, name in sorted(scored)[:k]]

    def publish(
        self,
        name: str,
        adapter: Adapter,
        card: SkillCard | None = None,
        replace: bool = False,
        parents: Mapping[str, float] | None = None,
    ) -> Published:
        """Add a skill, or with `replace` a new version of it; the earlier one stays in the history.

        With `parents` {skill: coefficient} the adapter is a residual trained on that frozen composition: what is
        stored is the whole, so that it acts, merges and travels like any other skill and outlives its parents.
        Raises ValueError for a bad name, another base, NaN, an existing name, or a copy of a skill already here.
        """
        check_name(name)
        self.check_fit(name, adapter)
        given = card or SkillCard(name)
        if parents:
            adapter, records = self.whole(adapter, parents)
            given = given.filled(parents=records)
        adapter = as_stored(adapter)
        vector = self.sketch(adapter)
        given = given.filled(
            name=name, header=self.header, content=content_digest(adapter), ranks=adapter.ranks,
            functional_hash=functional_hash(vector), created=given.created or self.now(),
        )  # fmt: skip
        SkillCard.from_json(given.to_json())  # what could not be read again is refused before it is written
        with self._writing():
            if self.path(name).exists() and not replace:
                raise ValueError(
                    f"there is a skill {name!r} already; choose another name, or overwrite it (overwrite=true)"
                )
            near = [(other, d) for other, d in self._table.nearest(vector, 4) if other != name and d < NEAR]
            if near and near[0][1] < SAME:
                raise ValueError(f"skill {name!r} does the same as {near[0][0]!r}, which is here already; use that one")
            self.store.commit(name, skill_bytes(adapter.with_header(self.header), given), given)
            self._remember(name, stamp_of(self.path(name)), given.content, vector)
        return Published(given, tuple(near))

    def add_file(self, path: Path, name: str | None = None, replace: bool = False) -> Published:
        """Publish a skill file from elsewhere, after every check a skill of our own passes."""
        adapter, card = read_skill(Path(path))
        return self.publish(name or card.name, adapter, card, replace)

    def whole(self, residual: Adapter, parents: Mapping[str, float]) -> tuple[Adapter, tuple[Parent, ...]]:
        """What is stored of a residual on {skill: coefficient}: the sum of all in the fewest ranks, and the records."""
        below = {parent: self.load(parent) for parent in parents}
        records = tuple(Parent(p, s.card.content, float(parents[p])) for p, s in below.items())
        whole = linear_combination([*(s.adapter for s in below.values()), residual], [*parents.values(), 1.0])
        return compress(whole).with_header(self.header), records

    def remove(self, name: str) -> None:
        """Take a skill out; `rollback` brings it back."""
        with self._writing():
            self._existing(name)
            self.store.remove(name)
            self.damaged.pop(name, None)
            if name in self._known:  # a damaged skill is not
                self._forget(name)

    def rollback(self, name: str) -> SkillCard:
        """The version before the present one (or before the removal) becomes the present one, as a new publication."""
        with self._writing():
            current = self._known[name][1] if name in self._known else ""
            newest_first = reversed(self.store.versions(name))  # damage further back is nobody's concern here
            earlier = next((p for p in newest_first if read_card(p).content != current), None)
            if earlier is None:
                raise LookupError(f"skill {name!r} has no earlier version to go back to")
            adapter, card = read_skill(earlier)
            self.check_fit(name, adapter)
            self.store.commit(name, earlier.read_bytes(), card)
            self._remember(name, stamp_of(self.path(name)), card.content, self.sketch(adapter))
        return card

    def pack(self) -> None:
        """Write the memory map and sketches of all skills, for fast loading and opening."""
        with self._writing():
            ranks = sorted(max(self.card(name).ranks.values()) for name in self._known)
            common = ranks[int(0.9 * (len(ranks) - 1))] if ranks else 1

            def skills() -> Iterator[tuple[str, Adapter, Stamp, str, Tensor]]:
                for name, (stamp, content) in self._known.items():
                    yield name, self._read(name).adapter, stamp, content, self._table.vector(name)

            write_pack(self.folder, self.shapes, common, skills())
            self._pack = Pack.open(self.folder, self.shapes, self.sketch.size)

    def check(self) -> list[str]:
        """One sentence per skill that cannot be trusted, by reading them all. Empty: all is well."""
        self.refresh()
        found = dict(self.damaged)
        for name in self._known:
            try:
                self._read(name)
                self.store.check_mirror(name)
            except (ValueError, OSError) as problem:
                found[name] = str(problem)
        return [found[name] for name in sorted(found)]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self.store.writing() as recovered:
            if recovered:
                self.refresh()
            self._look()
            yield
            self._seen = self.store.journal.size
