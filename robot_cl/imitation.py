"""Learning from a few demonstrations on a frozen base: a composer over skills, or a new adapter; the loss of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from policies.adapter import Adapter
from policies.composed import ComposedActor
from policies.intrinsic import IntrinsicReport, attach_subspace, intrinsic_dimension
from policies.lora import attach, extract, layer_shapes, merge_into
from robot_cl.demonstrations import Demonstrations

RANKS, HELD_OUT, LR = (1, 2, 4, 8, 16, 32), 0.2, 1e-2  # what sizing tries
JUDGED_ROWS, DRAWS = 4096, 8  # rows a loss is measured on, and draws of the noise per row of a generative actor


def imitation_loss(module: nn.Module, obs: Tensor, action: Tensor, rng: torch.Generator) -> Tensor:
    """Scalar: the actor's own loss where it has one (noise prediction, velocity), else the squared error of the
    deterministic action, summed over action dimensions, mean over rows."""
    policy = cast(Any, module)
    if isinstance(module, ComposedActor):
        return policy.loss(obs, action, rng)
    if hasattr(module, "loss"):
        return policy.loss(obs, action, [rng]).sum()
    return action_error(module, obs, action)


def action_error(module: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    """Scalar squared error of the deterministic action."""
    return (cast(Any, module).mode(obs)[0] - action).square().sum(-1).mean()


@torch.no_grad()
def held_out_loss(module: nn.Module, demos: Demonstrations, seed: int = 0, of_actions: bool = False) -> float:
    """What `imitation_loss` says of demonstrations that were not learned from, with the same noise for everyone;
    `of_actions`: the error of deterministic actions, which can be compared across levels of composition."""
    rows = torch.linspace(0, len(demos) - 1, min(len(demos), JUDGED_ROWS)).long()
    obs, action = demos.obs[rows], demos.action[rows]
    if of_actions:
        return float(action_error(module, obs, action))
    rng = torch.Generator().manual_seed(seed)
    draws = DRAWS if _draws(module) else 1
    return sum(float(imitation_loss(module, obs, action, rng)) for _ in range(draws)) / draws


def _draws(module: nn.Module) -> bool:
    actor = module.mixture.actor if isinstance(module, ComposedActor) else module
    return hasattr(actor, "loss")


def train_adapter(
    base: nn.Module, demos: Demonstrations, rank: int, steps: int, lr: float, scale: float, batch: int, seed: int = 0
) -> Adapter:
    """A new adapter on a frozen actor of population 1, trained to imitate. `scale` multiplies it while it trains."""
    rng = torch.Generator().manual_seed(seed)
    student = copy.deepcopy(base)
    trainable = attach(student, rank, [rng], scale)
    student.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
        torch.manual_seed(seed)
        descend(lambda obs, action: imitation_loss(student, obs, action, rng), trainable, demos, steps, lr, batch, rng)
    return extract(student)


def sized_rank(base: nn.Module, demos: Demonstrations, steps: int, batch: int, seed: int = 0) -> IntrinsicReport:
    """How many numbers the demonstrated behaviour needs: trained in random subspaces of growing dimension until the
    held-out loss has come nine tenths of the way from the bare base to what the largest adapter reaches."""
    train, held = demos.split(HELD_OUT)
    largest = train_adapter(base, train, max(RANKS), steps, LR, 1.0, batch, seed)
    full = merge_into(copy.deepcopy(base), largest)
    shapes = layer_shapes(base)
    per_rank = sum(d_out + d_in for d_out, d_in in shapes.values())

    def score_at(dimension: int) -> float:
        rng = torch.Generator().manual_seed(seed)
        student = copy.deepcopy(base)
        theta = attach_subspace(student, dimension, rng)
        descend(lambda obs, action: imitation_loss(student, obs, action, rng), [theta], train, steps, LR, batch, rng)
        return -held_out_loss(student, held, seed)

    weights = sum(d_out * d_in for d_out, d_in in shapes.values())
    dimensions = sorted({min(weights, rank * per_rank) for rank in RANKS})
    return intrinsic_dimension(score_at, dimensions, -held_out_loss(full, held, seed), -held_out_loss(base, held, seed))


def train_composer(
    composed: ComposedActor, demos: Demonstrations, steps: int, lr: float, batch: int, seed: int
) -> None:
    """Train the composer's parameters and nothing else. A composer that learns nothing is left as it is."""
    trainable = list(composed.composer.parameters())
    if trainable:
        rng = torch.Generator().manual_seed(seed)
        loss = lambda obs, action: imitation_loss(composed, obs, action, rng)  # noqa: E731
        descend(loss, trainable, demos, steps, lr, batch, rng)


def descend(
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    demos: Demonstrations,
    steps: int,
    lr: float,
    batch: int,
    rng: torch.Generator,
) -> None:
    """Adam with a cosine schedule on random rows of the demonstrations. Raises ValueError if the loss diverges."""
    parameters = list(parameters)
    optimiser = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for step in range(steps):
        rows = torch.randint(0, len(demos), (min(batch, len(demos)),), generator=rng)
        value = loss(demos.obs[rows], demos.action[rows])
        if not torch.isfinite(value):
            raise ValueError(f"the loss became {float(value)} after {step} steps; use a smaller learning rate")
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
