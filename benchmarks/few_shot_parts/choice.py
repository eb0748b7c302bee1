"""The library's own choice for a new task: zero-shot, composition, residual adapter or an adapter of its own.

Candidates are trained without the held-out demonstrations and judged on them, relative to a fresh adapter; with
episodes allowed, a stated number of them decides instead, because the noise-prediction loss does not rank bad policies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from few_shot_parts import walker
from few_shot_parts.rows import Play, Rows
from few_shot_parts.setting import TRIAL_SEED
from few_shot_parts.stacked import MemberConstants, Pools, StackedComposition

from policies.networks import generators

ORDER = ("zero-shot", "composition", "residual", "fresh adapter")  # from the least to the most that is new
TOLERANCE = 1.05  # of a fresh adapter's held-out loss: up to here less that is new is preferred


def by_loss(losses: dict[str, float]) -> str:
    """The first of ORDER whose held-out loss is within TOLERANCE of the fresh adapter's, or the smallest if none is."""
    near = [name for name in ORDER if losses[name] <= TOLERANCE * losses["fresh adapter"]]
    better = [name for name in near if losses[name] <= losses["fresh adapter"] / TOLERANCE]
    return (better or near)[0]


def by_return(returns: dict[str, list[float]]) -> str:
    """The best mean over the trial episodes; the first of ORDER among equals."""
    return max(ORDER, key=lambda name: float(np.mean(returns[name])))


def candidates(rows: Rows) -> dict[str, tuple[Play, Callable[[Pools], torch.Tensor]]]:
    """Name -> how it plays, and its imitation loss (M,) on pools, each trained on the members' "train" rows."""
    train = rows.setting.pools(rows.task.name, "train")
    fresh, residual = rows.adapted(rows.base, train), rows.adapted(rows.on_parent(), train)
    blend = rows.composed(rows.gate(len(rows.skills)), rows.sizes.gate, new=[], pools=train)
    one = MemberConstants(1, rows.members)
    parent = {rows.task.parent: rows.skills[rows.task.parent]}
    alone = StackedComposition(rows.base, parent, [], one, rows.members)
    return {
        "zero-shot": (alone.mode, lambda pools: composition_loss(alone, pools)),
        "composition": (blend.mode, lambda pools: composition_loss(blend, pools)),
        "residual": (residual.mode, lambda pools: actor_loss_of(residual, pools)),
        "fresh adapter": (fresh.mode, lambda pools: actor_loss_of(fresh, pools)),
    }


@torch.no_grad()
def actor_loss_of(actor: Any, pools: Pools, batches: int = 8, batch: int = 512) -> torch.Tensor:
    """(M,) on CPU: mean loss over the same rows and the same noise for every candidate."""
    rng, rngs = torch.Generator().manual_seed(0), generators(1, pools.members)
    return torch.stack([actor.loss(*pools.draw(batch, rng), rngs) for _ in range(batches)]).mean(0).cpu()


@torch.no_grad()
def composition_loss(stack: StackedComposition, pools: Pools, batches: int = 8, batch: int = 512) -> torch.Tensor:
    """As `actor_loss_of`."""
    rng, rngs = torch.Generator().manual_seed(0), generators(1, pools.members)
    return torch.stack([stack.member_losses(*pools.draw(batch, rng), rngs) for _ in range(batches)]).mean(0).cpu()


def choose(rows: Rows, play: Callable[[Play, list[int]], walker.Episodes]) -> list[dict[str, Any]]:
    """Per member: held-out losses, trial returns, and what either would choose."""
    held = rows.setting.pools(rows.task.name, "held")
    seeds = [TRIAL_SEED + i for i in range(rows.sizes.trials)]
    losses, returns = {}, {}
    for name, (act, loss) in candidates(rows).items():
        losses[name] = loss(held)
        returns[name] = play(act, seeds).returns.reshape(rows.members, -1)
    decisions = []
    for p, (draw, count) in enumerate(rows.sizes.members):
        loss_p = {name: float(losses[name][p]) for name in ORDER}
        returns_p = {name: returns[name][p].tolist() for name in ORDER}
        chosen = {"by_loss": by_loss(loss_p), "by_return": by_return(returns_p)}
        decisions.append({"draw": draw, "count": count, "losses": loss_p, "returns": returns_p} | chosen)
    return decisions
