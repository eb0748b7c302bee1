"""Runs of Stable-Baselines3: a folder like any other, filled from its own training loop, one seed after the other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import sim
from policies.actor import ActorPolicy
from robot_cl import seeding
from robot_cl.checkpoint import save_checkpoint
from robot_cl.learners.rollout import play
from robot_cl.learners.sb3 import SB3, SB3Config, stacked
from robot_cl.metrics import MetricWriter
from robot_cl.run import Progress
from robot_cl.run_config import TrainConfig
from sim.spec import Interface

REFUSAL = "Stable-Baselines3 keeps its own state; this run can be neither resumed nor verified, start a new one"


def train_sb3(
    folder: Path, config: TrainConfig, options: SB3Config, interface: Interface, progress: Progress | None
) -> None:
    """Train `config.seeds` members and leave one checkpoint with all of them."""
    task, total, began = str(config.task), config.online * config.seeds, time.monotonic()
    writer = MetricWriter(folder, 0, config.tensorboard, config.wandb)
    world = sim.make(task, num_worlds=max(1, config.eval_episodes), threads=config.threads)
    actors = []
    for p in range(config.seeds):
        agent = SB3(options, task, config.seed + p, config.threads or 1, config.device)

        def report(step: int, values: dict[str, float], p: int = p, agent: SB3 = agent) -> None:
            if config.eval_every:
                policy = ActorPolicy(agent.actor())
                values = values | {"eval_return": float(play(policy, world, seeding.EVALUATION_SEED).mean())}
            cells = {name: np.full(config.seeds, np.nan) for name in values}
            for name, value in values.items():
                cells[name][p] = value
            writer.write(step, "online", time.monotonic() - began, cells)
            if progress is not None:
                progress("online", p * config.online + step, total, values)

        report(0, {})
        agent.learn(config.online, report, config.eval_every or config.log_every)
        actors.append(agent.actor())
    writer.close()
    card = {"learner": "sb3", "task": task, "data": None, "interface": interface.to_dict()}
    actor = stacked(actors)
    save_checkpoint(folder, config.online, card, actor, actor.state_dict(), {}, {"step": config.online})
