"""What is claimed of few demonstrations: about one named row of each task, not about the best of several."""

from __future__ import annotations

from common import Claim
from few_shot_parts.results import Results, interval
from few_shot_parts.rows import PREFERRED

# The row that stands for each task in its claims.
CLAIMED = {"stand-walk": "choice by episodes", "stand-walk-run": "choice by episodes",
           "shift": "residual", "speed-limit": "composition"}  # fmt: skip
TEN = 10  # demonstrations, of the claims


def claims_walk(r: Results) -> list[Claim]:
    """stand → walk with ten demonstrations."""
    found: list[Claim] = []
    expert, base = r.scores("expert", 0), r.scores("base zero-shot", 0)
    fresh, scratch, gate = (r.scores(row, TEN) for row in ("fresh adapter", "scratch", "learned α(s)"))
    if expert is not None:
        found.append(Claim("upright expert of walk", float(expert.mean()), 900.0))
    if base is not None:
        found.append(Claim("walk: base zero-shot", float(base.mean()), 200.0, at_least=False))
    row = CLAIMED["stand-walk"]
    ours = r.scores(row, TEN)
    if ours is not None:
        found.append(Claim(f"walk, 10 demonstrations: {row}", float(ours.mean()), 600.0))
    if ours is not None and scratch is not None:
        gain = float((ours - scratch).mean())
        found.append(Claim(f"walk, 10 demonstrations: paired gain of {row} over scratch", gain, 100.0))
    if fresh is not None and gate is not None:
        found.append(Claim("walk: learned α(s) − fresh adapter", float((gate - fresh).mean()), -75.0))
    return found + interventions(r, "walk")


def claims_run(r: Results) -> list[Claim]:
    """stand + walk → run: the library's own choice against the best single skill."""
    single, found = r.best_single(), list[Claim]()
    expert = r.scores("expert", 0)
    if single is not None and expert is not None:  # a task that a skill solves already says nothing about composition
        share = float(single[1].mean() / expert.mean())
        found.append(Claim("run: best single skill zero-shot over the expert", share, 0.6, at_least=False))
    row = CLAIMED["stand-walk-run"]
    chosen = r.scores(row, TEN)
    if single is not None and chosen is not None:
        ours, theirs = interval(chosen), interval(single[1])
        name = f"run, 10 demonstrations: {row}"
        found.append(Claim(f"{name} − {single[0]}", ours.estimate - theirs.estimate, 150.0))
        found.append(Claim(f"{name}: lower end − upper end of {single[0]}", ours.low - theirs.high, 0.0))
    return found + interventions(r, "run")


def claims_shift(r: Results) -> list[Claim]:
    """Skills of other physics, ten episodes in the standard one."""
    single, scratch, found = r.best_single(), r.scores("scratch", TEN), list[Claim]()
    row = CLAIMED["shift"]
    ours = r.scores(row, TEN)
    if ours is not None and single is not None and scratch is not None:
        gain = float(ours.mean() / max(single[1].mean(), 1.0))
        found.append(Claim(f"shift: {row} over the best source skill zero-shot", gain, 1.0))
        found.append(Claim(f"shift: {row} over scratch", float(ours.mean() / scratch.mean()), 1.0))
    return found + interventions(r, "shift")


def claims_speed(r: Results) -> list[Claim]:
    """Reward and cost skill under a speed limit: their composition, alone and with a new skill, is safe and faster than
    the cost skill."""
    careful, found = r.scores("cost skill zero-shot", 0), list[Claim]()
    for row, count in ((PREFERRED, 0), (CLAIMED["speed-limit"], TEN), ("learned α(s)", TEN)):
        reward, cost = r.scores(row, count), r.scores(row, count, "fell")
        if reward is not None and cost is not None and careful is not None:
            found.append(Claim(f"speed limit: normalised cost of {row}", float(cost.mean()), 1.0, at_least=False))
            gain = float(reward.mean() - careful.mean())
            found.append(Claim(f"speed limit: reward of {row} above the cost skill's", gain, 0.0))
    return found


def interventions(r: Results, label: str) -> list[Claim]:
    base, gate = r.scores("base zero-shot", 0), r.scores("learned α(s)", TEN)
    random, permuted = r.scores("I1 random skills", TEN), r.scores("I3 permuted", TEN)
    found: list[Claim] = []
    if base is not None and random is not None:
        gap = float(random.mean() - base.mean())
        found.append(Claim(f"{label}, I1: random skills − base", gap, 50.0, at_least=False))
    if base is not None and gate is not None and permuted is not None:
        kept = float((permuted.mean() - base.mean()) / max(gate.mean() - base.mean(), 1.0))
        found.append(Claim(f"{label}, I3: share of the gain kept with permuted skills", kept, 0.5, at_least=False))
    return found


CLAIMS = {"stand-walk": claims_walk, "stand-walk-run": claims_run, "shift": claims_shift, "speed-limit": claims_speed}
