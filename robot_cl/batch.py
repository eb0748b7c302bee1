"""The batch format every learner reads."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Transitions:
    """N transitions as float32 tensors: obs, next_obs (..., obs_dim), action (..., act_dim) in [-1, 1], reward (...,).

    `terminated` and `truncated` (...,) are float32 0/1. Bootstrapping stops at `terminated` only; no next_obs lies
    across an episode border. The leading shape is (N,) for a dataset and (P, B) for a stacked batch.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor

    def __post_init__(self) -> None:
        lead = self.reward.shape
        for name in ("obs", "action", "next_obs"):
            if getattr(self, name).shape[:-1] != lead:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {shape}, expected {tuple(lead)} + (dim,)")
        if self.next_obs.shape != self.obs.shape:
            raise ValueError(f"next_obs {tuple(self.next_obs.shape)} and obs {tuple(self.obs.shape)} differ in shape")
        for name in ("terminated", "truncated"):
            if getattr(self, name).shape != lead:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {tuple(lead)}")

    def __len__(self) -> int:
        return self.reward.shape[0]

    @property
    def obs_dim(self) -> int:
        return self.obs.shape[-1]

    @property
    def act_dim(self) -> int:
        return self.action.shape[-1]

    def __getitem__(self, index: Tensor | slice) -> Transitions:
        return Transitions(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Transitions:
        return Transitions(*(getattr(self, f.name).to(device) for f in fields(self)))

    @staticmethod
    def cat(parts: list[Transitions], dim: int = 0) -> Transitions:
        return Transitions(*(torch.cat([getattr(p, f.name) for p in parts], dim) for f in fields(Transitions)))
