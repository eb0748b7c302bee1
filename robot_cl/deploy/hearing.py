"""What is heard from the robot: whether a state can be driven on, and when the last one becomes too old for that."""

from __future__ import annotations

import numpy as np

from robot_cl.deploy.clock import Clock
from robot_cl.deploy.safety import all_finite
from robot_cl.deploy.transport import State, Transport


class Hearing:
    """The states of a transport, of which some signals are needed. Remembers when the last `usable` one came (clock
    seconds), and the publisher (`source`) that a run began with."""

    def __init__(self, transport: Transport, clock: Clock, needed: set[str], stale_s: float):
        transport.need(needed)
        index = transport.spec.signal_index
        self._needed = np.array([index[signal] for signal in sorted(needed)], dtype=np.intp)
        self.transport, self.clock, self.stale_s = transport, clock, stale_s
        self.usable, self.source = -np.inf, object()

    def fresh(self) -> State:
        """The present state. Raises ValueError if it is old, or not finite where it is needed."""
        state = self.transport.read()
        if state is None or self.clock.now() - state.received > self.stale_s:
            why = self.transport.problem()
            raise ValueError(f"no fresh state from the robot{f': {why}' if why else '; is it publishing?'}")
        if not self._finite(state):
            names = np.array(list(self.transport.spec.signals))[self._needed]
            bad = names[~np.isfinite(state.values[self._needed])]
            raise ValueError(f"the robot reports no finite {', '.join(bad[:4])}")
        return state

    def complaint(self, state: State | None, now: float, driving: bool) -> str:
        """Why this state cannot be driven on; "" if it is fresh, finite and, driving, from whom the run began with."""
        if state is None:
            return "no state was heard yet"
        if not self._finite(state):
            return "the state is not finite"
        self.usable = state.received
        if now >= state.received + self.stale_s - 1e-9:
            return self.silence(now)
        if state.source != self.source and driving:
            return "another publisher took over"
        return ""

    def silence(self, now: float) -> str:
        """How long nothing usable was heard."""
        return f"no state for {now - self.usable:.3f} s"

    def again(self) -> bool:
        """Whether a usable state has come since the last one."""
        state = self.transport.read()
        if state is None or not self._finite(state) or state.received <= self.usable:
            return False
        self.usable = state.received
        return True

    def _finite(self, state: State) -> bool:
        return all_finite(state.values[self._needed])
