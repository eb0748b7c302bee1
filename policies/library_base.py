"""base.json of a library's folder: which base its skills belong to, and the shapes of the layers they may change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from policies.adapter import Header
from policies.skill_file import write_atomically
from policies.skill_store import SkillStore

FILE = "base.json"
Shapes = dict[str, tuple[int, int]]  # layer -> (d_out, d_in)


@dataclass(frozen=True)
class Base:
    """Digests of a base, its interface and normaliser, and its layers."""

    header: Header
    shapes: Shapes


def bases(root: Path) -> list[Path]:
    """The base folders of a library root."""
    return sorted(p.parent for p in Path(root).glob(f"*/{FILE}"))


def make_folder(
    root: Path, header: Header, shapes: Mapping[str, tuple[int, int]], now: Callable[[], float] = time.time,
    durable: bool = True,
) -> Path:  # fmt: skip
    """The folder of a base below a library root, made if it is not there yet. Raises ValueError for a short digest."""
    if len(header.base) < 12:
        raise ValueError(f"the base digest {header.base!r} is no sha256; take it from policies.lora.base_digest")
    folder = Path(root) / header.base[:12]
    if not (folder / FILE).exists():
        for part in (folder, folder / ".tmp", folder / ".history"):
            part.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"header": vars(header), "shapes": {n: list(s) for n, s in shapes.items()}}, indent=1)
        with SkillStore(folder, now, durable).writing():  # others may be making it too
            if not (folder / FILE).exists():
                write_atomically(folder / FILE, about.encode(), folder / ".tmp/base", durable)
    return folder


def read_base(folder: Path) -> Base:
    """Raises LookupError if the folder is no library, ValueError if the file is damaged."""
    path = folder / FILE
    if not path.exists():
        there = ", ".join(p.name for p in bases(folder.parent)) or "none"
        raise LookupError(f"{folder} is no skill library (it has no {FILE}); bases beside it: {there}")
    try:
        about = json.loads(path.read_bytes())
        shapes = {str(n): (int(o), int(i)) for n, (o, i) in about["shapes"].items()}
        if min(map(min, shapes.values())) < 1:
            raise ValueError
        return Base(Header(**about["header"]), shapes)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged; restore it from a copy of the library") from None
