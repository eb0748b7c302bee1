"""A policy whose actions are moved by an action flow when the robot no longer follows its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow, Coder
from dynamics.ensemble import Ensemble
from policies.policy import Policy


class Judge(Protocol):
    """A second opinion on what an action does here and now: a model that is updated while the robot runs."""

    def observe(self, obs: Tensor, action: Tensor, next_obs: Tensor, fresh: Tensor) -> None:
        """Learn from one transition per row (B, ...); rows where `fresh` (B,) is False are to be left out."""
        ...

    def predict(self, obs: Tensor, action: Tensor) -> Tensor:
        """Next state (B, obs_dim)."""
        ...

    def reset(self, rows: np.ndarray | None = None) -> None: ...


@dataclass
class ReshapeConfig:
    """When and how far actions are moved."""

    trigger: float = 3.0  # standard deviations of the model; below, nothing is touched
    quiet: int = 2  # transitions in a row below the trigger after which the change counts as over
    trust: float = 2.0  # largest change of one action dimension once the evidence is complete, half of it at first
    patience: float = 0.9  # memory of the running errors by which judge and model are compared

    def __post_init__(self) -> None:
        if self.trigger <= 0 or self.trust <= 0 or self.quiet < 1 or not 0 <= self.patience < 1:
            raise ValueError("trigger and trust must be positive, quiet at least 1 and patience in [0, 1)")


@dataclass
class Decision:
    """What the last call did, per row: how surprising the last step was, whether the flow was asked and followed."""

    surprise: np.ndarray  # (B,) standard deviations, root mean square over dimensions
    active: np.ndarray  # (B,) bool
    followed: np.ndarray  # (B,) bool
    moved: np.ndarray  # (B,) largest change of an action dimension


class ReshapedPolicy:
    """Wraps a policy or planner that acts by `model`: action (B, act_dim) in [-1, 1], always finite.

    Remembers per row the last state and executed action, the evidence since the change was noticed, and how judge and
    model have done lately. Evidence begins when a step surprises the model by more than `trigger`. The flow's action
    is clipped to bounds and to the trust region, and dropped for the policy's own when it is not finite or when the
    judge, provided it has lately predicted better than the model, expects a worse miss from it.
    """

    _known: Tensor
    _active: Tensor
    _obs: Tensor

    def __init__(
        self,
        policy: Policy,
        model: Ensemble,
        flow: ActionFlow,
        coder: Coder,
        config: ReshapeConfig | None = None,
        judge: Judge | None = None,
    ):
        self.policy, self.model, self.flow, self.coder, self.judge = policy, model, flow, coder, judge
        self.config = config or ReshapeConfig()
        self.obs_dim, self.act_dim = policy.obs_dim, policy.act_dim
        self._forget_all(0)

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.policy.reset(rows)
        if self.judge is not None:
            self.judge.reset(rows)
        if rows is None:
            self._forget_all(0)
            return
        at = torch.as_tensor(rows)
        self._known[at] = False
        self._active[at] = False
        self._count[at] = 0
        self._calm[at] = 0
        self._errors[at] = 0.0

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if len(state) != len(self._known):
            self._forget_all(len(state))
        sound = state.isfinite().all(-1)
        # A row that cannot be read acts on the last state that could.
        state = torch.where(sound.unsqueeze(-1), state, self._obs)
        surprise = self._learn(state, sound)
        planned = torch.as_tensor(np.asarray(self.policy.act(state.numpy())), dtype=torch.float32)
        planned = planned.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
        action, followed = planned, torch.zeros_like(sound)
        if self._active.any():
            action, followed = self._reshaped(state, planned)
        self._obs, self._action, self._known = state, action, sound.clone()
        moved = (action - planned).abs().amax(-1)
        self.last = Decision(surprise.numpy(), self._active.numpy().copy(), followed.numpy(), moved.numpy())
        return action.numpy().copy()

    def _forget_all(self, rows: int) -> None:
        k, width = self.flow.config.evidence, self.flow.encoder.d_in
        self._obs, self._action = torch.zeros(rows, self.obs_dim), torch.zeros(rows, self.act_dim)
        self._evidence = torch.zeros(rows, k, width)
        self._known, self._active = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
        self._count, self._calm = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        self._errors = torch.zeros(rows, 2)  # running squared errors of the model and of the judge
        nobody = np.zeros(rows)
        self.last = Decision(nobody, nobody.astype(bool), nobody.astype(bool), nobody)

    def _learn(self, state: Tensor, sound: Tensor) -> Tensor:
        """Take in what the last action did; returns the surprise (B,)."""
        fresh = self._known & sound
        if not fresh.any():
            return torch.zeros(len(state))
        said, spread = self.model.belief(self._obs, self._action)
        difference = self.model.wrap_angles(state - said)
        fresh = fresh & difference.isfinite().all(-1) & spread.isfinite().all(-1)
        difference = torch.where(fresh.unsqueeze(-1), difference, 0.0)
        surprise = torch.where(fresh, (difference / spread).square().mean(-1).sqrt(), 0.0)
        self._notice(surprise, fresh)
        new = self.coder.evidence(self._obs, self._action, difference)
        fresh = fresh & new.isfinite().all(-1)
        keep = fresh & self._active
        self._evidence[keep] = self._evidence[keep].roll(1, 1)
        self._evidence[keep, 0] = new[keep]
        self._count += keep
        if self.judge is not None:
            self._consult(state, difference, fresh)
        return surprise

    def _notice(self, surprise: Tensor, fresh: Tensor) -> None:
        """A surprise begins a change; `quiet` unsurprising steps in a row end it. Either way evidence begins anew."""
        loud = fresh & (surprise > self.config.trigger)
        begins = loud & ~self._active
        self._calm = torch.where(loud, 0, self._calm + fresh)
        ends = self._active & (self._calm >= self.config.quiet)
        self._active = (self._active | begins) & ~ends
        self._count[begins | ends] = 0

    def _consult(self, state: Tensor, difference: Tensor, fresh: Tensor) -> None:
        """Score the judge on the step before it learns from it."""
        assert self.judge is not None
        scale, memory = self.model.delta_scale, self.config.patience
        guess = self.model.wrap_angles(state - self.judge.predict(self._obs, self._action)) / scale
        errors = torch.stack([(difference / scale).square().mean(-1), guess.square().mean(-1)], -1)
        errors = errors.nan_to_num(1e6, 1e6, 1e6)
        running = memory * self._errors + (1 - memory) * errors
        self._errors = torch.where(fresh.unsqueeze(-1), running, self._errors)
        self.judge.observe(self._obs, self._action, state, fresh)

    def _reshaped(self, state: Tensor, planned: Tensor) -> tuple[Tensor, Tensor]:
        """The action of each row and which rows follow the flow."""
        k = self.flow.config.evidence
        have = self._count.clamp_max(k)
        mask = torch.arange(k) < have.unsqueeze(-1)
        answer = self.flow(planned, self.coder.features(state), self._evidence, mask)
        finite = answer.isfinite().all(-1)
        limit = (self.config.trust * (0.5 + 0.5 * have / k)).unsqueeze(-1)
        answer = torch.where(finite.unsqueeze(-1), answer, planned)
        answer = (planned + torch.minimum(torch.maximum(answer - planned, -limit), limit)).clamp(-1.0, 1.0)
        follow = self._active & finite & (have > 0) & ~self._rejected(state, planned, answer)
        return torch.where(follow.unsqueeze(-1), answer, planned), follow

    def _rejected(self, state: Tensor, planned: Tensor, answer: Tensor) -> Tensor:
        """Rows where the judge knows better than the model and expects a worse miss from the answer."""
        if self.judge is None:
            return torch.zeros(len(state), dtype=torch.bool)
        target, scale = self.model.belief(state, planned)[0], self.model.delta_scale

        def miss(action: Tensor) -> Tensor:
            assert self.judge is not None
            return (self.model.wrap_angles(self.judge.predict(state, action) - target) / scale).norm(dim=-1)

        return (self._errors[:, 1] < self._errors[:, 0]) & (miss(answer) > miss(planned))
