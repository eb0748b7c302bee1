"""Halfcheetah whose skills were learned under other physics: little friction, double gravity, a thicker thigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from few_shot_parts import walker
from few_shot_parts.setting import BASE_SEED, SKILL_SEED, Setting, Sizes
from torch import Tensor

import sim
from policies.actor import StackedGaussianActor
from robot_cl.data.behaviours import Behaviour, BehaviourCard, load_behaviour, save_behaviour
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.rollout import Collector

SHIFTS = {"friction": "friction0.25", "gravity": "gravity2", "thigh": "size.bthigh1.25"}
TARGET, DEMONSTRATOR = "halfcheetah", "halfcheetah-expert"
WORLDS, STEPS = 64, 1_000_000  # of the training of a source's own policy


class CheetahSetting(Setting):
    """Skills from three source physics, demonstrations (10 of 1000 steps) in the standard one."""

    widths: ClassVar[tuple[int, int]] = (17, 6)

    @property
    def steps(self) -> int:
        """Environment steps that a source's policy is trained for."""
        return STEPS if self.sizes.horizon > 100 else 4096

    def expert(self, task: str) -> tuple[Behaviour, str]:
        if task == TARGET:
            return load_behaviour(DEMONSTRATOR), f"robot_cl/data/embedded/{DEMONSTRATOR}"
        path = self.kept / f"source-{task}.safetensors"
        if not path.exists():
            train_source(SHIFTS[task], path, self.steps, self.threads)
        return load_behaviour(path), str(path.name)

    def roll(
        self, act: walker.Act, task: str, seeds: Sequence[int], sigma: np.ndarray | float = 0.0, label: bool = True,
        keep: bool = False,
    ) -> walker.Episodes:  # fmt: skip
        return walker.roll(act, TARGET, seeds, self.threads, self.sizes.horizon, sigma, label, keep, repeat=1,
                           shift=SHIFTS.get(task), height=0)  # fmt: skip

    def base_data(self) -> Tensor:
        """All sources together, as executed under noise of several strengths."""
        count = max(1, self.sizes.base_episodes // len(SHIFTS))
        sigma, parts = np.resize([0.05, 0.1, 0.2, 0.4], count), []
        for k, name in enumerate(SHIFTS):
            seeds = range(BASE_SEED + 1000 * k, BASE_SEED + 1000 * k + count)
            parts.append(self.recording(f"base-data-{name}", name, list(seeds), sigma, True))
        return torch.cat(parts)

    def skill_data(self, name: str) -> Tensor:
        seeds = list(range(SKILL_SEED, SKILL_SEED + self.sizes.skill_episodes))
        return self.recording(f"skill-{name}", name, seeds, 0.1, False)


def cheetah_sizes(sizes: Sizes) -> Sizes:
    """Ten demonstrations of 1000 steps."""
    tiny = sizes.horizon < walker.HORIZON
    return replace(sizes, counts=(2,) if tiny else (10,), horizon=sizes.horizon if tiny else 1000)


def train_source(shift: str, path: Path, steps: int, threads: int, seed: int = 1) -> None:
    """A policy of its own for a source's physics: PPO, rates falling to zero over `steps`."""
    config = PPOConfig()
    config.decay = max(1, steps // (WORLDS * config.horizon))
    world = sim.make(TARGET, num_worlds=WORLDS, threads=threads, seed=seed, shift=shift)
    learner = PPO(config, world.interface.obs_dim, world.interface.act_dim, seeds=1, seed=seed)
    collector, last = Collector(world, 1, seed), float("nan")
    for _ in range(config.decay):
        learner.update_online(collector.collect(learner, config.horizon), None)
        finished = collector.finished()
        last = float(finished[0]) if finished is not None else last
    print(f"source {shift}: training return {last:.0f} after {steps} steps", flush=True)
    notes = {"algorithm": "ppo", "steps": steps, "seed": seed, "shift": shift}
    card = BehaviourCard(path.stem, TARGET, "tanh", "clip", 10.0, last, None, "benchmarks/few_shot.py", notes)
    save_behaviour(path, Behaviour(arrays_of(learner.actor), card))


def arrays_of(actor: StackedGaussianActor) -> dict[str, np.ndarray]:
    """PPO's lone actor as a behaviour's plain arrays."""
    found: dict[str, np.ndarray] = {}
    for i, layer in enumerate(actor.net.layers):
        found[f"W{i}"] = layer.weight[0].detach().numpy().copy()
        found[f"b{i}"] = layer.bias[0, 0].detach().numpy().copy()
    norm = actor.normalizer.member(0)
    found |= {"obs_mean": norm.mean.numpy().copy(), "obs_var": norm.var.numpy().copy()}
    return found | {"log_std": actor.log_std[0, 0].detach().numpy().copy()}
