"""Skills of the libraries on this machine, from their cards alone."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from robot_cl.serve.files import RefusedError, folder
from robot_cl.serve.index import small_text

LATEST = 253402214400  # seconds since 1970 at which dates end


def skills(root: Path) -> list[dict[str, Any]]:
    """Cards of all skills below a library folder, by base and name; a card that cannot be read says so."""
    found: list[dict[str, Any]] = []
    for base in sorted(p for p in root.glob("*") if (p / "base.json").is_file() and not p.is_symlink()):
        paths = [p for p in sorted(base.glob("*/card.json")) if not p.parent.name.startswith(".")]
        found += [_card(base.name, path) for path in paths if not path.parent.is_symlink()]
    return found


def skill(root: Path, base: str, name: str) -> dict[str, Any]:
    """One skill's card. Raises RefusedError where there is none."""
    path = folder(folder(root, base), name) / "card.json"
    if path.is_symlink() or not path.is_file():
        raise RefusedError(404, f"there is no skill {name!r} of base {base!r}")
    return _card(base, path)


def _card(base: str, path: Path) -> dict[str, Any]:
    """A card as plain data; what pages show of every card is always there and of the right kind."""
    about: dict[str, Any] = {"base": base, "name": path.parent.name, "problem": ""}
    try:
        card = json.loads(small_text(path))
    except (OSError, ValueError, RecursionError) as problem:
        card, about["problem"] = {}, str(problem).splitlines()[0][:200]
    if not isinstance(card, dict):
        card, about["problem"] = {}, "its card is not a JSON object"
    scores = card.get("scores")
    kept = scores.items() if isinstance(scores, dict) else ()
    about["scores"] = {str(task): float(value) for task, value in kept if isinstance(value, (int, float))}
    parents = card.get("parents")
    made_of = [one for one in parents if isinstance(one, dict)] if isinstance(parents, list) else []
    about["parents"] = {str(one.get("skill")): one.get("coefficient", 1) for one in made_of}
    created = card.get("created")
    about["created"] = ""
    if isinstance(created, (int, float)) and 0 < created < LATEST:
        about["created"] = f"{datetime.fromtimestamp(created):%Y-%m-%d %H:%M}"
    return card | {key: str(card.get(key, "")) for key in ("learner", "description")} | about
