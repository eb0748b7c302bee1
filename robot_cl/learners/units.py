"""In which unit of reward values are, where one learner takes them over from another."""

from __future__ import annotations

from torch import Tensor

UNIT = "extra.reward_scale"  # what a learner's rewards are multiplied by; 0: PPO's own, which moves
VALUES = tuple(f"nets.{name}." for name in ("critic", "target", "reference", "temperature"))  # of soft actor-critics


def with_its_unit(state: dict[str, Tensor], net: str, given: float | None = None) -> dict[str, Tensor]:
    """`state` as it may be adopted: with its unit of reward only where the network `net`, whose values are in that
    unit, comes along. `given` is the unit that the options ask for, which wins; None: none."""
    unit = state.get(UNIT)
    values = any(name.startswith(f"nets.{net}.") for name in state)
    if unit is None or (given is None and values and bool(unit)):
        return state
    return {name: value for name, value in state.items() if name != UNIT}


def in_one_unit(state: dict[str, Tensor], scales: bool) -> dict[str, Tensor]:
    """`state` as it may be adopted by a learner that `scales` rewards, or takes them as they are: without values, and
    the entropy's weight beside them, if its learner did not do the same."""
    return state if (UNIT in state) == scales else without(state, *VALUES)


def without(state: dict[str, Tensor], *beginnings: str) -> dict[str, Tensor]:
    """`state` less what has a name that begins so."""
    return {name: value for name, value in state.items() if not name.startswith(beginnings)}
