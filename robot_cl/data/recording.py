"""Episodes in memory: what every importer and collector produces and what the store writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from robot_cl.batch import row_width

UNKNOWN_SEED = -1
STEP_FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


@dataclass
class Recording:
    """N steps of E episodes, one episode after the other.

    obs, next_obs (N, obs_dim), action (N, act_dim) in [-1, 1], reward (N,): float32. terminated, truncated (N,): bool.
    `lengths` (E,) sum to N. `seeds` (E,) is the seed of the world the episode comes from (-1: unknown) and `ordinals`
    (E,) how many episodes that world had finished before: 0 is the one that reset(seed) starts. `complete` (E,) is
    False where the recorder stopped in the middle of an episode; by default an episode is complete if its last step
    carries a flag.

    Raises ValueError, in one sentence, for shapes that disagree, NaN or infinite values, or actions out of [-1, 1].
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ordinals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    complete: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.lengths = np.asarray(self.lengths, dtype=np.int64).reshape(-1)
        with np.errstate(over="ignore"):  # what is too large for float32 is reported below, as infinite
            for name in ("obs", "action", "reward", "next_obs"):
                setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        for name in ("terminated", "truncated"):
            setattr(self, name, _flags(name, getattr(self, name)))
        self._check_shapes()
        self._check_values()
        episodes = len(self.lengths)
        if not self.seeds.size:
            self.seeds, self.ordinals = np.full(episodes, UNKNOWN_SEED), np.zeros(episodes)
        if not self.complete.size:
            last = self.stops - 1
            self.complete = self.terminated[last] | self.truncated[last]
        kinds: dict[str, type] = {"seeds": np.int64, "ordinals": np.int64, "complete": np.bool_}
        for name, kind in kinds.items():
            column: np.ndarray = np.asarray(getattr(self, name)).astype(kind).reshape(-1)
            if len(column) != episodes:
                raise ValueError(f"{name} has {len(column)} entries, expected one for each of {episodes} episodes")
            setattr(self, name, column)

    def _check_shapes(self) -> None:
        steps = len(self.reward)
        for name in ("obs", "action", "next_obs"):
            value: np.ndarray = getattr(self, name)
            if value.ndim != 2 or len(value) != steps or not value.shape[1]:
                raise ValueError(f"{name} has shape {value.shape}, expected ({steps}, width): reward has {steps} steps")
        if self.next_obs.shape != self.obs.shape:
            raise ValueError(f"next_obs has shape {self.next_obs.shape}, expected that of obs, {self.obs.shape}")
        for name in ("reward", "terminated", "truncated"):
            if getattr(self, name).shape != (steps,):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected ({steps},)")
        if not steps or not self.lengths.size:
            raise ValueError("there is not a single transition in this data")
        if (self.lengths < 1).any() or self.lengths.sum() != steps:
            raise ValueError(f"episode lengths must be positive and sum to {steps} steps, got {self.lengths.sum()}")

    def _check_values(self) -> None:
        for name in ("obs", "action", "reward", "next_obs"):
            value: np.ndarray = getattr(self, name)
            bad = ~np.isfinite(value)
            if bad.any():
                row = int(np.argwhere(bad)[0][0])
                raise ValueError(
                    f"{name} has {int(bad.sum())} NaN or infinite values, the first at step {row}; "
                    f"remove that episode or repair the recording first"
                )
        outside = float(np.abs(self.action).max())
        if outside > 1.0:
            raise ValueError(f"actions reach {outside:.6g}, expected [-1, 1] as executed; scale or clip them first")

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def obs_dim(self) -> int:
        return int(self.obs.shape[1])

    @property
    def act_dim(self) -> int:
        return int(self.action.shape[1])

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def stops(self) -> np.ndarray:
        """(E,) index one past the last step of each episode."""
        return np.cumsum(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """(E,) index of the first step of each episode."""
        return self.stops - self.lengths

    @property
    def returns(self) -> np.ndarray:
        """(E,) undiscounted sum of rewards of each episode, float64."""
        return np.add.reduceat(self.reward.astype(np.float64), self.starts)

    def rows(self) -> np.ndarray:
        """(N, row_width) float32, packed as `Transitions.pack`."""
        packed = np.empty((len(self), row_width(self.obs_dim, self.act_dim)), dtype=np.float32)
        packed_views = split_rows(packed, self.obs_dim, self.act_dim)
        for name in STEP_FIELDS:
            packed_views[name][...] = getattr(self, name)
        return packed

    def take(self, episodes: np.ndarray) -> Recording:
        """The chosen episodes (indices), in the order given."""
        starts, stops = self.starts, self.stops
        rows = np.concatenate([np.arange(starts[e], stops[e]) for e in episodes])
        steps = {name: getattr(self, name)[rows] for name in STEP_FIELDS}
        return Recording(
            **steps,
            lengths=self.lengths[episodes],
            seeds=self.seeds[episodes],
            ordinals=self.ordinals[episodes],
            complete=self.complete[episodes],
        )

    @staticmethod
    def cat(parts: Sequence[Recording]) -> Recording:
        """One recording after the other."""
        return Recording(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Recording)})


def split_rows(rows: np.ndarray, obs_dim: int, act_dim: int) -> dict[str, np.ndarray]:
    """Views of packed rows (N, row_width) by field name."""
    action, reward, next_obs = obs_dim, obs_dim + act_dim, obs_dim + act_dim + 1
    return {
        "obs": rows[:, :obs_dim],
        "action": rows[:, action:reward],
        "reward": rows[:, reward],
        "next_obs": rows[:, next_obs:-2],
        "terminated": rows[:, -2],
        "truncated": rows[:, -1],
    }


def _flags(name: str, value: np.ndarray) -> np.ndarray:
    raw = np.asarray(value)
    if raw.dtype != np.bool_ and not np.isin(raw, (0, 1)).all():
        raise ValueError(f"{name} must hold only 0 and 1, found {raw[~np.isin(raw, (0, 1))][0]!r}")
    return raw.astype(np.bool_)
