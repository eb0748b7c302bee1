"""Observation statistics: one object that travels with the checkpoint, the skill and the exported bundle."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """z = clip((x − mean) / sqrt(var + eps), ±clip), per dimension of the last axis.

    Remembers mean, var (width,) and the sample count in buffers. `update` merges a batch (Chan's parallel formula, in
    float64); after `freeze` it raises. With no data seen it is the identity up to the clip.

    With a `population` every member has statistics of its own: mean and var are (P, 1, width), `update` takes
    (P, ..., width), and `member` gives one member's statistics as an ordinary normaliser.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    frozen: Tensor

    def __init__(self, width: int, clip: float = 10.0, eps: float = 1e-8, population: int | None = None):
        super().__init__()
        if not clip > 0.0 or not 0.0 <= eps < math.inf:
            raise ValueError(f"a normaliser's clip is {clip} and its eps {eps}; expected a positive one, and 0 or more")
        self.width, self.clip, self.eps, self.population = width, clip, eps, population
        shape = (width,) if population is None else (population, 1, width)
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def update(self, x: Tensor) -> None:
        """Merge the rows of x: (..., width), or (P, ..., width) with a population."""
        if self.frozen:
            raise RuntimeError("the normaliser is frozen: its statistics belong to a trained policy")
        lead = () if self.population is None else (self.population,)
        rows = x.reshape(*lead, -1, self.width).double()
        n, m = self.count.item(), rows.shape[-2]
        if not m:
            return  # no rows have no mean
        keep = self.population is not None
        mean, var = rows.mean(-2, keepdim=keep), rows.var(-2, unbiased=False, keepdim=keep)
        shift = mean - self.mean
        total = n + m
        self.var.copy_((self.var * n + var * m + shift**2 * n * m / total) / total if n else var)
        self.mean.add_(shift * (m / total))
        self.count.fill_(total)

    def fit(self, x: Tensor) -> Normalizer:
        """Statistics of exactly these rows, then frozen. Returns self."""
        self.count.zero_()
        self.mean.zero_()
        self.update(x)
        return self.freeze()

    def freeze(self) -> Normalizer:
        self.frozen.fill_(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        mean, scale = self.mean.to(x.dtype), torch.rsqrt(self.var + self.eps).to(x.dtype)
        return ((x - mean) * scale).clamp(-self.clip, self.clip)

    def inverse(self, z: Tensor) -> Tensor:
        return z * torch.sqrt(self.var + self.eps).to(z.dtype) + self.mean.to(z.dtype)

    def member(self, p: int) -> Normalizer:
        """A copy of member p's statistics, without a population axis (of the only ones, if they are shared)."""
        one = Normalizer(self.width, self.clip, self.eps).to(self.mean.device)
        for name in ("mean", "var"):
            mine = getattr(self, name)
            getattr(one, name).copy_(mine if self.population is None else mine[p, 0])
        one.count.copy_(self.count)
        one.frozen.copy_(self.frozen)
        return one

    @property
    def digest(self) -> str:
        """sha256 hex of mean, var, clip and eps."""
        parts = [t.cpu().numpy().tobytes() for t in (self.mean, self.var)]
        return hashlib.sha256(b"".join(parts) + f"{self.clip}:{self.eps}".encode()).hexdigest()
