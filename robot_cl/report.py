"""One self-contained page about one or several runs: scores, films, curves, configuration, receipt.

Everything on the page is read from the run folders' files. The page needs no network: charts are SVG, films are
embedded, styles are inline.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import report_sections as sections
from robot_cl import svg_maps
from robot_cl.activity import read_activity
from robot_cl.plain_files import write_whole
from robot_cl.report_composition import composition_section
from robot_cl.report_continual import continual_headline, continual_section
from robot_cl.report_gate import gate_section
from robot_cl.report_transfer import transfer_section
from robot_cl.run_folder import RunFolder, open_run
from robot_cl.scores import Entry, headline_entry, interval_text

TEMPLATES = Path(__file__).parent / "templates"
MAX_FILM_BYTES = 20_000_000  # of all films together; a page beyond that no longer opens on a phone


def write_report(runs: Sequence[Path], out: Path | None = None, title: str | None = None, lead: str = "") -> Path:
    """Write the page about `runs`, by default into the last one's folder, and return its path."""
    folders = [open_run(Path(path)) for path in runs]
    page = make_page(folders, title, lead)
    target = out or folders[-1].path
    target = target / "report.html" if target.is_dir() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, render(page))
    return target


def render(page: dict[str, Any]) -> str:
    """The page as HTML; everything but our own SVG and CSS is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("tables.js", "report.js"))
    from markupsafe import Markup

    template = environment.get_template("report.html.j2")
    written = datetime.now(UTC).astimezone().strftime("%d %B %Y, %H:%M")
    return template.render(
        page=page, css=Markup(css), script=Markup(script), version=version("robot-cl"), written=written
    )


def make_page(runs: Sequence[RunFolder], title: str | None = None, lead: str = "") -> dict[str, Any]:
    """Everything the template shows."""
    last = runs[-1]
    return {
        "kind": "run report" if len(runs) == 1 else f"report of {len(runs)} runs",
        "title": title or last.name,
        "headline": lead or headline(last),
        "tiles": tiles(runs),
        "films": films(runs),
        "scores": sections.scores_section(runs),
        "continual": continual_section(last),
        "composition": next((c for run in reversed(runs) if (c := composition_section(run))), None),
        "transfer": transfer_section(last),
        "gate": gate_section(last),
        "plots": plots(last),
        "curves_about": sections.curves_about(runs),
        "curves": [group for run in runs if (group := sections.charts(run, len(runs) > 1))],
        "data": sections.data_facts(runs),
        "config": "\n".join(sections.config_text(run, len(runs) > 1) for run in runs),
        "receipt": sections.receipt(last),
        "commands": sections.commands(runs),
    }


# What is said at the top


def headline(run: RunFolder) -> str:
    """One sentence: what was trained on what, and what came of it."""
    config = run.config
    text = f"{config.get('learner', {}).get('name', 'A learner')} on {config.get('task') or 'a dataset'}"
    text += f" from {config['data']}" if config.get("data") else ""
    text += f", continuing {Path(config['init_from']).name}" if config.get("init_from") else ""
    if not run.scores and (run.path / "transfer.json").exists():
        return "What the skills of a library are worth for a new task, beside all that must be read with it."
    if not run.scores:
        return f"{text}. Not evaluated yet." if config.get("kind") != "continual" else continual_headline(run)
    best = headline_entry(run.scores)
    seeds = f", {best.members} training seeds" if best.members > 1 else ""
    return f"{text}: mean return {interval_text(best.mean, best.mean_interval)} over {_episodes(best)}{seeds}."


def tiles(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Up to four numbers worth seeing first."""
    shown = []
    behaviour = sections.behaviour_row(runs)
    if behaviour is not None:
        shown.append(_tile(sections.BEHAVIOUR, f"{behaviour.estimate:,.0f}", "mean return"))
    plain = [e for run in runs for e in run.scores if e.shift is None]
    for entry in plain[-3:]:
        ends = "" if entry.mean_interval is None else f"{entry.mean_interval[0]:,.0f} to {entry.mean_interval[1]:,.0f}"
        shown.append(_tile(entry.label, f"{entry.mean:,.0f}", ends or _episodes(entry)))
    if plain and plain[-1].score is not None and len(shown) < 4:
        shown.append(_tile("score", f"{plain[-1].score:.1f}", f"{plain[-1].reference}"))
    return shown


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _episodes(entry: Entry) -> str:
    return f"{len(entry.seeds)} episode{'s' if len(entry.seeds) > 1 else ''}"


# Films


def films(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Every film of the runs' evaluations, then the other mp4 files beside them, until the page is full."""
    found, size, seen = [], 0, set()
    for run in runs:
        entries = [(entry.film, entry.label, _film_note(entry)) for entry in run.scores if entry.film]
        others = [(p.relative_to(run.path).as_posix(), p.stem, "") for p in sorted(run.path.glob("videos/*.mp4"))]
        for file, name, note in [*others, *entries] if not entries else [*_unlisted(others, entries), *entries]:
            path = run.path / file
            if path in seen or not path.is_file() or size + path.stat().st_size > MAX_FILM_BYTES:
                continue
            seen.add(path)
            size += path.stat().st_size
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
            found.append({"base64": encoded, "name": name.replace("-", " "), "note": note, "strip": _strip(path)})
    return found


def _strip(film: Path) -> Any:
    """Which skill was active when, where the evaluation has noted it."""
    from markupsafe import Markup

    found = read_activity(film)
    if found is None:
        return None
    return Markup(svg_maps.strip(found.skills, np.array(found.values, dtype=np.float64), found.dt))


def plots(run: RunFolder) -> list[dict[str, str]]:
    """The figures of a study that keeps its own, such as that of objective mismatch; none elsewhere."""
    if not (run.path / "mismatch.json").exists():
        return []
    named = {"metrics": "return against every error", "gaps": "what the planner is fooled by", "lengths": "how long"}
    files = [(run.path / "plots" / f"{name}.png", title) for name, title in named.items()]
    return [
        {"base64": base64.b64encode(path.read_bytes()).decode("ascii"), "title": title}
        for path, title in files
        if path.is_file() and path.stat().st_size < MAX_FILM_BYTES
    ]


def _unlisted(others: Sequence[tuple[str, str, str]], entries: Sequence[tuple[str, str, str]]) -> list[Any]:
    listed = {file for file, _, _ in entries}
    return [other for other in others if other[0] not in listed]


def _film_note(entry: Entry) -> str:
    middle = float(np.sort(entry.returns[0])[(len(entry.returns[0]) - 1) // 2])
    seed = entry.seeds[entry.returns[0].index(middle)]
    return f"start of the median episode: return {middle:,.0f}, seed {seed}"
