"""The routes to a new task, from cheap to costly: a skill as it is, a composition of skills, a new adapter on top of
the best composition, the same only where demonstrations are near, a new adapter on the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from policies.actor import ActorPolicy
from policies.adapter import Adapter, compress, linear_combination
from policies.composed import LEVELS, ComposedActor
from policies.composers import COMPOSERS, Composer, CompositionShape
from policies.composers.fixed import Fixed
from policies.composers.preference import Preference
from policies.composers.routed import Routed
from policies.composers.supported import Supported
from policies.intrinsic import suggested_rank
from policies.lora import layer_shapes
from policies.mixture import Mixture
from policies.policy import Policy
from robot_cl.demonstrations import Demonstrations
from robot_cl.imitation import held_out_loss, sized_rank, train_adapter, train_composer
from robot_cl.skills import with_skills

ROUTES = ("zero_shot", "composition", "residual", "guarded", "fresh")
ALIASES = {
    "psec": "context_gate",
    "atlas": "anisotropic",
    "mora": "self_activated",
    "ibcl": "preference",
    "ridge": "routed",
}
LEARNING_RATES = {"context_gate": 3e-4}  # of a network; plain numbers move in steps of 1e-2
BASE, NEW = "base", "new adapter"


@dataclass
class RouteSettings:
    """How each route is fitted. The defaults are those of PSEC's experiments where it has them."""

    composer: str = "psec"  # psec, fixed, atlas, mora, ibcl or ridge, by these names or as in `robot-cl list composers`
    level: str = "parameter"  # what is mixed: parameter, noise (outputs of the actor's network) or action
    per_layer: bool = False  # psec only: one coefficient per skill and layer
    steps: int = 1000  # updates of the composer
    lr: float | None = None  # of the composer; none: 3e-4 for psec, 1e-2 for plain coefficients
    rank: int = 8  # of a new adapter; 0: as many as the demonstrations need, found by training in random subspaces
    adapter_steps: int = 2000  # updates of a new adapter
    adapter_lr: float = 1e-3  # of a new adapter
    scale: float = 4.0  # multiplies a new adapter while it trains; it is stored with the scale inside
    batch: int = 256  # demonstrated steps per update
    keep: int = 16  # of more skills than these, the ones with the lowest loss are composed
    seed: int = 0  # of everything random

    def __post_init__(self) -> None:
        name = ALIASES.get(self.composer, self.composer)
        if name not in COMPOSERS:
            from robot_cl.data.naming import not_found

            raise not_found("composer", self.composer, [*COMPOSERS, *ALIASES])
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}; expected one of {', '.join(LEVELS)}")
        for key in ("batch", "keep", "adapter_lr", "scale"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}; expected a positive number")
        if min(self.steps, self.adapter_steps, self.rank) < 0:
            raise ValueError("rank, steps and adapter_steps are counts; expected 0 or more")

    @property
    def composer_name(self) -> str:
        return ALIASES.get(self.composer, self.composer)


@dataclass(frozen=True)
class Known:
    """What there is to start from: the frozen base (population 1) and its skills. `spread` {skill: deviation of its
    sketch over training seeds} and `sketches` {skill: (D,)} are needed by preferences only."""

    base: Any
    skills: Mapping[str, Adapter]
    spread: Mapping[str, float] = field(default_factory=dict)
    sketches: Mapping[str, Tensor] = field(default_factory=dict)
    preference: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Route:
    """One way to act in the new task. `module` is an actor of population 1 or a ComposedActor.

    `weights` {skill: coefficient} are constant ones, None where there are none; `adapter` is the new
    skill where one was trained, on top of `below`, the base with `weights`.
    """

    name: str
    module: nn.Module
    weights: dict[str, float] | None
    adapter: Adapter | None = None
    below: Any = None

    def policy(self, interface: Any = None, task: str | None = None) -> Policy:
        if isinstance(self.module, ComposedActor):
            self.module.interface, self.module.task, self.module.name = interface, task, self.name
            return self.module
        return ActorPolicy(self.module, 0, interface, task, self.name)  # type: ignore[arg-type]

    @property
    def said(self) -> str:
        """What it is made of, in a few words."""
        parts = [] if self.weights is None else [f"{w:.2g} {n}" if w != 1 else n for n, w in self.weights.items() if w]
        if self.name == "guarded" and isinstance(self.module, ComposedActor):
            below = " + ".join(n for n in self.module.mixture.names if n != NEW)
            return f"{NEW} where demonstrations are near, {below} elsewhere"
        if isinstance(self.module, ComposedActor) and self.weights is None:
            parts = [f"{', '.join(self.module.mixture.names)} by {type(self.module.composer).__name__}"]
        below = " + ".join(parts) or BASE
        return f"{NEW} on {below}" if self.adapter is not None else below


class Scalars(Composer):
    """K learned numbers, on the simplex with `simplex`: what `fixed` and `preference` are before they are fixed."""

    def __init__(self, shape: CompositionShape, simplex: bool):
        super().__init__(shape)
        self.simplex = simplex
        self.raw = nn.Parameter(torch.full((shape.skills,), 0.0 if simplex else 1.0 / shape.skills))

    @property
    def weights(self) -> Tensor:
        return torch.softmax(self.raw, 0) if self.simplex else self.raw

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        return self.weights.unsqueeze(0)


class Fitted:
    """The routes fitted to some demonstrations, each when it is first asked for. Remembers what was fitted."""

    def __init__(self, known: Known, demos: Demonstrations, settings: RouteSettings):
        self.demos, self.settings = demos, settings
        names = list(known.skills)
        if len(names) > settings.keep:
            losses = {name: self._alone(known, name) for name in names}
            names = sorted(sorted(names, key=losses.__getitem__)[: settings.keep], key=names.index)
        self.known = replace(known, skills={name: known.skills[name] for name in names})

    def _alone(self, known: Known, name: str) -> float:
        return held_out_loss(with_skills(known.base, known.skills, {name: 1.0}), self.demos, self.settings.seed)

    def route(self, name: str) -> Route:
        """Raises LookupError for an unknown name, ValueError where the route cannot be taken."""
        if name not in ROUTES:
            raise LookupError(f"no route {name!r}; routes: {', '.join(ROUTES)}")
        found = getattr(self, name)
        assert isinstance(found, Route)
        return found

    @cached_property
    def zero_shot(self) -> Route:
        """The base or the single skill that fits the demonstrations best."""
        return self._constant("zero_shot", self._best([{}, *({name: 1.0} for name in self.known.skills)]))

    @cached_property
    def composition(self) -> Route:
        """The skills under a composer trained on the demonstrations; nothing else moves."""
        s, known = self.settings, self.known
        if not known.skills:
            raise ValueError("there is no skill to compose")
        mixture = Mixture(known.base, known.skills)
        shape = CompositionShape.of(mixture, int(known.base.obs_dim))
        composed = ComposedActor(mixture, self._untrained(shape), s.level)
        lr = s.lr if s.lr is not None else LEARNING_RATES.get(s.composer_name, 1e-2)
        if isinstance(composed.composer, Routed):
            composed.composer.fit(known.base.normalizer(self.demos.obs), self._errors())
        train_composer(composed, self.demos, s.steps, lr, s.batch, s.seed)
        if isinstance(composed.composer, Scalars):
            composed.composer = self._fixed(shape, composed.composer.weights.detach())
        composed.eval().requires_grad_(False)
        composed.mode(self.demos.obs[:1])  # a preference that no skill supports is refused here
        weights = constant_weights(composed)
        return Route("composition", composed, weights)

    @torch.no_grad()
    def _errors(self) -> Tensor:
        """(N, 1 + K) squared error of the actions that the base and each skill would have taken."""
        known, demos, columns = self.known, self.demos, []
        for weights in ({}, *({name: 1.0} for name in known.skills)):
            action = with_skills(known.base, known.skills, weights).mode(demos.obs)[0]
            columns.append((action - demos.action).square().sum(-1))
        return torch.stack(columns, 1)

    def _untrained(self, shape: CompositionShape) -> Composer:
        s, name = self.settings, self.settings.composer_name
        if name == "context_gate":
            return COMPOSERS[name](shape, per_layer=s.per_layer, seed=s.seed)  # type: ignore[call-arg]
        if name == "preference" and self.known.preference is not None:
            return self._fixed(shape, torch.tensor(self.known.preference))
        return Scalars(shape, name == "preference") if name in ("fixed", "preference") else COMPOSERS[name](shape)

    def _fixed(self, shape: CompositionShape, weights: Tensor) -> Composer:
        if self.settings.composer_name == "fixed":
            return Fixed(shape, weights)
        known, names = self.known, list(self.known.skills)
        unknown = [name for name in names if not known.spread.get(name)]
        if unknown:
            raise ValueError(
                f"skill {unknown[0]!r} comes from one training seed, and preferences need to know how far seeds of a "
                "skill lie apart; train it with seeds=3 and add it again"
            )
        means = torch.stack([known.sketches[name] for name in names])
        stds = torch.tensor([[known.spread[name]] for name in names]).expand_as(means)
        return Preference(shape, means, stds, weights)

    @cached_property
    def residual(self) -> Route:
        """A new adapter on the best constant composition: a single skill, equal shares, or the composer's mean."""
        names = list(self.known.skills)
        candidates = [{name: 1.0} for name in names] + [dict.fromkeys(names, 1.0 / len(names))] if names else []
        mean = self._mean_coefficients()
        below = self._best([*candidates, *([mean] if mean else [])])
        if not any(below.values()):
            raise ValueError("there is no skill to build on")
        return self._adapted("residual", below)

    @cached_property
    def guarded(self) -> Route:
        """The residual adapter where the observation is like the demonstrations, what it builds on elsewhere."""
        built, known = self.residual, self.known
        assert built.adapter is not None and built.weights is not None
        below = {name: weight for name, weight in built.weights.items() if weight}
        adapters = {name: known.skills[name] for name in below}
        header = next(iter(adapters.values())).header
        mixture = Mixture(known.base, adapters | {NEW: built.adapter.with_header(header)})
        shape = CompositionShape.of(mixture, int(known.base.obs_dim))
        composer = Supported(shape, [*below.values(), 1.0], [len(below)])
        composer.fit(known.base.normalizer(self.demos.obs), self.demos.episode)
        composed = ComposedActor(mixture, composer).eval().requires_grad_(False)
        return Route("guarded", composed, None, built.adapter, built.below)

    @cached_property
    def fresh(self) -> Route:
        return self._adapted("fresh", {})

    @cached_property
    def rank(self) -> int:
        """Of new adapters: the one asked for, or the smallest whose factors hold the demonstrations' dimension."""
        s, base = self.settings, self.known.base
        if s.rank:
            return s.rank
        found = sized_rank(base, self.demos, s.adapter_steps, s.batch, s.seed)
        return suggested_rank(found.dimension or max(found.scores), layer_shapes(base))

    def _mean_coefficients(self) -> dict[str, float] | None:
        """The composer's coefficients averaged over the demonstrations, one per skill; None where it has no such."""
        try:
            composed = self.composition.module
        except ValueError:
            return None
        assert isinstance(composed, ComposedActor)
        with torch.no_grad():
            found = composed.coefficients(self.demos.obs)
        if not isinstance(found, Tensor):
            return None
        per_skill = found.mean(0) if found.dim() == 2 else found.flatten(2).mean((0, 2))
        return dict(zip(self.known.skills, per_skill.tolist(), strict=True))

    def _best(self, candidates: list[dict[str, float]]) -> dict[str, float]:
        known, seed = self.known, self.settings.seed
        losses = [held_out_loss(with_skills(known.base, known.skills, c), self.demos, seed) for c in candidates]
        return candidates[losses.index(min(losses))] if candidates else {}

    def _constant(self, name: str, weights: dict[str, float]) -> Route:
        return Route(name, with_skills(self.known.base, self.known.skills, weights), weights)

    def _adapted(self, name: str, weights: dict[str, float]) -> Route:
        s, below = self.settings, with_skills(self.known.base, self.known.skills, weights)
        adapter = train_adapter(below, self.demos, self.rank, s.adapter_steps, s.adapter_lr, s.scale, s.batch, s.seed)
        return Route(name, with_skills(below, {"new": adapter}, {"new": 1.0}), weights, adapter, below)


def constant_weights(composed: ComposedActor) -> dict[str, float] | None:
    """{skill: coefficient} of a composition of weights that has one constant per skill, else None: at other levels what
    is mixed is no sum of changes."""
    composer = composed.composer
    if composed.level != "parameter":
        return None
    if isinstance(composer, Fixed) and composer.weights.dim() == 1:
        found = composer.weights
    elif isinstance(composer, Preference):
        found = composer.preference
    else:
        return None
    return dict(zip(composed.mixture.names, found.tolist(), strict=True))


def whole(route: Route, skills: Mapping[str, Adapter]) -> Adapter | None:
    """A route as one skill of its base: Σ coefficient · ΔW and the new adapter, in the fewest ranks. None where its
    coefficients depend on the observation, or outputs are mixed."""
    if route.weights is None:
        return None
    used = {name: weight for name, weight in route.weights.items() if weight}
    parts = [(skills[name], weight) for name, weight in used.items()]
    if route.adapter is not None:
        parts.append((route.adapter.with_header(parts[0][0].header) if parts else route.adapter, 1.0))
    if not parts:
        return None
    return compress(linear_combination([adapter for adapter, _ in parts], [weight for _, weight in parts]))
