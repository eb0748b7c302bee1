"""Novelty scores: how unlike the calibration data a moment is, from observations and actions alone, in numpy.

A score works on B rollouts side by side: `begin(B)` forgets, `step(obs, action)` gives (B,), larger is stranger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

TINY = 1e-9


@dataclass
class Rollouts:
    """n rollouts of T steps: obs (n, T, obs_dim), and action (n, T, act_dim) taken in each."""

    obs: np.ndarray
    action: np.ndarray

    def __post_init__(self) -> None:
        if self.obs.ndim != 3 or self.action.shape[:2] != self.obs.shape[:2]:
            shapes = f"{self.obs.shape} and {self.action.shape}"
            raise ValueError(f"rollouts need obs (n, T, obs_dim) and action (n, T, act_dim), got {shapes}")
        if not (np.isfinite(self.obs).all() and np.isfinite(self.action).all()):
            raise ValueError("rollouts hold NaN or infinite numbers; they cannot calibrate a guard")

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, rows: Any) -> Rollouts:
        return Rollouts(self.obs[rows], self.action[rows])


class Score(Protocol):
    """`to_dict` and the class's `from_dict` carry it as plain JSON data."""

    def begin(self, rows: int) -> None: ...

    def step(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray: ...

    def to_dict(self) -> dict[str, Any]: ...


class Mahalanobis:
    """log of the squared Mahalanobis distance of [obs, action] to the calibration data. Remembers nothing."""

    kind = "mahalanobis"

    def __init__(self, mean: np.ndarray, whiten: np.ndarray):
        self.mean, self.whiten = mean, whiten

    @classmethod
    def fit(cls, data: Rollouts, rng: np.random.Generator) -> Mahalanobis:
        rows = np.concatenate([data.obs, data.action], -1).reshape(-1, data.obs.shape[-1] + data.action.shape[-1])
        mean = rows.mean(0)
        return cls(mean, _whitener(rows - mean))

    def begin(self, rows: int) -> None:
        pass

    def step(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        z = (np.concatenate([obs, action], -1) - self.mean) @ self.whiten
        return np.log((z**2).mean(-1) + TINY)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "whiten": self.whiten.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mahalanobis:
        mean, whiten = _arrays(data, ("mean", "whiten"))
        width = mean.size
        _check_shapes(cls.kind, (mean, (width,)), (whiten, (width, width)))
        return cls(mean, whiten)


class Surprise:
    """How badly the last step was foretold: log of the whitened squared residual of a one-step model, averaged over the
    last `memory` steps (exponentially), because a changed robot errs a little all the time.

    The model is ridge regression of the change of observation on [1, obs, action, random tanh features]. Remembers the
    last observation and action of each row and the running average.
    """

    kind = "surprise"
    FEATURES, RIDGE, MEMORY = 128, 1e-3, 10

    def __init__(
        self, centre: np.ndarray, scale: np.ndarray, random: np.ndarray, weight: np.ndarray, whiten: np.ndarray
    ):
        self.centre, self.scale, self.random, self.weight, self.whiten = centre, scale, random, weight, whiten
        self.begin(1)

    @classmethod
    def fit(cls, data: Rollouts, rng: np.random.Generator) -> Surprise:
        width = data.obs.shape[-1] + data.action.shape[-1]
        inputs = np.concatenate([data.obs, data.action], -1)[:, :-1].reshape(-1, width)
        change = (data.obs[:, 1:] - data.obs[:, :-1]).reshape(len(inputs), -1)
        centre, scale = inputs.mean(0), inputs.std(0) + 1e-6
        random = rng.standard_normal((inputs.shape[1] + 1, cls.FEATURES)) / np.sqrt(inputs.shape[1])
        blank = np.zeros((inputs.shape[1] + 1 + cls.FEATURES, change.shape[1]))
        model = cls(centre, scale, random, blank, np.eye(change.shape[1]))
        phi = model._features(inputs)
        gram = phi.T @ phi + cls.RIDGE * len(phi) * np.eye(phi.shape[1])
        model.weight = np.linalg.solve(gram, phi.T @ change)
        model.whiten = _whitener(change - phi @ model.weight)
        return model

    def begin(self, rows: int) -> None:
        self._last: np.ndarray | None = None
        self._obs = np.zeros(0)
        self._average = np.zeros(rows)
        self._count = 0

    def step(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        if self._last is not None:
            residual = (obs - self._obs - self._features(self._last) @ self.weight) @ self.whiten
            squared = np.minimum((residual**2).mean(-1), 1e12)
            self._count += 1
            share = max(1.0 / self._count, 1.0 / self.MEMORY)
            self._average = (1 - share) * self._average + share * np.log(squared + TINY)
        self._obs, self._last = obs, np.concatenate([obs, action], -1)
        return self._average.copy()

    def taken(self, action: np.ndarray) -> None:
        """What was really done in the last step (B, act_dim), where it differs from what was announced."""
        if self._last is not None:
            self._last[:, -action.shape[-1] :] = action

    def to_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k).tolist() for k in ("centre", "scale", "random", "weight", "whiten")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Surprise:
        centre, scale, random, weight, whiten = _arrays(data, ("centre", "scale", "random", "weight", "whiten"))
        width, features, changes = centre.size, random.shape[-1], whiten.shape[-1]
        _check_shapes(
            cls.kind, (centre, (width,)), (scale, (width,)), (random, (width + 1, features)),
            (weight, (width + 1 + features, changes)), (whiten, (changes, changes)),
        )  # fmt: skip
        return cls(centre, scale, random, weight, whiten)

    def _features(self, inputs: np.ndarray) -> np.ndarray:
        z = np.clip((inputs - self.centre) / self.scale, -10.0, 10.0)
        one = np.ones((len(z), 1))
        return np.concatenate([one, z, np.tanh(np.concatenate([one, z], -1) @ self.random)], -1)


SCORES: dict[str, Any] = {Surprise.kind: Surprise, Mahalanobis.kind: Mahalanobis}


def _whitener(centred: np.ndarray) -> np.ndarray:
    """W (d, d) with (x W) of unit covariance; directions without variance are damped, not blown up."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    floor = 1e-6 * values.max() + 1e-12
    return vectors / np.sqrt(np.maximum(values, floor))


def _arrays(data: Mapping[str, Any], names: tuple[str, ...]) -> list[np.ndarray]:
    """Arrays of at least one axis from plain data. Raises ValueError for one that is not finite, KeyError."""
    found = [np.atleast_1d(np.array(data[name], dtype=np.float64)) for name in names]
    for name, array in zip(names, found, strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    return found


def _check_shapes(kind: str, *pairs: tuple[np.ndarray, tuple[int, ...]]) -> None:
    """Raises ValueError unless each array has the shape beside it."""
    if any(array.shape != shape for array, shape in pairs):
        raise ValueError(f"the arrays of its score {kind!r} do not fit each other: {[a.shape for a, _ in pairs]}")
