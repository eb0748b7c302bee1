"""When not to trust the policy: a conformal guard with a stated false-alarm rate per rollout.

Half of the calibration rollouts give mean μ_t and deviation σ_t of each novelty score per time step, the other half one
number per rollout, max_t (s_t − μ_t)/σ_t. The threshold is the ⌈(n+1)(1−α)⌉-th smallest of these n: a new rollout like
them crosses it with probability at most α, whatever the scores' distribution (split conformal prediction; Vovk et al.
2005). A threshold per time step instead would alarm on nearly every long rollout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.deploy.bundle import read_plain
from robot_cl.deploy.novelty import SCORES, Rollouts, Score
from robot_cl.deploy.receipt import GUARD_FILE

Progress = Callable[[float, float, str], None]  # (done, total, note)
FORMAT, MAX_GUARD_BYTES = 1, 32 * 2**20
SHRINK = 10  # pseudo-rollouts of the pooled deviation mixed into each time step's


@dataclass
class GuardConfig:
    """False-alarm rate per rollout, which scores, and how many of them must agree. `promised` is the rate that was
    asked for, where `alpha` has moved from it with what deployments told; none: alpha itself."""

    alpha: float = 0.1
    scores: tuple[str, ...] = ("surprise",)
    agree: int = 1
    promised: float | None = None

    def __post_init__(self) -> None:
        unknown = [s for s in self.scores if s not in SCORES]
        if not (0 < self.alpha < 1 and 0 < self.target < 1) or unknown or not 1 <= self.agree <= len(self.scores):
            raise ValueError(
                f"a guard needs 0 < alpha < 1, scores among {', '.join(SCORES)} and agree between 1 and their number"
            )

    @property
    def target(self) -> float:
        return self.alpha if self.promised is None else self.promised


def threshold(maxima: np.ndarray, alpha: float) -> float:
    """The ⌈(n+1)(1−α)⌉-th smallest of n calibration maxima. Raises ValueError saying how many are needed."""
    n = len(maxima)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    if rank > n:
        needed = 2 * math.ceil(1 / alpha - 1 - 1e-9)
        raise ValueError(
            f"{2 * n} calibration rollouts cannot promise a false-alarm rate of {alpha:g}; at least {needed} are needed"
        )
    return float(np.sort(maxima)[max(rank, 1) - 1])


def adapted(alpha: float, target: float, alarmed: bool, rate: float = 0.02) -> float:
    """α for the next deployment: α + η (target − err), err 1 after a false alarm (Gibbs & Candès 2021), in (0, 1)."""
    return min(max(alpha + rate * (target - float(alarmed)), 1e-3), 1.0 - 1e-3)


class ConformalGuard:
    """Implements `modes.Guard`. Remembers the time since `reset` and what its scores remember.

    mean, std (S, T) of each score per step (the last ones hold beyond T); maxima (n,) of the second half.
    """

    def __init__(self, scores: list[Score], mean: np.ndarray, std: np.ndarray, maxima: np.ndarray, config: GuardConfig):
        fits = mean.ndim == 2 and mean.shape == std.shape and len(mean) == len(scores) and mean.shape[1] > 0
        if not fits or not (std > 0).all():
            raise ValueError(f"the guard's statistics {mean.shape}, {std.shape} do not fit its {len(scores)} scores")
        if not all(np.isfinite(x).all() for x in (mean, std, maxima)):
            raise ValueError("the guard's statistics are not finite; calibrate it again")
        self.scores, self.mean, self.std, self.maxima, self.config = scores, mean, std, maxima, config
        self.threshold = threshold(maxima, config.alpha)
        self.reset()

    @property
    def horizon(self) -> int:
        """Steps of a calibration rollout: the false-alarm rate is promised for so many."""
        return self.mean.shape[1]

    def reset(self) -> None:
        self.begin(1)

    def begin(self, rows: int) -> None:
        """Start B rollouts side by side."""
        self._time = 0
        for score in self.scores:
            score.begin(rows)

    def step(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """obs (B, obs_dim), action (B, act_dim) -> (B,) standardised novelty, compared with `threshold`."""
        at = min(self._time, self.horizon - 1)
        self._time += 1
        raw = np.stack([score.step(obs, action) for score in self.scores])
        standard = (raw - self.mean[:, at, None]) / self.std[:, at, None]
        return np.sort(standard, axis=0)[-self.config.agree]

    def alarm(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> bool:
        """Whether this moment crosses the threshold; `taken` is what was really done before it."""
        if taken is not None:
            for score in self.scores:
                if hasattr(score, "taken"):
                    score.taken(taken[None])
        novelty = self.step(obs.astype(np.float64), action[None].astype(np.float64))[0]
        return not novelty <= self.threshold  # a novelty that is no number is no reason to drive on

    def after(self, false_alarm: bool) -> ConformalGuard:
        """The guard for the next deployment, after one on a healthy robot: its rate of false alarms follows drift, but
        never below what as many rollouts can promise."""
        c = self.config
        alpha = max(adapted(c.alpha, c.target, false_alarm), 1.0 / (len(self.maxima) + 1))
        return ConformalGuard(self.scores, self.mean, self.std, self.maxima, replace(c, alpha=alpha, promised=c.target))

    def save(self, folder: Path | str) -> Path:
        """Write guard.json into a bundle."""
        data = {
            "format": FORMAT, "alpha": self.config.alpha, "promised": self.config.target, "agree": self.config.agree,
            "scores": [{"kind": k, **s.to_dict()} for k, s in zip(self.config.scores, self.scores, strict=True)],
            "mean": self.mean.tolist(), "std": self.std.tolist(), "maxima": self.maxima.tolist(),
        }  # fmt: skip
        path = Path(folder) / GUARD_FILE
        part = path.with_name(f".{GUARD_FILE}.part")
        part.write_text(json.dumps(data))
        part.replace(path)
        return path


def load_guard(folder: Path | str) -> ConformalGuard:
    """The guard of a bundle. Raises OSError or ValueError with one sentence."""
    try:
        data = json.loads(read_plain(Path(folder), GUARD_FILE, MAX_GUARD_BYTES))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']}")
        kinds = tuple(row["kind"] for row in data["scores"])
        alpha = float(data["alpha"])
        config = GuardConfig(alpha, kinds, int(data["agree"]), float(data.get("promised", alpha)))
        scores = [SCORES[row["kind"]].from_dict(row) for row in data["scores"]]
        mean, std, maxima = (np.array(data[k], dtype=np.float64) for k in ("mean", "std", "maxima"))
        return ConformalGuard(scores, mean, std, maxima, config)
    except (KeyError, TypeError, OverflowError, ValueError) as problem:
        raise ValueError(f"{folder}/{GUARD_FILE} is no usable guard ({problem}); calibrate it again") from None


def guard_of(folder: Path | str) -> ConformalGuard | None:
    """The guard that was calibrated for a bundle, None if there is none. Raises OSError or ValueError if damaged."""
    return load_guard(folder) if (Path(folder) / GUARD_FILE).exists() else None


def calibrate(data: Rollouts, config: GuardConfig | None = None, seed: int = 0) -> ConformalGuard:
    """A guard from rollouts of the bundle on a healthy robot. Raises ValueError with too few of them."""
    config = config or GuardConfig()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    half = len(data) // 2
    threshold(np.zeros(half), config.alpha)  # refuse before any work is done
    if half < 2 or data.obs.shape[1] < 2:
        raise ValueError(
            f"{len(data)} rollouts of {data.obs.shape[1]} steps show no deviation; 4 rollouts of 2 steps are the least"
        )
    first, second = data[order[:half]], data[order[half : 2 * half]]
    scores = [SCORES[kind].fit(first, rng) for kind in config.scores]
    raw = np.stack([run_score(score, first) for score in scores])  # (S, n, T)
    mean, std = raw.mean(1), raw.std(1, ddof=1)
    pooled = np.sqrt((std**2).mean(1, keepdims=True))
    std = np.sqrt((half * std**2 + SHRINK * pooled**2) / (half + SHRINK)) + 1e-12
    guard = ConformalGuard(scores, mean, std, np.zeros(half), config)
    maxima = run_guard(guard, second).max(1)
    return ConformalGuard(scores, mean, std, maxima, config)


def calibrate_bundle(
    folder: Path | str, task: str | None = None, rollouts: int = 100, steps: int = 200,
    config: GuardConfig | None = None, seed: int = 0, progress: Progress | None = None, shift: str | None = None,
) -> ConformalGuard:  # fmt: skip
    """Play the bundle in its world, changed by `shift`, calibrate a guard on it and put guard.json into the bundle.

    A rehearsal made before counts no more, because the bundle then acts otherwise. Raises LookupError if no world is
    named, ValueError with too few rollouts or steps.
    """
    from robot_cl.deploy.bundle import PolicyBundle

    bundle = PolicyBundle.load(folder)
    task = task or bundle.contract.task
    if not task:
        raise LookupError(f"{folder} does not name the world it was trained in; say task=NAME")
    if rollouts < 1 or steps < 2:
        raise ValueError(f"a guard needs rollouts of at least 2 steps, got {rollouts} of {steps}")
    guard = calibrate(collect(bundle, task, rollouts, steps, seed, shift, progress), config, seed)
    guard.save(folder)
    return guard


def run_score(score: Score, data: Rollouts) -> np.ndarray:
    """(n, T) raw scores of rollouts."""
    score.begin(len(data))
    return np.stack([score.step(data.obs[:, t], data.action[:, t]) for t in range(data.obs.shape[1])], 1)


def run_guard(guard: ConformalGuard, data: Rollouts) -> np.ndarray:
    """(n, T) standardised novelty of rollouts."""
    guard.begin(len(data))
    return np.stack([guard.step(data.obs[:, t], data.action[:, t]) for t in range(data.obs.shape[1])], 1)


def collect(
    policy: Any, task: str, count: int, steps: int, seed: int = 0, shift: str | None = None,
    progress: Progress | None = None,
) -> Rollouts:  # fmt: skip
    """`count` rollouts of `steps` steps that did not end before. Raises ValueError if too many ended early."""
    import sim

    world = sim.make(task, num_worlds=count, seed=seed, shift=shift)
    kept: list[Rollouts] = []
    for attempt in range(4):
        found = play(policy, world, steps, seed + attempt * count, progress)
        kept.append(found[0][found[1] >= steps])
        if sum(map(len, kept)) >= count:
            break
    obs, action = (np.concatenate([getattr(k, name) for k in kept])[:count] for name in ("obs", "action"))
    if len(obs) < count:
        raise ValueError(
            f"only {len(obs)} of {4 * count} rollouts on {task} lasted {steps} steps; shorten them or train further"
        )
    return Rollouts(obs, action)


def play(
    policy: Any, world: Any, steps: int, seed: int, progress: Progress | None = None
) -> tuple[Rollouts, np.ndarray]:
    """One rollout in each world of `world`, and how many steps each lasted (n,) before it ended."""
    obs, lengths = world.reset(seed), np.full(world.num_worlds, steps)
    seen, done, over = [], [], np.zeros(world.num_worlds, dtype=bool)
    policy.reset()
    for t in range(steps):
        action = np.clip(policy.act(obs.astype(np.float32)), -1.0, 1.0).astype(np.float64)
        seen.append(obs.copy())
        done.append(action)
        obs, _, terminated, truncated, _ = world.step(action)
        ended = (terminated | truncated) & ~over
        lengths[ended], over = t + 1, over | ended
        if progress is not None:
            progress(t + 1, steps, f"{int(over.sum())} of {len(over)} ended")
    return Rollouts(np.stack(seen, 1), np.stack(done, 1)), lengths
