"""Small charts as SVG text: curves with bands, and rows of points with intervals. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 62, 18, 16, 44
PHONE = 330  # pixels of a chart on a phone, where names stand above their rows


@dataclass(frozen=True)
class Curve:
    """x (T,), y (T,) and optionally the ends of a band (T,); points that are not finite leave a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Mark:
    """A line through the whole chart at `at`: horizontal (a reference) or vertical (a change of phase)."""

    name: str
    at: float
    vertical: bool = False


@dataclass(frozen=True)
class Row:
    """One line of an interval chart: an estimate, its interval, and the scores behind it as faint points."""

    name: str
    estimate: float
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = field(default_factory=tuple)
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short label: 12345 -> 12.3k, 2000000 -> 2M, 0.00034 -> 3.4e-4."""
    size = abs(value)
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            scaled = value / (1e6 if unit == "M" else 1e3)
            return f"{scaled:.3g}{unit}" if abs(scaled) < 1000 else f"{scaled:.0f}{unit}"
    if size == 0 or size >= 0.01:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def curves(
    series: Sequence[Curve],
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    height: int = 300,
    width: int = WIDTH,
) -> str:
    """A chart of curves with bands. Without any finite point, a line of text says so."""
    drawn = [c for c in series if np.isfinite(c.y).any()]
    if not drawn:
        return f'<p class="nothing">no values of {escape(y_label)} were recorded</p>'
    xs = np.concatenate([c.x for c in drawn])
    ys = np.concatenate([_finite(part) for c in drawn for part in (c.y, c.low, c.high) if part is not None])
    ys = np.concatenate([ys, [m.at for m in marks if not m.vertical]])
    x_at, x_ticks = _scale(float(xs.min()), float(xs.max()), LEFT, width - RIGHT, 0.0, 6)
    y_at, y_ticks = _scale(float(ys.min()), float(ys.max()), height - BOTTOM, TOP, 0.06, 5)
    parts = [_grid(x_at, x_ticks, y_at, y_ticks, width, height), _labels(x_label, y_label, width, height)]
    parts += [_mark(mark, x_at, y_at, width, height) for mark in marks]
    parts += [_band(c, k, x_at, y_at) for k, c in enumerate(drawn) if c.low is not None]
    parts += [_line(c, k, x_at, y_at) for k, c in enumerate(drawn)]
    names = [c.name for c in drawn]
    if len(drawn) > 1:
        parts.append(_legend(names, width))
    title = escape(f"{y_label} over {x_label}")
    return _svg(width, height, title, parts) + (_keys(names) if len(drawn) > 1 else "")


def intervals(rows: Sequence[Row], label: str, width: int = WIDTH) -> str:
    """One line per row: the scores as faint dots, the interval as a bar, the estimate as a mark with its number.

    Twice: for a page, and for a phone, where the page's CSS shows the second.
    """
    return _intervals(rows, label, width, False) + _intervals(rows, label, PHONE, True)


def _intervals(rows: Sequence[Row], label: str, width: int, slim: bool) -> str:
    step, top = (58, 16) if slim else (46, 8)
    name_width = 12 if slim else min(24 + max(int(7.3 * len(row.name)) for row in rows), width // 2)
    height = top + step * len(rows) + 40
    values = np.concatenate([[r.estimate, *r.points, *(v for v in (r.low, r.high) if v is not None)] for r in rows])
    right = width - 16 - 9 * max(len(number(row.estimate)) for row in rows)
    at, places = _scale(float(values.min()), float(values.max()), name_width, right, 0.05, 5)
    parts = []
    for value in places:
        x = at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{height - 36}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 20}" text-anchor="middle">{number(value)}</text>')
    end = width if slim else right
    parts.append(f'<text class="label" x="{end:.0f}" y="{height - 4}" text-anchor="end">{escape(label)}</text>')
    for k, row in enumerate(rows):
        parts.append(_row(row, k, top + step * (k + 0.5), at, right, slim))
    return _svg(width, height, escape(label), parts, "chart slim" if slim else "chart rows")


def _row(row: Row, k: int, y: float, at: Callable[[float], float], right: float, slim: bool) -> str:
    colour = f"c{k % 6}"
    dots = "".join(f'<circle class="dot {colour}" cx="{at(v):.1f}" cy="{y:.1f}" r="3.2"/>' for v in row.points)
    bar = ""
    if row.low is not None and row.high is not None:
        start, wide = at(row.low), max(at(row.high) - at(row.low), 1.0)
        bar = f'<rect class="interval {colour}" x="{start:.1f}" y="{y - 8:.1f}" width="{wide:.1f}" height="16" rx="4"/>'
    x = at(row.estimate)
    note = f'<text class="tick" x="0" y="{y + 15:.1f}">{escape(row.note)}</text>' if row.note and not slim else ""
    name_y = y - 18 if slim else y + (0 if row.note else 4)
    return (
        f'<text class="name" x="0" y="{name_y:.1f}">{escape(row.name)}</text>{note}{dots}{bar}'
        f'<line class="estimate {colour}" x1="{x:.1f}" y1="{y - 12:.1f}" x2="{x:.1f}" y2="{y + 12:.1f}"/>'
        f'<text class="value" x="{right + 10:.0f}" y="{y + 4:.1f}">{number(row.estimate)}</text>'
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _scale(
    low: float, high: float, start: float, end: float, margin: float, count: int
) -> tuple[Callable[[float], float], list[float]]:
    """A map from values to pixels and the ticks within; equal ends are widened so that one value sits in the middle."""
    if high <= low:
        pad = abs(low) * 0.5 or 1.0
        low, high = low - pad, high + pad
    low, high = low - margin * (high - low), high + margin * (high - low)
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks(low, high, count)


def _grid(
    x_at: Callable[[float], float],
    x_ticks: Sequence[float],
    y_at: Callable[[float], float],
    y_ticks: Sequence[float],
    width: int,
    height: int,
) -> str:
    parts = []
    for value in y_ticks:
        y = y_at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    base = height - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{width - RIGHT}" y2="{base}"/>')
    for value in x_ticks:
        x = x_at(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(value)}</text>')
    return "".join(parts)


def _labels(x_label: str, y_label: str, width: int, height: int) -> str:
    x, y = f'x="{width - RIGHT}" y="{height - 6}" text-anchor="end"', f'x="{LEFT}" y="{TOP - 4}"'
    return f'<text class="label" {x}>{escape(x_label)}</text><text class="label" {y}>{escape(y_label)}</text>'


def _mark(mark: Mark, x_at: Callable[[float], float], y_at: Callable[[float], float], width: int, height: int) -> str:
    name = escape(mark.name)
    if mark.vertical:
        x, base = x_at(mark.at), height - BOTTOM
        line = f'<line class="mark" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{base}"/>'
        near_end = x > width * 0.75
        anchor, shift = ("end", -6) if near_end else ("start", 6)
        text = f'<text class="note" x="{x + shift:.1f}" y="{base - 8}" text-anchor="{anchor}">{name}</text>'
        return line + text
    y = y_at(mark.at)
    line = f'<line class="mark" x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>'
    return line + f'<text class="note" x="{width - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{name}</text>'


def _band(curve: Curve, k: int, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    assert curve.low is not None and curve.high is not None
    parts = []
    for part in _runs(np.isfinite(curve.low) & np.isfinite(curve.high)):
        x, low, high = curve.x[part], curve.low[part], curve.high[part]
        upper = [f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in zip(x, high, strict=True)]
        lower = [f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
        parts.append(f'<polygon class="band c{k % 6}" points="{" ".join(upper + lower)}"/>' if len(x) > 1 else "")
    return "".join(parts)


def _runs(known: np.ndarray) -> list[np.ndarray]:
    """Indices of each unbroken run of True."""
    places = np.flatnonzero(known)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []


def _line(curve: Curve, k: int, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    kept = np.isfinite(curve.y)
    points = [(x_at(a), y_at(b)) for a, b in zip(curve.x[kept], curve.y[kept], strict=True)]
    line = ""
    for part in _runs(kept):
        path = " ".join(f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in zip(curve.x[part], curve.y[part], strict=True))
        line += f'<polyline class="line c{k % 6}" points="{path}"/>'
    if len(points) > 60:
        return line
    readings = zip(points, curve.x[kept], curve.y[kept], strict=True)
    dots = (
        f'<circle class="point c{k % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{number(a)}: {number(b)}</title></circle>"
        for (x, y), a, b in readings
    )
    return line + "".join(dots)


def _legend(names: Sequence[str], width: int) -> str:
    parts, x = [], float(width - RIGHT)
    for k, name in reversed(list(enumerate(names))):
        x -= 7.0 * len(name)
        parts.append(f'<text class="legend" x="{x:.0f}" y="{TOP - 4}">{escape(name)}</text>')
        x -= 18
        parts.append(f'<rect class="swatch c{k % 6}" x="{x:.0f}" y="{TOP - 12}" width="12" height="4" rx="2"/>')
        x -= 14
    return "".join(parts)


def _keys(names: Sequence[str]) -> str:
    """The legend as text below a chart, which a phone's width breaks as it needs to."""
    keys = (f'<span><i class="c{k % 6}"></i>{escape(name)}</span>' for k, name in enumerate(names))
    return f'<span class="keys">{"".join(keys)}</span>'


def _svg(width: int, height: int, title: str, parts: Sequence[str], kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
