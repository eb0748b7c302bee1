"""Whether the world is still the one it was: a small dynamics model's errors, watched by the shift detector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from policies.networks import StackedMLP, generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.continual.detector import DetectorConfig, ShiftDetector
from robot_cl.continual.method import below

HIDDEN, LR, BATCH, UPDATES, ROLLOUTS = (64, 64), 1e-3, 512, 40, 4
# The model learns all the while and so does the policy: the last ten readings say what is usual, not all there were.
FOLLOWING = DetectorConfig(window=16, warmup=12, threshold=10.0, memory=0.9)
LARGEST = 25.0  # squared errors beyond five deviations say no more


class ChangeWatch:
    """Predicts the change of the observation, learns from what it sees, and rings when its errors jump.

    Remembers the model, the last few rollouts, the scale of each observation's change, and the detector's reading.
    One robot's worth of history: all worlds are taken to be in the same regime.
    """

    def __init__(
        self, normalizer: Normalizer, act_dim: int, seed: int = 0, config: DetectorConfig | None = None,
        updates: int = UPDATES,
    ):  # fmt: skip
        self.updates = updates
        self.normalizer, self.rng = normalizer, torch.Generator().manual_seed(seed)
        self.model = StackedMLP(normalizer.width + act_dim, HIDDEN, normalizer.width, generators(seed, 1), "silu")
        self.optimiser = torch.optim.Adam(self.model.parameters(), LR)
        self.detector = ShiftDetector(config or FOLLOWING)
        self.scale: Tensor | None = None
        self._past: list[tuple[Tensor, Tensor]] = []
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []  # log distance and log error of the last rollouts

    def see(self, fresh: Transitions) -> bool:
        """One rollout (1, T, W) -> whether the world has changed; then learn from it (after a change from it alone)."""
        changed = self.detector.observe(self._familiar(fresh).mean(1)) is not None
        if changed:
            self.restart()
        self.learn(fresh)
        return changed

    def restart(self) -> None:
        """The world is another one, whoever has noticed: what was seen before says nothing of it."""
        self._past, self._seen = [], []
        self.detector.restart()

    @torch.no_grad()
    def _familiar(self, fresh: Transitions) -> np.ndarray:
        """`losses`, less what comes of being where the robot has not been: a policy that moves on meets new states, and
        the model errs there in the same world. How much is regressed on distances to what was seen before."""
        losses = self.losses(fresh)
        if not self._past:
            return losses
        x, _ = self._pairs(fresh)
        past = torch.cat([inputs for inputs, _ in self._past])
        far = torch.cdist(x, past).amin(1).clamp_min(1e-6).log().numpy()
        error = np.log(losses.ravel() + 1e-12)
        slope, usual = 0.0, float(far.mean())
        if self._seen:
            d, e = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
            usual, slope = float(d.mean()), max(0.0, float(np.cov(d, e)[0, 1] / (d.var() + 1e-12)))
        self._seen = [*self._seen, (far, error)][-ROLLOUTS:]
        return np.exp(error - slope * (far - usual)).reshape(losses.shape)

    @torch.no_grad()
    def losses(self, fresh: Transitions) -> np.ndarray:
        """Squared error of each step, in deviations of the change: (1, T, W) -> (T, W)."""
        x, change = self._pairs(fresh)
        return self._errors(x, change).view(fresh.reward.shape[1:]).numpy()

    def learn(self, fresh: Transitions) -> None:
        """Fit the model to the last few rollouts, this one included."""
        self._past = [*self._past, self._pairs(fresh)][-ROLLOUTS:]
        inputs, targets = (torch.cat(parts) for parts in zip(*self._past, strict=True))
        for _ in range(self.updates):
            rows = torch.randint(len(inputs), (BATCH,), generator=self.rng)
            loss = self._errors(inputs[rows], targets[rows]).mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()

    def state_dict(self) -> dict[str, Tensor]:
        """All that is remembered, as one flat dict of tensors."""
        moments = self.optimiser.state_dict()["state"]
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"moments.{i}.{name}": value for i, each in moments.items() for name, value in each.items()}
        found |= {f"past.{i}.{j}": part for i, pair in enumerate(self._past) for j, part in enumerate(pair)}
        found |= {f"seen.{i}.{j}": torch.from_numpy(a) for i, pair in enumerate(self._seen) for j, a in enumerate(pair)}
        found |= {f"detector.{name}": torch.from_numpy(value) for name, value in self.detector.state().items()}
        found |= {} if self.scale is None else {"scale": self.scale}
        return found | {"rng": self.rng.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same shapes."""
        self.model.load_state_dict(below(state, "model."))
        moments = {i: below(state, f"moments.{i}.") for i in range(_count(state, "moments."))}
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self._past = [(state[f"past.{i}.0"], state[f"past.{i}.1"]) for i in range(_count(state, "past."))]
        pairs = [(state[f"seen.{i}.0"], state[f"seen.{i}.1"]) for i in range(_count(state, "seen."))]
        self._seen = [(far.numpy(), error.numpy()) for far, error in pairs]
        self.detector.restore({name: value.numpy() for name, value in below(state, "detector.").items()})
        self.scale = state.get("scale")
        self.rng.set_state(state["rng"].clone())

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


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many things are numbered under a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
