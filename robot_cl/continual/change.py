"""Whether the world is still the one it was: a small dynamics model's errors, watched by the shift detector."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.networks import StackedMLP, generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.continual.detector import DetectorConfig, ShiftDetector

HIDDEN, LR, BATCH, UPDATES, ROLLOUTS = (64, 64), 1e-3, 512, 40, 4
LARGEST = 25.0  # squared errors beyond five deviations say no more


class ChangeWatch:
    """Predicts the change of the observation, learns from what it sees, and rings when its errors jump.

    Remembers the model, the last few rollouts, the scale of each observation's change, and the detector's reading.
    One robot's worth of history: all worlds are taken to be in the same regime.
    """

    def __init__(self, normalizer: Normalizer, act_dim: int, seed: int = 0, config: DetectorConfig | None = None):
        self.normalizer, self.rng = normalizer, torch.Generator().manual_seed(seed)
        self.model = StackedMLP(normalizer.width + act_dim, HIDDEN, normalizer.width, generators(seed, 1), "silu")
        self.optimiser = torch.optim.Adam(self.model.parameters(), LR)
        self.detector = ShiftDetector(config or DetectorConfig(window=16, warmup=16))
        self.scale: Tensor | None = None
        self._past: list[tuple[Tensor, Tensor]] = []

    def see(self, fresh: Transitions) -> bool:
        """One rollout (1, T, W) -> whether the world has changed; learns from it where it has not."""
        x, change = self._pairs(fresh)
        steps, worlds = fresh.reward.shape[1:]
        with torch.no_grad():
            losses = self._errors(x, change).view(steps, worlds).mean(1)
        if self.detector.observe(losses.numpy()) is not None:
            self._past = []
            self._learn(x, change)
            return True
        self._learn(x, change)
        return False

    def _pairs(self, fresh: Transitions) -> tuple[Tensor, Tensor]:
        """Inputs (N, obs + act) and changes of the observation (N, obs) in their deviations of the first rollout."""
        obs, following = fresh.obs[0].flatten(0, 1), fresh.next_obs[0].flatten(0, 1)
        change = following - obs
        if self.scale is None:
            self.scale = change.std(0) + 1e-6
        action = fresh.action[0].flatten(0, 1).clamp(-1.0, 1.0)
        return torch.cat([self.normalizer(obs), action], -1), change / self.scale

    def _errors(self, x: Tensor, change: Tensor) -> Tensor:
        return (self.model(x)[0] - change).square().clamp(max=LARGEST).mean(-1)

    def _learn(self, x: Tensor, change: Tensor) -> None:
        self._past = [*self._past, (x, change)][-ROLLOUTS:]
        inputs, targets = (torch.cat(parts) for parts in zip(*self._past, strict=True))
        for _ in range(UPDATES):
            rows = torch.randint(len(inputs), (BATCH,), generator=self.rng)
            loss = (self.model(inputs[rows])[0] - targets[rows]).square().clamp(max=LARGEST).mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
