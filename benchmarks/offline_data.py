"""Datasets of the offline benchmarks: mixtures of behaviours, and an expert's share from none to all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from common import ROOT

from robot_cl.data.behaviours import list_behaviours, load_behaviour
from robot_cl.data.collect import Part, collect, random_part
from robot_cl.data.store import StoredDataset, open_dataset

SHARED = ROOT.parent / "shared" / "data" / "behaviours"
KEPT = Path(os.environ.get("ROBOT_CL_BENCHMARKS", ROOT / "runs" / "benchmarks")) / "offline_online"


@dataclass(frozen=True)
class Mixture:
    """Behaviours (file stem or random, noise; None: its own distribution) of one dataset, in `shares` or equal ones."""

    task: str
    parts: tuple[tuple[str, float | None], ...]
    shares: tuple[float, ...] = ()
    online: bool = True  # whether methods go on online from it
    steps: int = 200_000


DATASETS = {
    "halfcheetah-ppo": Mixture("halfcheetah", (("halfcheetah-ppo", 0.1),)),
    "halfcheetah-mixture": Mixture(
        "halfcheetah", (("halfcheetah-a2c", None), ("halfcheetah-ppo", None), ("halfcheetah-sac", None))
    ),
    "halfcheetah-ppo-noisy": Mixture(
        "halfcheetah", tuple(("halfcheetah-ppo", noise) for noise in (0.4, 0.2, 0.1, 0.0)), online=False
    ),
    "hopper-mixture": Mixture("hopper", (("hopper-sac", None), ("hopper-tqc", None))),
}

# On which options are chosen; no row of the table.
DEVELOPMENT = {
    "halfcheetah-ars": Mixture("halfcheetah", (("halfcheetah-ars", 0.1),)),
    "halfcheetah-three": Mixture(
        "halfcheetah", (("halfcheetah-ars", 0.1), ("halfcheetah-trpo", None), ("halfcheetah-tqc", None))
    ),
    "halfcheetah-tqc": Mixture("halfcheetah", (("halfcheetah-tqc", 0.1),)),
    "halfcheetah-trpo": Mixture("halfcheetah", (("halfcheetah-trpo", 0.1),)),
    "halfcheetah-trpo-noisy": Mixture(
        "halfcheetah", tuple(("halfcheetah-trpo", noise) for noise in (0.4, 0.2, 0.1, 0.0))
    ),
    "hopper-pair": Mixture("hopper", (("hopper-a2c", None), ("hopper-trpo", None))),
    "hopper-ppo": Mixture("hopper", (("hopper-ppo", 0.1),)),
}

EXPERTS = {"halfcheetah": "halfcheetah-tqc", "hopper": "hopper-tqc"}
FRACTIONS = (0, 10, 50, 90, 100)


def _fraction(task: str, percent: int) -> Mixture:
    """Expert and uniformly random actions, `percent` of the transitions from the expert."""
    both = ((EXPERTS[task], None), percent), (("random", None), 100 - percent)
    parts, shares = zip(*(pair for pair in both if pair[1]), strict=True)
    return Mixture(task, parts, shares, steps=100_000)


SWEEP = {f"{task}-expert-{percent}": _fraction(task, percent) for task in EXPERTS for percent in FRACTIONS}


def stored_at(name: str, steps: int | None = None) -> Path:
    length = steps or (DATASETS | DEVELOPMENT | SWEEP)[name].steps
    return KEPT / "datasets" / f"{name}-{length // 1000}k-v0"


def dataset(name: str, steps: int | None = None) -> StoredDataset:
    """Opens or makes a dataset; the same arguments give the same transitions, bit for bit."""
    mixture, path = (DATASETS | DEVELOPMENT | SWEEP)[name], stored_at(name, steps)
    root, stored = path.parent, path.name
    if (path / "meta.json").exists():
        return open_dataset(stored, root)
    shares = mixture.shares or (1.0,) * len(mixture.parts)
    parts = [_part(mixture.task, *part, share) for part, share in zip(mixture.parts, shares, strict=True)]
    print(f"collecting {stored}", flush=True)
    return collect(mixture.task, parts, steps or mixture.steps, stored, seed=7, root=root)


def _part(task: str, stem: str, noise: float | None, share: float) -> Part:
    if stem == "random":
        return random_part(task, share)
    if (SHARED / f"{stem}.npz").exists():
        policy = load_behaviour(SHARED / f"{stem}.npz")
    else:
        policy = load_behaviour(next(n for n in list_behaviours() if n.startswith(task)))
    return Part(policy, noise or 0.0, share, stochastic=noise is None and policy.stochastic)
