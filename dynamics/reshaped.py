"""A policy whose actions are moved by an action flow when the robot no longer follows its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow, Coder
from dynamics.effectiveness import Effectiveness, EffectivenessConfig, effective_action
from dynamics.ensemble import Ensemble
from policies.policy import Policy

MODEL, JUDGE, FLOW = range(3)  # columns of the running errors


class Online(Protocol):
    """A model per row that is updated while the robots run; `dynamics.adaptation.RowModels` is one.

    `leads` (B,) is set before every decision: rows whose planner should plan with it instead of the nominal model.
    """

    leads: Tensor

    def observe(self, obs: Tensor, action: Tensor, next_obs: Tensor, fresh: Tensor) -> None:
        """Learn from one transition per row (B, ...); rows where `fresh` (B,) is False are to be left out."""
        ...

    def predict(self, obs: Tensor, action: Tensor) -> Tensor:
        """Next state (B, obs_dim)."""
        ...

    def forget(self, rows: Tensor) -> None:
        """What these rows (B,) bool have seen so far is of another robot than the present one."""
        ...

    def reset(self, rows: np.ndarray | None = None) -> None: ...


@dataclass
class ReshapeConfig:
    """When and how far actions are moved."""

    trigger: float = 3.0  # standard deviations of the model; below, nothing is touched
    quiet: int = 2  # telling transitions in a row, foretold by the model, after which the change counts as over
    telling: float = 0.3  # standard deviations of the data's changes by which what was expected must differ
    trust: float = 2.0  # largest change of one action dimension, growing from half of it with the evidence
    enough: int = 2  # transitions of evidence for all of it
    patience: float = 0.9  # memory of the running errors by which flow, judge and model are compared
    apprenticeship: int = 16  # transitions a judge learns from before it may reject
    effectiveness: EffectivenessConfig | None = None  # corrects the answer, where commands alone tell what has changed

    def __post_init__(self) -> None:
        if min(self.trigger, self.telling, self.trust) <= 0 or not 0 <= self.patience < 1:
            raise ValueError("trigger, telling and trust must be positive and patience in [0, 1)")
        if min(self.quiet, self.enough, self.apprenticeship) < 1:
            raise ValueError("quiet, enough and apprenticeship must be at least 1")


@dataclass
class Decision:
    """What the last call did, per row: how surprising the last step was, whether the flow was asked and followed."""

    surprise: np.ndarray  # (B,) standard deviations, root mean square over dimensions
    active: np.ndarray  # (B,) bool: the robot counts as changed
    followed: np.ndarray  # (B,) bool: the flow's action was taken
    moved: np.ndarray  # (B,) largest change of an action dimension


class ReshapedPolicy:
    """Wraps a policy or planner that acts by `model`: action (B, act_dim) in [-1, 1], always finite.

    Remembers per row the last state, planned and executed action, the evidence since the change was noticed, and how
    model, judge and flow have done since. Evidence begins when a step surprises the model by more than `trigger`; the
    change is over after steps that the model foretold and the flow would not have. The flow's action is clipped to
    bounds and to the trust region, and dropped for the policy's own when it is not finite or when the `judge`, a model
    that learns what executed actions do and has foretold better than model and flow, expects a worse miss from it.

    With `effectiveness` the answer is corrected by what least squares read off the steps since the change was noticed:
    which command brings what along of the others. It takes all that happens for the commands' doing, so it is not for
    wind or payloads.

    Some of what is planned no action can bring about: a weaker robot stays weaker, wind blows on. The `learner` is a
    model that starts as the nominal one and learns, while a change lasts, what *planned* actions lead to, flow
    included; a planner that asks it plans with the robot as the flow makes it, of which little is left to learn.
    """

    remembers = True
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
        judge: Online | None = None,
        learner: Online | None = None,
    ):
        self.policy, self.model, self.flow, self.coder = policy, model, flow, coder
        self.judge, self.learner = judge, learner
        self.config = config or ReshapeConfig()
        self.obs_dim, self.act_dim = policy.obs_dim, policy.act_dim
        self._forget_all(0)

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.policy.reset(rows)
        for beside in (self.judge, self.learner):
            if beside is not None:
                beside.reset(rows)
        if rows is None:
            self._forget_all(0)
            return
        at = torch.as_tensor(rows)
        for remembered in (self._known, self._active, self._followed):
            remembered[at] = False
        for counted in (self._count, self._calm, self._errors, self._weights):
            counted[at] = 0
        if self._effectiveness is not None:
            self._effectiveness.forget(at)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if len(state) != len(self._known):
            self._forget_all(len(state))
        sound = state.isfinite().all(-1)
        # A row that cannot be read acts on the last state that could.
        state = torch.where(sound.unsqueeze(-1), state, self._obs)
        surprise = self._learn(state, sound)
        if self.learner is not None:
            self.learner.leads = self._ripe()
        planned = torch.as_tensor(np.asarray(self.policy.act(state.numpy())), dtype=torch.float32)
        planned = planned.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
        action, self._followed = planned, torch.zeros_like(sound)
        if self._active.any():
            action, self._followed = self._reshaped(state, planned)
        self._obs, self._action, self._planned, self._known = state, action, planned, sound.clone()
        self._expected = self.model.belief(state, planned)[0]
        moved = (action - planned).abs().amax(-1)
        told = (self._active.numpy().copy(), self._followed.numpy().copy())
        self.last = Decision(surprise.numpy(), *told, moved.numpy())
        return action.numpy().copy()

    def _forget_all(self, rows: int) -> None:
        k, width = self.flow.config.evidence, self.flow.encoder.d_in
        self._obs, self._action = torch.zeros(rows, self.obs_dim), torch.zeros(rows, self.act_dim)
        self._planned = torch.zeros(rows, self.act_dim)
        self._expected = torch.zeros(rows, self.obs_dim)  # next state, as it was planned
        self._evidence = torch.zeros(rows, k, width)
        self._known, self._active = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
        self._followed = torch.zeros(rows, dtype=torch.bool)
        self._count, self._calm = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        self._errors, self._weights = torch.zeros(rows, 3), torch.zeros(rows, 3)  # running squared errors, not divided
        estimate = self.config.effectiveness
        self._effectiveness = None if estimate is None else Effectiveness(rows, self.act_dim, estimate)
        nobody = np.zeros(rows)
        self.last = Decision(nobody, nobody.astype(bool), nobody.astype(bool), nobody)

    # -- what the last step tells -------------------------------------------------------------------------------------

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
        self._notice(surprise, fresh, difference, self.model.wrap_angles(state - self._expected))
        new = self.coder.evidence(self._obs, self._action, difference)
        fresh = fresh & new.isfinite().all(-1)
        keep = fresh & self._active
        self._evidence[keep] = self._evidence[keep].roll(1, 1)
        self._evidence[keep, 0] = new[keep]
        self._count += keep
        if self._effectiveness is not None and keep.any():
            amounted = effective_action(self.model, self._obs, self._action, state)
            self._effectiveness.observe(self._action, amounted, keep)
        self._score(state, difference, fresh)
        if self.learner is not None:
            self.learner.observe(self._obs, self._planned, state, fresh & self._ripe())
        return surprise

    def _notice(self, surprise: Tensor, fresh: Tensor, error: Tensor, other: Tensor) -> None:
        """A surprise begins a change; `quiet` telling steps in a row that the model foretold end it.

        `error` and `other` (B, obs_dim) are those of the model and of what the flow expected of the same action.
        A step tells nothing where both expected the same, and the model's deviation cannot be asked: a changed robot is
        in states that the model never saw, where it is unsure of everything.
        """
        loud = fresh & (surprise > self.config.trigger)
        begins = loud & ~self._active
        mine, theirs, apart = (self._size(e) for e in (error, other, self.model.wrap_angles(error - other)))
        telling = fresh & (apart > self.config.telling)
        self._calm = torch.where(telling, torch.where(mine < 0.5 * theirs, self._calm + 1, 0), self._calm)
        ends = self._active & (self._calm >= self.config.quiet)
        self._active = (self._active | begins) & ~ends
        new = begins | ends
        for counted in (self._count, self._calm, self._errors, self._weights):
            counted[new] = 0
        self._followed &= ~new
        if self._effectiveness is not None:
            self._effectiveness.forget(new)
        for beside in (self.judge, self.learner):
            if beside is not None and begins.any():
                beside.forget(begins)
            if beside is not None and ends.any():
                beside.reset(ends.numpy())

    def _size(self, difference: Tensor) -> Tensor:
        """Root mean square over dimensions of a difference of states, in standard deviations of the data's changes."""
        return (difference / self.model.delta_scale).square().mean(-1).sqrt()

    def _score(self, state: Tensor, difference: Tensor, fresh: Tensor) -> None:
        """Running errors of model, judge and flow; the judge is scored on the step before it learns from it."""
        if self.judge is None:
            return
        scale, memory, wrap = self.model.delta_scale, self.config.patience, self.model.wrap_angles
        foretold = self.judge.predict(self._obs, self._action)
        self.judge.observe(self._obs, self._action, state, fresh)
        errors = torch.stack([difference, wrap(state - foretold), wrap(state - self._expected)], 1)  # (B, 3, obs_dim)
        squared = (errors / scale).square().mean(-1).nan_to_num(1e6, 1e6, 1e6)
        known = torch.stack([fresh, fresh, fresh & self._followed], -1)
        self._errors = torch.where(known, memory * self._errors + (1 - memory) * squared, self._errors)
        self._weights = torch.where(known, memory * self._weights + (1 - memory), self._weights)

    def _running(self) -> Tensor:
        """Mean squared errors of model, judge and flow, (B, 3), the latest counting most."""
        return self._errors / self._weights.clamp_min(1e-9)

    def _ripe(self) -> Tensor:
        """Rows in which the flow has evidence enough to be taken for what it will remain, (B,)."""
        return self._active & (self._count > self.config.enough)

    # -- what is done -------------------------------------------------------------------------------------------------

    def _reshaped(self, state: Tensor, planned: Tensor) -> tuple[Tensor, Tensor]:
        """The action of each row and which rows follow the flow."""
        k = self.flow.config.evidence
        have = self._count.clamp_max(k)
        mask = torch.arange(k) < have.unsqueeze(-1)
        answer = self.flow(planned, self.coder.features(state), self._evidence, mask)
        finite = answer.isfinite().all(-1)
        sure = (have / self.config.enough).clamp_max(1.0)
        limit = (self.config.trust * (0.5 + 0.5 * sure)).unsqueeze(-1)
        low, high = (planned - limit).clamp_min(-1.0), (planned + limit).clamp_max(1.0)
        answer = torch.where(finite.unsqueeze(-1), answer, planned).clamp(low, high)
        if self._effectiveness is not None:
            answer = self._effectiveness.corrected(planned, answer, low, high)
        follow = self._active & finite & (have > 0) & ~self._rejected(state, planned, answer)
        return torch.where(follow.unsqueeze(-1), answer, planned), follow

    def _rejected(self, state: Tensor, planned: Tensor, answer: Tensor) -> Tensor:
        """Rows where the judge expects a worse miss from the answer, and has foretold better than model and flow.

        The flow is tried first: a judge that has seen one action only is sure of itself and wrong about the others.
        """
        if self.judge is None:
            return torch.zeros(len(state), dtype=torch.bool)
        target, scale = self.model.belief(state, planned)[0], self.model.delta_scale

        def miss(action: Tensor) -> Tensor:
            assert self.judge is not None
            return (self.model.wrap_angles(self.judge.predict(state, action) - target) / scale).norm(dim=-1)

        errors, tried = self._running(), self._weights[:, FLOW] > 0
        learned = tried & (self._count >= self.config.apprenticeship)
        better = learned & (errors[:, JUDGE] < errors[:, MODEL]) & (errors[:, JUDGE] < errors[:, FLOW])
        return better & (miss(answer) > miss(planned))
