"""Where episodes end and what the flags there mean."""

from __future__ import annotations

import numpy as np

from robot_cl.data.checks.subject import Finding, Subject

# Of the episodes that "terminate", this share at exactly the longest length looks like a clock, not like falling.
_CLOCK_SHARE = 0.2
_MIN_CLOCK_LENGTH = 10
_MIN_STARTS = 5
_FAR, _NEAR = 10.0, 6.0


def timeouts_as_terminals(subject: Subject) -> Finding | None:
    """Terminals at the time limit teach that living to the end is worth nothing."""
    ends = subject.terminated[subject.last] & ~subject.truncated[subject.last]
    lengths, longest = subject.lengths[ends], int(subject.lengths.max())
    at_limit = int((lengths == longest).sum())
    limit = _time_limit(subject)
    enough = at_limit >= max(2, _CLOCK_SHARE * len(lengths)) or (limit == longest and at_limit >= 2)
    if longest < _MIN_CLOCK_LENGTH or not enough:
        return None
    return Finding(
        "timeouts_as_terminals",
        f"{at_limit} of {len(lengths)} terminals come at exactly step {longest}, the longest episode: they are "
        f"timeouts stored as terminals; import again with limit={longest}",
    )


def border_crossed(subject: Subject) -> Finding | None:
    """next_obs of an episode's last step is the next episode's first observation, or a border carries no mark."""
    last = subject.last[:-1]
    crossed = int((subject.next_obs[last] == subject.obs[subject.starts[1:]]).all(axis=1).sum())
    hidden = _hidden_borders(subject)
    if not crossed and not len(hidden):
        return None
    parts = []
    if crossed:
        parts.append(f"{crossed} episodes end with the first observation of the following episode as next_obs")
    if len(hidden):
        parts.append(f"{len(hidden)} steps inside episodes lead straight to a start state (the first is {hidden[0]})")
    return Finding("border_crossed", " and ".join(parts) + "; end the episodes there and drop those steps")


def both_flags(subject: Subject) -> Finding | None:
    both = np.flatnonzero(subject.terminated & subject.truncated)
    if not len(both):
        return None
    return Finding(
        "both_flags",
        f"{len(both)} steps are terminated and truncated at once (the first is {both[0]}); learners treat them as "
        f"terminated, so make sure that they are",
    )


def flags_inside(subject: Subject) -> Finding | None:
    """A flag in the middle of an episode."""
    inside = subject.terminated | subject.truncated
    inside[subject.last] = False
    steps = np.flatnonzero(inside)
    if not len(steps):
        return None
    return Finding(
        "flags_inside",
        f"{len(steps)} steps inside episodes carry a flag (the first is {steps[0]}); end an episode there",
    )


def maze2d_goal_timeouts(subject: Subject) -> Finding | None:
    """In maze2d a timeout marks that the goal moved, not that the clock ran out."""
    if not subject.task.startswith("maze2d"):
        return None
    lengths = subject.lengths[subject.truncated[subject.last] & subject.complete]
    if len(np.unique(lengths)) <= 1:
        return None
    return Finding(
        "maze2d_goal_timeouts",
        f"the {len(lengths)} timeouts of this maze2d set come after {lengths.min()} to {lengths.max()} steps: they "
        f"mark reached goals, not the time limit; returns and scores computed between them mean nothing",
    )


def _time_limit(subject: Subject) -> int | None:
    import sim

    try:
        return sim.get_task(subject.meta.task or "").time_limit
    except LookupError:
        return None


def _hidden_borders(subject: Subject) -> np.ndarray:
    """Steps inside an episode that jump from far away into the narrow set of start states."""
    starts = subject.obs[subject.starts].astype(np.float64)
    if len(starts) < _MIN_STARTS:
        return np.zeros(0, dtype=int)
    whole = subject.obs[subject.some_rows].std(axis=0, dtype=np.float64)
    centre, width = starts.mean(axis=0), starts.std(axis=0) + 1e-3 * whole + 1e-9
    inside = np.ones(len(subject.obs), dtype=bool)
    inside[subject.last] = False
    # The cheap half first: few steps arrive at a start state.
    arrives = inside.nonzero()[0]
    arrives = arrives[(np.abs(subject.next_obs[arrives] - centre) < _NEAR * width).all(axis=1)]
    far = np.median(np.abs(subject.obs[arrives] - centre) / width, axis=1) > _FAR
    return arrives[far]
