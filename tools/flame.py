"""Collapsed stacks as a flame graph: an SVG without scripts, roots on top, as wide as the time spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape

WIDTH, ROW, LEAST, DEEPEST = 1100, 17, 0.004, 34  # pixels; share of the whole below which a frame is left out; frames


@dataclass
class Frame:
    """A function in its place; `count` samples were taken in it or below."""

    name: str
    count: int = 0
    below: dict[str, Frame] = field(default_factory=dict)

    def add(self, stack: list[str], count: int) -> None:
        self.count += count
        if stack:
            self.below.setdefault(stack[0], Frame(stack[0])).add(stack[1:], count)


def read_stacks(text: str) -> list[tuple[list[str], int]]:
    """Lines "a;b;c 12" -> stacks, roots first, with their counts."""
    found = []
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        found.append((frames.split(";"), int(count)))
    return found


def tree(stacks: Iterable[tuple[list[str], int]]) -> Frame:
    root = Frame("all")
    for stack, count in stacks:
        root.add(stack, count)
    return trunk(root)


def trunk(frame: Frame) -> Frame:
    """Without what lies below the fork: start-up frames that every sample shares."""
    while len(frame.below) == 1 and next(iter(frame.below.values())).count == frame.count:
        frame = next(iter(frame.below.values()))
    return frame


def draw(root: Frame, title: str, colour: Callable[[str], str]) -> str:
    """The graph as SVG text; `colour(name)` of a frame."""
    parts, depth = list[str](), 0

    def place(frame: Frame, x: float, level: int) -> None:
        nonlocal depth
        width = WIDTH * frame.count / root.count
        if frame.count < LEAST * root.count or level > DEEPEST:
            return
        depth = max(depth, level)
        share, name = 100 * frame.count / root.count, escape(frame.name)
        parts.append(
            f'<g><title>{name}: {share:.1f} %</title><rect x="{x:.1f}" y="{ROW * level + 30}" width="{width:.1f}" '
            f'height="{ROW - 1}" rx="2" fill="{colour(frame.name)}"/>'
        )
        shown = frame.name if len(frame.name) * 6.7 < width else frame.name[: max(0, int(width / 6.7) - 1)]
        if len(shown) > 2:
            parts.append(f'<text x="{x + 3:.1f}" y="{ROW * level + 42}">{escape(shown)}</text>')
        parts.append("</g>")
        for child in sorted(frame.below.values(), key=lambda f: -f.count):
            place(child, x, level + 1)
            x += WIDTH * child.count / root.count

    place(root, 0.0, 0)
    height = ROW * (depth + 1) + 40
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="monospace" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="6" y="18" font-size="14" font-family="sans-serif">{escape(title)}</text>'
    )
    return head + "".join(parts) + "</svg>\n"
