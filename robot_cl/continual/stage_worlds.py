"""Worlds of a stream's stages: to train in, to try a skill in, and to score many policies on many stages at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import sim
from policies.actor import StackedGaussianActor
from robot_cl.continual.actors import side_by_side
from robot_cl.suite_worlds import SuiteWorlds, is_suite
from sim.stream import Stage


class SuiteStage(SuiteWorlds):
    """A suite's environments as a world to train in: an ended one is reset at once. Remembers the next seed of each."""

    def reset(self, seed: int | Sequence[int]) -> np.ndarray:
        """Environment i from seed + i, or from seed[i]."""
        seeds = seed + np.arange(self.num_worlds) if isinstance(seed, (int, np.integer)) else np.asarray(seed)
        super().reset(int(seeds[0]))
        for i in range(1, self.num_worlds):
            self._obs[i] = self._envs[i].reset(seed=int(seeds[i]))[0]
        self._next = seeds + self.num_worlds
        return self._obs.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        obs, reward, terminated, truncated, info = super().step(action)
        facts = {name: value.copy() for name, value in info.items()} | {"final_obs": obs.copy()}
        for i in np.flatnonzero(self._over):
            self._obs[i] = self._envs[i].reset(seed=int(self._next[i]))[0]
            self._next[i] += self.num_worlds
            self._info["success"][i], self._over[i] = -1, False
        return self._obs.copy(), reward, terminated, truncated, facts


def stage_world(stages: Sequence[Stage], threads: int | None = 1, seed: int = 0) -> Any:
    """One world per stage given (repeat a stage for more), all of one task. Raises ValueError where they are not."""
    first = stages[0]
    if any((s.task, s.action_repeat) != (first.task, first.action_repeat) for s in stages):
        raise ValueError("worlds stepped together need one task and one action_repeat")
    if is_suite(first.task):
        return SuiteStage(first.task, len(stages))
    shifts = None if all(s.shift == "none" for s in stages) else [s.shift for s in stages]
    return sim.make(first.task, len(stages), threads, seed, shifts, action_repeat=first.action_repeat)


def can_pause(world: Any) -> bool:
    """Whether a world's state can be stored, so that learning in it can be left off and taken up."""
    return all(hasattr(part, "get_state") for part in getattr(world, "parts", [world]))


@dataclass(frozen=True)
class Played:
    """First episodes of M members: returns (M, E), 1 or 0 for success, −1 where nobody says (M, E), the steps that the
    longest took, and the first of them: observation and reward after each (M, E, T, obs_dim + 1)."""

    returns: np.ndarray
    success: np.ndarray
    steps: int
    opening: np.ndarray


@torch.inference_mode()
def play(
    actor: StackedGaussianActor, world: Any, seeds: Sequence[int], steps: int | None = None, opening: int = 0
) -> Played:
    """Deterministic member m in the world's rows m·E to (m+1)·E, row i starting from seeds[i].

    `steps` ends every row after that many steps, if its episode has not ended before; the first `opening` are noted.
    """
    rows, taken, noted = world.num_worlds, 0, list[np.ndarray]()
    obs, going = world.reset(seed=list(seeds)), np.ones(rows, dtype=bool)
    total, success = np.zeros(rows), np.full(rows, -1)
    while going.any() and (steps is None or taken < steps):
        stacked = torch.from_numpy(obs.astype(np.float32)).view(actor.population, rows // actor.population, -1)
        obs, reward, terminated, truncated, info = world.step(actor.mode(stacked).reshape(rows, -1).numpy())
        total += np.where(going, reward, 0.0)
        success = np.where(going, info["success"], success) if "success" in info else success
        going &= ~(terminated | truncated)
        taken += 1
        if taken <= opening:
            noted.append(np.concatenate([obs, reward[:, None]], 1))
    shape = (actor.population, rows // actor.population)
    first = np.stack(noted, 1).reshape(*shape, len(noted), -1) if noted else np.empty((*shape, 0, obs.shape[1] + 1))
    return Played(total.reshape(shape), success.reshape(shape), taken, first)


def score(
    actors: Sequence[StackedGaussianActor], stages: Sequence[Stage], episodes: int, seed: int, threads: int | None = 1
) -> np.ndarray:
    """Deterministic score of actors[j]'s P members on stages[j], 0 untrained and 1 solved: (P, J, episodes).

    Every member and stage starts its episodes from the same seeds. Stages of one task are played in one go.
    """
    found: dict[int, np.ndarray] = {}
    for task in dict.fromkeys(stage.task for stage in stages):
        here = [j for j, stage in enumerate(stages) if stage.task == task]
        rows = [stages[j] for j in here for _ in range(actors[j].population * episodes)]
        seeds = [seed + k % episodes for k in range(len(rows))]
        played = play(side_by_side([actors[j] for j in here]), stage_world(rows, threads), seeds)
        parts = zip(np.split(played.returns, len(here)), np.split(played.success, len(here)), here, strict=True)
        for returns, success, j in parts:
            raw = np.maximum(success, 0) if stages[j].measure == "success" else returns
            found[j] = (raw - stages[j].untrained) / (stages[j].solved - stages[j].untrained)
    return np.stack([found[j] for j in range(len(stages))], axis=1)
