"""Suggesting the name a person meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known name, or the list of what exists."""
    names = [str(k) for k in known]
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names) or '(none)'}"
