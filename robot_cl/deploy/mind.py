"""Asking the policy: from the robot's signals to an action, or to a doubt about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.policy import Policy
from robot_cl.deploy.caller import Caller
from robot_cl.deploy.clock import Clock
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.latency import Statistics
from robot_cl.deploy.modes import DRIVING, Guard, Mode, RunnerConfig, Stage
from robot_cl.deploy.names import near
from robot_cl.deploy.observe import ObservationBuilder
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.safety import all_finite, slew


@dataclass(frozen=True)
class Thought:
    """What came of one tick: the observation if one was made, the action to follow, and a doubt if there is one."""

    obs: np.ndarray | None = None
    action: np.ndarray | None = None
    doubt: str = ""
    lasting: bool = False


class Mind:
    """Remembers the last action, how many answers in a row were late, skill weights now and wanted, actions taken.

    The policy is asked at every `every`-th tick; in between its last action holds.
    """

    def __init__(
        self, contract: Contract, spec: RobotSpec, caller: Caller, clock: Clock, config: RunnerConfig,
        stats: Statistics, guard: Guard | None, stage: Stage | None,
    ):  # fmt: skip
        self.contract, self.caller, self.clock, self.config, self.stats = contract, caller, clock, config, stats
        self.guard, self.stage, self.period = guard, stage, spec.control_dt
        self.builder = ObservationBuilder(contract, spec)
        self.every = round(contract.control_dt / spec.control_dt)
        self.weights = np.array([s.weight for s in contract.skills])
        self.wanted = self.weights.copy()
        self._taken: list[np.ndarray] = []
        self._last: np.ndarray | None = None
        self.forget()

    def forget(self) -> None:
        """Start an episode: no history, no last action, no late answers."""
        self.builder.reset()
        self.caller.policy.reset()
        if self.guard is not None:
            self.guard.reset()
        if self.stage is not None:
            self.stage.reset()
        self._last, self._late, self._tick = None, 0, 0
        self._taken.clear()

    def adopt(self, policy: Policy, contract: Contract, guard: Guard | None, stage: Stage | None) -> None:
        """Go on with another policy of the same interface, its skills, guard and stage."""
        self.contract, self.caller.policy, self.guard, self.stage = contract, policy, guard, stage
        for beside in (guard, stage):
            if beside is not None:
                beside.reset()
        self.weights = np.array([s.weight for s in contract.skills])
        self.wanted = self.weights.copy()

    def want(self, values: dict[str, float]) -> None:
        """Skill weights to move to, each in its range. Raises LookupError for a skill the bundle lacks."""
        names = [s.name for s in self.contract.skills]
        for name in values:
            if name not in names:
                raise LookupError(f"this bundle has no skill {name!r}, {near(name, names)}")
        for name, value in values.items():
            skill = self.contract.skills[names.index(name)]
            self.wanted[names.index(name)] = min(max(value, skill.low), skill.high)

    def note(self, taken: np.ndarray) -> None:
        """The action (act_dim,) that was really taken in this tick."""
        self._taken.append(taken)

    def think(self, values: np.ndarray, now: float, mode: Mode) -> Thought:
        """The thought of one tick with usable signals (n_signals,)."""
        due = self._tick % self.every == 0
        self._tick += 1
        if not due:
            return Thought(action=self._last)
        obs = self.builder.build(values)
        if not all_finite(obs):
            return Thought(doubt="the observation is not finite")
        return self._ask(obs, now, mode)

    def _ask(self, obs: np.ndarray, now: float, mode: Mode) -> Thought:
        taken = mean_of(self._taken)
        self._taken.clear()
        try:
            action = self.caller.call(obs, self._slewed(), now + self.config.deadline * self.period)
        except Exception as problem:  # whatever a policy raises, the robot must be held
            return Thought(obs, doubt=f"the policy failed ({type(problem).__name__})")
        self.stats.add("policy", self.clock.now() - now)
        if action is None:
            return self._late_answer(obs)
        self._late = 0
        if self.stage is not None:
            action = np.asarray(self.stage(obs, action, taken))
        if action.shape != (self.contract.act_dim,) or not all_finite(action):
            return Thought(obs, doubt="the policy's action is not finite")
        self._last = action
        if self.guard is not None and mode in DRIVING | {Mode.SHADOW} and self.guard.alarm(obs, action, taken):
            return Thought(obs, action, "the guard finds this unlike anything it was calibrated on")
        return Thought(obs, action)

    def _slewed(self) -> np.ndarray | None:
        """Skill weights one step nearer to those wanted; None where there are no skills."""
        if not self.weights.size:
            return None
        step = self.contract.control_dt / self.config.swap_s if self.config.swap_s else np.inf
        self.weights = slew(self.weights, self.wanted, step)
        return self.weights

    def _late_answer(self, obs: np.ndarray) -> Thought:
        """The last action again, and a doubt after several in a row."""
        self._late += 1
        self.stats.events["late_action"] += 1
        doubt = f"{self._late} late actions in a row" if self._late >= self.config.late_hold else ""
        return Thought(obs, self._last, doubt, self._late >= self.config.late_damp)


def mean_of(taken: list[np.ndarray]) -> np.ndarray | None:
    """Mean of the actions (act_dim,) since the last thought; most often there was one."""
    return taken[0] if len(taken) == 1 else np.mean(taken, axis=0) if taken else None
