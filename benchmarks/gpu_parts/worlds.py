"""Worlds of MuJoCo Warp: how near they are to MuJoCo's, and how many steps they make beside the processor's cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gpu_parts.learners import ACT, OBS, Row, speed

import sim
from policies.actor import ActorConfig, StackedGaussianActor
from policies.networks import generators
from robot_cl.warp_worlds import WarpWorld
from sim.world import available_cores

TASK, NEAR, STEPS = "halfcheetah", 64, 5
RECORDED = 16  # batches of random actions that are played again and again


def near(device: str) -> Iterator[Row]:
    """Differences of observations and rewards from MuJoCo's over five control steps of 64 worlds."""
    ours, plain = WarpWorld(TASK, NEAR, 3, device), sim.make(TASK, NEAR, threads=1, seed=3)
    gaps = [np.abs(ours.reset(3) - plain.reset(3)).max(1)]
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        action = rng.uniform(-1.0, 1.0, (NEAR, ours.interface.act_dim))
        (obs, reward, *_), (expected, wanted, *_) = ours.step(action), plain.step(action)
        gaps.append(np.maximum(np.abs(obs - expected).max(1), np.abs(reward - wanted)))
    largest = np.max(gaps, 0)  # of each world
    yield {
        "worlds": NEAR,
        "steps": STEPS,
        "difference": largest.max().item(),
        "median world": float(np.median(largest)),
    }


def rates(counts: tuple[int, ...], seconds: float, device: str) -> Iterator[Row]:
    """Control steps per second: the processor's worlds on all its cores, then Warp's.

    `given`: actions are there; `acting`: a network of 256 x 2 chooses them on the same device; `physics`: Warp's steps
    alone, without observations, rewards and ends; `start`: seconds to start an episode in every world.
    """
    cores = available_cores()
    torch.set_num_threads(cores)
    plain, actions = sim.make(TASK, min(counts), seed=0), _actions(min(counts)).double().numpy()
    act = _policy("cpu")
    driver = Driver(plain.reset(0), lambda obs: act(torch.from_numpy(obs).float()).double().numpy())
    yield {"where": f"MuJoCo, {cores} cores"} | driver.rates(plain, plain.step, actions, seconds, "cpu")
    torch.set_num_threads(1)
    for count in counts:
        world, began = WarpWorld(TASK, count, 0, device), time.perf_counter()
        obs = world.reset_tensors(0)
        started, driver = time.perf_counter() - began, Driver(obs, _policy(device))
        row = driver.rates(world, world.step_tensors, _actions(count).to(device), seconds, device)
        physics = count * speed(world._advance, seconds, device)
        yield {"where": f"Warp, {device}"} | row | {"physics": physics, "start": started}


class Driver:
    """Steps worlds with given actions, and with those that a policy chooses. Remembers the last observation."""

    def __init__(self, obs: Any, policy: Callable[[Any], Any]):
        self.obs, self.policy, self.turn = obs, policy, 0

    def rates(self, world: Any, step: Callable[[Any], Any], actions: Any, seconds: float, device: str) -> Row:
        def given() -> None:
            self.turn = (self.turn + 1) % RECORDED
            self.obs = step(actions[self.turn])[0]

        def acting() -> None:
            self.obs = step(self.policy(self.obs))[0]

        found = {"worlds": world.num_worlds}
        return found | {w.__name__: world.num_worlds * speed(w, seconds, device) for w in (given, acting)}


def _actions(count: int) -> torch.Tensor:
    return torch.rand(RECORDED, count, ACT, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def _policy(device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    actor = StackedGaussianActor(OBS, ACT, generators(0, 1), ActorConfig(hidden=(256, 256))).to(device)

    def act(obs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return actor.mode(obs[None])[0]

    return act
