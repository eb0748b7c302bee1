"""How much better than its behaviour a narrow dataset tells to be, if cloning and gates were perfect.

    python benchmarks/uni_o4_room.py            some ten minutes of one core
    python benchmarks/uni_o4_room.py --quick

One behaviour acted with noise. Its mean action is known here, so deviations from it are noise and nothing else, and
the advantages of the data's trajectories (`deviations.py`) have no clone's errors in them. The policies that are played
take the mean action and go so many deviations of the noise along these slopes. Each is played without noise, as
policies are scored, and with the noise of the data. The best step is chosen by the world, which no learner may ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from common import Claim, arguments, report, table
from offline_cells import score
from offline_data import DATASETS, DEVELOPMENT, SHARED, dataset
from torch import Tensor

from policies.normalizer import Normalizer
from robot_cl.data.behaviours import Behaviour, load_behaviour
from robot_cl.data.sampler import Sampler
from robot_cl.evaluate import evaluate
from robot_cl.learners.deviations import DeviationAdvantage, blocks, trajectory_advantages
from robot_cl.learners.evidence import realised
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import UniO4Config

NAMES = ("halfcheetah-ars", "halfcheetah-trpo", "halfcheetah-ppo")  # the last one is scored, the others develop
STEPS = (-0.5, 0.25, 0.5, 1.0, 1.5)  # deviations of the noise; below zero against the slopes
BATCH, ROWS = 256, 20_000  # of an update; of the data at a time


@dataclass
class Told:
    """What a dataset of one behaviour tells: slopes of P seeds, and which share of their claims is found (P,) in rows
    that they were not fitted to."""

    behaviour: Behaviour
    noise: float
    slopes: DeviationAdvantage
    normalizer: Normalizer
    found: Tensor

    def directions(self, obs: Tensor) -> Tensor:
        """Where slopes point, (B, obs_dim) -> (P, B, act_dim): one deviation per action, less where they are small."""
        z = self.normalizer(obs).expand(self.slopes.policies, -1, -1)
        mean = self.slopes.slopes(z).mean(1)
        length = torch.maximum(mean.norm(dim=-1, keepdim=True), self.slopes.longest.view(-1, 1, 1))
        return mean / length * mean.shape[-1] ** 0.5


@dataclass
class Along:
    """The behaviour's mean action, `step` deviations along a seed's slopes, then its noise where `noisy`: a policy."""

    told: Told
    seed: int
    step: float
    noisy: bool

    def __post_init__(self) -> None:
        self.obs_dim, self.act_dim = self.told.behaviour.obs_dim, self.told.behaviour.act_dim
        self.rng = np.random.default_rng(self.seed)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """(B, obs_dim) -> (B, act_dim)."""
        action, away = self.told.behaviour.act(obs), np.zeros(1)
        if self.step:
            away = self.step * self.told.directions(torch.from_numpy(obs))[self.seed].numpy()
        if self.noisy:
            away = away + self.rng.standard_normal(action.shape)
        return np.clip(action + self.told.noise * away, -1.0, 1.0, dtype=np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing is remembered."""


def told(name: str, seeds: int, quick: bool) -> Told:
    """Values and slopes as Uni-O4 learns them, of deviations from the behaviour itself."""
    stem, noise = (DATASETS | DEVELOPMENT)[name].parts[0]
    assert noise is not None
    behaviour, data = load_behaviour(SHARED / f"{stem}.npz"), dataset(name).transitions()
    c = UniO4Config(expectile=0.5, behaviours=1, critic_steps=500 if quick else 10_000)
    learner = UniO4(c, data.obs_dim, data.act_dim, seeds)
    learner.attach_data(data)
    learner.prepare(data)
    learner.begin_values()
    sampler = Sampler.over(data, learner.rng)
    while learner.step < (c.critic_steps or 0):
        learner.schedule()
        learner.fit_values(sampler.sample(BATCH))
        learner.step += 1
    scaled = replace(data, reward=data.reward * learner.extra["reward_scale"])
    with torch.no_grad():
        value, after = (
            torch.cat([learner.state_value(rows.expand(seeds, -1, -1)) for rows in x.split(ROWS)], 1)
            for x in (data.obs, data.next_obs)
        )
    mean = np.concatenate([behaviour.act(rows.numpy()) for rows in data.obs.split(ROWS)])
    deviations = ((data.action - torch.from_numpy(mean)) / noise).expand(seeds, -1, -1)
    slopes = DeviationAdvantage(data.obs_dim, data.act_dim, learner.rng, c.critic.hidden, c.folds)
    norm, fold = learner.actor.normalizer, blocks(len(data), c.folds, data.obs.device)
    advantage = trajectory_advantages(scaled, value, after, c.discount, c.trace)
    slopes.fit(norm(data.obs), deviations, advantage, fold, learner.rng, c.advantage_steps)
    came = realised(scaled, value, after, c.discount)
    found = slopes.borne_out(norm(data.obs), deviations, came, fold)
    return Told(behaviour, noise, slopes, norm, found)


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--datasets", {"default": ",".join(NAMES)}),
            ("--seeds", {"type": int, "default": 3}),
            ("--episodes", {"type": int, "default": 20, "help": "per seed and policy"}),
        ],
    )
    torch.set_num_threads(1)
    episodes = 4 if args.quick else args.episodes
    claims, rows, kept = [], [], {}
    for name in args.datasets.split(","):
        task, one = (DATASETS | DEVELOPMENT)[name].task, told(name, args.seeds, args.quick)
        kept[name] = {"found": one.found.tolist()} | {
            f"{'noise, ' if noisy else ''}{step:+g}": [
                score(task, evaluate(Along(one, p, step, noisy), task, episodes, threads=1).mean)
                for p in range(args.seeds)
            ]
            for noisy in (False, True)
            for step in (0.0, *STEPS)
        }
        mean = {what: float(np.mean(each)) for what, each in kept[name].items()}
        for noise in ("", "noise, "):
            start = mean[f"{noise}+0"]
            rows.append([name, noise.strip(", "), start, *(mean[f"{noise}{step:+g}"] - start for step in STEPS)])
        best = max(mean[f"{step:+g}"] for step in STEPS) - mean["+0"]
        claims.append(Claim(f"{name}: the best step over the behaviour's mean action, points", best, 5.0))
    print(table(("dataset", "played with", "behaviour", *(f"{step:+g}" for step in STEPS)), rows))
    report("uni_o4_room", claims, args.json, kept)


if __name__ == "__main__":
    main()
