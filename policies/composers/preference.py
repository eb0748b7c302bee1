"""Skills as probability distributions, mixed by a preference; a mixture that no skill supports is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.adapter import Adapter
from policies.composers.composer import Composer, CompositionShape
from policies.hashing import Sketch


class Preference(Composer):
    """IBCL, Lu et al. 2024 (imprecise Bayesian continual learning). Skill k is a posterior N(mean_k, diag std_k²) over
    what the skill does (`posterior`); a preference w on the simplex asks for the mixture Σ w_k q_k, answered by its
    mean, i.e. coefficients w. It is refused when that mean lies outside the mixture's highest-density region of
    probability 1 − `significance`: between two skills that are far apart lies a valley where neither is.

    means, stds (K, D). `task` (K,) or (B, K) overrides `preference`, 1/K each unless given. Remembers the verdicts.
    """

    preference: Tensor
    means: Tensor
    stds: Tensor

    def __init__(
        self,
        shape: CompositionShape,
        means: Sequence[Sequence[float]] | Tensor,
        stds: Sequence[Sequence[float]] | Tensor,
        preference: Sequence[float] | Tensor | None = None,
        significance: float = 0.05,
        samples: int = 512,
        seed: int = 0,
    ):
        super().__init__(shape)
        means, stds = torch.as_tensor(means), torch.as_tensor(stds)
        if means.shape != stds.shape or len(means) != shape.skills or not (stds > 0).all():
            shapes = f"means {tuple(means.shape)} and stds {tuple(stds.shape)}"
            raise ValueError(f"{shapes} must both be ({shape.skills}, D), stds positive")
        if not 0.0 < significance < 1.0 or not 1 <= samples <= 1_000_000:
            raise ValueError(
                f"significance {significance} and samples {samples} do not fit; expected (0, 1), and up to a million"
            )
        self.significance, self.samples, self.seed = significance, samples, seed
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.double())
        start = torch.full((shape.skills,), 1.0 / shape.skills) if preference is None else torch.as_tensor(preference)
        if tuple(start.shape) != (shape.skills,):
            raise ValueError(f"preference {tuple(start.shape)} does not fit {shape.skills} skills; one number each")
        self.register_buffer("preference", start.float())
        self.accepted: dict[tuple[float, ...], bool] = {}

    def settings(self) -> dict[str, Any]:
        return {
            "means": self.means.tolist(), "stds": self.stds.tolist(), "significance": self.significance,
            "samples": self.samples, "seed": self.seed,
        }  # fmt: skip

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        """Raises ValueError for a preference off the simplex, or one the skills do not support."""
        rows = (self.preference if task is None else task).reshape(-1, self.shape.skills)
        for row in {tuple(round(float(v), 6) for v in r) for r in rows.tolist()}:
            if row not in self.accepted:
                self.accepted[row] = self.accepts(torch.tensor(row))
            if not self.accepted[row]:
                raise ValueError(
                    f"no skill supports the mixture {list(row)}: it lies outside the highest-density region; "
                    "move the preference towards one skill, or train a skill for it"
                )
        return rows.to(obs)

    def accepts(self, preference: Tensor) -> bool:
        """Whether the mixture's mean is inside its own highest-density region (by sampling)."""
        w = preference.to(self.means)
        if not (w >= -1e-6).all() or not abs(float(w.sum()) - 1.0) <= 1e-4:  # NaN is neither
            raise ValueError(f"preference {w.tolist()} is not on the simplex; give non-negative numbers that sum to 1")
        rng = torch.Generator().manual_seed(self.seed)
        picked = torch.multinomial(w.clamp_min(0).float(), self.samples, replacement=True, generator=rng)
        noise = torch.randn(self.samples, self.means.shape[1], generator=rng, dtype=torch.float64)
        density = self._log_density(self.means[picked] + noise * self.stds[picked], w)
        threshold = density.quantile(self.significance)
        return bool(self._log_density((w[:, None] * self.means).sum(0)[None], w)[0] >= threshold)

    def _log_density(self, x: Tensor, w: Tensor) -> Tensor:
        """log Σ_k w_k q_k(x) up to a constant, x (N, D) -> (N,)."""
        z = (x[:, None] - self.means) / self.stds
        log_q = -0.5 * z.square().sum(-1) - self.stds.log().sum(-1)
        return torch.logsumexp(log_q + w.clamp_min(1e-300).log(), -1)


def posterior(seeds: Sequence[Adapter], sketch: Sketch, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of one skill over its training seeds, as sketches.

    `floor` is the smallest deviation, relative to the mean's root mean square. Raises ValueError for under two seeds.
    """
    if len(seeds) < 2:
        raise ValueError(f"a posterior needs one skill from two seeds or more, got {len(seeds)}; train with seeds=3")
    vectors = torch.stack([sketch(adapter) for adapter in seeds]).double()
    mean = vectors.mean(0)
    return mean, vectors.std(0).clamp_min(floor * mean.square().mean().sqrt())


def wasserstein(mean: Tensor, std: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """2-Wasserstein distance of N(mean, diag std²) to each of N Gaussians: (D,), (N, D) -> (N,)."""
    return ((means - mean).square().sum(-1) + (stds - std).square().sum(-1)).sqrt()


def is_new(mean: Tensor, std: Tensor, means: Tensor, stds: Tensor, radius: float) -> bool:
    """Whether a skill is farther than `radius` from all known ones; if not, keep the known one instead of adding."""
    return len(means) == 0 or bool(wasserstein(mean, std, means, stds).min() > radius)
