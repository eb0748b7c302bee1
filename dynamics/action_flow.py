"""Action flow matching: move a planned action to the one that has the planned effect in the world as it is now.

A planner chooses a0 with a model that is right for the nominal robot and expects ŝ'. Under changed dynamics another
action a1 lands on ŝ'. A flow from a0 to a1, conditioned on evidence of the change, is fitted by
u(t, x_t | c) ≈ a1 − a0 on x_t = (1 − t) a0 + t a1, t ~ U(0, 1), with the pairs kept as they are.

The evidence is the last K transitions (state features, executed action, realised − predicted change), never the
query's own: with its a0 inside, (x_t − a0) / t is the answer, the loss is tiny and the controller fails. A flow is to
be judged by the miss of its actions, not by its loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamics.ensemble import Ensemble
from dynamics.model_file import check_finite, check_room, read_model, restored
from policies.networks import StackedMLP

PARTS = ("feature", "residual", "act")  # of the evidence, with a dimension each
RESIDUAL_LIMIT = 10.0  # standard deviations of the data's changes; what is beyond says no more


@dataclass
class FlowConfig:
    """Shape and training of a flow."""

    evidence: int = 8  # transitions, K; one cannot tell a gain while the robot hardly moves
    latent: int = 64
    encoder_hidden: tuple[int, ...] = (64, 64)
    hidden: tuple[int, ...] = (128, 128)
    steps: int = 1  # Euler steps from a0 to a1
    lr: float = 2e-3
    batch: int = 512
    updates: int = 6000
    begin: float = 0.5  # share of training rows at t = 0, where a single Euler step asks; none with more steps

    def __post_init__(self) -> None:
        self.encoder_hidden, self.hidden = tuple(self.encoder_hidden), tuple(self.hidden)
        if min(self.evidence, self.latent, self.steps, self.batch, self.updates) < 1 or self.lr <= 0:
            raise ValueError("evidence, latent, steps, batch and updates must be at least 1 and lr positive")
        if not 0.0 <= self.begin <= 1.0:
            raise ValueError(f"begin is a share of the rows, 0 to 1, got {self.begin}")


@dataclass(frozen=True)
class Coder:
    """How a robot's states and prediction errors are shown to the flow, possibly in the body's frame.

    features: obs (..., obs_dim) -> (..., F). residual: obs, realised − predicted next state (..., obs_dim) -> (..., R),
    in standard deviations of the change of the data.
    """

    features: Callable[[Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor]

    def evidence(self, obs: Tensor, executed: Tensor, difference: Tensor) -> Tensor:
        """(..., obs_dim), (..., act_dim), (..., obs_dim) -> (..., F + act_dim + R)."""
        return torch.cat([self.features(obs), executed, self.residual(obs, difference)], -1)


def plain_coder(model: Ensemble) -> Coder:
    """States as the model sees and normalises them, residuals dimension by dimension."""

    def features(obs: Tensor) -> Tensor:
        action = obs.new_zeros(*obs.shape[:-1], model.act_dim)
        return model.input_norm(model.features(obs, action))[..., : -model.act_dim]

    def residual(obs: Tensor, difference: Tensor) -> Tensor:
        return (difference / model.delta_scale).clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)

    return Coder(features, residual)


@dataclass
class RegimePool:
    """Training material: R regimes with M transitions of evidence and, drawn apart from them, Q queries each.

    evidence (R, M, W) as `Coder.evidence` makes it; features (R, Q, F); planned a0 and answer a1 (R, Q, act_dim).
    """

    evidence: Tensor
    features: Tensor
    planned: Tensor
    answer: Tensor

    def __post_init__(self) -> None:
        regimes = {len(t) for t in (self.evidence, self.features, self.planned, self.answer)}
        if len(regimes) != 1 or self.planned.shape != self.answer.shape:
            shapes = [tuple(t.shape) for t in (self.evidence, self.features, self.planned, self.answer)]
            raise ValueError(f"evidence, features, planned and answer must be of the same regimes, got {shapes}")


def pooled(encoder: StackedMLP, evidence: Tensor, mask: Tensor) -> Tensor:
    """evidence (B, K, W) and which of it exists (B, K) bool -> (B, latent), the mean code of what exists, else 0."""
    each = encoder(evidence.flatten(0, 1))[0].unflatten(0, evidence.shape[:2])
    weight = mask.to(each.dtype).unsqueeze(-1)
    return (each * weight).sum(1) / weight.sum(1).clamp_min(1.0)


class ActionFlow(nn.Module):
    """Velocity field u(t, x | features, evidence) on actions; holds no memory of what it has seen."""

    def __init__(self, feature_dim: int, residual_dim: int, act_dim: int, config: FlowConfig, rng: torch.Generator):
        super().__init__()
        self.feature_dim, self.residual_dim, self.act_dim, self.config = feature_dim, residual_dim, act_dim, config
        width = feature_dim + act_dim + residual_dim
        self.encoder = StackedMLP(width, config.encoder_hidden, config.latent, [rng], "silu")
        d_in = feature_dim + act_dim + 1 + config.latent
        self.field = StackedMLP(d_in, config.hidden, act_dim, [rng], "silu")

    def encode(self, evidence: Tensor, mask: Tensor) -> Tensor:
        """evidence (B, K, W) and which of it exists (B, K) bool -> (B, latent)."""
        return pooled(self.encoder, evidence, mask)

    def velocity(self, t: Tensor, x: Tensor, features: Tensor, latent: Tensor) -> Tensor:
        """t (B, 1) in [0, 1], x (B, act_dim) between a0 and a1 -> (B, act_dim)."""
        return self.field(torch.cat([features, x, t, latent], -1))[0]

    def forward(
        self, action: Tensor, features: Tensor, evidence: Tensor, mask: Tensor, steps: int | None = None
    ) -> Tensor:
        """Planned action a0 (B, act_dim) -> a1 (B, act_dim), not bounded; `steps` Euler steps (config's by default)."""
        latent, count = self.encode(evidence, mask), steps or self.config.steps
        for k in range(count):
            t = action.new_full((len(action), 1), k / count)
            action = action + self.velocity(t, action, features, latent) / count
        return action

    def save(self, path: Path | str) -> None:
        """Weights and configuration in one safetensors file."""
        about = {f"{k}_dim": getattr(self, f"{k}_dim") for k in PARTS}
        told = json.dumps({**about, "config": asdict(self.config)})
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, str(path), metadata={"robot_cl.action_flow": told})

    @classmethod
    def load(cls, path: Path | str) -> ActionFlow:
        """Inverse of `save`. Raises OSError if there is no such file, ValueError if it holds something else."""
        told, tensors = read_model(path, "robot_cl.action_flow", "action flow", "ActionFlow")

        def make() -> ActionFlow:
            c, (seen, residual, act) = FlowConfig(**told["config"]), (int(told[f"{k}_dim"]) for k in PARTS)
            encoder, field = [act, *c.encoder_hidden, c.latent], [c.latent, *c.hidden, act]
            check_room(tensors, 1, encoder, field)
            check_finite(tensors)
            return cls(seen, residual, act, c, torch.Generator())

        return restored(path, tensors, make)


def draw(pool: RegimePool, rows: int, evidence: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """A batch: evidence (B, K, W), mask (B, K), features, planned, answer (B, ·).

    Each row takes a regime, between 1 and K consecutive ones of its transitions, and one of its queries, independently.
    """
    regimes, stored = pool.evidence.shape[:2]
    regime = torch.randint(regimes, (rows,), generator=rng)
    pick = (torch.randint(stored, (rows, 1), generator=rng) + torch.arange(evidence)) % stored
    query = torch.randint(pool.planned.shape[1], (rows,), generator=rng)
    have = torch.randint(1, evidence + 1, (rows, 1), generator=rng)
    mask = torch.arange(evidence) < have
    at = (regime, query)
    return pool.evidence[regime.unsqueeze(1), pick], mask, pool.features[at], pool.planned[at], pool.answer[at]


def flow_loss(flow: ActionFlow, batch: tuple[Tensor, ...], t: Tensor) -> Tensor:
    """Mean squared error of the velocity against a1 − a0 at times t (B, 1)."""
    evidence, mask, features, planned, answer = batch
    x = (1.0 - t) * planned + t * answer
    said = flow.velocity(t, x, features, flow.encode(evidence, mask))
    return (said - (answer - planned)).square().sum(-1).mean()


def fit_flow(flow: ActionFlow, pool: RegimePool, rng: torch.Generator, check_leak: bool = True) -> list[float]:
    """Fit by flow matching with paired couplings. Returns the loss of every update.

    Raises ValueError if the evidence tells the query's planned action: such a flow has a tiny loss and fails.
    """
    c = flow.config
    if check_leak and (told := leak(*leak_batch(pool, c.evidence, rng))) > 0.3:
        raise ValueError(
            f"the evidence tells {told:.0%} of the query's planned action; draw evidence and queries independently"
        )
    opt = torch.optim.Adam(flow.parameters(), lr=c.lr, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, c.updates)
    losses = []
    for _ in range(c.updates):
        batch = draw(pool, c.batch, c.evidence, rng)
        loss = flow_loss(flow, batch, times(c, rng))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        decay.step()
        losses.append(float(loss.detach()))
    return losses


def times(config: FlowConfig, rng: torch.Generator) -> Tensor:
    """t (batch, 1) ~ U(0, 1), the first rows 0: where a gain is reversed all paths cross half way, and what is to be
    learned there helps nobody who takes one step from the start."""
    t = torch.rand(config.batch, 1, generator=rng)
    if config.steps == 1:
        t[: round(config.begin * config.batch)] = 0.0
    return t


def leak_batch(pool: RegimePool, evidence: int, rng: torch.Generator, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """Evidence (B, K, W) and planned actions (B, act_dim) as training would draw them, `rows` or as many as `leak` asks
    for."""
    seen, _, _, planned, _ = draw(pool, max(rows, 4 * evidence * pool.evidence.shape[-1]), evidence, rng)
    return seen, planned


def leak(evidence: Tensor, planned: Tensor, ridge: float = 1e-2) -> float:
    """Share of the planned action's variance (B, act_dim) that a linear map of the evidence (B, K, W) explains, 0 to 1.

    Fitted on one half of the rows, judged on the other; the largest over the action's dimensions. A query that hides
    in its own evidence gives about 1, independent draws 0.
    """
    x = evidence.flatten(1).double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-9)
    y, half = planned.double() - planned.double().mean(0), len(x) // 2
    if half <= x.shape[1]:
        raise ValueError(f"{len(x)} rows cannot show a leak through {x.shape[1]} numbers of evidence; pass more")
    gram = x[:half].T @ x[:half] + ridge * half * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:half].T @ y[:half])
    spread = y[half:].square().mean(0)
    told = 1.0 - (y[half:] - x[half:] @ weights).square().mean(0) / spread.clamp_min(1e-12)
    return float(torch.where(spread > 1e-12, told, 0.0).clamp(0.0, 1.0).max())  # what never varies is no secret


def body_frame(heading: int, x: int, y: int, scale: Tensor, others: Sequence[int] = (), units: float = 1.0) -> Coder:
    """Coder of a vehicle on a plane: nothing of its pose is seen, errors are along and across its heading.

    heading, x, y are dimensions of the state; `scale` (obs_dim,) is the standard deviation of each one's change.
    `others` are further dimensions (speeds) that are seen, in `units`, and whose errors count as they are.
    """
    length, rest = torch.sqrt((scale[x].square() + scale[y].square()) / 2), list(others)

    def features(obs: Tensor) -> Tensor:
        return obs[..., rest] / units if rest else torch.zeros_like(obs[..., :1])

    def residual(obs: Tensor, difference: Tensor) -> Tensor:
        c, s = torch.cos(obs[..., heading]), torch.sin(obs[..., heading])
        dx, dy = difference[..., x], difference[..., y]
        turned = torch.stack(((c * dx + s * dy) / length, (c * dy - s * dx) / length), -1)
        kept = [heading, *rest]
        parts = torch.cat([turned, difference[..., kept] / scale[kept]], -1)
        return parts.clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)

    return Coder(features, residual)
