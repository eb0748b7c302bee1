"""Dataset names: what they look like, where they live, and what to say when one is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]+")
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_-]+/)*[A-Za-z0-9][A-Za-z0-9_-]*-v\d+")
_RESERVED = ("data", "flat")
EXAMPLE = "hopper/medium-v0"


def check_name(name: str) -> str:
    """`name` itself if it is a dataset name such as hopper/medium-v0, which Minari also accepts.

    Parts of letters, digits, - and _, joined by /, ending in -v and a number. Raises ValueError otherwise; a name can
    therefore never leave the data root.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a dataset name: {_complaint(str(name))}; a good one is {EXAMPLE!r}")
    taken = [part for part in name.split("/") if part in _RESERVED]
    if taken:
        raise ValueError(f"{name!r} is not a dataset name: {taken[0]!r} is a folder inside every dataset")
    return name


def _complaint(name: str) -> str:
    if not name:
        return "it is empty"
    if ".." in name or name.startswith(("/", "~")) or "\\" in name:
        return "it points outside the data root"
    for part in name.split("/"):
        if not _PART.fullmatch(part):
            return f"the part {part!r} needs two or more letters, digits, - or _"
    return "it does not end in a version such as -v0"


def check_free(root: Path, name: str) -> Path:
    """The folder `name` would take. Raises ValueError if it lies in another dataset or holds others."""
    folder = root / check_name(name)
    for parent in folder.parents:
        if parent == root:
            break
        if (parent / "meta.json").exists():
            outer = parent.relative_to(root).as_posix()
            raise ValueError(f"{name!r} lies inside the dataset {outer!r}; choose another name")
    return folder


def not_found(kind: str, name: str, existing: Iterable[str], hint: str = "") -> LookupError:
    """The sentence for a name that is not there: near matches first, else everything that exists."""
    names = sorted(existing)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        tail = f"did you mean {' or '.join(near)}?"
    elif names:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        tail = f"there are: {shown}"
    else:
        tail = "there are none yet"
    return LookupError(f"no {kind} {name!r}; {tail}" + (f" ({hint})" if hint else ""))
