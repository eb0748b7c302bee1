"""Pessimism where it can be computed exactly: value iteration with a lower confidence bound on finite problems.

Rashidinejad et al. 2021, "Bridging Offline Reinforcement Learning and Imitation Learning: A Tale of Pessimism",
algorithm 1 (VI-LCB) in its discounted form. The deep learner in `lcb.py` is held against this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FiniteMDP:
    """S states, A actions: transition (S, A, S), reward (S, A), start (S,) distribution, discount in [0, 1)."""

    transition: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    discount: float

    @property
    def v_max(self) -> float:
        """The largest magnitude that a value can have."""
        return float(np.abs(self.reward).max() / (1.0 - self.discount))

    def q_star(self) -> np.ndarray:
        return value_iteration(self.transition, self.reward, self.discount)

    def value_of(self, policy: np.ndarray) -> float:
        """Discounted return from the start of policy (S, A), rows summing to 1."""
        P = np.einsum("sa,sat->st", policy, self.transition)
        r = (policy * self.reward).sum(1)
        return float(self.start @ np.linalg.solve(np.eye(len(r)) - self.discount * P, r))

    def sample(
        self, policy: np.ndarray, steps: int, horizon: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`steps` transitions in episodes of `horizon` -> state, action, reward, next_state, each (steps,)."""
        S, A = self.reward.shape
        state, action, after = (np.empty(steps, dtype=np.int64) for _ in range(3))
        s = 0
        for t in range(steps):
            if t % horizon == 0:
                s = int(rng.choice(S, p=self.start))
            a = int(rng.choice(A, p=policy[s]))
            state[t], action[t] = s, a
            s = after[t] = int(rng.choice(S, p=self.transition[s, a]))
        return state, action, self.reward[state, action], after


@dataclass(frozen=True)
class Counts:
    """What a dataset says of a finite problem: visits (S, A), empirical transition (S, A, S) and reward (S, A).

    Where nothing was seen the next state is uniform and the reward zero: ignorance, which an estimate without
    pessimism takes for a promise.
    """

    visits: np.ndarray
    transition: np.ndarray
    reward: np.ndarray

    @staticmethod
    def of(
        state: np.ndarray, action: np.ndarray, reward: np.ndarray, after: np.ndarray, states: int, actions: int
    ) -> Counts:
        seen, paid = np.zeros((states, actions, states)), np.zeros((states, actions))
        np.add.at(seen, (state, action, after), 1.0)
        np.add.at(paid, (state, action), reward)
        visits = seen.sum(-1)
        divisor = np.maximum(visits, 1.0)
        transition = np.where(visits[..., None] > 0, seen / divisor[..., None], 1.0 / states)
        return Counts(visits, transition, paid / divisor)


def value_iteration(
    transition: np.ndarray, reward: np.ndarray, discount: float, penalty: np.ndarray | float = 0.0,
    tolerance: float = 1e-10,
) -> np.ndarray:
    """Fixed point (S, A) of Q = r − penalty + γ P max_a Q."""
    q = np.zeros_like(reward)
    while True:
        new = reward - penalty + discount * (transition @ q.max(1))
        if np.abs(new - q).max() < tolerance:
            return new
        q = new


def greedy(q: np.ndarray) -> np.ndarray:
    """The deterministic policy (S, A) that takes the first best action."""
    return np.eye(q.shape[1])[q.argmax(1)]


def clone(counts: Counts) -> np.ndarray:
    """Behaviour cloning: the action frequencies (S, A) of the data, uniform in states that were never seen."""
    total = counts.visits.sum(1, keepdims=True)
    return np.where(total > 0, counts.visits / np.maximum(total, 1.0), 1.0 / counts.visits.shape[1])


def bonus(visits: np.ndarray, v_max: float, scale: float, failure: float = 0.1) -> np.ndarray:
    """b = scale · V_max · sqrt(log(S A / failure) / max(N, 1)), (S, A); unseen pairs get all of V_max."""
    width = np.sqrt(np.log(visits.size / failure) / np.maximum(visits, 1.0))
    return np.where(visits > 0, np.minimum(scale * v_max * width, v_max), v_max)


def vi_lcb(counts: Counts, v_max: float, discount: float, scale: float = 0.02) -> np.ndarray:
    """Pessimistic Q (S, A): value iteration on the empirical problem with `bonus` taken off every reward.

    Clipped at −V_max, below which no value can lie. Raises ValueError for a negative scale.
    """
    if scale < 0.0:
        raise ValueError(f"scale {scale} would be optimism; expected 0 or more")
    penalty = bonus(counts.visits, v_max, scale) if scale else 0.0
    return np.maximum(value_iteration(counts.transition, counts.reward, discount, penalty), -v_max)
