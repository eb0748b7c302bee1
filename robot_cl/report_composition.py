"""The part of a report about a composition of skills: routes weighed, each skill's part in it, its place on the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import svg, svg_maps
from robot_cl.plain_files import read_json
from robot_cl.run_folder import RunFolder

FILE = "composition.json"
MOST_PLACED = 300  # skills on the map


def composition_section(run: RunFolder) -> dict[str, Any] | None:
    """Everything the template shows about a composed run; None for any other."""
    path = run.path / FILE
    if not path.exists():
        return None
    data = read_json(path)
    return {
        "why": str(data.get("why", "")),
        "measure": str(data.get("measure", "loss")),
        "routes": [_route(row, data.get("chosen")) for row in data.get("routes", [])],
        "refused": sorted(f"{name.replace('_', ' ')}: {why}" for name, why in data.get("refused", {}).items()),
        "left_out": _left_out(data),
        "coefficients": _coefficients(data),
        "map": library_map(Path(str(data.get("library", ""))), sorted(data.get("skills", {}))),
    }


def _route(row: dict[str, Any], chosen: Any) -> dict[str, Any]:
    returns = row.get("returns") or []
    return {
        "name": row["name"].replace("_", " "),
        "chosen": row["name"] == chosen,
        "made_of": row.get("made_of", ""),
        "loss": row["loss"],
        "relative": row["relative"],
        "returns": f"{sum(returns) / len(returns):,.0f}" if returns else "",
    }


def _left_out(data: dict[str, Any]) -> Any:
    """How much worse the composition becomes without each skill, in percent of its held-out loss; None without data."""
    whole = next((row["loss"] for row in data.get("routes", []) if row["name"] == "composition"), None)
    without = data.get("left_out") or {}
    if not whole or not without:
        return None
    rows = [svg.Row(f"without {name}", 100.0 * (loss / whole - 1.0)) for name, loss in without.items()]
    return _markup(svg_maps.bars(sorted(rows, key=lambda row: -row.estimate), "% more held-out loss without it"))


def _coefficients(data: dict[str, Any]) -> Any:
    """Mean coefficient of each skill over the demonstrations, with the range it moves in."""
    found = data.get("coefficients") or {}
    rows = [svg.Row(name, c["mean"], c["min"], c["max"]) for name, c in found.items()]
    return _markup(svg_maps.bars(rows, "coefficient: mean and range over the demonstrations")) if rows else None


def library_map(folder: Path, marked: list[str]) -> dict[str, Any] | None:
    """Skills of a library placed so that near ones do nearly the same; None where the library is gone or too small."""
    from policies.library import Library

    try:
        library = Library(folder)
    except (LookupError, ValueError, OSError):
        return None
    names = sorted(library.names(), key=lambda name: (name not in marked, name))[:MOST_PLACED]
    if len(names) < 3:
        return None
    at, kept = placed(np.stack([library.sketch(library.adapter(name)).numpy() for name in names]))
    chart = svg_maps.places(names, at, marked, "skills by what they do")
    return {"svg": _markup(chart), "kept": f"{100 * kept:.0f} %", "count": len(names), "base": folder.name}


def placed(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (N, 2) whose distances are closest to those of vectors (N, D) (classical scaling, Torgerson 1952), and the
    share of the squared distances they keep."""
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    at = np.zeros((len(vectors), 2))
    count = min(2, len(sizes))
    at[:, :count] = left[:, :count] * sizes[:count]
    return at, float((sizes[:2] ** 2).sum()) / total if total > 0 else 1.0


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
