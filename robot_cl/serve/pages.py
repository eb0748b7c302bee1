"""Pages from templates. Everything that comes from a file is escaped by the templates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from robot_cl.serve import files
from robot_cl.serve.files import RefusedError
from robot_cl.serve.index import Line, Snapshot, small_text

TEMPLATES = Path(__file__).parents[1] / "templates"
ASSETS = {
    "style.css": (("report.css", "serve.css"), "text/css"),
    "page.js": (("tables.js", "serve.js"), "text/javascript"),
}
SHOWN_CONFIG = 20_000  # characters
KEPT_ROWS = 20_000


class Pages:
    """Remembers compiled templates, the two assets, and rows of the list."""

    def __init__(self) -> None:
        loader = jinja2.FileSystemLoader(TEMPLATES)
        self.environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        self.environment.filters |= {"ago": ago, "size": size, "part": lambda text: quote(text, safe="")}
        self._rows: dict[tuple[Line, bool], str] = {}
        self._assets = {
            name: ("\n".join((TEMPLATES / part).read_text(encoding="utf-8") for part in parts), kind)
            for name, (parts, kind) in ASSETS.items()
        }

    def runs(
        self, root: Path, snapshot: Snapshot, shown: Sequence[Line], found: int, query: str, sort: str, page: int,
        per_page: int, now: float,
    ) -> Response:  # fmt: skip
        def address(**change: Any) -> str:
            given = {"q": query, "sort": sort, "page": page} | change
            return "/runs?" + urlencode({k: v for k, v in given.items() if v not in ("", 1, "-changed")})

        rows = [f"{self._row(line, line.live(now))}{ago(line.changed, now)}</td></tr>" for line in shown]
        return self._page(
            "serve_runs.html.j2", rows=Markup("\n".join(rows)), title="Runs", root=root,
            total=len(snapshot.lines), complete=snapshot.complete,
            found=found, query=query, sort=sort, page=page, pages=max(1, -(-found // per_page)),
            address=address,
        )  # fmt: skip

    def _row(self, line: Line, live: bool) -> str:
        """A row up to its last cell, made once for each state of a run: a list of a hundred is asked for often."""
        key = (line, live)
        if key not in self._rows:
            if len(self._rows) >= KEPT_ROWS:
                self._rows.clear()
            self._rows[key] = self.environment.get_template("serve_row.html.j2").render(line=line, live=live)
        return self._rows[key]

    def run(self, path: Path, line: Line | None, now: float) -> Response:
        try:
            config = small_text(path / "config.yaml")[:SHOWN_CONFIG]
        except (OSError, ValueError) as problem:
            config = str(problem)
        found = list(files.listing(path))
        films = [name for name, _, shown in found if shown and name.endswith(".mp4")]
        return self._page(
            "serve_run.html.j2", title=line.label if line else path.name, name=path.name, line=line, config=config,
            films=films, found=found, report=(path / "report.html").is_file(), now=now,
            has_metrics=(path / "metrics.csv").is_file(), mismatch=(path / "mismatch.html").is_file(),
        )  # fmt: skip

    def skills(self, root: Path, cards: Sequence[dict[str, Any]]) -> Response:
        return self._page("serve_skills.html.j2", title="Skills", root=root, cards=cards)

    def skill(self, card: dict[str, Any]) -> Response:
        shown = {key: value for key, value in card.items() if key not in ("name", "base", "description", "scores")}
        facts = [(key.replace("_", " "), said) for key, value in shown.items() if (said := _fact(value))]
        return self._page("serve_skill.html.j2", title=card["name"], card=card, facts=facts)

    def problem(self, status: int, sentence: str) -> Response:
        return self._page("serve_problem.html.j2", status, title=str(status), sentence=sentence)

    def asset(self, name: str) -> Response:
        if name not in self._assets:
            raise RefusedError(404, "this path leads nowhere")
        text, kind = self._assets[name]
        return Response(text, media_type=kind, headers={"cache-control": "max-age=60"})

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self.environment.get_template(template).render(**values), status)


def ago(then: float, now: float | None = None) -> str:
    """How long ago, in the largest unit that gives a whole number."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _fact(value: Any) -> str:
    """A card's entry as text; long and nested ones are shortened to what a person reads."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in list(value.items())[:12] if not isinstance(v, (dict, list)))
    if isinstance(value, list):
        return f"{len(value)}" if value else ""
    return str(value) if value not in ("", None, 0, 0.0) else ""
