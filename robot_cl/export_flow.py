"""Action flow matching in a bundle: dynamics model, flow and the rule of when to follow it as one graph with memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamics.action_flow import ActionFlow, Coder, plain_coder
from dynamics.ensemble import Ensemble
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy
from robot_cl.deploy.bundle import read_contract
from robot_cl.deploy.contract import CONTRACT_FILE, FLOW_FILE
from robot_cl.deploy.flow_stage import FlowStage
from robot_cl.deploy.onnx_check import check_model
from robot_cl.export import PARITY, ExportReport, onnx_bytes

FLAGS = 4  # known, active, count, calm: the first numbers of a memory row


class ReshapeStep(nn.Module):
    """`ReshapedPolicy` without a judge, as a function: obs (B, obs_dim), planned and taken (B, act_dim), memory (B, M)
    -> action (B, act_dim), memory (B, M).

    A memory row holds FLAGS numbers, the last observation, what was expected of it, and the evidence; zeros forget.
    `taken` is the action really taken since the call before.
    """

    def __init__(self, model: Ensemble, flow: ActionFlow, coder: Coder, config: ReshapeConfig | None = None):
        super().__init__()
        self.model, self.flow = model.subset(model.elites), flow
        self.coder, self.config = coder, config or ReshapeConfig()
        if self.config.effectiveness is not None:
            raise ValueError("a bundle's flow corrects no answer by least squares; export it with effectiveness=None")
        self.evidence, self.width = flow.config.evidence, flow.encoder.d_in
        self.obs_dim, self.act_dim = model.obs_dim, model.act_dim
        self.memory = FLAGS + 2 * self.obs_dim + self.evidence * self.width

    def forward(self, obs: Tensor, planned: Tensor, taken: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        d, planned = self.obs_dim, planned.clamp(-1.0, 1.0)
        known, active = memory[:, 0] > 0.5, memory[:, 1] > 0.5
        count, calm = memory[:, 2], memory[:, 3]
        last, expected = memory[:, FLAGS : FLAGS + d], memory[:, FLAGS + d : FLAGS + 2 * d]
        seen = memory[:, FLAGS + 2 * d :].unflatten(1, (self.evidence, self.width))
        said, spread = self.model.belief(last, taken)
        error = torch.where(known.unsqueeze(-1), self.model.wrap_angles(obs - said), 0.0)
        surprise = (error / spread).square().mean(-1).sqrt()
        active, count, calm = self._notice(known, active, count, calm, surprise, error, obs - expected)
        new = self.coder.evidence(last, taken, error).unsqueeze(1)
        keep = known & active
        seen = torch.where(keep.view(-1, 1, 1), torch.cat([new, seen[:, :-1]], 1), seen)
        count = count + keep.to(count.dtype)
        action = self._reshaped(obs, planned, active, count, seen)
        flags = torch.stack([torch.ones_like(count), active.to(count.dtype), count, calm], -1)
        ahead = self.model.belief(obs, planned)[0]
        return action, torch.cat([flags, obs, ahead, seen.flatten(1)], -1)

    def _notice(
        self, known: Tensor, active: Tensor, count: Tensor, calm: Tensor, surprise: Tensor, error: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the robot counts as changed, and the counts of evidence and of calm steps, all (B,)."""
        c, other = self.config, self.model.wrap_angles(other)
        begins = known & (surprise > c.trigger) & ~active
        mine, theirs, apart = (self._size(e) for e in (error, other, self.model.wrap_angles(error - other)))
        telling = known & (apart > c.telling)
        calm = torch.where(telling, torch.where(mine < 0.5 * theirs, calm + 1.0, 0.0), calm)
        ends = active & (calm >= c.quiet)
        new = begins | ends
        return (active | begins) & ~ends, torch.where(new, 0.0, count), torch.where(new, 0.0, calm)

    def _size(self, difference: Tensor) -> Tensor:
        return (difference / self.model.delta_scale).square().mean(-1).sqrt()

    def _reshaped(self, obs: Tensor, planned: Tensor, active: Tensor, count: Tensor, seen: Tensor) -> Tensor:
        have = count.clamp_max(self.evidence)
        mask = torch.arange(self.evidence) < have.unsqueeze(-1)
        answer = self.flow(planned, self.coder.features(obs), seen, mask)
        sure = (have / self.config.enough).clamp_max(1.0)
        limit = (self.config.trust * (0.5 + 0.5 * sure)).unsqueeze(-1)
        answer = (planned + torch.minimum(torch.maximum(answer - planned, -limit), limit)).clamp(-1.0, 1.0)
        return torch.where((active & (have > 0)).unsqueeze(-1), answer, planned)


def add_flow(
    report: ExportReport, model: Ensemble, flow: ActionFlow, coder: Coder | None = None,
    config: ReshapeConfig | None = None,
) -> ExportReport:  # fmt: skip
    """Put a flow into an exported bundle. `coder` is the one it was trained with (None: `plain_coder`).

    Nothing is changed if the graph differs from torch by more than 1e-5. Raises ValueError, OSError.
    """
    contract = read_contract(report.folder)
    if (model.obs_dim, model.act_dim) != (contract.obs_dim, contract.act_dim):
        has, wants = (model.obs_dim, model.act_dim), (contract.obs_dim, contract.act_dim)
        raise ValueError(f"the flow's model is of {has[0]} observations and {has[1]} actions, the policy of {wants}")
    coder = coder or plain_coder(model)
    probe = coder.evidence(torch.zeros(1, model.obs_dim), torch.zeros(1, model.act_dim), torch.zeros(1, model.obs_dim))
    if probe.shape[-1] != flow.encoder.d_in:
        raise ValueError(
            f"the flow reads {flow.encoder.d_in} numbers of evidence, this coder gives {probe.shape[-1]}; "
            "pass the coder it was trained with"
        )
    step = ReshapeStep(model, flow, coder, config).eval()
    data = onnx_bytes(step, model.obs_dim, memory=step.memory, act_dim=model.act_dim)
    check_model(data, FLOW_FILE)
    more = replace(
        contract, flow_sha256=hashlib.sha256(data).hexdigest(), flow_memory=step.memory, flow_size=len(data)
    )
    parity = max(report.parity, flow_difference(step, FlowStage(more, data)))
    if not parity <= PARITY:
        raise ValueError(f"the exported flow differs from torch by {parity:.2e}, more than {PARITY:.0e}; not added")
    (report.folder / FLOW_FILE).write_bytes(data)
    (report.folder / CONTRACT_FILE).write_text(replace(more, parity=parity).to_json())
    return replace(report, parity=parity, size=report.size + len(data))


def flow_difference(step: ReshapeStep, stage: FlowStage, rows: int = 64) -> float:
    """max |torch − onnx| of actions along a walk in the model's world whose actions lose half their effect midway.

    Both sides start each call from the same memory, so that what is compared is one call and not chaos.
    """
    rng = torch.Generator().manual_seed(0)
    low, high = (b.nan_to_num(0.0, 3.0, -3.0) for b in (step.model.obs_low, step.model.obs_high))
    obs = (low + (high - low) * torch.rand(1, step.obs_dim, generator=rng)).float()
    memory, taken, worst = torch.zeros(1, step.memory), torch.zeros(1, step.act_dim), 0.0
    for row in range(rows):
        planned = torch.rand(1, step.act_dim, generator=rng) * 2 - 1
        stage.memory = memory.numpy().copy()
        with torch.no_grad():
            action, memory = step(obs, planned, taken, memory)
            answer = stage(obs.numpy(), planned.numpy()[0], taken.numpy()[0])
            worst = max(worst, float(np.abs(answer - action.numpy()[0]).max()))
            effect = action if row < rows // 3 else 0.5 * action
            obs, taken = step.model.belief(obs, effect)[0], action
    return worst if np.isfinite(worst) else float("inf")


class OnlineStage:
    """The same stage in torch, where `beside` are models that learn on the robot (see `ReshapedPolicy`): for machines
    that have torch. Implements `modes.Stage`; remembers what `ReshapedPolicy` does."""

    def __init__(
        self, model: Ensemble, flow: ActionFlow, coder: Coder, config: ReshapeConfig | None = None, **beside: Any
    ):
        self.given = _Given(model.obs_dim, model.act_dim)
        self.policy = ReshapedPolicy(self.given, model, flow, coder, config, **beside)

    def reset(self) -> None:
        self.policy.reset()

    def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
        if taken is not None and len(self.policy._action) == 1:
            self.policy._action = torch.as_tensor(taken[None], dtype=torch.float32)
        self.given.action = action[None].astype(np.float32)
        return self.policy.act(obs)[0]


class _Given:
    """A policy that answers what it was given."""

    def __init__(self, obs_dim: int, act_dim: int):
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.action: Any = np.zeros((1, act_dim), np.float32)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.action

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass
