"""Halfcheetah under a speed limit: one skill that seeks reward, one that avoids cost, both from the same mixed data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from few_shot_parts import walker
from few_shot_parts.setting import BASE_SEED, SCALE, Setting, Sizes, load_adapters, save_adapters
from few_shot_parts.stacked import Schedule
from torch import Tensor

from policies.adapter import Adapter
from policies.lora import extract
from robot_cl.batch import Transitions
from robot_cl.data.behaviours import Behaviour, load_behaviour
from robot_cl.data.sampler import Sampler
from robot_cl.learners.base import Trainable
from robot_cl.learners.psec import PSEC, PSECConfig, Skill

TASK, SPEED, LIMIT, BUDGET = "halfcheetah", 8, 3.5, 20  # where observations say the speed, m/s, steps over it allowed
DEMONSTRATOR = "halfcheetah-low"  # crosses the limit on about one step in a hundred
DATA = tuple((f"halfcheetah-{name}", sigma) for name in ("low", "medium", "expert") for sigma in (0.0, 0.15, 0.3))
COST_SCALE = 5.0  # of (speed − limit) / limit, so that exponential weights tell safe from safer


class SpeedSetting(Setting):
    """An episode's `fell` is its cost here: steps over the limit per BUDGET; below 1 is safe."""

    widths: ClassVar[tuple[int, int]] = (17, 6)

    def expert(self, task: str) -> tuple[Behaviour, str]:
        return load_behaviour(DEMONSTRATOR), f"robot_cl/data/embedded/{DEMONSTRATOR}"

    def roll(
        self, act: walker.Act, task: str, seeds: Sequence[int], sigma: np.ndarray | float = 0.0, label: bool = True,
        keep: bool = False,
    ) -> walker.Episodes:  # fmt: skip
        over = np.zeros(len(seeds))

        def watched(obs: np.ndarray) -> np.ndarray:
            over[:] += obs[:, SPEED] > LIMIT
            return act(obs)

        found = walker.roll(watched, TASK, seeds, self.threads, self.sizes.horizon, sigma, label, keep, 1, height=0)
        return replace(found, fell=over / BUDGET)

    def base_data(self) -> Tensor:
        """Slow, middling and fast behaviours under three strengths of noise, as executed."""
        count, parts = max(1, self.sizes.base_episodes // len(DATA)), []
        for k, (name, sigma) in enumerate(DATA):
            path = self.kept / f"speed-{name}-{sigma:g}.safetensors"
            seeds = list(range(BASE_SEED + 1000 * k, BASE_SEED + 1000 * k + count))
            parts.append(self.kept_rows(path, load_behaviour(name).act, seeds, sigma))
        return torch.cat(parts)

    def transitions(self, skill: Skill) -> Transitions:
        """The base's data with the reward of a skill: forward speed less effort, or minus the cost."""
        rows = self.base_data()
        obs, action = rows[..., : self.widths[0]], rows[..., self.widths[0] :]
        after, speed = obs[:, 1:], obs[:, 1:, SPEED]
        cost = ((speed - LIMIT) / LIMIT).clamp(-1.0, 1.0)
        reward = -cost if skill is Skill.cost else speed - 0.1 * action[:, :-1].square().sum(-1)
        end = torch.zeros_like(reward)
        end[:, -1] = 1.0
        columns = (obs[:, :-1], action[:, :-1], reward, after, torch.zeros_like(reward), end)
        return Transitions(*(c.flatten(0, 1).contiguous() for c in columns))

    def skills(self, names: Sequence[str]) -> dict[str, Adapter]:
        """A reward and a cost skill on the base, by the learner itself."""
        path = self.kept / "skills.safetensors"
        if not path.exists():
            save_adapters(path, {name: self.learned(Skill(name)) for name in names})
        found = load_adapters(path)
        return {name: found[name] for name in names}

    def learned(self, skill: Skill) -> Adapter:
        data, plan = self.transitions(skill), self.sizes.skills
        scale = COST_SCALE if skill is Skill.cost else None
        config = PSECConfig(trainable=Trainable.adapter, skill=skill, scale=SCALE, lr=plan.lr, decay=plan.steps,
                            reward_scale=scale, beta=3.0)  # fmt: skip
        learner = PSEC(config, *self.widths, 1, 0, self.device, actor=self.base())
        learner.prepare(data)
        sampler = Sampler.over(data, learner.rng, self.device)
        for _ in range(plan.steps):
            losses = learner.update_offline(sampler.sample(plan.batch))
        print(f"{skill} skill: " + ", ".join(f"{n} {float(x):.3f}" for n, x in losses.items()), flush=True)
        return extract(learner.ema)


def speed_sizes(sizes: Sizes) -> Sizes:
    """Ten demonstrations of 1000 steps. A skill's critics need their 4000 steps whatever the width of the actor."""
    if sizes.horizon < walker.HORIZON:
        return replace(sizes, counts=(2,))
    skills = Schedule(4000, 1e-3, sizes.skills.batch)
    return replace(sizes, counts=(10,), horizon=1000, skills=skills)
