"""The rows of the few-shot table: how each policy comes about. Every function gives obs (M, E, OBS) -> action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from few_shot_parts import walker
from few_shot_parts.setting import RANK, SCALE, Setting, load_adapters, save_adapters
from few_shot_parts.stacked import (
    MemberConstants,
    MemberGate,
    MemberSupport,
    Pools,
    Schedule,
    StackedComposition,
    actor_loss,
    attach_member_subspaces,
    clone,
    copies,
    fit,
)
from torch import Tensor, nn

from policies.adapter import Adapter, random_like
from policies.diffusion import GenerativeActor
from policies.lora import attach, extract, merge_into
from policies.networks import generators
from policies.normalizer import Normalizer

Play = Callable[[Tensor], Tensor]  # obs (M, E, OBS) -> action (M, E, ACT)


SHARES = tuple(k / 10 for k in range(11))  # of the first skill, where two are weighed against each other


@dataclass(frozen=True)
class Task:
    """Which task is new, and which skills the library holds already. `parent` is what a residual builds on."""

    name: str
    parents: tuple[str, ...]

    @property
    def parent(self) -> str:
        return self.parents[-1]


TASKS = {
    "stand-walk": Task("walker-walk", ("stand",)),
    "stand-walk-run": Task("walker-run", ("stand", "walk")),
    "shift": Task("halfcheetah", ("friction", "gravity", "thigh")),
    "speed-limit": Task("halfcheetah", ("reward", "cost")),
}


class Rows:
    """Trains policies of one task. Remembers what several rows need: the base, its skills, the members' new skills."""

    def __init__(self, setting: Setting, task: Task):
        self.setting, self.task = setting, task
        self.sizes, self.members = setting.sizes, len(setting.sizes.members)

    @cached_property
    def base(self) -> GenerativeActor:
        return self.setting.base()

    @cached_property
    def skills(self) -> dict[str, Adapter]:
        return self.setting.skills(self.task.parents)

    @cached_property
    def pools(self) -> Pools:
        return self.setting.pools(self.task.name)

    @cached_property
    def new(self) -> list[Adapter]:
        """Each member's new skill, learned alone on the base from its demonstrations; trained once and kept."""
        path = self.setting.kept / f"new-{self.task.name}-dart{self.setting.dart:g}.safetensors"
        if not path.exists():
            actor = self.adapted(self.base, self.pools)
            save_adapters(path, {str(p): extract(actor, p) for p in range(self.members)})
        found = load_adapters(path)
        return [found[str(p)] for p in range(self.members)]

    # Training

    def trained(self, actor: GenerativeActor, parameters: list[nn.Parameter], pools: Pools, plan: Schedule) -> None:
        actor.train()
        loss = fit(actor_loss(actor), parameters, pools, plan, 3)
        print(f"    ε-loss {loss:.4f} after {plan.steps} steps", flush=True)
        actor.eval()

    def adapted(self, below: GenerativeActor, pools: Pools) -> GenerativeActor:
        """One adapter per member on a frozen actor."""
        actor = clone(below)
        parameters = attach(actor, RANK, generators(50, self.members), SCALE)
        self.trained(actor, parameters, pools, self.sizes.new)
        return actor

    def whole(self, actor: GenerativeActor) -> Play:
        self.trained(actor, list(actor.requires_grad_(True).parameters()), self.pools, self.sizes.whole)
        return actor.mode

    def on_parent(self) -> GenerativeActor:
        """The base with the parent skill in its weights: the composition that a residual builds on."""
        return merge_into(clone(self.base), self.skills[self.task.parent])  # type: ignore[return-value]

    def composed(
        self, composer: nn.Module, plan: Schedule, level: str = "parameter", shared: dict[str, Adapter] | None = None,
        new: list[Adapter] | None = None, pools: Pools | None = None,
    ) -> StackedComposition:  # fmt: skip
        """A composition of shared and own skills under a composer trained on the demonstrations."""
        shared, new = self.skills if shared is None else shared, self.new if new is None else new
        stack = StackedComposition(self.base, shared, new, composer, self.members, level)
        loss = fit(stack.loss, list(stack.composer.parameters()), pools or self.pools, plan, 4)
        print(f"    loss {loss:.4f} after {plan.steps} steps", flush=True)
        return stack

    def gate(self, skills: int, blind: bool = False) -> MemberGate:
        return MemberGate(self.setting.widths[0], skills, self.members, blind, 70)

    # The rows

    def scratch(self) -> Play:
        return self.whole(self.setting.new_actor(80, self.members))

    def scratch_alone(self) -> Play:
        """From nothing but the demonstrations: their own statistics too, not those of the base's data."""
        actor, pools = self.setting.new_actor(80, self.members), self.pools
        own = Normalizer(self.setting.widths[0], population=self.members)
        for p in range(self.members):
            norm = Normalizer(self.setting.widths[0]).fit(pools.obs[pools.index[p, : pools.count[p]]].cpu())
            own.mean[p, 0], own.var[p, 0] = norm.mean, norm.var.clamp_min(1e-6)
        actor.normalizer = own.freeze().to(self.setting.device)
        return self.whole(actor)

    def full(self) -> Play:
        return self.whole(copies(self.base, self.members))

    def full_from_skill(self) -> Play:
        return self.whole(copies(self.on_parent(), self.members))

    def fresh(self) -> Play:
        """The members' new skills on the base (one-hot compositions of them)."""
        stack = StackedComposition(self.base, {}, self.new, MemberConstants(1, self.members), self.members)
        return stack.mode

    def fixed(self) -> Play:
        return self.composed(MemberConstants(self.count, self.members), self.sizes.constants).mode

    def learned(self) -> Play:
        return self.learned_gate.mode

    @cached_property
    def learned_gate(self) -> StackedComposition:
        return self.composed(self.gate(self.count), self.sizes.gate)

    def noise(self) -> Play:
        return self.composed(self.gate(self.count), self.sizes.gate, "noise").mode

    def action(self) -> Play:
        return self.composed(self.gate(self.count), self.sizes.gate, "action").mode

    def composition(self) -> Play:
        """Only the skills that the library held before; nothing new is learned but coefficients."""
        return self.composed(self.gate(len(self.skills)), self.sizes.gate, new=[]).mode

    @cached_property
    def on_top(self) -> GenerativeActor:
        """The members' residual adapters on the parent skill."""
        return self.adapted(self.on_parent(), self.pools)

    def residual(self) -> Play:
        return self.on_top.mode

    def guarded(self) -> Play:
        """The residual where an observation is like the member's demonstrations, the parent skill elsewhere."""
        return self.guard(self.on_top, self.pools).mode

    def guard(self, residual: GenerativeActor, pools: Pools) -> StackedComposition:
        below, horizon = self.on_parent(), self.sizes.horizon
        new = [extract(residual, p) for p in range(self.members)]
        rows = [pools.index[p, : pools.count[p]] for p in range(self.members)]
        shown = [(below.normalizer(pools.obs[r]), r // horizon) for r in rows]
        return StackedComposition(below, {}, new, MemberSupport(shown), self.members)

    def random_skills(self) -> Play:
        """I1: every skill's factors replaced by random ones of the same norm."""
        rng = torch.Generator().manual_seed(90)
        shared = {name: random_like(skill, rng) for name, skill in self.skills.items()}
        new = [random_like(skill, rng) for skill in self.new]
        return self.composed(self.gate(self.count), self.sizes.gate, shared=shared, new=new).mode

    def blind(self) -> Play:
        """I2: the gate sees no observation."""
        return self.composed(self.gate(self.count, blind=True), self.sizes.gate).mode

    def permuted(self) -> Play:
        """I3: the trained coefficients meet the next skill instead of their own."""
        stack = self.learned_gate
        own = stack.columns

        def play(obs: Tensor) -> Tensor:
            stack.columns = own.roll(1, 1)
            try:
                return stack.mode(obs)
            finally:
                stack.columns = own

        return play

    def subspace(self) -> Play:
        """I4: as many numbers as the gate has, in a random subspace of the base's weights."""
        actor = clone(self.base)
        dimension = sum(p[0].numel() for p in self.gate(self.count).parameters())
        theta = attach_member_subspaces(actor, dimension, self.members, 95)
        self.trained(actor, [theta], self.pools, replace(self.sizes.whole, lr=1e-3))
        return actor.mode

    @property
    def count(self) -> int:
        """Skills that a member mixes: the library's and its own."""
        return len(self.skills) + 1

    # What no member learns

    def expert(self) -> walker.Act:
        return self.setting.expert(self.task.name)[0].act

    def preferred(self, roll: Callable[[walker.Act], walker.Episodes]) -> walker.Act:
        """Both skills, the one with the share and the other with the rest at which trial episodes earn most while every
        one of them is within the budget; the second alone if none is. Nothing is learned."""
        one, other = self.task.parents
        chosen, best = self.zero_shot({other: 1.0}), -float("inf")
        for share in SHARES:
            act = self.zero_shot({one: share, other: 1.0 - share})
            with torch.inference_mode():
                episodes = roll(act)
            earned, safe = float(episodes.returns.mean()), bool((episodes.fell < 1.0).all())
            print(f"    {one} at {share:g}: {earned:.0f}, worst cost {episodes.fell.max():.2f}", flush=True)
            if safe and earned > best:
                chosen, best = act, earned
        return chosen

    def zero_shot(self, weights: dict[str, float]) -> walker.Act:
        """The base with these skills in its weights; none: the bare base."""
        actor = clone(self.base)
        for name, weight in weights.items():
            merge_into(actor, self.skills[name], weight)
        return lambda obs: actor.mode(torch.from_numpy(obs).to(self.setting.device))[0].cpu().numpy()


PREFERRED = "composition by trial episodes"  # of two skills that want different things, at the share that trials choose
LEARNED = {
    "scratch": Rows.scratch,
    "scratch with own statistics": Rows.scratch_alone,
    "full fine-tune": Rows.full,
    "full fine-tune of the skill": Rows.full_from_skill,
    "fresh adapter": Rows.fresh,
    "fixed α": Rows.fixed,
    "learned α(s)": Rows.learned,
    "I3 permuted": Rows.permuted,
    "residual": Rows.residual,
    "guarded residual": Rows.guarded,
    "composition": Rows.composition,
    "noise level": Rows.noise,
    "action level": Rows.action,
    "I1 random skills": Rows.random_skills,
    "I2 blind": Rows.blind,
    "I4 subspace": Rows.subspace,
}
