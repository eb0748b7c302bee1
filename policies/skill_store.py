"""Skill files of one base under one writer at a time: journal, history, and recovery of what a killed writer left.

skill.safetensors is replaced in one step, so a reader never sees half of a publication and needs no recovery. The
writer notes its intent in the journal, acts, and notes that it is done; the next writer finishes or undoes the rest.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policies.card import NAME, SkillCard, check_name
from policies.journal import Journal
from policies.skill_file import read_card, sync_folder, write_atomically


class SkillStore:
    """Remembers nothing: the folder does. `now` gives seconds since 1970; `durable` False skips fsync."""

    def __init__(self, folder: Path, now: Callable[[], float], durable: bool):
        self.folder, self.now, self.durable = folder, now, durable
        self.journal = Journal(folder / "journal.jsonl", durable)

    def path(self, name: str) -> Path:
        return self.folder / check_name(name) / "skill.safetensors"

    def present(self) -> list[str]:
        """Names of the skills that are there."""
        folders = [e.name for e in os.scandir(self.folder) if NAME.fullmatch(e.name) and e.is_dir()]
        return sorted(name for name in folders if (self.folder / name / "skill.safetensors").exists())

    def versions(self, name: str) -> list[Path]:
        """Earlier versions, oldest first."""
        return sorted((self.folder / ".history" / check_name(name)).glob("*.safetensors"))

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Hold the lock (waiting for it). Yields whether something a killed writer left had to be settled."""
        (self.folder / ".tmp").mkdir(exist_ok=True)  # a copy of a library may have lost what was empty
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._recover()

    def commit(self, name: str, data: bytes, card: SkillCard) -> None:
        """The skill's file becomes `data`; what was there moves to the history."""
        path = self.path(name)
        self._log("begin", "publish", name, card.content)
        if path.exists():
            os.link(path, self._next_version(name))
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data, self.folder / ".tmp" / name, self.durable)
        self._mirror(name, card)
        self._log("done", "publish", name, card.content)

    def remove(self, name: str) -> None:
        """The skill moves to the history."""
        self._log("begin", "remove", name)
        self._finish_removal(name)
        self._log("done", "remove", name)

    def _recover(self) -> bool:
        """The last intent is the only thing that can be open."""
        last = self.journal.last()
        if last is None or last["op"] != "begin":
            return False
        name, path = last["skill"], self.path(last["skill"])
        there, card = path.exists(), _readable(path)
        if last["do"] == "remove" and not there:
            self._finish_removal(name)
            self._log("done", "remove", name)
        elif last["do"] == "publish" and card is not None and card.content == last["content"]:
            self._mirror(name, card)
            self._log("done", "publish", name, card.content)
        else:
            if not there:
                _take_away(path.parent)
            self._log("aborted", last["do"], name, last["content"])
        for leftover in (self.folder / ".tmp").iterdir():
            leftover.unlink()
        return True

    def _finish_removal(self, name: str) -> None:
        path = self.path(name)
        if path.exists():
            path.replace(self._next_version(name))
        path.with_name("card.json").unlink(missing_ok=True)
        _take_away(path.parent)
        if self.durable:
            sync_folder(self.folder)

    def _mirror(self, name: str, card: SkillCard) -> None:
        mirror = self.folder / name / "card.json"
        write_atomically(mirror, card.to_json().encode(), self.folder / ".tmp" / f"{name}.card", durable=False)

    def check_mirror(self, name: str) -> None:
        """Raises ValueError if the card's copy for reading is there and cannot be read."""
        mirror = self.folder / name / "card.json"
        try:
            SkillCard.from_json(mirror.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return  # as beside a skill that is just being published
        except ValueError:
            raise ValueError(f"{mirror} is damaged; delete it, the card is in skill.safetensors too") from None

    def _next_version(self, name: str) -> Path:
        past = self.folder / ".history" / name
        past.mkdir(parents=True, exist_ok=True)
        last = max((int(p.stem) for p in self.versions(name) if p.stem.isdigit()), default=0)  # older ones may be gone
        return past / f"{1 + last:06d}.safetensors"

    def _log(self, op: str, do: str, name: str, content: str = "") -> None:
        self.journal.append({"at": self.now(), "op": op, "do": do, "skill": name, "content": content})


def _readable(path: Path) -> SkillCard | None:
    """The card of a skill file, None where there is none or it is damaged."""
    try:
        return read_card(path)
    except (ValueError, OSError):
        return None


def _take_away(folder: Path) -> None:
    """An empty folder, if it is there; one in which people keep something else stays, and is no skill."""
    with suppress(OSError):
        folder.rmdir()
