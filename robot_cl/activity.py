"""Which skill is active when: the coefficients of a composed policy along a filmed episode, beside the film."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.evaluate import Film, open_worlds
from robot_cl.plain_files import write_whole

SUFFIX = ".activity.json"


@dataclass(frozen=True)
class Activity:
    """Coefficients `values` (T, K) of `skills` every `dt` seconds of simulated time, layers averaged."""

    skills: list[str]
    dt: float
    values: list[list[float]]


def activity(policy: Any, film: Film) -> Activity | None:
    """Play the filmed episode again, which is the same to the last bit, and note what is mixed at each control step.

    None for a policy that is no composition, or one whose coefficients are computed inside each layer.
    """
    if not hasattr(policy, "coefficients") or not hasattr(policy, "mixture"):
        return None
    world = open_worlds(film.task, 1, shift=film.shift)
    obs = world.reset(seed=film.seed)
    policy.reset()
    rows: list[list[float]] = []
    for _ in range(round(len(film.qpos) * film.dt / world.interface.control_dt)):
        row = _coefficients(policy, obs)
        if row is None:
            return None
        rows.append(row)
        obs, _, terminated, truncated, _ = world.step(policy.act(obs.astype(np.float32)))
        if terminated[0] or truncated[0]:
            break
    return Activity(list(policy.mixture.names), world.interface.control_dt, rows)


def _coefficients(policy: Any, obs: np.ndarray) -> list[float] | None:
    import torch

    with torch.inference_mode():
        found = policy.coefficients(torch.as_tensor(obs, dtype=torch.float32))
    if not isinstance(found, torch.Tensor):
        return None
    per_skill = found if found.dim() == 2 else found.flatten(2).mean(2)  # (B or 1, K)
    return [round(float(c), 4) for c in per_skill[0]]


def write_activity(found: Activity, film: Path) -> Path:
    """Beside the film, whole or not at all."""
    path = film.with_suffix(SUFFIX)
    write_whole(path, json.dumps(asdict(found), indent=1, allow_nan=False) + "\n")
    return path


def read_activity(film: Path) -> Activity | None:
    """What lies beside a film; None where there is nothing, or nothing that can be drawn."""
    path = film.with_suffix(SUFFIX)
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = Activity([str(s) for s in data["skills"]], float(data["dt"]), data["values"])
        values = np.array(found.values, dtype=np.float64)
    except (ValueError, KeyError, TypeError):
        return None
    fits = values.ndim == 2 and values.size and values.shape[1] == len(found.skills) and np.isfinite(values).all()
    return found if fits else None
