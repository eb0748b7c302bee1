"""One self-contained page about one or several runs: scores, films, curves, configuration, receipt.

Everything on the page is read from the run folders' files. The page needs no network: charts are SVG, films are
embedded, styles are inline.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import svg
from robot_cl.curves import Metrics, curve, load_metrics
from robot_cl.scores import Entry, headline_entry, interval_text, read_scores

TEMPLATES = Path(__file__).parent / "templates"
BEHAVIOUR = "behaviour in the data"
RETURN_METRICS = ("eval_return", "return")
MAX_FILM_BYTES = 20_000_000  # of all films together; a page beyond that no longer opens on a phone


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds, read on demand. Raises OSError or ValueError naming the file that is not right."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        import yaml

        text = (self.path / "config.yaml").read_text(encoding="utf-8")
        return yaml.safe_load(text) or {}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        path = self.path / "provenance.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @cached_property
    def metrics(self) -> Metrics:
        return load_metrics(self.path)

    @cached_property
    def scores(self) -> list[Entry]:
        return read_scores(self.path)


def open_run(path: Path) -> RunFolder:
    """Raises LookupError if `path` is not a run folder."""
    if not (path / "config.yaml").exists():
        raise LookupError(f"{path} is not a run: it has no config.yaml; runs lie under runs/")
    return RunFolder(path)


def write_report(runs: Sequence[Path], out: Path | None = None, title: str | None = None, lead: str = "") -> Path:
    """Write the page about `runs`, by default into the last one's report.html, and return its path."""
    folders = [open_run(Path(path)) for path in runs]
    page = make_page(folders, title, lead)
    target = out or folders[-1].path / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_text(render(page), encoding="utf-8")
    part.replace(target)
    return target


def render(page: dict[str, Any]) -> str:
    """The page as HTML; everything but our own SVG and CSS is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    from markupsafe import Markup

    template = environment.get_template("report.html.j2")
    written = datetime.now(UTC).astimezone().strftime("%d %B %Y, %H:%M")
    return template.render(page=page, css=Markup(css), version=version("robot-cl"), written=written)


def make_page(runs: Sequence[RunFolder], title: str | None = None, lead: str = "") -> dict[str, Any]:
    """Everything the template shows."""
    last = runs[-1]
    return {
        "kind": "run report" if len(runs) == 1 else f"report of {len(runs)} runs",
        "title": title or last.name,
        "headline": lead or headline(last),
        "tiles": tiles(runs),
        "films": films(runs),
        "scores": scores_section(runs),
        "curves_about": curves_about(runs),
        "curves": [chart for run in runs for chart in charts(run, len(runs) > 1)],
        "data": data_facts(runs),
        "config": "\n".join(_config_text(run, len(runs) > 1) for run in runs),
        "receipt": receipt(last),
        "commands": commands(runs),
    }


# What is said at the top


def headline(run: RunFolder) -> str:
    """One sentence: what was trained on what, and what came of it."""
    config = run.config
    text = f"{config.get('learner_name', 'a learner')} on {config.get('task') or 'a task'}"
    text += f" from {config['data']}" if config.get("data") else ""
    if not run.scores:
        return f"{text}. Not evaluated yet."
    best = headline_entry(run.scores)
    seeds = f", {best.members} training seeds" if best.members > 1 else ""
    return f"{text}: mean return {interval_text(best.mean, best.mean_interval)} over {_episodes(best)}{seeds}."


def tiles(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Up to four numbers worth seeing first."""
    shown = []
    behaviour = behaviour_row(runs)
    if behaviour is not None:
        shown.append(_tile(BEHAVIOUR, f"{behaviour.estimate:,.0f}", "mean return"))
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


def films(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
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
            found.append({"base64": encoded, "name": name.replace("-", " "), "note": note})
    return found


def _unlisted(others: Sequence[tuple[str, str, str]], entries: Sequence[tuple[str, str, str]]) -> list[Any]:
    listed = {file for file, _, _ in entries}
    return [other for other in others if other[0] not in listed]


def _film_note(entry: Entry) -> str:
    middle = float(np.sort(entry.returns[0])[(len(entry.returns[0]) - 1) // 2])
    seed = entry.seeds[entry.returns[0].index(middle)]
    return f"start of the median episode: return {middle:,.0f}, seed {seed}"


# Evaluation


def scores_section(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """The interval chart, the table, and the notes that say what the numbers are."""
    entries = [entry for run in runs for entry in run.scores]
    if not entries:
        return None
    behaviour = behaviour_row(runs)
    rows = [behaviour] if behaviour is not None else []
    rows += [_row(entry) for entry in entries]
    table = [line for entry in entries for line in _lines(entry)]
    if behaviour is not None:
        table.insert(0, _behaviour_line(behaviour))
    simulators = sorted({e.simulator for e in entries})
    notes = sorted({f"Score: 0 to 100 on the {e.reference}." for e in entries if e.reference})
    if len(simulators) > 1:
        notes.append("These rows were made with different simulator versions and must not be compared.")
    notes.append(f"Undiscounted returns of the deterministic policy; simulator: {', '.join(simulators)}.")
    about = (
        "Each dot is one episode, the bar is the 95 % interval of the mean, the line is the mean. "
        f"Episode k starts from seed {entries[-1].seeds[0]} + k in every row."
    )
    return {"about": about, "chart": _markup(svg.intervals(rows, "return")), "rows": table, "notes": notes}


def _row(entry: Entry) -> svg.Row:
    points = [r for member in entry.returns for r in member]
    low, high = entry.mean_interval or (None, None)
    note = f"shift {entry.shift}" if entry.shift else f"{len(points)} episodes"
    return svg.Row(entry.label, entry.mean, low, high, points, note)


def _lines(entry: Entry) -> list[dict[str, Any]]:
    label = f"{entry.label} · {entry.shift}" if entry.shift else entry.label
    lines = [_line(label, entry.returns, entry, entry.lengths, entry.fell)]
    if entry.members > 1:
        for k, (returns, lengths, fell) in enumerate(zip(entry.returns, entry.lengths, entry.fell, strict=True)):
            lines.append(_line(f"seed {k}", [returns], None, [lengths], [fell]))
    return lines


def _line(name: str, returns: Any, entry: Entry | None, lengths: Any, fell: Any) -> dict[str, Any]:
    from robot_cl.stats import iqm

    values = np.array(returns)
    score = "" if entry is None or entry.score is None else interval_text(entry.score, entry.score_interval, 1)
    return {
        "name": name,
        "minor": entry is None,
        "episodes": f"{values.size:,}",
        "mean": f"{values.mean():,.0f}" if entry is None else interval_text(entry.mean, entry.mean_interval),
        "iqm": f"{iqm(values.ravel()):,.0f}" if entry is None else interval_text(entry.iqm, entry.iqm_interval),
        "score": score,
        "length": f"{np.mean(lengths):,.0f}",
        "fell": f"{100 * np.mean(fell):.0f} %",
    }


def behaviour_row(runs: Sequence[RunFolder]) -> svg.Row | None:
    """The returns in the first run's dataset, where provenance knows them."""
    for run in runs:
        for data in run.provenance.get("datasets", []):
            if data.get("return_mean") is not None:
                mean = float(data["return_mean"])
                return svg.Row(BEHAVIOUR, mean, None, None, (), f"{data.get('episodes', '?')} episodes")
    return None


def _behaviour_line(row: svg.Row) -> dict[str, Any]:
    blank = {"minor": False, "iqm": "", "score": "", "length": "", "fell": ""}
    return {"name": row.name, "episodes": row.note.split()[0], "mean": f"{row.estimate:,.0f}", **blank}


# Curves


def curves_about(runs: Sequence[RunFolder]) -> str:
    several = any(run.metrics.members > 1 for run in runs)
    band = " with the band from the worst to the best training seed" if several else ""
    return f"Lines are the mean{band}. Every value is in metrics.csv."


def charts(run: RunFolder, named: bool) -> list[dict[str, Any]]:
    """The return first and wide, everything else small."""
    metrics = run.metrics
    names = sorted(metrics.names, key=lambda n: RETURN_METRICS.index(n) if n in RETURN_METRICS else len(RETURN_METRICS))
    shown = []
    for name in names:
        step, values = metrics.series(name)
        if len(step) < 2:
            continue
        wide = name in RETURN_METRICS
        marks = _marks(run, wide, float(step.min()), float(step.max()))
        size = (300, 720) if wide else (230, 430)
        chart = svg.curves([curve(name, step, values)], metrics.x_label(name), "", marks, *size)
        label = f"{run.name}: {_words(name)}" if named else _words(name)
        shown.append({"name": label, "note": "", "svg": _markup(chart), "wide": wide})
    return shown


def _marks(run: RunFolder, wide: bool, first: float, last: float) -> list[svg.Mark]:
    marks = []
    border = run.metrics.online_from
    if border is not None and first < border < last:
        marks.append(svg.Mark("online from here", border, vertical=True))
    behaviour = behaviour_row([run])
    if wide and behaviour is not None:
        marks.append(svg.Mark(BEHAVIOUR, behaviour.estimate))
    return marks


def _words(name: str) -> str:
    return name.replace("_", " ")


# Data, configuration, receipt


def data_facts(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    facts = []
    for run in runs:
        for data in run.provenance.get("datasets", []):
            label = str(data.get("id", "dataset"))
            parts = [f"{data[k]:,} {k}" for k in ("steps", "episodes", "terminals", "timeouts") if k in data]
            if data.get("return_mean") is not None:
                parts.append(f"return {data['return_mean']:,.0f} ± {data.get('return_std', 0):,.0f}")
            facts.append((label, ", ".join(parts)))
            if data.get("hash"):
                facts.append((f"{label}, content", f"sha256 {str(data['hash'])[:16]}…"))
    return list(dict.fromkeys(facts))


def _config_text(run: RunFolder, named: bool) -> str:
    text = (run.path / "config.yaml").read_text(encoding="utf-8").strip()
    return f"# {run.name}\n{text}\n" if named else text


def receipt(run: RunFolder) -> list[tuple[str, str]]:
    """Provenance as name and value, nested keys joined."""
    facts = []
    for key, value in run.provenance.items():
        if key == "datasets":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry}" for name, entry in value.items())
        elif isinstance(value, list):
            value = " ".join(str(entry) for entry in value)
        facts.append((_words(key), str(value)))
    return facts or [("provenance", "none was recorded in this folder")]


def commands(runs: Sequence[RunFolder]) -> list[str]:
    """What to type to see the same numbers again."""
    lines = []
    for run in runs:
        command = run.provenance.get("command")
        if command:
            lines.append(command if isinstance(command, str) else " ".join(map(str, command)))
        lines.append(f"robot-cl verify {_here(run.path)}")
    return list(dict.fromkeys(lines))


def _here(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
