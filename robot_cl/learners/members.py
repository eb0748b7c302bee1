"""A learner's state by members: what some of them have of it, and that of all put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from robot_cl.learners.base import Learner
from robot_cl.learners.optim import FlatAdam


def narrowed(whole: Learner, part: Learner, first: int) -> dict[str, Tensor]:
    """The state of a learner of some of the members of `whole`, from number `first` on."""
    theirs, own = whole.state_dict(), part.state_dict()
    state = {}
    for name, value in theirs.items():
        kind, _, rest = name.partition(".")
        if kind == "rng":
            member = int(rest) - first
            if 0 <= member < part.seeds:
                state[f"rng.{member}"] = value
        elif (opt := _moments(whole, name)) is not None:
            pieces = value.split([p.numel() for p in opt.parameters])
            state[name] = torch.cat([x.view(whole.seeds, -1)[first : first + part.seeds].flatten() for x in pieces])
        else:
            axis = _axis(value, own.get(name), whole.seeds, part.seeds)
            rows = 0 if axis is None else value.shape[axis] // whole.seeds
            state[name] = value if axis is None else value.narrow(axis, first * rows, part.seeds * rows)
    return state


def joined(whole: Learner, states: Sequence[Mapping[str, np.ndarray]], counts: Sequence[int]) -> dict[str, Tensor]:
    """The state of a learner of all members from those of its parts."""
    theirs, state, member = whole.state_dict(), dict[str, Tensor](), 0
    for part, count in zip(states, counts, strict=True):
        state |= {f"rng.{member + p}": torch.from_numpy(part[f"rng.{p}"]) for p in range(count)}
        member += count
    for name in [name for name in states[0] if not name.startswith("rng.")]:
        values = [torch.from_numpy(part[name]) for part in states]
        if (opt := _moments(whole, name)) is not None:
            sizes = [p.numel() // whole.seeds for p in opt.parameters]
            pieces = [v.split([n * size for size in sizes]) for v, n in zip(values, counts, strict=True)]
            state[name] = torch.cat([torch.cat(piece) for piece in zip(*pieces, strict=True)])
        else:
            axis = _axis(theirs.get(name), values[0], whole.seeds, counts[0])
            state[name] = values[0] if axis is None else torch.cat(values, axis)
    return state


def _moments(learner: Learner, name: str) -> FlatAdam | None:
    """The optimiser whose moments `name` is: there parameter follows parameter, each with its members."""
    kind, _, rest = name.partition(".")
    opt, _, quantity = rest.rpartition(".")
    return learner.opts[opt] if kind == "opts" and quantity != "step" else None


def _axis(whole: Tensor | None, part: Tensor | None, seeds: int, count: int) -> int | None:
    """The axis of members, which `count` of `seeds` have a share of; None for what all have in common.

    What one of both has yet to come to, such as a quantity per world, leads with it if it is no single number.
    """
    if whole is None or part is None:
        known = part if whole is None else whole
        return 0 if known is not None and known.dim() else None
    if whole.shape == part.shape:
        return None
    pairs = zip(whole.shape, part.shape, strict=True)
    return next(i for i, (a, b) in enumerate(pairs) if a != b and a * count == b * seeds)
