"""Asking the policy for an action before a deadline, in line or beside the control thread."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np

from policies.policy import Policy
from robot_cl.deploy.clock import Clock


class Caller(Protocol):
    """`call` gives the action (act_dim,) for obs (1, obs_dim), or None if it was not there at `deadline`."""

    policy: Policy

    def call(self, obs: np.ndarray, weights: np.ndarray | None, deadline: float) -> np.ndarray | None: ...

    def close(self) -> None: ...


def evaluate(policy: Policy, obs: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """One action (act_dim,) under these skill weights (None: those the policy has)."""
    if weights is not None:
        policy.set_skills(weights)  # type: ignore[attr-defined]
    return np.asarray(policy.act(obs)[0])


class InlineCaller:
    """Runs the policy in the control thread: for virtual time, where a late answer is seen from the clock."""

    def __init__(self, policy: Policy, clock: Clock):
        self.policy, self.clock = policy, clock

    def call(self, obs: np.ndarray, weights: np.ndarray | None, deadline: float) -> np.ndarray | None:
        action = evaluate(self.policy, obs, weights)
        return action if self.clock.now() <= deadline else None

    def close(self) -> None:
        pass


class ThreadCaller:
    """Runs the policy in a thread of its own, so that a policy that hangs cannot keep a stop from being sent.

    Remembers the question in progress. While it is unanswered every call is late; its answer, when it comes, belongs
    to an old observation and is thrown away. Both signals are bare locks, each of which the other side releases: a
    semaphore of `threading` is written in Python and takes a third longer (40 against 29 µs a question).
    """

    def __init__(self, policy: Policy, clock: Clock):
        self.policy, self.clock = policy, clock
        self._ask, self._done = threading.Lock(), threading.Lock()
        self._ask.acquire()
        self._done.acquire()
        self._job: tuple[Policy, np.ndarray, np.ndarray | None] | None = None
        self._result: np.ndarray | BaseException | None = None
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    @property
    def native_id(self) -> int:
        """What the operating system calls the policy's thread."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def call(self, obs: np.ndarray, weights: np.ndarray | None, deadline: float) -> np.ndarray | None:
        if self._busy and not self._done.acquire(timeout=max(0.0, deadline - self.clock.now())):
            return None
        if self._busy:  # the answer to an older question, which missed its deadline
            self._busy = False
            return None
        self._job, self._busy = (self.policy, obs, weights), True
        self._ask.release()
        if not self._done.acquire(timeout=max(0.0, deadline - self.clock.now())):
            return None
        self._busy = False
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def close(self) -> None:
        self._job = None
        if self._ask.locked():  # else the thread is about to look at the job anyway
            self._ask.release()

    def _work(self) -> None:
        while True:
            self._ask.acquire()
            job = self._job
            if job is None:
                return
            try:
                self._result = evaluate(*job)
            except Exception as problem:  # handed to the control thread, which stops the robot
                self._result = problem
            self._done.release()
