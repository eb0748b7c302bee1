"""A dynamics model that adapts in its context: it predicts the next state from the evidence of the last transitions.

The same evidence and encoder as an action flow, put into the model instead of the action: what a flow is held against.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamics.action_flow import Coder, FlowConfig, pooled
from dynamics.ensemble import Ensemble
from dynamics.model_file import check_finite, check_room, read_model, restored
from dynamics.pairs import Family
from policies.networks import StackedMLP
from policies.policy import Policy


@dataclass
class Runs:
    """Transitions of R regimes, M each: obs, next_obs (R, M, obs_dim), action (R, M, act_dim), evidence (R, M, W)."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    evidence: Tensor

    @classmethod
    def simulate(
        cls, family: Family, obs: Tensor, act_dim: int, count: int, coder: Coder, rng: torch.Generator
    ) -> Runs:
        """`count` transitions of every regime from states drawn out of obs (N, obs_dim) and uniform actions."""
        rows = []
        for step in family.regimes:
            state = obs[torch.randint(len(obs), (count,), generator=rng)]
            action = torch.rand(count, act_dim, generator=rng) * 2.0 - 1.0
            after = step(state, action)
            difference = family.wrap(after - family.nominal(state, action))
            rows.append((state, action, after, coder.evidence(state, action, difference)))
        return cls(*(torch.stack(column) for column in zip(*rows, strict=True)))


class ContextModel(nn.Module):
    """Nominal model plus a correction that depends on the evidence; remembers nothing of a run itself."""

    def __init__(self, nominal: Ensemble, coder: Coder, evidence_dim: int, config: FlowConfig, rng: torch.Generator):
        super().__init__()
        self.nominal, self.coder, self.config = nominal, coder, config
        self.evidence_dim = evidence_dim
        self.encoder = StackedMLP(evidence_dim, config.encoder_hidden, config.latent, [rng], "silu")
        d_in = nominal.state_net.d_in + config.latent
        self.correction = StackedMLP(d_in, config.hidden, nominal.obs_dim, [rng], "silu")

    def forward(self, obs: Tensor, action: Tensor, latent: Tensor) -> Tensor:
        """obs (N, obs_dim), action (N, act_dim), latent (N, latent) -> change of the state (N, obs_dim)."""
        x = self.nominal.input_norm(self.nominal.features(obs, action))
        base = self.nominal.means(obs, action, with_reward=False)[0][self.nominal.elites].mean(0)
        return base + self.correction(torch.cat([x, latent], -1))[0] * self.nominal.delta_scale

    def fit(self, runs: Runs, rng: torch.Generator) -> list[float]:
        """Minimise the normalised error of single steps given others, consecutive ones, of the same regime.

        Returns the loss of every update. Raises ValueError for regimes too short to keep a step out of its evidence.
        """
        c, (regimes, count) = self.config, runs.action.shape[:2]
        if count <= c.evidence:
            raise ValueError(f"regimes of {count} steps hold no evidence of {c.evidence} beside the step asked about")
        mine = [*self.encoder.parameters(), *self.correction.parameters()]
        opt = torch.optim.Adam(mine, lr=c.lr, fused=True)
        decay, losses = torch.optim.lr_scheduler.CosineAnnealingLR(opt, c.updates), []
        for _ in range(c.updates):
            r, q = (torch.randint(n, (c.batch,), generator=rng) for n in (regimes, count))
            start = q + 1 + torch.randint(count - c.evidence, (c.batch,), generator=rng)  # never q itself
            pick = (start.unsqueeze(1) + torch.arange(c.evidence)) % count
            mask = torch.arange(c.evidence) < torch.randint(1, c.evidence + 1, (c.batch, 1), generator=rng)
            latent = pooled(self.encoder, runs.evidence[r.unsqueeze(1), pick], mask)
            obs = runs.obs[r, q]
            said = obs + self(obs, runs.action[r, q], latent)
            error = self.nominal.wrap_angles(said - runs.next_obs[r, q]) / self.nominal.delta_scale
            loss = error.square().mean()
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            decay.step()
            losses.append(float(loss.detach()))
        return losses


    def save(self, path: Path | str) -> None:
        """Encoder, correction and configuration in one safetensors file; the nominal model has its own."""
        about = json.dumps({"evidence_dim": self.evidence_dim, "config": asdict(self.config)})
        mine = {k: v for k, v in self.state_dict().items() if not k.startswith("nominal.")}
        tensors = {k: v.detach().cpu().contiguous() for k, v in mine.items()}
        save_file(tensors, str(path), metadata={"robot_cl.context_model": about})

    @classmethod
    def load(cls, path: Path | str, nominal: Ensemble, coder: Coder) -> ContextModel:
        """Inverse of `save`. Raises OSError if there is no such file, ValueError if it holds something else."""
        told, tensors = read_model(path, "robot_cl.context_model", "context model", "ContextModel")

        def make() -> ContextModel:
            c, evidence_dim = FlowConfig(**told["config"]), int(told["evidence_dim"])
            check_room(tensors, 1, [evidence_dim, *c.encoder_hidden, c.latent], [c.latent, *c.hidden, nominal.obs_dim])
            check_finite(tensors)
            return cls(nominal, coder, evidence_dim, c, torch.Generator())

        below = {f"nominal.{k}": v for k, v in nominal.state_dict().items()}
        return restored(path, {**tensors, **below}, make)


class ContextPlanner:
    """A planner over a `ContextModel`: remembers per row the last K transitions and hands them to the model.

    `make(evaluate)` builds the planner that is to plan with this evaluation of candidates, e.g. an MPPI.
    """

    _obs: Tensor
    _action: Tensor
    _evidence: Tensor
    _held: Tensor
    _known: Tensor
    _latent: Tensor

    def __init__(
        self,
        model: ContextModel,
        reward_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
        make: Callable[[Callable[[Tensor, Tensor], Tensor]], Policy],
    ):
        self.model, self.reward_fn, self.planner = model, reward_fn, make(self.returns)
        self.obs_dim, self.act_dim = self.planner.obs_dim, self.planner.act_dim
        self._begin(0)

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.planner.reset(rows)
        if rows is None:
            self._begin(0)
        else:
            self._held[torch.as_tensor(rows)] = 0
            self._known[torch.as_tensor(rows)] = False

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if len(state) != len(self._held):
            self._begin(len(state))
        if self._known.any():
            nominal = self.model.nominal
            difference = nominal.wrap_angles(state - nominal.belief(self._obs, self._action)[0])
            new = self.model.coder.evidence(self._obs, self._action, difference)
            keep = self._known & new.isfinite().all(-1)
            self._evidence[keep] = self._evidence[keep].roll(1, 1)
            self._evidence[keep, 0] = new[keep]
            self._held += keep
        have = self._held.clamp_max(self.model.config.evidence).unsqueeze(-1)
        mask = torch.arange(self.model.config.evidence) < have
        self._latent = pooled(self.model.encoder, self._evidence, mask)
        action = self.planner.act(state.numpy())
        self._obs, self._action = state, torch.as_tensor(action)
        self._known = torch.ones(len(state), dtype=torch.bool)
        return action

    @torch.no_grad()
    def returns(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs (B, obs_dim), actions (B, K, H, act_dim) -> (B, K) with each row's present evidence."""
        b, k, horizon, _ = actions.shape
        state = obs.unsqueeze(1).expand(b, k, -1).reshape(b * k, -1)
        latent = self._latent.unsqueeze(1).expand(b, k, -1).reshape(b * k, -1)
        total = obs.new_zeros(b * k)
        for h in range(horizon):
            action = actions[:, :, h].reshape(b * k, -1)
            after = self.model.nominal.advance(state, self.model(state, action, latent))
            total, state = total + self.reward_fn(state, action, after), after
        return total.reshape(b, k)

    def _begin(self, rows: int) -> None:
        self._obs, self._action = torch.zeros(rows, self.obs_dim), torch.zeros(rows, self.act_dim)
        self._evidence = torch.zeros(rows, self.model.config.evidence, self.model.evidence_dim)
        self._held, self._known = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.bool)
        self._latent = torch.zeros(rows, self.model.config.latent)
