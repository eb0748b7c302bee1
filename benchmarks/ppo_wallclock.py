"""Wall clock of PPO on HalfCheetah to a return of 2000 and 3000, against Stable-Baselines3's PPO on the same cores.

    python benchmarks/ppo_wallclock.py [--quick] [--json] [--seeds 3] [--peer-seeds 1]

Peer: stable_baselines3.PPO with 8 environments under VecNormalize, one torch thread; DummyVecEnv or SubprocVecEnv,
whichever steps faster here, is measured first. Ours: 64 batched worlds, one torch thread, our defaults. Each is scored
by the same 8 episodes of its deterministic policy; the clock stands still during the scoring. The time to a return is
interpolated between the two scores around it, median over seeds. Time for imports and for building environments does
not count for either.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import common
import numpy as np
import torch

import sim
from policies.actor import ActorPolicy
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.rollout import Collector, play
from robot_cl.learners.sb3 import converted
from robot_cl.seeding import EVALUATION_SEED

TASK, ENV_ID, GOALS, EPISODES, PEER_ENVS, WORLDS = "halfcheetah", "HalfCheetah-v5", (2000, 3000), 8, 8, 64
Point = tuple[float, int, float]  # seconds, environment steps, return


class Clock:
    """Seconds of training; stands still while scoring."""

    def __init__(self, score: Callable[[], float]):
        self.score, self.curve, self.spent, self.began = score, list[Point](), 0.0, time.perf_counter()

    def mark(self, steps: int) -> float:
        """Score now, add a point to the curve, go on counting. Returns the score."""
        self.spent += time.perf_counter() - self.began
        value = self.score()
        self.curve.append((self.spent, steps, value))
        self.began = time.perf_counter()
        return value


def scorer(policy: Callable[[], ActorPolicy]) -> Callable[[], float]:
    world = sim.make(TASK, num_worlds=EPISODES)
    return lambda: float(play(policy(), world, EVALUATION_SEED).mean())


def ours(seed: int, limit: float, every: int = 65_536) -> list[Point]:
    """Train until the last goal or `limit` seconds."""
    config = PPOConfig()
    world = sim.make(TASK, num_worlds=WORLDS)
    learner = PPO(config, world.interface.obs_dim, world.interface.act_dim, seed=seed)
    collector = Collector(world, 1, seed)
    clock = Clock(scorer(lambda: ActorPolicy(learner.actor)))
    steps, due = 0, every
    clock.mark(0)
    while clock.curve[-1][2] < GOALS[-1] and clock.spent < limit:
        learner.update_online(collector.collect(learner, config.horizon))
        steps += WORLDS * config.horizon
        if steps >= due:
            clock.mark(steps)
            due += every
    return clock.curve


def peer_env(kind: str):  # type: ignore[no-untyped-def]
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    cls = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[kind]
    return make_vec_env(ENV_ID, PEER_ENVS, vec_env_cls=cls)


def faster_env(steps: int = 300) -> str:
    """The kind of vectorisation that steps faster here."""
    rates = {}
    for kind in ("DummyVecEnv", "SubprocVecEnv"):
        env = peer_env(kind)
        env.reset()
        action = np.zeros((PEER_ENVS, 6), dtype=np.float32)
        began = time.perf_counter()
        for _ in range(steps):
            env.step(action)
        rates[kind] = steps * PEER_ENVS / (time.perf_counter() - began)
        env.close()
    print(common.table(("8 environments of the peer", "steps/s"), list(rates.items())))
    return max(rates, key=lambda kind: rates[kind])


def peer(seed: int, kind: str, limit: float) -> list[Point]:
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecNormalize

    env = VecNormalize(peer_env(kind))
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=2048 // PEER_ENVS, seed=seed, device="cpu")
    clock = Clock(scorer(lambda: ActorPolicy(converted(model.policy, env))))

    class Scoring(BaseCallback):
        due = 0

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= self.due:
                clock.mark(self.num_timesteps)
                self.due += 16_384

        def _on_step(self) -> bool:
            return clock.curve[-1][2] < GOALS[-1] and clock.spent < limit

    model.learn(10_000_000, callback=Scoring())
    env.close()
    return clock.curve


def seconds_to(curve: list[Point], goal: float) -> float:
    """Interpolated at the first crossing; infinite if there is none."""
    for (t0, _, r0), (t1, _, r1) in itertools.pairwise(curve):
        if r1 >= goal:
            return t0 + (t1 - t0) * max(0.0, (goal - r0) / (r1 - r0))
    return float("inf")


def show(name: str, curve: list[Point]) -> None:
    rows = [(round(t, 1), n, round(r)) for t, n, r in curve]
    print(f"\n{name}\n" + common.table(("seconds", "steps", "return"), rows))


def main() -> None:
    flags = [
        ("--seeds", {"type": int, "default": 3, "help": "of ours"}),
        ("--peer-seeds", {"type": int, "default": 0, "help": "of the peer; 0: one with --quick, else as many as ours"}),
        ("--limit", {"type": float, "default": 900.0, "help": "seconds of training at most, each"}),
    ]
    args = common.arguments(__doc__ or "", flags)
    torch.set_num_threads(1)
    kind = faster_env()
    mine = [ours(seed, args.limit) for seed in range(args.seeds)]
    theirs = [peer(seed, kind, args.limit) for seed in range(args.peer_seeds or (1 if args.quick else args.seeds))]
    for name, curves in (("ours", mine), (f"Stable-Baselines3, {kind}", theirs)):
        for seed, curve in enumerate(curves):
            show(f"{name}, seed {seed}", curve)
    claims, details = [], {}
    for goal in GOALS:
        a, b = (statistics.median(seconds_to(curve, goal) for curve in curves) for curves in (mine, theirs))
        details[str(goal)] = {"ours_s": a, "peer_s": b}
        print(f"\nreturn {goal}: ours {a:.1f} s, Stable-Baselines3 {b:.1f} s")
        claims.append(common.Claim(f"times faster than Stable-Baselines3's PPO to a return of {goal}", b / a, 6.0))
    common.report("ppo_wallclock", claims, args.json, {"seconds": details, "curves": {"ours": mine, "peer": theirs}})


if __name__ == "__main__":
    main()
