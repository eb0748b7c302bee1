"""The baseline every router must beat: the skill whose mean context is nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.routers.router import Router


class NearestMean(Router):
    """logits −‖x − μ_k‖² / 2 in units of the mean deviation within skills."""

    def logits(self, context: Tensor) -> Tensor:
        moments = self.total.moments.values()
        means = torch.stack([m.mean for m in moments])
        spread = sum(float(m.m2.mean()) for m in moments) / max(sum(m.count for m in moments) - len(means), 1.0)
        return -0.5 * torch.cdist(self.features(context), means).square() / max(spread, 1e-9)
