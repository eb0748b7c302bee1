"""From the columns of a foreign file to episodes: where they end, what is dropped, what is clipped, all counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from robot_cl.data.recording import Recording
from sim.spec import Interface

# Beyond this share of steps whose next observation is not the following one, rows are not in the order of time.
_MAX_BROKEN = 0.2
_COLUMNS = ("obs", "action", "reward", "terminated", "truncated", "next_obs")


@dataclass
class Columns:
    """What a file holds, one row per step, as read: any float or flag type, nothing checked.

    None where the file has no such column. `lengths` (E,) if the file itself counts its episodes.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray | None = None
    truncated: np.ndarray | None = None
    next_obs: np.ndarray | None = None
    lengths: np.ndarray | None = None


@dataclass
class Counts:
    """What the import did. `dropped` steps had no next observation, `dropped_terminals` of them ended an episode;
    `repeated` terminal steps were kept with their own observation in place of it; `relabelled` terminals at the time
    limit are stored as timeouts; `clipped` numbers of actions lay beyond the limits and are stored as executed."""

    dropped: int = 0
    dropped_terminals: int = 0
    repeated: int = 0
    relabelled: int = 0
    clipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """Choices a file cannot make. `horizon`: steps after which its episodes were cut, if it does not say.
    `clip`: actions beyond [-1, 1] are clipped although no limits are known. `keep_terminals`: a terminal step without
    a next observation is kept and repeats its own (a value target never reads it); else it is dropped. `limit`: a
    terminal that comes after exactly this many steps is a timeout, and is stored as one."""

    horizon: int | None = None
    clip: bool = False
    keep_terminals: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, steps in (("horizon", self.horizon), ("limit", self.limit)):
            if steps is not None and steps < 1:
                raise ValueError(f"{name} is a number of steps, one or more, got {steps}")


def build(columns: Columns, interface: Interface | None, rules: Rules, counts: Counts) -> Recording:
    """Episodes of float32 transitions. Raises ValueError, in one sentence, for columns that cannot be episodes.

    `interface` gives the limits of the actions; None: unknown, they must lie in [-1, 1].
    """
    _check(columns)
    steps = len(columns.reward)
    terminated, truncated = _flag(columns.terminated, steps), _flag(columns.truncated, steps)
    lengths = _lengths(columns, terminated, truncated, rules)
    action = _actions(columns.action, interface, rules, counts)
    if rules.limit is not None:
        _relabel(terminated, truncated, lengths, rules.limit, counts)
    obs, reward = _float32(columns.obs), _float32(columns.reward)
    stops = np.cumsum(lengths)
    complete = terminated[stops - 1] | truncated[stops - 1] | (columns.lengths is not None)
    keep = np.ones(steps, bool)
    if columns.next_obs is not None:
        next_obs = _float32(columns.next_obs)
    else:
        next_obs, keep = _shifted(obs, stops, terminated, rules, counts)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    left = np.bincount(owner[keep], minlength=len(lengths))
    return Recording(
        obs=obs[keep],
        action=action[keep],
        reward=reward[keep],
        next_obs=next_obs[keep],
        terminated=terminated[keep],
        truncated=truncated[keep],
        lengths=left[left > 0],
        complete=complete[left > 0],
    )


def _relabel(
    terminated: np.ndarray, truncated: np.ndarray, lengths: np.ndarray, limit: int, counts: Counts
) -> None:
    """Terminals at the time limit become timeouts, in place."""
    last = np.cumsum(lengths)[lengths == limit] - 1
    timeouts = last[terminated[last]]
    terminated[timeouts], truncated[timeouts] = False, True
    counts.relabelled += len(timeouts)


def _float32(value: np.ndarray) -> np.ndarray:
    """What is too large becomes infinite here and is refused with the other infinite values."""
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float32)


def _flag(value: np.ndarray | None, steps: int) -> np.ndarray:
    return np.zeros(steps, dtype=bool) if value is None else np.asarray(value).astype(bool)


def _check(columns: Columns) -> None:
    steps = np.shape(columns.reward)[0] if np.ndim(columns.reward) else 0
    if not steps:
        raise ValueError("there is not a single transition in this data")
    for name in _COLUMNS:
        value = getattr(columns, name)
        if value is None:
            continue
        if value.dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {value.dtype}, expected numbers")
        wide = name in ("obs", "next_obs", "action")
        if value.ndim != (2 if wide else 1) or len(value) != steps:
            expected = f"({steps}, width)" if wide else f"({steps},)"
            raise ValueError(f"{name} has shape {value.shape}, expected {expected} as reward has {steps} steps")
    for name in ("terminated", "truncated"):
        flag = getattr(columns, name)
        if flag is not None and not np.isin(flag, (0, 1)).all():
            raise ValueError(f"{name} must hold only 0 and 1, found {flag[~np.isin(flag, (0, 1))][0]}")
    if columns.next_obs is not None and columns.next_obs.shape != columns.obs.shape:
        raise ValueError(f"next_obs has shape {columns.next_obs.shape}, expected that of obs, {columns.obs.shape}")


def _lengths(columns: Columns, terminated: np.ndarray, truncated: np.ndarray, rules: Rules) -> np.ndarray:
    """(E,) from the file's own count, its flags, the horizon, and the places where next_obs does not continue."""
    steps = len(columns.reward)
    if columns.lengths is not None:
        lengths = np.asarray(columns.lengths).reshape(-1)
        if lengths.dtype.kind not in "iu" or (lengths < 1).any() or lengths.sum() != steps:
            raise ValueError(f"episode_lengths must be positive whole numbers that sum to {steps} steps")
        return lengths.astype(np.int64)
    if columns.truncated is None and rules.horizon is None and columns.next_obs is None:
        raise ValueError(
            "there are no timeouts and no next_observations, so that nothing tells where an episode ends; "
            "pass horizon=1000 if episodes were cut after 1000 steps"
        )
    ends = terminated | truncated
    if columns.next_obs is not None:
        ends[:-1] |= _jumps(columns.obs, columns.next_obs, ends)
    ends[-1] = True
    lengths = np.diff(np.flatnonzero(ends) + 1, prepend=0)
    return _cut(lengths, rules.horizon) if rules.horizon else lengths


def _jumps(obs: np.ndarray, next_obs: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(N − 1,) where next_obs is not the following observation."""
    jumps = (next_obs[:-1] != obs[1:]).any(axis=1)
    broken = int((jumps & ~ends[:-1]).sum())
    if broken > max(1, _MAX_BROKEN * len(obs)):
        raise ValueError(
            f"next_observations differ from the observations that follow at {broken} of {len(obs)} steps, "
            f"so that the steps are not in the order of time and form no episodes"
        )
    return jumps


def _cut(lengths: np.ndarray, horizon: int) -> np.ndarray:
    pieces = [[horizon] * (n // horizon) + ([n % horizon] if n % horizon else []) for n in lengths.tolist()]
    return np.array([n for piece in pieces for n in piece], dtype=np.int64)


def _actions(action: np.ndarray, interface: Interface | None, rules: Rules, counts: Counts) -> np.ndarray:
    """Commands of the file -> actions in [-1, 1] as executed."""
    if not np.isfinite(action).all():
        row = int(np.argwhere(~np.isfinite(action))[0][0])
        raise ValueError(f"action has NaN or infinite values, the first at step {row}; remove that episode first")
    unit = action if interface is None else interface.action_from_command(action)
    outside = int((np.abs(unit) > 1.0).sum())
    if outside and interface is None and not rules.clip:
        raise ValueError(
            f"actions reach {np.abs(action).max():.4g} ({outside} numbers beyond 1) and nothing tells their limits; "
            f"name the task, or pass clip=true if they are in [-1, 1] and were clipped when executed"
        )
    counts.clipped += outside
    return np.clip(np.asarray(unit, dtype=np.float32), -1.0, 1.0)


def _shifted(
    obs: np.ndarray, stops: np.ndarray, terminated: np.ndarray, rules: Rules, counts: Counts
) -> tuple[np.ndarray, np.ndarray]:
    """next_obs from the following row of the same episode, and which steps are kept."""
    next_obs, keep, last = np.empty_like(obs), np.ones(len(obs), bool), stops - 1
    next_obs[:-1] = obs[1:]
    next_obs[last] = obs[last]
    keep[last] = terminated[last] if rules.keep_terminals else False
    counts.repeated += int(keep[last].sum())
    counts.dropped += int((~keep[last]).sum())
    counts.dropped_terminals += int((terminated[last] & ~keep[last]).sum())
    if not keep.any():
        raise ValueError("every episode is a single step without a next observation; nothing is left to store")
    return next_obs, keep
