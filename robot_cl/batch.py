"""The batch format every learner reads, and the packed row it is gathered from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever only lists datasets should not wait for torch
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
        import torch

        return Transitions(*(torch.cat([getattr(p, f.name) for p in parts], dim) for f in fields(Transitions)))

    def pack(self) -> Tensor:
        """One row per transition, [obs | action | reward | next_obs | terminated | truncated]: (..., row_width)."""
        import torch

        scalars = (self.reward, self.terminated, self.truncated)
        reward, terminated, truncated = (x.unsqueeze(-1) for x in scalars)
        return torch.cat((self.obs, self.action, reward, self.next_obs, terminated, truncated), -1)

    @staticmethod
    def unpack(rows: Tensor, obs_dim: int, act_dim: int) -> Transitions:
        """Inverse of `pack`, as views into rows (..., row_width): nothing is copied."""
        widths = [obs_dim, act_dim, 1, obs_dim, 1, 1]
        obs, action, reward, next_obs, terminated, truncated = rows.split(widths, -1)
        return Transitions(
            obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1), truncated.squeeze(-1)
        )


def row_width(obs_dim: int, act_dim: int) -> int:
    """Numbers in one packed transition."""
    return 2 * obs_dim + act_dim + 3
