"""Which parts of a claim about a shifted task lie inside what the skills were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from robot_cl.demonstrations import Demonstrations


def coverage(target: str | None, trained: Mapping[str, str | None], demos: Demonstrations, base: Any) -> list[str]:
    """Which parts of a claim lie inside what was trained, in sentences.

    `target` and `trained` {skill: shift} are names of shifts. Each number of the target is compared with the range the
    skills (and the unchanged world) span; the demonstrations' observations with the base's own statistics.
    """
    from sim.shift import parse

    def numbers(shift: str | None) -> dict[str, float]:
        found = {}
        for schedule in parse(shift or "none"):
            for term in str(schedule.points[-1][1]).split("+"):
                kind = term.rstrip("0123456789.-e").rstrip("=")
                found[kind] = float(term[len(kind) :].lstrip("="))
        return found

    wanted, seen = numbers(target), {name: numbers(shift) for name, shift in trained.items()}
    said = []
    for kind, value in wanted.items():
        neutral = 0.0 if kind.split(".")[0] in ("payload", "latency", "noise", "bias") else 1.0
        there = [neutral, *(s[kind] for s in seen.values() if kind in s)]
        inside = min(there) <= value <= max(there)
        span = f"{min(there):g} to {max(there):g}"
        said.append(f"{kind} {value:g}: {'inside' if inside else 'OUTSIDE'} the trained range {span}")
    if len(wanted) > 1:
        together = [name for name, s in seen.items() if set(wanted) <= set(s)]
        parts = f"skill {together[0]} met all of them at once" if together else "no skill met them together"
        said.append(f"{' and '.join(wanted)}: {parts}")
    if not wanted:
        said.append("the physics is unchanged; the task's own goal is what is new")
    with torch.no_grad():
        z = base.normalizer(demos.obs)
    far = float((z.abs() > 3.0).float().mean())
    return [*said, f"{100 * far:.1f} % of the demonstrations' readings lie more than 3 deviations from the base's data"]


def describe_skill_shifts(cards: Mapping[str, Any]) -> dict[str, str | None]:
    """skill -> shift, from the keys "task · shift" of its card's scores."""
    found: dict[str, str | None] = {}
    for name, card in cards.items():
        shifts = [key.split(" · ")[1] for key in card.scores if " · " in key]
        found[name] = shifts[0] if shifts else None
    return found
