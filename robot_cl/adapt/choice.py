"""When a flow acts on a task's policy and how far it may go: chosen by playing, before anybody wears it.

A flow lands nearer to what the policy wanted, yet a policy that balances may fall over the way there, and rough
contacts surprise the model of a robot that is as it was. So some settings are played in simulated worlds, changed and
unchanged. The best in changed ones is taken of those that hardly cost anything in unchanged ones; where none surely
earns more than the policy alone, the flow stays out of the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dynamics.reshaped import ReshapeConfig
from policies.policy import Policy
from robot_cl.evaluate import evaluate
from sim.shift import Shift

LATER = (1.0, 2.0, 4.0)  # multiples of the surprise that the unchanged robot reaches once in a thousand steps
FARTHEST = (2.0, 0.4, 0.15)  # change of an action dimension, of a range of 2
MAY_COST = 0.02  # share of the return in unchanged worlds
SURELY = 2.0  # errors that a gain must be above: the best of nine settings that do nothing is above one of them
FIRST_SEED = 50_000  # of the episodes, apart from those that are measured afterwards


@dataclass(frozen=True)
class Setting:
    """A setting that was played, and what it earned; all numbers are finite."""

    trigger: float  # standard deviations of the model, as in ReshapeConfig
    trust: float  # largest change of an action dimension
    unchanged: float  # mean return
    changed: float  # mean return
    gain: float  # over the policy alone in the same changed worlds
    error: float  # of the gain, one standard error


@dataclass(frozen=True)
class Choice:
    """The setting to act with, or none, and all that were played."""

    best: Setting | None
    tried: tuple[Setting, ...]

    def card(self) -> dict[str, object]:
        """What goes into card.json; `trigger` and `trust` are none where the flow stays out of the way."""
        best = self.best
        return {
            "trigger": best.trigger if best else None,
            "trust": best.trust if best else None,
            "tried": [asdict(s) for s in self.tried],
        }


def config_of(card: dict) -> ReshapeConfig:
    """The setting of a card.json; a trigger that nothing reaches where the flow stays out of the way."""
    trigger = math.inf if card["trigger"] is None else float(card["trigger"])
    trust = card.get("trust")
    return ReshapeConfig(trigger) if trust is None else ReshapeConfig(trigger, trust=float(trust))


def choose(
    policy: Policy,
    wearing: Callable[[ReshapeConfig], Policy],
    task: str,
    shifts: Sequence[Shift],
    trigger: float,
    seed: int,
    played: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Play the policy alone and `wearing` each setting in every one of `shifts` and in as many unchanged worlds.

    The same worlds and starts every time. `trigger` is the least one.
    """
    half, both = len(shifts), [Shift()] * len(shifts) + list(shifts)
    settings = [(trigger * k, trust) for k in LATER for trust in FARTHEST]

    def returns(one: Policy, done: int) -> tuple[np.ndarray, np.ndarray]:
        got = np.array(evaluate(one, task, len(both), FIRST_SEED + seed, both, worlds=len(both)).returns)
        played(done + 1, len(settings) + 1)
        return got[:half], got[half:]

    usual, alone = returns(policy, 0)
    tried = []
    for k, (later, trust) in enumerate(settings):
        same, changed = returns(wearing(ReshapeConfig(later, trust=trust)), k + 1)
        gain = changed - alone
        error = float(gain.std(ddof=1) / math.sqrt(half))
        tried.append(Setting(later, trust, float(same.mean()), float(changed.mean()), float(gain.mean()), error))
    return Choice(best_of(tried, float(usual.mean())), tuple(tried))


def best_of(tried: Sequence[Setting], usual: float) -> Setting | None:
    """Of those that keep the policy's `usual` return and gain more than `SURELY` errors, the one that gains most."""
    least = usual - MAY_COST * abs(usual)
    good = [s for s in tried if s.unchanged >= least and s.gain > SURELY * s.error]
    return max(good, key=lambda s: s.gain, default=None)
