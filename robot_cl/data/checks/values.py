"""The numbers themselves."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from robot_cl.data.checks.subject import Finding, Subject

_MIN_ROWS_FOR_FIT = 500
_SPARSE_SHARE = 0.95
_NO_CORRELATION = 0.02
_RIDGE = 1e-3


def nan_or_inf(subject: Subject) -> Finding | None:
    bad = ~np.isfinite(np.asarray(subject.rows))
    if not bad.any():
        return None
    steps = np.flatnonzero(bad.any(axis=1))
    where = [key for key, value in subject.fields.items() if not np.isfinite(value).all()]
    return Finding(
        "nan_or_inf",
        f"{len(steps)} steps have NaN or infinite numbers in {', '.join(where)} (the first is {steps[0]}); "
        f"remove their episodes",
    )


def actions_out_of_bounds(subject: Subject) -> Finding | None:
    outside = (np.abs(subject.action) > 1.0).any(axis=1)
    if not outside.any():
        return None
    return Finding(
        "actions_out_of_bounds",
        f"{int(outside.sum())} steps have actions outside [-1, 1], up to {np.nanmax(np.abs(subject.action)):.4g}; "
        f"store what was executed",
    )


def constant_dimensions(subject: Subject) -> Finding | None:
    parts = []
    for kind, values in (("observation", subject.obs), ("action", subject.action)):
        constant = np.flatnonzero((values == values[0]).all(axis=0))
        if len(constant):
            names = ", ".join(_channel(subject, kind, int(i)) for i in constant[:6])
            parts.append(f"{kind} {names}" + (f" and {len(constant) - 6} more" if len(constant) > 6 else ""))
    if not parts:
        return None
    return Finding(
        "constant_dimensions",
        f"{' and '.join(parts)} never changes; it carries nothing, and normalising by its variance divides by zero",
        "note",
    )


def duplicate_episodes(subject: Subject) -> Finding | None:
    seen: dict[bytes, int] = {}
    twice = []
    for episode, (start, stop) in enumerate(zip(subject.starts, subject.stops, strict=True)):
        digest = hashlib.blake2b(np.ascontiguousarray(subject.rows[start:stop]).tobytes(), digest_size=16).digest()
        if digest in seen:
            twice.append((seen[digest], episode))
        seen.setdefault(digest, episode)
    if not twice:
        return None
    first, second = twice[0]
    return Finding(
        "duplicate_episodes",
        f"{len(twice)} of {len(subject.lengths)} episodes repeat another one number for number "
        f"(episode {second} is episode {first}); held-out episodes may be training episodes",
    )


def reward_is_noise(subject: Subject) -> Finding | None:
    """A quadratic fit to observation, action and next observation explains nothing of the reward on other steps."""
    rows = subject.some_rows
    reward = subject.reward[rows]
    most = np.unique(reward, return_counts=True)[1].max() / len(reward)
    if len(rows) < _MIN_ROWS_FOR_FIT or most > _SPARSE_SHARE:
        return None  # a sparse reward is seldom told from noise by a fit; a constant one is no noise
    explained = _explained(subject, rows, reward)
    if explained > _NO_CORRELATION:
        return None
    return Finding(
        "reward_is_noise",
        f"observation, action and next observation explain {max(explained, 0.0):.1%} of the reward's variance: it "
        f"looks like noise or belongs to other steps; check how rewards were joined to steps",
    )


def float64_kept(subject: Subject) -> Finding | None:
    found = [] if subject.rows.dtype == np.float32 else [f"flat/transitions.npy is {subject.rows.dtype}"]
    metadata = subject.path / "data" / "metadata.json"
    if metadata.is_file():
        spaces = json.loads(metadata.read_text(encoding="utf-8"))
        for key in ("observation_space", "action_space"):
            dtype = json.loads(spaces[key]).get("dtype", "float32")
            if dtype == "float64":
                found.append(f"Minari's {key} is float64")
    if not found:
        return None
    return Finding("float64_kept", f"{' and '.join(found)}; learners expect float32, write the dataset again")


def _channel(subject: Subject, kind: str, index: int) -> str:
    rows = subject.meta.interface.get("obs" if kind == "observation" else "action", [])
    return str(rows[index][0]) if index < len(rows) else str(index)


def _explained(subject: Subject, rows: np.ndarray, reward: np.ndarray) -> float:
    """R² on every second step of a ridge fit to the others; linear and squared terms."""
    parts = [subject.obs[rows], subject.action[rows], subject.next_obs[rows] - subject.obs[rows]]
    x = np.concatenate(parts, axis=1).astype(np.float64)
    scale = x.std(axis=0)
    x = (x[:, scale > 0] - x.mean(axis=0)[scale > 0]) / scale[scale > 0]
    x = np.clip(x, -5.0, 5.0)
    x = np.concatenate((np.ones((len(x), 1)), x, x**2), axis=1)
    fit, test = x[::2], x[1::2]
    weights = np.linalg.solve(fit.T @ fit + _RIDGE * len(fit) * np.eye(x.shape[1]), fit.T @ reward[::2])
    residual = reward[1::2] - test @ weights
    return float(1.0 - residual.var() / max(reward[1::2].var(), 1e-12))
