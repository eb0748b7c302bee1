"""Two skills, each right in its own part of the state space: coefficients that read the state against any that do not.

A point mass glides to the right and has to keep low in the left half of its corridor and high in the right half. One
skill keeps low everywhere, one keeps high everywhere; every fixed mixture of them keeps somewhere in between. The gate
learns from ten demonstrations which to use where; nothing else is trained on the new task.

    python benchmarks/few_shot_conflict.py [--quick] [--json]

Return: share of steps on which the mass is within a hand of the right height and moves on. Every seed has a base,
skills and demonstrations of its own. Compared: each skill alone, the best of 121 fixed mixtures for each seed (chosen
on the very episodes they are scored on, which favours them), constants tuned on the demonstrations, and the gate
without sight of the state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import Claim, arguments, report, table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from few_shot_parts.stacked import MemberConstants, MemberGate, Pools, Schedule, StackedComposition, actor_loss, fit

from policies.adapter import Adapter
from policies.composed import ComposedActor
from policies.composers import CompositionShape
from policies.composers.fixed import Fixed
from policies.diffusion import DiffusionActor, GenerativeConfig
from policies.lora import attach, extract
from policies.mixture import Mixture
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl import stats

DT, STEPS, SPEED, LEVEL, HAND = 0.05, 200, 0.6, 0.6, 0.2  # s, steps, m/s, m, m
GRID = torch.linspace(-0.5, 1.5, 11)
EPISODES, DEMONSTRATIONS = 40, 10
ACTOR = GenerativeConfig(hidden=64, blocks=2, features=16, time_width=32, dropout=0.0)
BASE, SKILLS, COMPOSER = Schedule(1000, 1e-3, 256), Schedule(1000, 3e-3, 256), Schedule(800, 1e-3, 256)

Act = Callable[[Tensor], Tensor]  # obs (N, 4) -> force (N, 2) in [-1, 1]


class Corridor:
    """Unit mass with drag on a plane: obs (N, 4) is position and velocity, action (N, 2) the force over its limit."""

    def start(self, count: int, rng: torch.Generator) -> Tensor:
        spread = torch.tensor([0.1, 0.4, 0.1, 0.1])
        return torch.randn(count, 4, generator=rng) * spread + torch.tensor([-3.0, 0.0, SPEED, 0.0])

    def step(self, obs: Tensor, action: Tensor) -> Tensor:
        velocity = obs[:, 2:] + DT * (6.0 * action - 0.5 * obs[:, 2:])
        return torch.cat([obs[:, :2] + DT * velocity, velocity], 1)

    def height(self, obs: Tensor) -> Tensor:
        """Where the new task wants the mass (N,)."""
        return torch.where(obs[:, 0] < 0.0, -LEVEL, LEVEL)

    def reward(self, obs: Tensor) -> Tensor:
        """1 within a hand of that height while moving on, else 0. (N,)"""
        return ((obs[:, 1] - self.height(obs)).abs() < HAND) & (obs[:, 2] > 0.5 * SPEED)


def keeper(height: Callable[[Tensor], Tensor]) -> Act:
    """Steers to a height and a steady speed: who demonstrates."""

    def act(obs: Tensor) -> Tensor:
        up = 4.0 * (height(obs) - obs[:, 1]) - 2.5 * obs[:, 3]
        return torch.stack([1.5 * (SPEED - obs[:, 2]) + 0.05, up], 1).clamp(-1.0, 1.0)

    return act


def roll(act: Act, count: int, seed: int, sigma: float = 0.0) -> tuple[Tensor, Tensor, np.ndarray]:
    """obs (STEPS, count, 4), the action meant (STEPS, count, 2), and returns (count,); `sigma` shakes what is done."""
    world, rng = Corridor(), torch.Generator().manual_seed(seed)
    obs, seen, done, total = world.start(count, rng), [], [], torch.zeros(count)
    for _ in range(STEPS):
        action = act(obs)
        seen.append(obs)
        done.append(action)
        noise = sigma * torch.randn(action.shape, generator=rng)
        obs = world.step(obs, (action + noise).clamp(-1.0, 1.0))
        total += world.reward(obs)
    return torch.stack(seen), torch.stack(done), (total / STEPS).numpy()


def pools(*recordings: tuple[Tensor, Tensor, np.ndarray]) -> Pools:
    obs = [r[0].flatten(0, 1) for r in recordings]
    rows = torch.arange(sum(map(len, obs))).split([len(o) for o in obs])
    return Pools.of(torch.cat(obs), torch.cat([r[1].flatten(0, 1) for r in recordings]), rows)


def taught(seed: int) -> tuple[DiffusionActor, dict[str, Adapter]]:
    """A base that glides on at the height it finds itself at, and the two skills on it."""
    glide = roll(keeper(lambda obs: obs[:, 1]), 60, seed, 0.5)
    base = DiffusionActor(4, 2, generators(seed, 1), ACTOR, Normalizer(4).fit(glide[0].flatten(0, 1)))
    fit(actor_loss(base), list(base.parameters()), pools(glide), BASE, seed)
    base.eval().requires_grad_(False)
    low, high = (roll(keeper(lambda obs, y=y: torch.full_like(obs[:, 0], y)), 40, seed + 100, 0.3)
                 for y in (-LEVEL, LEVEL))  # fmt: skip
    student = base.member(0)
    fit(actor_loss(student), attach(student, 4, generators(seed, 2), 4.0), pools(low, high), SKILLS, seed)
    return base, {"low": extract(student, 0), "high": extract(student, 1)}


def playing(stack: StackedComposition) -> Act:
    return lambda obs: stack.mode(obs[None])[0]


@torch.no_grad()
def grid_returns(base: DiffusionActor, skills: dict[str, Adapter], seed: int) -> np.ndarray:
    """Returns (121, EPISODES) of every fixed mixture of the grid, all in one batch with coefficients per row."""
    alpha = torch.cartesian_prod(GRID, GRID).repeat_interleave(EPISODES, 0)
    mixture = Mixture(base, skills)

    def act(obs: Tensor) -> Tensor:
        with mixture.using(alpha):
            return mixture.actor.mode(obs)[0]  # type: ignore[operator]

    world, rng = Corridor(), torch.Generator().manual_seed(seed)
    obs, total = world.start(EPISODES, rng).repeat(len(GRID) ** 2, 1), torch.zeros(len(alpha))
    for _ in range(STEPS):
        obs = world.step(obs, act(obs))
        total += world.reward(obs)
    return (total / STEPS).view(-1, EPISODES).numpy()


def measure(seed: int) -> dict[str, np.ndarray]:
    """Row -> returns (EPISODES,), always from the same starts."""
    base, skills = taught(seed)
    expert, starts = keeper(Corridor().height), 10_000 + seed
    shown = pools(roll(expert, DEMONSTRATIONS, 20_000 + seed))
    rows: dict[str, Act] = {"expert": expert, "base": lambda obs: base.mode(obs)[0]}
    for name in skills:
        mixture = Mixture(base, {name: skills[name]})
        alone = ComposedActor(mixture, Fixed(CompositionShape.of(mixture, 4), [1.0]))
        rows[f"{name} skill alone"] = lambda obs, alone=alone: alone.mode(obs)[0]  # type: ignore[misc]
    composers = {"tuned constants": MemberConstants(2, 1), "gate without sight": MemberGate(4, 2, 1, True, seed),
                 "learned α(s)": MemberGate(4, 2, 1, False, seed)}  # fmt: skip
    for name, composer in composers.items():
        stack = StackedComposition(base, skills, [], composer, 1)
        fit(stack.loss, list(composer.parameters()), shown, COMPOSER, seed)
        rows[name] = playing(stack)
    with torch.no_grad():
        found = {name: roll(act, EPISODES, starts)[2] for name, act in rows.items()}
    every = grid_returns(base, skills, starts)
    found["best fixed mixture"] = every[every.mean(1).argmax()]
    return found


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)
    seeds = 2 if args.quick else 5
    runs = [measure(seed) for seed in range(seeds)]
    scores = {row: np.stack([run[row] for run in runs]) for row in runs[0]}
    found = {row: stats.nested_bootstrap(x, np.random.default_rng(0)) for row, x in scores.items()}  # type: ignore[arg-type]
    print(table(("row", "return [95 %]", "mean of each seed"),
                [(r, str(i), " ".join(f"{m:.2f}" for m in scores[r].mean(1))) for r, i in found.items()]))  # fmt: skip
    ours = found["learned α(s)"]
    others = [r for r in found if r not in ("expert", "base", "learned α(s)")]
    claims = [Claim(f"lower end of learned α(s) − upper end of {r}", ours.low - found[r].high, 0.0) for r in others]
    claims += [
        Claim("the expert solves the task", found["expert"].estimate, 0.8),
        Claim("the best skill alone", max(found[f"{s} skill alone"].estimate for s in ("low", "high")), 0.6, False),
    ]
    report("few_shot_conflict", claims, args.json, {r: [i.estimate, i.low, i.high] for r, i in found.items()})


if __name__ == "__main__":
    main()
