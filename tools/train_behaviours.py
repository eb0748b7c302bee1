"""Train the small behaviour policies that ship with the package (robot_cl/data/embedded).

    python tools/train_behaviours.py                    every task below
    python tools/train_behaviours.py --tasks hopper

PPO on batched worlds. When the training return has passed a level, the deterministic policy is measured every few
rollouts and kept once it is worth that level too; the last policy is kept as the expert, whatever it is worth. The card
says what was measured on seeds 1000 to 1019.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import sim
from policies.actor import StackedGaussianActor
from robot_cl.data.behaviours import EMBEDDED, Behaviour, BehaviourCard, save_behaviour
from robot_cl.evaluate import evaluate
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.rollout import Collector

WORLDS = 64
MEASURE_EVERY = 4  # rollouts between two measurements of a level that is due


@dataclass(frozen=True)
class Plan:
    """One training: `levels` are the returns at which snapshots are taken; the last policy may be one too."""

    task: str
    seed: int
    steps: int  # environment steps over which the learning rates fall to zero
    levels: dict[str, float]
    last: str | None = None


PLANS = [
    Plan("halfcheetah", 0, 2_000_000, {"low": 1000.0}),  # this seed stays with a slow crawl
    Plan("halfcheetah", 1, 2_000_000, {"medium": 2500.0}, "expert"),
    Plan("hopper", 0, 1_200_000, {"low": 500.0, "medium": 1000.0}, "expert"),
]


def as_behaviour(actor: StackedGaussianActor, card: BehaviourCard) -> Behaviour:
    """The actor's only member as plain arrays."""
    arrays: dict[str, np.ndarray] = {}
    for i, layer in enumerate(actor.net.layers):
        arrays[f"W{i}"] = layer.weight[0].detach().numpy().copy()
        arrays[f"b{i}"] = layer.bias[0, 0].detach().numpy().copy()
    norm = actor.normalizer.member(0)
    arrays |= {"obs_mean": norm.mean.numpy().copy(), "obs_var": norm.var.numpy().copy()}
    arrays["log_std"] = actor.log_std[0, 0].detach().numpy().copy()
    return Behaviour(arrays, card)


def snapshot(learner: PPO, plan: Plan, level: str, steps: int, at_least: float) -> bool:
    """Measure the policy as it is now and, if it is worth `at_least`, write it with its card -> whether it was."""
    facts: dict[str, Any] = {"task": plan.task, "activation": "tanh", "squash": "clip", "obs_clip": 10.0}
    name = f"{plan.task}-{level}"
    measured = evaluate(as_behaviour(learner.actor, BehaviourCard(name, **facts)), plan.task, episodes=20, seed=1000)
    if measured.mean < at_least:
        return False
    card = BehaviourCard(
        name,
        **facts,
        mean_return=round(measured.mean, 1),
        std_return=round(float(np.std(measured.returns)), 1),
        source="tools/train_behaviours.py",
        notes={"algorithm": "ppo", "steps": steps, "seed": plan.seed, "simulator": measured.simulator},
    )
    path = EMBEDDED / f"{name}.safetensors"
    save_behaviour(path, as_behaviour(learner.actor, card))
    print(f"{path.name}: {card.mean_return} ± {card.std_return} after {steps} steps", flush=True)
    return True


def train(plan: Plan) -> None:
    config, pending = PPOConfig(), dict(plan.levels)
    # Learning rates fall to zero, so that the last policy is a steady one and not a moment of a walk.
    config.decay = plan.steps // (WORLDS * config.horizon)
    world = sim.make(plan.task, num_worlds=WORLDS, seed=plan.seed)
    learner = PPO(config, world.interface.obs_dim, world.interface.act_dim, seeds=1, seed=plan.seed)
    collector, start = Collector(world, 1, plan.seed), time.monotonic()
    for rollout in range(1, config.decay + 1):
        learner.update_online(collector.collect(learner, config.horizon), None)
        steps, finished = rollout * WORLDS * config.horizon, collector.finished()
        if finished is None:
            continue
        score = float(finished[0])
        for level, bar in list(pending.items()):
            if score >= bar and rollout % MEASURE_EVERY == 0 and snapshot(learner, plan, level, steps, bar):
                del pending[level]
        if not pending and plan.last is None:
            return
        if rollout % 50 == 0:
            print(f"{plan.task} {steps} steps {time.monotonic() - start:.0f} s: return {score:.0f}", flush=True)
    if plan.last:
        snapshot(learner, plan, plan.last, steps, at_least=-np.inf)


def main() -> None:
    tasks = sorted({plan.task for plan in PLANS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for plan in PLANS:
        if plan.task in args.tasks:
            train(plan)


if __name__ == "__main__":
    main()
