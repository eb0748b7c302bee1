"""The library's own choice for a new task: zero-shot, composition, residual adapter, guarded or not, or a fresh one.

Candidates are trained without the held-out demonstrations and judged on them by the rule of `robot-cl compose`; with
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
from few_shot_parts.stacked import Loss, MemberConstants, Pools, StackedComposition, actor_loss

from robot_cl.compose import good_enough

# From the least to the most that is new.
ORDER = ("zero-shot", "composition", "residual", "guarded residual", "fresh adapter")
TOLERANCE = 0.05  # within which of the lowest held-out loss less that is new is preferred


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
    guarded = rows.guard(residual, train)
    alone = StackedComposition(rows.base, parent, [], one, rows.members)
    return {
        "zero-shot": (alone.mode, lambda pools: held_out(alone.member_losses, pools)),
        "composition": (blend.mode, lambda pools: held_out(blend.member_losses, pools)),
        "residual": (residual.mode, lambda pools: held_out(actor_loss(residual), pools)),
        "guarded residual": (guarded.mode, lambda pools: held_out(guarded.member_losses, pools)),
        "fresh adapter": (fresh.mode, lambda pools: held_out(actor_loss(fresh), pools)),
    }


@torch.no_grad()
def held_out(loss: Loss, pools: Pools, batches: int = 8) -> torch.Tensor:
    """(M,) on the CPU: mean loss over the same rows under the same noise for every candidate."""
    torch.manual_seed(0)
    return torch.stack([loss(*pools.draw(512)) for _ in range(batches)]).mean(0).cpu()


def choose(rows: Rows, play: Callable[[Play, list[int]], walker.Episodes]) -> list[dict[str, Any]]:
    """Per member: held-out losses, trial returns, and what either would choose."""
    held = rows.setting.pools(rows.task.name, "held")
    seeds = [TRIAL_SEED + i for i in range(rows.sizes.trials)]
    losses, returns = {}, {}
    bare = held_out(actor_loss(rows.base), held)
    for name, (act, loss) in candidates(rows).items():
        losses[name] = loss(held)
        returns[name] = play(act, seeds).returns.reshape(rows.members, -1)
    decisions = []
    for p, (draw, count) in enumerate(rows.sizes.members):
        loss_p = {name: float(losses[name][p]) for name in ORDER}
        returns_p = {name: returns[name][p].tolist() for name in ORDER}
        cheapest = good_enough(loss_p, float(bare[p]), TOLERANCE)
        chosen = {"by_loss": cheapest, "by_return": by_return(returns_p), "bare": float(bare[p])}
        decisions.append({"draw": draw, "count": count, "losses": loss_p, "returns": returns_p} | chosen)
    return decisions
