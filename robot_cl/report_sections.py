"""The sections of a report: scores with intervals, curves with bands, data, configuration, receipt."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl import svg
from robot_cl.curves import curve
from robot_cl.data.meta import DatasetMeta
from robot_cl.run_folder import RunFolder
from robot_cl.scores import Entry, interval_text, success_text

BEHAVIOUR = "behaviour in the data"
RETURNS = {
    "eval_return": ("Return in evaluation", "deterministic policy, fixed start states"),
    "return": ("Return while learning", "with exploration, episodes as they end"),
}
MAX_DOTS = 150


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
    firsts = sorted({e.seeds[0] for e in entries})
    about = (
        "Each dot is one episode, the bar is the 95 % interval of the mean, the line is the mean. "
        f"Episode k starts from seed {' or '.join(map(str, firsts))} + k"
        f"{' in every row.' if len(firsts) == 1 else ': not all rows share their starts.'}"
    )
    notes += [f"Success of {e.label}: {success_text(e)} of the episodes." for e in entries if e.success_rate]
    return {"about": about, "chart": markup(svg.intervals(rows, "return")), "rows": table, "notes": notes}


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
    """The returns of the first dataset that is still here, with its complete episodes as dots."""
    for run in runs:
        if run.dataset is not None:
            episodes = [e.ret for e in run.dataset.episodes() if e.complete]
            shown = np.sort(episodes)[:: -(-len(episodes) // MAX_DOTS) or 1]
            note = f"{len(episodes)} whole episodes"
            return svg.Row(BEHAVIOUR, run.dataset.meta.return_mean, None, None, shown.tolist(), note)
    return None


def _behaviour_line(row: svg.Row) -> dict[str, Any]:
    blank = {"minor": False, "iqm": "", "score": "", "length": "", "fell": ""}
    return {"name": row.name, "episodes": row.note.split()[0], "mean": f"{row.estimate:,.0f}", **blank}


# Curves


def curves_about(runs: Sequence[RunFolder]) -> str:
    several = any(run.metrics.members > 1 for run in runs)
    band = " with the band from the worst to the best training seed" if several else ""
    return f"Lines are the mean{band}. Every value is in metrics.csv."


def charts(run: RunFolder, named: bool) -> dict[str, Any] | None:
    """The returns wide, everything else small; None for a run without curves."""
    metrics = run.metrics
    names = [n for n in RETURNS if n in metrics.names] + [n for n in metrics.names if n not in RETURNS]
    shown = []
    for name in names:
        step, values = metrics.series(name)
        if len(step) < 2:
            continue
        wide = name in RETURNS
        marks = _marks(run, wide, float(step.min()), float(step.max()))
        size = (300, 720) if wide else (230, 430)
        chart = svg.curves([curve(name, step, values)], metrics.x_label(name), "", marks, *size)
        label, note = RETURNS.get(name, (_words(name), ""))
        shown.append({"name": label, "note": note, "svg": markup(chart), "wide": wide})
    groups = {size: [c for c in shown if c["wide"] is (size == "wide")] for size in ("wide", "small")}
    return {"title": run.label if named else "", **groups} if shown else None


def _marks(run: RunFolder, wide: bool, first: float, last: float) -> list[svg.Mark]:
    marks = []
    border = run.metrics.online_from
    if border is not None and first < border < last:
        marks.append(svg.Mark("online from here" if wide else "", border, vertical=True))
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
        said = run.provenance.get("dataset")
        if not said:
            continue
        facts.append(("dataset", str(said["id"])))
        facts.append(("content", f"sha256 {said['hash'][:16]}…"))
        if run.dataset is None:
            facts.append(("on this machine", "no, or changed since"))
            continue
        meta = run.dataset.meta
        facts.append(("size", f"{meta.steps:,} steps in {meta.episodes:,} episodes"))
        facts.append(("ends", f"{meta.terminals:,} terminals, {meta.timeouts:,} timeouts, {meta.cuts:,} cut"))
        facts.append(("return", f"{meta.return_mean:,.0f} ± {meta.return_std:,.0f}"))
        facts += _behaviours(meta)
    return list(dict.fromkeys(facts))


def _behaviours(meta: DatasetMeta) -> list[tuple[str, str]]:
    """What a collected dataset is made of."""
    parts = meta.source.get("parts", [])
    total = sum(part["share"] for part in parts)
    facts = []
    for part in parts:
        how = f" with noise {part['noise']:g}" if part["noise"] else ", sampled" if part["stochastic"] else ""
        facts.append((f"{100 * part['share'] / total:.0f} % of the steps", f"{part['policy']}{how}"))
    return facts


def config_text(run: RunFolder, named: bool) -> str:
    text = (run.path / "config.yaml").read_text(encoding="utf-8").strip()
    return f"# {run.name}\n{text}\n" if named else text


def receipt(run: RunFolder) -> list[tuple[str, str]]:
    """Provenance as name and value, nested keys joined."""
    facts = []
    for key, value in run.provenance.items():
        if key == "dataset":
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
            lines.append(command if isinstance(command, str) else shlex.join(map(str, command)))
        if run.trained:
            lines.append(f"robot-cl verify {shlex.quote(_here(run.path))}")
    return list(dict.fromkeys(lines))


def _here(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
