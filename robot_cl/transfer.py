"""What skills are worth for a new task: eight rows that any claim of transfer has to be read beside, four
interventions that show where it comes from, and how many demonstrations it saves.

A row is a way to come by a policy from a base, its skills and some demonstrations; every row of a table gets the same
demonstrations and, where it trains, the same number of updates. "composition" without its rows says nothing: a walker
that merely stands scores 166 of 1000 on walking.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.adapter import random_like
from policies.composed import ComposedActor
from policies.composers import Composer
from policies.intrinsic import attach_subspace, subspace_deltas
from policies.lora import base_layer, layer_shape, linear_layers
from policies.mixture import Mixture
from robot_cl import stats
from robot_cl.demonstrations import Demonstrations
from robot_cl.imitation import descend, imitation_loss, train_composer
from robot_cl.routes import Fitted, Known, Route, RouteSettings
from robot_cl.skills import with_skills

Play = Callable[[Any], np.ndarray]  # an actor of population 1, or a ComposedActor -> returns (episodes,)
Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]  # key, how to find the returns -> they, found or kept
BEST, GATE = "best skill", "learned α(s)"
ANEW = 10_007  # added to the seed of a row's new weights, which must not be those the base was drawn with
ENOUGH = 0.8  # of the expert's return, for demonstrations-to-80 %


class TransferRows:
    """The rows of one table for one set of demonstrations. Remembers what was fitted, each when first asked for, and
    which skill is the best."""

    def __init__(self, known: Known, demos: Demonstrations, settings: RouteSettings, best: str = ""):
        if not known.skills:
            raise ValueError("transfer needs at least one skill; robot-cl skills add RUN makes one")
        self.known, self.demos, self.settings, self.best = known, demos, settings, best
        self.fitted = Fitted(known, demos, settings)

    def base(self) -> nn.Module:
        """The base as it is."""
        return self.known.base

    def best_skill(self) -> nn.Module:
        """The single skill that does best, as it is."""
        return alone(self.known, self.best)

    def scratch(self) -> nn.Module:
        """The base's architecture from random weights, on the demonstrations alone."""
        return self._trained(reinitialised(self.known.base, self.settings.seed))

    def fine_tune(self) -> nn.Module:
        """All weights of the base."""
        return self._trained(copy.deepcopy(self.known.base))

    def fresh(self) -> nn.Module:
        """A new adapter on the base, no skill."""
        return self.fitted.route("fresh").module

    def fixed(self) -> nn.Module:
        """One tuned number per skill."""
        return Fitted(self.known, self.demos, replace(self.settings, composer="fixed")).route("composition").module

    @cached_property
    def _gated(self) -> Route:
        if self.settings.composer_name == "context_gate":
            return self.fitted.route("composition")  # the residual looks at the same one
        return Fitted(self.known, self.demos, replace(self.settings, composer="psec")).route("composition")

    def gate(self) -> nn.Module:
        """Coefficients that read the observation, α(s)."""
        return self._gated.module

    def residual(self) -> nn.Module:
        """A new adapter on top of the best composition."""
        return self.fitted.route("residual").module

    # The interventions

    def random_skills(self) -> nn.Module:
        """I1: α(s) learned over random factors of the same norms. What is left is not the skills' content."""
        rng = torch.Generator().manual_seed(self.settings.seed + 1)
        drawn = {name: random_like(adapter, rng) for name, adapter in self.known.skills.items()}
        settings = replace(self.settings, composer="psec")
        return Fitted(replace(self.known, skills=drawn), self.demos, settings).route("composition").module

    def blind_gate(self) -> nn.Module:
        """I2: α learned and used without sight of the observation. What is lost is what reading it was worth."""
        s, seen = self.settings, self._gated.module
        assert isinstance(seen, ComposedActor)
        composed = ComposedActor(seen.mixture, Blind(self._fresh_gate(seen)), seen.level)
        train_composer(composed, self.demos, s.steps, s.lr or 3e-4, s.batch, s.seed)
        return composed.eval().requires_grad_(False)

    def _fresh_gate(self, like: ComposedActor) -> Composer:
        settings = replace(self.settings, composer="psec")
        return Fitted(self.known, self.demos, settings)._untrained(like.composer.shape)

    def permuted(self) -> nn.Module:
        """I3: the skills exchanged after α was learned. It must collapse, or α never meant the skills."""
        seen, names = self._gated.module, list(self.known.skills)
        assert isinstance(seen, ComposedActor)
        if len(names) < 2:
            raise ValueError("exchanging skills needs two of them")
        turned = dict(zip(names, [self.known.skills[n] for n in [*names[1:], names[0]]], strict=True))
        return ComposedActor(Mixture(self.known.base, turned), seen.composer, seen.level).eval()

    def subspace(self) -> nn.Module:
        """I4: as many numbers as α(s) has parameters (at most all weights), in a random subspace of the base's."""
        seen = self._gated.module
        assert isinstance(seen, ComposedActor)
        count = sum(p.numel() for p in seen.composer.parameters())
        student = copy.deepcopy(self.known.base)
        room = sum(layer_shape(layer)[0] * layer_shape(layer)[1] for *_, layer in linear_layers(student))
        theta = attach_subspace(student, min(count, room), torch.Generator().manual_seed(self.settings.seed))
        self._descend(student, [theta], self.settings.steps, 1e-2)
        plain, changes = copy.deepcopy(self.known.base), subspace_deltas(student)
        with torch.no_grad():  # an actor like any other again, which can be played
            for name, _, _, layer in linear_layers(plain):
                weight: Any = layer.weight
                weight.add_(changes[name].to(weight))
        return plain.eval().requires_grad_(False)

    def _trained(self, student: nn.Module) -> nn.Module:
        student.train().requires_grad_(True)
        self._descend(student, list(student.parameters()), self.settings.adapter_steps, self.settings.adapter_lr)
        return student.eval().requires_grad_(False)

    def _descend(self, student: nn.Module, parameters: list[nn.Parameter], steps: int, lr: float) -> None:
        rng = torch.Generator().manual_seed(self.settings.seed)
        descend(
            lambda obs, action: imitation_loss(student, obs, action, rng), parameters, self.demos, steps, lr,
            self.settings.batch, rng,
        )  # fmt: skip


ROWS: dict[str, tuple[str, str]] = {  # name -> method of TransferRows, what it is
    "base": ("base", "the base, zero-shot"),
    BEST: ("best_skill", "the single skill that does best on other starts, zero-shot"),
    "scratch": ("scratch", "the same network from random weights"),
    "fine-tune": ("fine_tune", "all weights of the base"),
    "fresh adapter": ("fresh", "a new adapter on the base"),
    "fixed α": ("fixed", "one tuned number per skill"),
    GATE: ("gate", "coefficients that read the observation"),
    "residual": ("residual", "a new adapter on the best composition"),
}
INTERVENTIONS: dict[str, tuple[str, str]] = {
    "I1 random skills": ("random_skills", "α(s) over random factors of the same norm"),
    "I2 blind α": ("blind_gate", "α without sight of the observation"),
    "I3 exchanged skills": ("permuted", "skills exchanged after α(s) was learned: must collapse"),
    "I4 random subspace": ("subspace", "as many numbers in a random subspace"),
}
FREE = ("base", BEST)  # rows that learn nothing from the demonstrations


class Blind(Composer):
    """A composer that is shown zeros instead of the observation."""

    def __init__(self, composer: Composer):
        super().__init__(composer.shape)
        self.composer = composer

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Any:
        return self.composer(torch.zeros_like(obs), task)


@torch.no_grad()
def reinitialised(base: nn.Module, seed: int) -> nn.Module:
    """A copy with every linear layer drawn anew, uniform ±1/sqrt(d_in) as torch does; statistics stay."""
    fresh, rng = copy.deepcopy(base), torch.Generator().manual_seed(seed + ANEW)
    for *_, layer in linear_layers(fresh):
        bare: Any = base_layer(layer)
        bound = layer_shape(bare)[1] ** -0.5
        for p in (bare.weight, bare.bias):
            if p is not None:
                p.copy_((torch.rand(p.shape, generator=rng) * 2.0 - 1.0) * bound)
    return fresh


@dataclass(frozen=True)
class Row:
    """One line: returns (draws, episodes), their mean with its interval over both, and its share of the expert's, None
    where that is unknown or not above 0."""

    name: str
    what: str
    demonstrations: int
    returns: list[list[float]]
    mean: float
    interval: tuple[float, float] | None
    share: float | None

    @classmethod
    def of(cls, name: str, what: str, count: int, returns: Sequence[np.ndarray], expert: float | None) -> Row:
        several = len(returns[0]) > 1
        found = stats.nested_bootstrap(list(returns), np.random.default_rng(0)) if several else None
        mean = float(np.mean(returns))
        return cls(
            name, what, count, [r.tolist() for r in returns], mean, (found.low, found.high) if found else None,
            mean / expert if expert and expert > 0 else None,
        )  # fmt: skip


def key_of(name: str, demonstrations: int, draw: int) -> str:
    """Under which the returns of one row, fitted to one draw, are kept."""
    return f"{name}/{demonstrations}/{draw}"


def not_kept(key: str, find: Callable[[], np.ndarray]) -> np.ndarray:
    """A `Keep` that remembers nothing."""
    return find()


def table(
    known: Known, draws: Sequence[Demonstrations], settings: RouteSettings, play: Play, expert: float | None,
    names: Sequence[str], keep: Keep = not_kept, audition: Play | None = None,
) -> list[Row]:  # fmt: skip
    """The named rows (or interventions), each fitted to every draw of demonstrations and played.

    `audition` plays on other starts, where the best single skill is chosen (none: on those that count).
    """
    best = best_skill(known, audition or play, keep) if BEST in names else ""
    rows = [TransferRows(known, d, replace(settings, seed=settings.seed + k), best) for k, d in enumerate(draws)]
    count, made = draws[0].episodes, []
    for name in names:
        method, what = described(name)
        what += f": {best}" if name == BEST else ""
        if method == "permuted" and len(known.skills) < 2:
            continue  # there is nothing to exchange
        returns = [keep(key_of(name, count, k), partial(_played, row, method, play)) for k, row in enumerate(rows)]
        made.append(Row.of(name, what, 0 if name in FREE else count, returns, expert))
    return made


def alone(known: Known, name: str) -> nn.Module:
    """The base with one skill at weight 1."""
    return with_skills(known.base, known.skills, {name: 1.0})


def audition_key(name: str) -> str:
    """Under which the returns that a skill is chosen by are kept."""
    return f"{name} by itself/choice"


def best_skill(known: Known, audition: Play, keep: Keep = not_kept) -> str:
    """The skill of the highest mean return by itself: how well one imitates says little of how it fares."""
    actors = {name: alone(known, name) for name in known.skills}
    means = {name: keep(audition_key(name), partial(audition, actor)).mean() for name, actor in actors.items()}
    return max(means, key=means.__getitem__)


def _played(rows: TransferRows, method: str, play: Play) -> np.ndarray:
    return play(getattr(rows, method)())


def described(name: str) -> tuple[str, str]:
    """The method of TransferRows behind a row or intervention, and what it is. Raises LookupError."""
    every = ROWS | INTERVENTIONS
    if name not in every:
        raise LookupError(f"no row {name!r}; rows: {', '.join(every)}")
    return every[name]


def demonstrations_to(by_count: Mapping[int, float], expert: float, enough: float = ENOUGH) -> float:
    """Fewest demonstrations whose mean return is at least `enough` of the expert's; infinite if none is."""
    return min((count for count, mean in by_count.items() if mean >= enough * expert), default=float("inf"))


def area_over_demonstrations(by_count: Mapping[int, float], expert: float) -> float:
    """Mean share of the expert's return over the logarithm of the number of demonstrations (trapezoid)."""
    counts = sorted(by_count)
    if len(counts) == 1:
        return by_count[counts[0]] / expert
    x, y = np.log(counts), np.array([by_count[c] / expert for c in counts])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def jump_start(rows: Mapping[str, Row]) -> float:
    """Return of the best single skill minus the base's, before any demonstration."""
    return rows["best skill"].mean - rows["base"].mean


def leave_one_out(
    known: Known, demos: Demonstrations, settings: RouteSettings, play: Play, keep: Keep = not_kept
) -> dict[str, np.ndarray]:
    """Returns of α(s) learned again without each skill in turn; "" with all of them, as in the table's first draw."""
    count = demos.episodes
    found = {"": keep(key_of(GATE, count, 0), partial(_played, TransferRows(known, demos, settings), "gate", play))}
    for name in known.skills if len(known.skills) > 1 else ():
        fewer = replace(known, skills={n: a for n, a in known.skills.items() if n != name})
        rows = TransferRows(fewer, demos, settings)
        found[name] = keep(key_of(f"without {name}", count, 0), partial(_played, rows, "gate", play))
    return found


def crossed_key(name: str, task: str) -> str:
    """Under which the returns of the base ("") or a skill on a task are kept."""
    return f"{name or 'base'} on {task}/matrix"


def cross_matrix(
    known: Known, tasks: Sequence[str], play_on: Callable[[Any, str], np.ndarray], keep: Keep = not_kept
) -> dict[str, dict[str, np.ndarray]]:
    """Returns of the base ("") and each skill alone on each task: the matrix train × evaluate."""
    actors: dict[str, Any] = {"": known.base}
    actors |= {name: alone(known, name) for name in known.skills}
    return {
        name: {task: keep(crossed_key(name, task), partial(play_on, actor, task)) for task in tasks}
        for name, actor in actors.items()
    }
