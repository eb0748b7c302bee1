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

MODEL, JUDGE, FLOW = range(3)  # columns of the running errors


class Judge(Protocol):
    """A second opinion on what an action does here and now: a model that is updated while the robot runs.

    `leads` (B,) is set before every decision: rows whose planner should plan with the judge instead of the model.
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
    apprenticeship: int = 16  # transitions a judge learns from before it may reject or lead
    handover: float = 0.5  # the judge takes the lead when its error falls below this share of the flow's

    def __post_init__(self) -> None:
        if min(self.trigger, self.telling, self.trust, self.handover) <= 0 or not 0 <= self.patience < 1:
            raise ValueError("trigger, telling, trust and handover must be positive and patience in [0, 1)")
        if min(self.quiet, self.enough) < 1:
            raise ValueError("quiet and enough must be at least 1")


@dataclass
class Decision:
    """What the last call did, per row: how surprising the last step was, whether the flow was asked and followed."""

    surprise: np.ndarray  # (B,) standard deviations, root mean square over dimensions
    active: np.ndarray  # (B,) bool: the robot counts as changed
    followed: np.ndarray  # (B,) bool: the flow's action was taken
    led: np.ndarray  # (B,) bool: the judge leads, the flow rests
    moved: np.ndarray  # (B,) largest change of an action dimension


class ReshapedPolicy:
    """Wraps a policy or planner that acts by `model`: action (B, act_dim) in [-1, 1], always finite.

    Remembers per row the last state, executed action and what it was expected to do, the evidence since the change was
    noticed, and how judge, model and flow have done since. Evidence begins when a step surprises the model by more than
    `trigger`; the change is over after steps that the model foretold and that flow or judge would not have. The flow's
    action is clipped to bounds and to the trust region, and dropped for the policy's own when it is not finite or when
    the judge, provided it has predicted better than the model, expects a worse miss from it. Once the judge foretells
    much better than the flow lands, which is so where no action has the planned effect, the judge leads: a planner
    that asks it plans with what the robot has become, and its actions are left as they are.
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
        for remembered in (self._known, self._active, self._followed, self._leads):
            remembered[at] = False
        for counted in (self._count, self._calm, self._errors, self._weights):
            counted[at] = 0

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if len(state) != len(self._known):
            self._forget_all(len(state))
        sound = state.isfinite().all(-1)
        # A row that cannot be read acts on the last state that could.
        state = torch.where(sound.unsqueeze(-1), state, self._obs)
        surprise = self._learn(state, sound)
        self._choose_leader()
        planned = torch.as_tensor(np.asarray(self.policy.act(state.numpy())), dtype=torch.float32)
        planned = planned.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
        action, self._followed = planned, torch.zeros_like(sound)
        if (self._active & ~self._leads).any():
            action, self._followed = self._reshaped(state, planned)
        self._obs, self._action, self._known = state, action, sound.clone()
        self._expected = self._expectation(state, planned)
        moved = (action - planned).abs().amax(-1)
        told = (self._active, self._followed, self._leads)
        self.last = Decision(surprise.numpy(), *(t.numpy().copy() for t in told), moved.numpy())
        return action.numpy().copy()

    def _forget_all(self, rows: int) -> None:
        k, width = self.flow.config.evidence, self.flow.encoder.d_in
        self._obs, self._action = torch.zeros(rows, self.obs_dim), torch.zeros(rows, self.act_dim)
        self._expected = torch.zeros(rows, self.obs_dim)  # next state, by flow or judge where one of them acted
        self._evidence = torch.zeros(rows, k, width)
        self._known, self._active = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
        self._followed, self._leads = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
        self._count, self._calm = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        self._errors, self._weights = torch.zeros(rows, 3), torch.zeros(rows, 3)  # running squared errors, not divided
        nobody = np.zeros(rows)
        self.last = Decision(nobody, *(nobody.astype(bool) for _ in range(3)), nobody)

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
        self._score(state, difference, fresh)
        return surprise

    def _notice(self, surprise: Tensor, fresh: Tensor, error: Tensor, other: Tensor) -> None:
        """A surprise begins a change; `quiet` telling steps in a row that the model foretold end it.

        `error` and `other` (B, obs_dim) are those of the model and of what flow or judge expected of the same action.
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
        if self.judge is not None and begins.any():
            self.judge.forget(begins)
        if self.judge is not None and ends.any():
            self.judge.reset(ends.numpy())

    def _size(self, difference: Tensor) -> Tensor:
        """Root mean square over dimensions of a difference of states, in standard deviations of the data's changes."""
        return (difference / self.model.delta_scale).square().mean(-1).sqrt()

    def _score(self, state: Tensor, difference: Tensor, fresh: Tensor) -> None:
        """Running errors of model, judge and flow; the judge is scored on the step before it learns from it."""
        scale, memory = self.model.delta_scale, self.config.patience
        errors, known = [difference], [fresh]
        if self.judge is not None:
            errors.append(self.model.wrap_angles(state - self.judge.predict(self._obs, self._action)))
            self.judge.observe(self._obs, self._action, state, fresh)
        else:
            errors.append(difference)
        errors.append(self.model.wrap_angles(state - self._expected))
        known = torch.stack([fresh, fresh, fresh & self._followed], -1)
        squared = torch.stack([(e / scale).square().mean(-1) for e in errors], -1).nan_to_num(1e6, 1e6, 1e6)
        self._errors = torch.where(known, memory * self._errors + (1 - memory) * squared, self._errors)
        self._weights = torch.where(known, memory * self._weights + (1 - memory), self._weights)

    def _running(self) -> Tensor:
        """Mean squared errors of model, judge and flow, (B, 3), the latest counting most."""
        return self._errors / self._weights.clamp_min(1e-9)

    def _choose_leader(self) -> None:
        if self.judge is None:
            return
        errors, known = self._running(), self._count >= self.config.apprenticeship
        known &= self._weights[:, FLOW] > 0
        share = torch.where(self._leads, 1.0, self.config.handover)
        self._leads = self._active & known & (errors[:, JUDGE] < share * errors[:, FLOW])
        self.judge.leads = self._leads

    # -- what is done -------------------------------------------------------------------------------------------------

    def _expectation(self, state: Tensor, planned: Tensor) -> Tensor:
        """What the chosen actions are expected to do, (B, obs_dim): the planned effect, or what the judge foretells."""
        expected = self.model.belief(state, planned)[0]
        if self.judge is None or not self._leads.any():
            return expected
        return torch.where(self._leads.unsqueeze(-1), self.judge.predict(state, planned), expected)

    def _reshaped(self, state: Tensor, planned: Tensor) -> tuple[Tensor, Tensor]:
        """The action of each row and which rows follow the flow."""
        k = self.flow.config.evidence
        have = self._count.clamp_max(k)
        mask = torch.arange(k) < have.unsqueeze(-1)
        answer = self.flow(planned, self.coder.features(state), self._evidence, mask)
        finite = answer.isfinite().all(-1)
        sure = (have / self.config.enough).clamp_max(1.0)
        limit = (self.config.trust * (0.5 + 0.5 * sure)).unsqueeze(-1)
        answer = torch.where(finite.unsqueeze(-1), answer, planned)
        answer = (planned + torch.minimum(torch.maximum(answer - planned, -limit), limit)).clamp(-1.0, 1.0)
        follow = self._active & ~self._leads & finite & (have > 0) & ~self._rejected(state, planned, answer)
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
