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
from pathlib import Path
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
# task: environment steps, and the return at which a snapshot of that name is taken
PLANS: dict[str, tuple[int, dict[str, float]]] = {
    "halfcheetah": (3_000_000, {"low": 1000.0, "medium": 2500.0}),
    "hopper": (2_000_000, {"low": 500.0, "medium": 1500.0}),
    "walker2d": (3_000_000, {"low": 500.0, "medium": 1500.0}),
}


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


def snapshot(learner: PPO, task: str, level: str, steps: int, seed: int, at_least: float) -> bool:
    """Measure the policy as it is now and, if it is worth `at_least`, write it with its card -> whether it was."""
    facts: dict[str, Any] = {"task": task, "activation": "tanh", "squash": "clip", "obs_clip": 10.0}
    name = f"{task}-{level}"
    measured = evaluate(as_behaviour(learner.actor, BehaviourCard(name, **facts)), task, episodes=20, seed=1000)
    if measured.mean < at_least:
        return False
    card = BehaviourCard(
        name,
        **facts,
        mean_return=round(measured.mean, 1),
        std_return=round(float(np.std(measured.returns)), 1),
        source="tools/train_behaviours.py",
        notes={"algorithm": "ppo", "steps": steps, "seed": seed, "simulator": measured.simulator},
    )
    path = EMBEDDED / f"{name}.safetensors"
    save_behaviour(path, as_behaviour(learner.actor, card))
    print(f"{path.name}: {card.mean_return} ± {card.std_return} after {steps} steps", flush=True)
    return True


def train(task: str, seed: int) -> None:
    budget, levels = PLANS[task]
    # Learning rates fall to zero, so that the last policy is a steady one and not a moment of a walk.
    pending = dict(levels)
    learner_config = PPOConfig(decay=budget // (WORLDS * 64))
    horizon = learner_config.horizon
    world = sim.make(task, num_worlds=WORLDS, seed=seed)
    learner = PPO(learner_config, world.interface.obs_dim, world.interface.act_dim, seeds=1, seed=seed)
    collector, steps, rollouts, start, heard = Collector(world, 1, seed), 0, 0, time.monotonic(), 0
    while steps < budget:
        learner.update_online(collector.collect(learner, horizon), None)
        steps += WORLDS * horizon
        rollouts += 1
        finished = collector.finished()
        if finished is None:
            continue
        score = float(finished[0])
        for level, bar in list(pending.items()):
            if score >= bar and rollouts % MEASURE_EVERY == 0 and snapshot(learner, task, level, steps, seed, bar):
                del pending[level]
        if steps // 200_000 > heard:
            heard = steps // 200_000
            print(f"{task} {steps} steps {time.monotonic() - start:.0f} s: return {score:.0f}", flush=True)
    snapshot(learner, task, "expert", steps, seed, at_least=-np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(PLANS), default=sorted(PLANS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Path(EMBEDDED).mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        train(task, args.seed)


if __name__ == "__main__":
    main()
