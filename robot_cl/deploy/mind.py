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
    """Remembers the last action, the policy's last word before a stage changed it, how many answers in a row were late,
    skill weights now and wanted, actions taken.

    The policy is asked at every `every`-th tick; in between its last action holds. Stage and guard see every
    observation, also where the policy was late: what they think of a robot is what each step changed.
    """

    def __init__(
        self, contract: Contract, spec: RobotSpec, caller: Caller, clock: Clock, config: RunnerConfig,
        stats: Statistics, guard: Guard | None, stage: Stage | None,
    ):  # fmt: skip
        self.contract, self.caller, self.clock, self.config, self.stats = contract, caller, clock, config, stats
        self.guard, self.stage, self.period = guard, stage, spec.control_dt
        self.builder = ObservationBuilder(contract, spec)
        self.every = round(contract.control_dt / spec.control_dt)
        self._weigh(contract)
        self._taken: list[np.ndarray] = []
        self._last: np.ndarray | None = None
        self._planned: np.ndarray | None = None
        self.forget()

    def forget(self) -> None:
        """Start an episode: no history, no last action, no late answers."""
        self.builder.reset()
        self.caller.policy.reset()
        if self.guard is not None:
            self.guard.reset()
        if self.stage is not None:
            self.stage.reset()
        self._last, self._planned, self._late, self._tick = None, None, 0, 0
        self._taken.clear()

    def adopt(self, policy: Policy, contract: Contract, guard: Guard | None, stage: Stage | None) -> None:
        """Go on with another policy of the same interface, its skills, guard and stage."""
        self.contract, self.caller.policy, self.guard, self.stage = contract, policy, guard, stage
        for beside in (guard, stage):
            if beside is not None:
                beside.reset()
        self._weigh(contract)

    def _weigh(self, contract: Contract) -> None:
        self.skills = tuple(s.name for s in contract.skills)
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
        taken, deadline = mean_of(self._taken), now + self.config.deadline * self.period
        self._taken.clear()
        try:
            answer = self.caller.call(obs, self._slewed(), deadline)
            self.stats.add("policy", self.clock.now() - now)
            planned = self._planned if answer is None else answer
            if planned is None:
                return Thought(obs, None, *self._lateness(True))
            action = planned if self.stage is None else np.asarray(self.stage(obs, planned, taken))
            if action.shape != (self.contract.act_dim,) or not all_finite(action):
                return Thought(obs, doubt="the policy's action is not finite")
            watched = self.guard is not None and mode in DRIVING | {Mode.SHADOW}
            alarm = watched and self.guard.alarm(obs, action, taken)  # type: ignore[union-attr]
        except Exception as problem:  # whatever a policy raises, the robot must be held
            return Thought(obs, doubt=f"the policy failed ({type(problem).__name__})")
        overdue = self.stage is not None and self.clock.now() > deadline
        doubt, lasting = self._lateness(answer is None or overdue)
        self._planned, self._last = planned, action
        if alarm and not doubt:
            doubt = "the guard finds this unlike anything it was calibrated on"
        return Thought(obs, action, doubt, lasting)

    def _slewed(self) -> np.ndarray | None:
        """Skill weights one step nearer to those wanted; None where there are no skills."""
        if not self.weights.size:
            return None
        step = self.contract.control_dt / self.config.swap_s if self.config.swap_s else np.inf
        self.weights = slew(self.weights, self.wanted, step)
        return self.weights

    def _lateness(self, late: bool) -> tuple[str, bool]:
        """A doubt after several late actions in a row, and whether they are so many that it lasts."""
        self._late = self._late + 1 if late else 0
        if late:
            self.stats.events["late_action"] += 1
        doubt = f"{self._late} late actions in a row" if self._late >= self.config.late_hold else ""
        return doubt, self._late >= self.config.late_damp


def mean_of(taken: list[np.ndarray]) -> np.ndarray | None:
    """Mean of the actions (act_dim,) since the last thought; most often there was one."""
    return taken[0] if len(taken) == 1 else np.mean(taken, axis=0) if taken else None
