"""Composition for a new task: fit every route to a few demonstrations, choose one, and say why.

The choice is made on demonstrations that were kept aside, relative to what a fresh adapter reaches, because the loss of
a bad policy says little by itself. Where roll-outs are allowed, a stated number of episodes of each route decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.composed import ComposedActor
from policies.mixture import Mixture
from policies.policy import Policy
from robot_cl.demonstrations import Demonstrations
from robot_cl.imitation import held_out_loss
from robot_cl.routes import ROUTES, Fitted, Known, Route, RouteSettings

Play = Callable[[Policy], np.ndarray]  # a policy's returns (episodes,), always from the same start states
Progress = Callable[[float, float, str], None]
NOTHING = 0.01  # of the gap between base and best: what no task would show
FREE = ("zero_shot", "composition")  # routes that add no skill
WORDS = {
    "zero_shot": "zero-shot",
    "composition": "composition",
    "residual": "residual adapter",
    "guarded": "guarded residual adapter",
    "fresh": "fresh adapter",
}


@dataclass(frozen=True)
class Judged:
    """A route with its held-out loss, that loss relative to a fresh adapter's, and its returns where it was played."""

    route: Route
    loss: float
    relative: float
    returns: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return self.route.name

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "name": self.name, "made_of": self.route.said, "loss": self.loss, "relative": self.relative,
            "returns": list(self.returns),
        }  # fmt: skip

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns)) if self.returns else math.nan


@dataclass(frozen=True)
class Choice:
    """All routes in their order, the chosen one, why, and what was measured.

    `refused` {route: reason} could not be taken; `left_out` {skill: held-out loss of the composition without it}.
    """

    judged: tuple[Judged, ...]
    chosen: Judged
    why: str
    measure: str
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)


def choose(
    known: Known,
    demos: Demonstrations,
    settings: RouteSettings | None = None,
    *,
    held_out: float = 0.2,
    tolerance: float = 0.05,
    refit: bool = True,
    play: Play | None = None,
    routes: tuple[str, ...] = ROUTES,
    wrap: Callable[[Route], Policy] | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Fit the routes to all but the `held_out` share of the demonstrations, judge them on the rest, choose, and fit
    what was chosen to all demonstrations (`refit`).

    Without `play` the cheapest route whose loss is within `tolerance` of the lowest is chosen (see `good_enough`); with
    it all routes are fitted to all demonstrations, played, and the highest mean return is chosen, the cheaper one of
    equals. `wrap` makes a route the policy that is played. Raises ValueError if no route can be taken.
    """
    settings = settings or RouteSettings()
    train, held = demos.split(held_out)
    of_actions = settings.level == "action"
    told = progress or (lambda done, total, note: None)
    fitted, losses, refused = Fitted(known, train, settings), dict[str, float](), dict[str, str]()
    for k, name in enumerate(routes):
        told(k, 2 * len(routes), WORDS[name])
        try:
            losses[name] = held_out_loss(fitted.route(name).module, held, settings.seed, of_actions)
        except ValueError as problem:
            refused[name] = str(problem)
    if not losses:
        raise ValueError(f"no route can be taken: {'; '.join(refused.values())}")
    final = Fitted(known, demos, settings) if refit else fitted
    reference = losses.get("fresh", min(losses.values()))
    bare = held_out_loss(known.base, held, settings.seed, of_actions)
    cheapest = good_enough(losses, bare, tolerance)
    judged = []
    for k, name in enumerate(losses):
        told(len(routes) + k, 2 * len(routes), WORDS[name])
        route = final.route(name) if play is not None or name == cheapest else fitted.route(name)
        returns = tuple(map(float, play((wrap or Route.policy)(route)))) if play is not None else ()
        judged.append(Judged(route, losses[name], losses[name] / max(reference, 1e-12), returns))
    chosen = max(judged, key=lambda j: j.mean_return) if play else next(j for j in judged if j.name == cheapest)
    measure = "error of actions" if of_actions or not hasattr(known.base, "loss") else "the actor's own loss"
    left_out = leave_one_out(fitted, held, of_actions) if "composition" in losses else {}
    return Choice(tuple(judged), chosen, reason(judged, chosen), measure, refused, left_out)


def good_enough(losses: dict[str, float], bare: float, tolerance: float) -> str:
    """The first route, from cheap to costly, whose loss is within `tolerance` of the lowest, or which needs no new
    skill and closes all but NOTHING of the gap between the bare base's loss and the lowest."""
    best = min(losses.values())
    near, free = best * (1.0 + tolerance), best + NOTHING * (bare - best)
    return next(name for name, loss in losses.items() if loss <= near or (name in FREE and loss <= free))


def reason(judged: list[Judged], chosen: Judged) -> str:
    """One sentence."""
    others = [j for j in judged if j is not chosen]
    word = WORDS[chosen.name]
    if chosen.returns:
        rest = ", ".join(f"{WORDS[j.name]} {j.mean_return:,.1f}" for j in others)
        return f"{word}: mean return {chosen.mean_return:,.1f} in {len(chosen.returns)} episodes, the highest ({rest})"
    lowest = min(judged, key=lambda j: j.loss)
    if "fresh" not in {j.name for j in judged}:
        return f"{word}: held-out loss {chosen.loss:.4g}, of the routes asked for"
    if lowest is chosen:
        before = [j for j in others if ROUTES.index(j.name) < ROUTES.index(chosen.name)]
        rest = ", ".join(f"{WORDS[j.name]} {j.relative:.2f}" for j in before)
        cheaper = f"; nothing cheaper comes near ({rest})" if rest else ""
        return f"{word}: the lowest held-out loss, {chosen.relative:.2f} of a fresh adapter's{cheaper}"
    return (
        f"{word}: its held-out loss, {chosen.relative:.2f} of a fresh adapter's, is as good as the lowest "
        f"({WORDS[lowest.name]} {lowest.relative:.2f}), and it is cheaper"
    )


def leave_one_out(fitted: Fitted, held: Demonstrations, of_actions: bool = False) -> dict[str, float]:
    """Held-out loss of the composition with each skill's change taken away in turn, everything else unchanged."""
    composed, known = fitted.composition.module, fitted.known
    assert isinstance(composed, ComposedActor)
    losses = {}
    for name in known.skills:
        without = {n: a.scaled(0.0) if n == name else a for n, a in known.skills.items()}
        module: Any = ComposedActor(Mixture(known.base, without), composed.composer, composed.level)
        losses[name] = held_out_loss(module, held, fitted.settings.seed, of_actions)
    return losses
