"""Does the conformal guard keep its promise, and does it see a robot fail? Hopper and half-cheetah with their experts.

Calibrated on 100 rollouts of 200 steps for 10 % false alarms. Fresh good rollouts give the rate it really has,
averaged over calibrations that share no rollout (one of n rollouts is off by about sqrt(α(1−α)/(n/2)) by chance). Then
a fault is planted at step 100: friction drops, a payload is hung on, a motor dies. A rollout failed if it fell, or if
its return after the fault is below all but one in a hundred of the good ones'; a fault after which hardly any fails is
harmless to this robot and proves nothing. A failure is caught if the alarm comes after the fault and before the fall.
A threshold per time step with the same rate, beside it, shows why the maximum over time is taken.

    python benchmarks/guard.py --quick
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import Claim, arguments, report, table  # noqa: E402

import sim  # noqa: E402
from robot_cl.deploy.bundle import PolicyBundle  # noqa: E402
from robot_cl.deploy.guard import ConformalGuard, GuardConfig, calibrate, run_guard  # noqa: E402
from robot_cl.deploy.novelty import Rollouts  # noqa: E402
from robot_cl.export import export  # noqa: E402

ALPHA, STEPS, ONSET, CALIBRATION = 0.1, 200, 100, 100
HARMLESS = 0.05  # share of failures below which a fault is none: one in a hundred fails by definition
# As strong as it takes for this robot to fail; the half-cheetah runs on with any friction.
FAULTS = {
    "hopper": {"friction drop": "friction0.15", "payload": "payload20", "dead motor": "gain.foot_joint=0"},
    "halfcheetah": {"friction drop": "friction0.15", "payload": "payload4", "dead motor": "gain.bthigh=0"},
}
BATCH = 100


@dataclass
class Played:
    """Rollouts with their rewards (n, T) and how many steps each lasted (n,)."""

    rollouts: Rollouts
    reward: np.ndarray
    length: np.ndarray

    def keep(self, rows: np.ndarray) -> Played:
        return Played(self.rollouts[rows], self.reward[rows], self.length[rows])


def play(policy: Any, task: str, count: int, seed: int, shift: str | None = None) -> Played:
    """`count` rollouts of STEPS steps; after an end the rows go on with the next episode and do not count."""
    parts = []
    for first in range(0, count, BATCH):
        rows = min(BATCH, count - first)
        world = sim.make(task, num_worlds=rows, seed=seed + first, shift=shift)
        parts.append(_play(policy, world, seed + first))
    joined = [np.concatenate([getattr(p.rollouts, name) for p in parts]) for name in ("obs", "action")]
    rewards, lengths = (np.concatenate([getattr(p, name) for p in parts]) for name in ("reward", "length"))
    return Played(Rollouts(*joined), rewards, lengths)


def _play(policy: Any, world: Any, seed: int) -> Played:
    obs, length = world.reset(seed), np.full(world.num_worlds, STEPS)
    over, seen, done, rewards = np.zeros(world.num_worlds, dtype=bool), [], [], []
    for t in range(STEPS):
        action = np.clip(policy.act(obs.astype(np.float32)), -1, 1).astype(np.float64)
        seen.append(obs.copy())
        done.append(action)
        obs, reward, terminated, truncated, _ = world.step(action)
        rewards.append(np.where(over, 0.0, reward))
        ended = (terminated | truncated) & ~over
        length[ended], over = t + 1, over | ended
    return Played(Rollouts(np.stack(seen, 1), np.stack(done, 1)), np.stack(rewards, 1), length)


def good(policy: Any, task: str, count: int, seed: int) -> Played:
    """Rollouts on the healthy robot that did not end early."""
    played = play(policy, task, int(count * 1.1) + 10, seed)
    found = played.keep(np.flatnonzero(played.length == STEPS)[:count])
    if len(found.length) < count:
        raise RuntimeError(f"the policy on {task} falls too often to calibrate on: {len(found.length)} of {count}")
    return found


def first_alarm(novelty: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    """(n,) step of the first crossing, STEPS where there is none."""
    crossed = novelty > limit
    return np.where(crossed.any(1), crossed.argmax(1), STEPS)


def pointwise(guard: ConformalGuard, data: Rollouts) -> np.ndarray:
    """(T,) the 1 − α quantile of each time step: the threshold that forgets how many steps there are."""
    return np.quantile(run_guard(guard, data), 1 - ALPHA, axis=0)


def failed(played: Played, worst_good: float) -> np.ndarray:
    return (played.length < STEPS) | (played.reward[:, ONSET:].sum(1) < worst_good)


def measure(
    task: str, quick: bool, folder: Path, first_seed: int
) -> tuple[list[list[Any]], list[Claim], dict[str, Any]]:
    report_ = export(f"{task}-expert", folder / task, task=task)
    policy = PolicyBundle.load(report_.folder)
    calibrations = 4 if quick else 24
    pool = good(policy, task, calibrations * CALIBRATION, first_seed)
    fresh = good(policy, task, 400 if quick else 1500, first_seed + 1_000_000)
    worst = float(np.quantile(fresh.reward[:, ONSET:].sum(1), 0.01))
    planted = {
        name: play(policy, task, 100 if quick else 300, first_seed + 2_000_000, f"{shift}@{ONSET}")
        for name, shift in FAULTS[task].items()
    }
    sums: dict[str, list[list[float]]] = {name: [] for name in ("good", *planted)}
    leads: dict[str, list[float]] = {name: [] for name in planted}
    for seed in range(calibrations):
        rows = np.arange(seed * CALIBRATION, (seed + 1) * CALIBRATION)
        guard = calibrate(pool.rollouts[rows], GuardConfig(ALPHA), first_seed + seed)
        limits = pointwise(guard, pool.rollouts[rows[CALIBRATION // 2 :]])
        novelty = run_guard(guard, fresh.rollouts)
        sums["good"].append([float((first_alarm(novelty, x) < STEPS).mean()) for x in (guard.threshold, limits)])
        for name, played in planted.items():
            bad = played.keep(failed(played, worst))
            if len(bad.length) < HARMLESS * len(played.length):
                continue
            novelty = run_guard(guard, bad.rollouts)
            alarms = [first_alarm(novelty, x) for x in (guard.threshold, limits)]
            caught = [(a >= ONSET) & (a < bad.length) for a in alarms]
            sums[name].append([float(c.mean()) for c in caught])
            leads[name] += (bad.length - alarms[0])[caught[0]].tolist()
    return _summary(task, sums, leads, planted, worst, policy.contract.control_dt)


def _summary(
    task: str, sums: dict[str, list[list[float]]], leads: dict[str, list[float]], planted: dict[str, Played],
    worst: float, dt: float,
) -> tuple[list[list[Any]], list[Claim], dict[str, Any]]:  # fmt: skip
    rate, point = np.mean(sums["good"], axis=0)
    spread = float(np.std([s[0] for s in sums["good"]]))
    rows: list[list[Any]] = [[task, "good", "-", f"{rate:.3f} ± {spread:.3f} alarms", f"{point:.3f}", "-", "-"]]
    claims = [Claim(f"{task}: distance of the false-alarm rate from {ALPHA:g}", float(abs(rate - ALPHA)), 0.03, False)]
    for name, played in planted.items():
        share = float(failed(played, worst).mean())
        if not sums[name]:
            rows.append([task, name, f"{share:.2f}", "harmless", "-", "-", "-"])
            continue
        caught, by_point = np.mean(sums[name], axis=0)
        lead = np.array(leads[name]) * dt if leads[name] else np.array([np.nan])
        ends = "before the fall" if (played.length < STEPS).any() else "before the rollout ends"
        rows.append([task, name, f"{share:.2f}", f"{caught:.3f} caught", f"{by_point:.3f}",
                     f"{np.median(lead):.2f} s {ends}", f"{np.percentile(lead, 10):.2f} s"])  # fmt: skip
        claims.append(Claim(f"{task}: failures caught after a {name}", float(caught), 0.8))
    return rows, claims, {"rate": float(rate), "pointwise_rate": float(point), "spread_over_calibrations": spread,
                          "calibrations": len(sums["good"]), "rows": rows}  # fmt: skip


def main() -> None:
    extra = [
        ("--seed", {"type": int, "default": 0, "help": "first of all seeds: other rollouts, other calibrations"}),
        ("--tasks", {"nargs": "*", "choices": list(FAULTS), "default": list(FAULTS), "help": "these alone"}),
    ]
    args = arguments(__doc__ or "", extra)
    rows, claims, details = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for task in args.tasks:
            more, proven, detail = measure(task, args.quick, Path(folder), args.seed)
            rows, claims, details[task] = rows + more, claims + proven, detail
    head = ("task", "fault at step 100", "share that fails", "maximum over time", "per time step", "median lead",
            "10 % lead")  # fmt: skip
    print(table(head, rows))
    report("guard", claims, args.json, details)


if __name__ == "__main__":
    main()
