"""More charts as SVG text: heat maps, signed bars, what is active when, and points on a map. Colours as in `svg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from robot_cl.svg import PHONE, Row, _scale, _svg, number

CELL_TEXT, CELL_INTERVAL = 12, 8  # most columns of a heat map whose cells show the value; and its interval
CHARACTER = 7.0  # pixels of an average character of a label


def heat(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    intervals: Sequence[Sequence[Sequence[float] | None]] | None = None,
    width: int = 430,
) -> str:
    """values (R, C), 0 pale and 1 or more full, below 0 in another colour; NaN is left empty.

    `intervals` [r][c] is (low, high) or None; every cell says both when it is pointed at. Columns are numbered where
    their names are long.
    """
    count = values.shape[1]
    left = min(14 + int(CHARACTER * max(map(len, rows))), int(width * 0.42))
    cell = (width - left - 2) / count
    tall = max(22.0, min(cell, 40.0))
    top = 22
    parts = [_cell_row(values, r, intervals, columns, rows, left, top + r * tall, cell, tall) for r in range(len(rows))]
    numbered = CHARACTER * max(map(len, columns)) > cell
    for c, name in enumerate(columns):
        shown = str(c + 1) if numbered else name
        parts.append(_text("tick", left + (c + 0.5) * cell, top - 7, shown, "middle"))
    fitting = int((left - 10) / CHARACTER)
    for r, name in enumerate(rows):
        shown = name if len(name) <= fitting else name[: fitting - 1] + "…"
        parts.append(_text("tick", left - 8, top + (r + 0.5) * tall + 4, shown, "end"))
    return _svg(width, int(top + tall * len(rows) + 6), escape(label), parts, "chart heat")


def _cell_row(
    values: np.ndarray, r: int, intervals: Sequence[Sequence[Sequence[float] | None]] | None, columns: Sequence[str],
    rows: Sequence[str], left: float, y: float, cell: float, tall: float,
) -> str:  # fmt: skip
    parts, count = [], values.shape[1]
    for c, value in enumerate(values[r]):
        if not math.isfinite(value):
            continue
        x, middle = left + c * cell, left + (c + 0.5) * cell
        between = intervals[r][c] if intervals is not None else None
        said = f"{rows[r]} → {columns[c]}: {value:.3g}" + (f" [{between[0]:.3g}, {between[1]:.3g}]" if between else "")
        strength = min(abs(value), 1.0) * 0.62 + 0.04
        parts.append(
            f'<rect class="cell {"c0" if value >= 0 else "c4"}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" '
            f'height="{tall - 2:.1f}" rx="3" fill-opacity="{strength:.2f}"><title>{escape(said)}</title></rect>'
        )
        half = None if between is None else (between[1] - between[0]) / 2
        narrow = half is not None and count <= CELL_INTERVAL and tall >= 30
        if count <= CELL_TEXT:
            shown = f"{value:.2f}".replace("-", "−")
            parts.append(_text("cell-value", middle, y + tall / 2 + (0 if narrow else 4), shown, "middle"))
        if narrow:
            parts.append(_text("cell-half", middle, y + tall / 2 + 12, f"±{half:.2f}", "middle"))
    return "".join(parts)


def bars(rows: Sequence[Row], label: str, width: int = 720) -> str:
    """One bar per row from zero, with its interval as a thin line; twice, for a page and for a phone."""
    return _bars(rows, label, width, False) + _bars(rows, label, PHONE, True)


def _bars(rows: Sequence[Row], label: str, width: int, slim: bool) -> str:
    step, top = (54, 16) if slim else (34, 8)
    left = 12 if slim else min(24 + max(int(CHARACTER * len(row.name)) for row in rows), width // 2)
    ends = [v for row in rows for v in (0.0, row.estimate, row.low, row.high) if v is not None]
    right = width - 76
    at, places = _scale(min(ends), max(ends), left, right, 0.04, 5)
    height = top + step * len(rows) + 40
    parts = []
    for value in places:
        parts.append(f'<line class="grid" x1="{at(value):.1f}" y1="{top}" x2="{at(value):.1f}" y2="{height - 36}"/>')
        parts.append(_text("tick", at(value), height - 20, number(value), "middle"))
    parts.append(_text("label", width if slim else right, height - 4, label, "end"))
    for k, row in enumerate(rows):
        y, ends_x = top + step * (k + 0.5), sorted((at(0.0), at(row.estimate)))
        wide = max(ends_x[1] - ends_x[0], 1.0)
        colour = "c0" if row.estimate >= 0 else "c4"
        place = f'x="{ends_x[0]:.1f}" y="{y - 9}" width="{wide:.1f}" height="18"'
        parts.append(f'<rect class="bar {colour}" {place} rx="3"/>')
        if row.low is not None and row.high is not None:
            parts.append(f'<line class="whisker" x1="{at(row.low):.1f}" y1="{y}" x2="{at(row.high):.1f}" y2="{y}"/>')
        name_y = y - 16 if slim else y + 4
        parts.append(_text("name", 0, name_y, row.name) + _text("value", right + 10, y + 4, number(row.estimate)))
    parts.append(f'<line class="axis" x1="{at(0.0):.1f}" y1="{top}" x2="{at(0.0):.1f}" y2="{height - 36}"/>')
    return _svg(width, height, escape(label), parts, "chart slim" if slim else "chart rows")


def strip(names: Sequence[str], values: np.ndarray, dt: float, width: int = 500) -> str:
    """values (T, K) of K skills every `dt` seconds: one lane each, stronger where the coefficient is larger.

    A line class="playhead" stands at the left end of the lanes, whose ends the chart carries as data for a player.
    """
    lane, top = 20, 4
    left = min(14 + int(CHARACTER * max(map(len, names))), int(width * 0.4))
    seconds, largest = len(values) * dt, max(float(np.abs(values).max()), 1e-9)
    pixels = int(width - left)
    bins = np.array_split(np.arange(len(values)), min(pixels // 3, len(values)))
    parts = []
    for k, name in enumerate(names):
        y = top + k * lane
        parts.append(_text("tick", left - 8, y + lane / 2 + 4, name[: int((left - 8) / CHARACTER)], "end"))
        parts.append(f'<rect class="lane" x="{left}" y="{y + 2}" width="{pixels}" height="{lane - 4}" rx="3"/>')
        for b in bins:
            value = float(values[b, k].mean())
            x, wide = left + b[0] / len(values) * pixels, len(b) / len(values) * pixels + 0.3
            parts.append(
                f'<rect class="{"cell c" + str(k % 6) if value >= 0 else "cell c4"}" x="{x:.1f}" y="{y + 2}" '
                f'width="{wide:.1f}" height="{lane - 4}" fill-opacity="{abs(value) / largest * 0.85:.2f}">'
                f"<title>{escape(name)} at {b[0] * dt:.2f} s: {value:.2f}</title></rect>"
            )
    height = top + lane * len(names) + 22
    for at, anchor in ((0.0, "start"), (seconds, "end")):
        parts.append(_text("tick", left + at / seconds * pixels, height - 6, f"{at:g} s", anchor))
    parts.append(f'<line class="playhead" x1="{left}" y1="{top}" x2="{left}" y2="{top + lane * len(names)}"/>')
    chart = _svg(width, height, "which skill is active when", parts, "chart strip")
    return chart.replace("<svg ", f'<svg data-left="{left}" data-right="{width}" data-seconds="{seconds:.3f}" ', 1)


def places(names: Sequence[str], at: np.ndarray, marked: Sequence[str], label: str, width: int = 720) -> str:
    """Named points at (N, 2), equal scale on both axes, those `marked` in another colour."""
    pad, tallest = 34, 440
    centre = (at.max(0) + at.min(0)) / 2
    span = np.maximum(at.max(0) - at.min(0), 1e-9)
    scale = min((width - 6 * pad) / span[0], (tallest - 2 * pad) / span[1])
    height = round(max(span[1] * scale, 60.0)) + 2 * pad
    parts = []
    for name, point in zip(names, at, strict=True):
        x, y = (point - centre) * scale + np.array([width / 2, height / 2])
        kind, left = ("c1" if name in marked else "c0"), x > width * 0.7
        circle = f'<circle class="point {kind}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
        parts.append(f"{circle}<title>{escape(name)}</title></circle>")
        if len(names) <= 40 or name in marked:
            parts.append(_text("note", x + (-10 if left else 10), y + 4, name, "end" if left else "start"))
    return _svg(width, height, escape(label), parts, "chart map")


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
