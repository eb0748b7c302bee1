"""Options of the dynamics model that a model-based learner trains on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from dynamics.ensemble import EnsembleConfig


class ModelLoss(StrEnum):
    """What the model is fitted to: value gradients, likelihood, squared error, or the value's difference."""

    vagram = "vagram"
    nll = "nll"
    mse = "mse"
    normalised_mse = "normalised_mse"
    value_difference = "value_difference"


@dataclass
class Ramp:
    """A number that goes from `begin` to `end` while the environment steps go from `start` to `stop`."""

    begin: float  # value before `start`
    end: float  # value from `stop` on
    start: int = 0  # environment steps
    stop: int = 1  # environment steps

    def __call__(self, step: float) -> float:
        part = (step - self.start) / max(1, self.stop - self.start)
        return self.begin + (self.end - self.begin) * min(1.0, max(0.0, part))


@dataclass
class ModelConfig:
    """The dynamics model of MBPO, how it is fitted and what is imagined with it."""

    loss: ModelLoss = ModelLoss.vagram  # vagram, nll, mse, normalised_mse or value_difference
    ensemble: EnsembleConfig = field(default_factory=lambda: EnsembleConfig(5, 3, (128, 128, 128)))  # its networks
    every: int = 250  # environment steps (offline: updates) between two retrainings
    first: int = 500  # gradient steps of the first training
    steps: int = 250  # gradient steps of each retraining
    batch: int = 256  # transitions per network and gradient step
    rows: int = 50_000  # transitions a retraining works on, drawn anew, at most
    lr: float = 1e-3  # Adam's learning rate; its moments persist
    decay: float = 5e-5  # L2 penalty of weights and biases
    floor: float = 1e-3  # share of normalised error that value-gradient weights never fall below
    plain: int = 1000  # updates during which losses of values get normalised error added
    rollouts: float = 40.0  # imagined rollouts per environment step (offline: per update)
    horizon: Ramp = field(default_factory=lambda: Ramp(1.0, 1.0))  # steps of each rollout
    keep: int = 50_000  # imagined transitions kept per seed
    margin: float = 0.1  # share of the data's range by which imagined states may leave it
    end_steps: int = 50  # gradient steps of the model of where episodes end, per retraining

    def __post_init__(self) -> None:
        least = ("every", "first", "steps", "batch", "rows", "keep")
        low = [name for name in least if getattr(self, name) < 1]
        if low or self.lr <= 0.0 or self.rollouts <= 0.0 or min(self.floor, self.decay, self.margin) < 0.0:
            raise ValueError(f"model.{low[0] if low else 'lr, rollouts, floor, decay or margin'} is out of range")
        if min(self.horizon.begin, self.horizon.end) < 1.0:
            raise ValueError(f"model.horizon goes from {self.horizon.begin} to {self.horizon.end}; at least 1 expected")
        # Everything but the loss stays equal; only likelihood needs predicted variances.
        self.ensemble = replace(self.ensemble, gaussian=self.loss is ModelLoss.nll)
