"""Train the policies that fly, drive and reach in the missions benchmark: a base per robot and two skills on it.

    python benchmarks/mission_parts/train.py arm vehicle quadrotor

PPO on batched worlds. Each skill is a low-rank adapter on the frozen base, trained on the robot as it is when something
about it has changed. The weights lie in benchmarks/mission_parts/weights/<robot>, a few kilobytes each, with a card
that says what the deterministic policy is worth on seeds 1000 to 1019.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import sim  # noqa: E402
from policies.actor import ActorPolicy, StackedGaussianActor  # noqa: E402
from policies.adapter import Header  # noqa: E402
from policies.card import SkillCard  # noqa: E402
from policies.hashing import content_digest  # noqa: E402
from policies.lora import base_digest, extract, merge_into  # noqa: E402
from policies.skill_file import skill_bytes  # noqa: E402
from robot_cl.checkpoint import CARD, FORMAT, POLICY, load_actor, save_tensors  # noqa: E402
from robot_cl.data.atomic import write_json  # noqa: E402
from robot_cl.evaluate import evaluate  # noqa: E402
from robot_cl.learners.base import Trainable  # noqa: E402
from robot_cl.learners.ppo import PPO, PPOConfig  # noqa: E402
from robot_cl.learners.rollout import Collector  # noqa: E402

WEIGHTS = Path(__file__).resolve().parent / "weights"
WORLDS, RANK, SEED = 64, 4, 0


@dataclass(frozen=True)
class Plan:
    """What one robot learns: its task, environment steps of the base and of each skill, and the skills' worlds."""

    task: str
    base_steps: int
    skill_steps: int
    skills: dict[str, str]


PLANS = {
    "arm": Plan("arm-reach", 260_000, 80_000, {"weak-motors": "gain=0.7", "late": "latency1"}),
    "vehicle": Plan("vehicle-waypoint", 400_000, 100_000, {"slippery": "friction0.4", "weak-motors": "gain=0.7"}),
    "quadrotor": Plan("quadrotor-hover", 1_500_000, 200_000, {"loaded": "payload0.08", "late": "latency1"}),
}


def train(task: str, steps: int, shift: str | None = None, actor: StackedGaussianActor | None = None) -> PPO:
    """PPO for `steps` environment steps; with an actor, an adapter on it."""
    config = PPOConfig(decay=steps // (WORLDS * 64))
    if actor is not None:
        config = PPOConfig(
            actor=actor.config, trainable=Trainable.adapter, rank=RANK, lr=3e-3, decay=config.decay, value_warmup=3
        )
    world = sim.make(task, num_worlds=WORLDS, seed=SEED, shift=shift)
    learner = PPO(config, world.interface.obs_dim, world.interface.act_dim, seeds=1, seed=SEED, actor=actor)
    collector, began = Collector(world, 1, SEED), time.monotonic()
    for rollout in range(1, config.decay + 1):
        learner.update_online(collector.collect(learner, config.horizon), None)
        finished = collector.finished()
        if rollout % 20 == 0 and finished is not None:
            done = f"{rollout * WORLDS * config.horizon} of {steps} steps, {time.monotonic() - began:.0f} s"
            print(f"{task} {shift or ''}: {done}: return {float(finished[0]):.2f}", flush=True)
    return learner


def measured(actor: StackedGaussianActor, task: str, shift: str | None = None) -> float:
    return round(evaluate(ActorPolicy(actor), task, episodes=20, seed=1000, shift=shift).mean, 3)


def make_base(robot: str, plan: Plan) -> StackedGaussianActor:
    folder = WEIGHTS / robot
    if (folder / CARD).exists():
        return load_actor(folder)
    actor = train(plan.task, plan.base_steps).policy()
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / POLICY, actor.state_dict())
    about: dict[str, Any] = {"format": FORMAT, "kind": "gaussian", "actor": actor.spec(), "step": plan.base_steps}
    interface = sim.make(plan.task, threads=1).interface.to_dict()
    about |= {"learner": "ppo", "task": plan.task, "interface": interface, "score": measured(actor, plan.task)}
    write_json(folder / CARD, about)
    print(f"{robot}: base {about['score']}", flush=True)
    return load_actor(folder)


def make_skill(robot: str, plan: Plan, name: str, base: StackedGaussianActor) -> None:
    path, shift = WEIGHTS / robot / f"{name}.safetensors", plan.skills[name]
    if path.exists():
        return
    learner = train(plan.task, plan.skill_steps, shift, base.member(0))
    adapter = extract(learner.actor, header=Header(base=base_digest(base.member(0))))
    skilled = merge_into(base.member(0), adapter)
    scores = {plan.task: measured(skilled, plan.task), f"{plan.task} {shift}": measured(skilled, plan.task, shift)}
    bare = measured(base, plan.task, shift)
    card = SkillCard(
        name, header=adapter.header, content=content_digest(adapter), ranks=adapter.ranks, learner="ppo", seed=SEED,
        description=f"{robot} under {shift}, where the base is worth {bare}", scores=scores,
    )  # fmt: skip
    path.write_bytes(skill_bytes(adapter, card))
    print(f"{robot}: {name} {scores}, base under {shift} {bare}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("robots", nargs="*", choices=[*PLANS, []], default=list(PLANS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for robot in args.robots:
        base = make_base(robot, PLANS[robot])
        for name in PLANS[robot].skills:
            make_skill(robot, PLANS[robot], name, base)


if __name__ == "__main__":
    main()
