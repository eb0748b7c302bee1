"""What two skills have in common, whatever factors they are written in: digests, sketches and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from policies.adapter import Adapter


def content_digest(adapter: Adapter) -> str:
    """sha256 hex of the factors as stored: equal digests mean the same bytes."""
    digest = hashlib.sha256()
    for name, (down, up) in sorted(adapter.layers.items()):
        for part in (down, up):
            digest.update(f"{name}:{part.dtype}:{tuple(part.shape)};".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Sketch:
    """A short vector of what an adapter does: v_i = Σ_layers a_iᵀ ΔW x_i on fixed random probes a_i, x_i.

    It depends on ΔW alone, so (A, B) → (R A, B R⁻¹) and padded ranks leave it unchanged, and ⟨v, v'⟩ / size estimates
    ⟨ΔW, ΔW'⟩. Remembers the probes of the base's layers, each drawn from `seed` and the layer's name.
    `shapes` maps layer -> (d_out, d_in).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], size: int = 128, seed: int = 0):
        self.size, self.probes = size, {}
        for name, (d_out, d_in) in shapes.items():
            draw = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            rng = torch.Generator().manual_seed(int.from_bytes(draw[:8], "little") >> 1)
            self.probes[name] = (torch.randn(size, d_in, generator=rng), torch.randn(size, d_out, generator=rng))

    def __call__(self, adapter: Adapter) -> Tensor:
        """(size,) float32. Raises LookupError for a layer that is not the base's."""
        total = torch.zeros(self.size)
        for name, (down, up) in adapter.layers.items():
            if name not in self.probes:
                raise LookupError(f"the base has no layer {name!r}; layers: {', '.join(self.probes)}")
            x, a = self.probes[name]
            total += ((x @ down.float().T) * (a @ up.float())).sum(1)
        return total


def functional_hash(vector: Tensor, digits: int = 3, count: int = 16) -> str:
    """16 hex characters naming what a sketch says to `digits` digits: the same for re-parameterised copies (but for
    the rare value on a rounding border, which `relative_distance` settles)."""
    norm = vector.double().norm()
    exponent = 0.0 if norm == 0 else float(torch.log10(norm))
    direction = (vector[:count].double() / norm.clamp_min(1e-30) * 10**digits).round().long().tolist()
    return hashlib.sha256(f"{round(exponent, digits - 1)}:{direction}".encode()).hexdigest()[:16]


def relative_distance(vector: Tensor, others: Tensor) -> Tensor:
    """‖v − v_n‖ relative to the larger norm, (N,), for v (D,) against (N, D); 0: they do the same."""
    larger = torch.maximum(vector.norm(), others.norm(dim=-1)).clamp_min(1e-30)
    return (others - vector).norm(dim=-1) / larger


def output_hash(act: Callable[[np.ndarray], np.ndarray], obs: np.ndarray) -> str:
    """sha256 hex of the actions on probe observations (B, obs_dim): equal hashes, equal behaviour bit for bit."""
    action = np.ascontiguousarray(act(np.asarray(obs, dtype=np.float32)))
    return hashlib.sha256(f"{action.dtype}:{action.shape};".encode() + action.tobytes()).hexdigest()
