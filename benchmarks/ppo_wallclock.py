"""Wall clock of PPO on HalfCheetah to a return of 2000 and 3000, against Stable-Baselines3's PPO on the same cores.

    python benchmarks/ppo_wallclock.py [--quick] [--json] [--seeds 3] [--peer-seeds 1] [--limit 900]
    python benchmarks/ppo_wallclock.py --pairs 0-1,2-3,4-5 --out runs/benchmarks/ppo_wallclock

Peer: stable_baselines3.PPO with 8 environments under VecNormalize, one torch thread; DummyVecEnv or SubprocVecEnv,
whichever steps faster here, is measured first. It runs twice: with its defaults, and with the noise that ours starts
from. Ours: 64 batched worlds, one torch thread, learner=ppo_halfcheetah. Each is scored by the same 8 episodes of its
deterministic policy; the clock stands still during the scoring. The time to a return is interpolated between the two
scores around it, median over seeds. Time for imports and for building environments does not count for either.

Every seed of every side is a process of its own, pinned to one pair of cores of `--pairs` (default: the first two
cores of this process), one process per pair at a time; each leaves a JSON file in `--out`, which a second call takes
as it is. A seed that does not reach a return within `--limit` seconds of training counts as that limit, and its ratio
is then a lower bound.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

import sim
from policies.actor import ActorPolicy
from robot_cl.config import read_groups
from robot_cl.learners import config_classes
from robot_cl.learners.ppo import PPO, PPOConfig
from robot_cl.learners.rollout import Collector, play
from robot_cl.learners.sb3 import converted
from robot_cl.run_config import TrainConfig
from robot_cl.seeding import EVALUATION_SEED

TASK, ENV_ID, GOALS, EPISODES, PEER_ENVS, WORLDS = "halfcheetah", "HalfCheetah-v5", (2000, 3000), 8, 8, 64
Point = tuple[float, int, float]  # seconds, environment steps, return
PEERS = {"peer": "defaults", "peer_sigma": "the same noise at the start"}


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


def preset() -> PPOConfig:
    words = [f"task={TASK}", "learner=ppo_halfcheetah"]
    config = read_groups(TrainConfig, {"learner": config_classes()}, "train", words)[1]["learner"][1]
    assert isinstance(config, PPOConfig)
    return config


def ours(seed: int, limit: float, every: int = 8192) -> list[Point]:
    """Train until the last goal or `limit` seconds."""
    config = preset()
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


def peer(seed: int, kind: str, limit: float, options: dict[str, Any]) -> list[Point]:
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecNormalize

    env = VecNormalize(peer_env(kind))
    model = stable_baselines3.PPO(
        "MlpPolicy", env, n_steps=2048 // PEER_ENVS, seed=seed, device="cpu", policy_kwargs=options
    )
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


def cell(side: str, seed: int, kind: str, limit: float, path: Path) -> None:
    """Train one seed of one side and leave its curve as JSON."""
    torch.set_num_threads(1)
    start = {"log_std_init": preset().actor.log_std_init} if side == "peer_sigma" else {}
    curve = ours(seed, limit) if side == "ours" else peer(seed, kind, limit, start)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"side": side, "seed": seed, "kind": kind, "limit": limit, "cores": cores,
                                "provenance": common.provenance(), "curve": curve}))  # fmt: skip
    part.replace(path)


def run_cells(cells: Sequence[tuple[str, int]], kind: str, limit: float, pairs: Sequence[set[int]], out: Path) -> None:
    """All cells that are not there yet, one process per pair of cores at a time. RuntimeError if one fails."""
    queue = [c for c in cells if not (out / f"{c[0]}-{c[1]}.json").exists()]
    busy: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
    while queue or busy:
        for k in range(len(pairs)):
            if k not in busy and queue:
                side, seed = queue.pop(0)
                words = [side, str(seed), kind, str(limit), str(out / f"{side}-{seed}.json")]
                busy[k] = (pinned([sys.executable, __file__, "--cell", *words], pairs[k]), f"{side}, seed {seed}")
        time.sleep(0.2)
        for k, (process, name) in list(busy.items()):
            if process.poll() is not None:
                del busy[k]
                if process.returncode:
                    raise RuntimeError(f"{name} ended with code {process.returncode}; call again to go on")
                print(f"{name} done", flush=True)


def pinned(command: list[str], cores: set[int]) -> subprocess.Popen[bytes]:
    """A process that may run on `cores` alone, also where it starts processes of its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited by the child from its first instruction on
    try:
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    finally:
        os.sched_setaffinity(0, before)


def parse_pairs(text: str) -> list[set[int]]:
    """ "0-1,2-3" -> [{0, 1}, {2, 3}]; nothing: the first two cores of this process."""
    if not text:
        return [set(sorted(os.sched_getaffinity(0))[:2])]
    pairs = [set(map(int, pair.split("-"))) for pair in text.split(",")]
    missing = set().union(*pairs) - os.sched_getaffinity(0)
    if missing:
        raise SystemExit(f"--pairs names cores {sorted(missing)}, which this process may not use")
    return pairs


def claims_of(mine: list[list[Point]], theirs: list[list[Point]], limit: float, options: str) -> list[common.Claim]:
    """One claim per goal against one peer; a side that has not got there counts as `limit`."""
    claims = []
    for goal in GOALS:
        times = [[seconds_to(curve, goal) for curve in curves] for curves in (mine, theirs)]
        a, b = (statistics.median(min(t, limit) for t in side) for side in times)
        late = [sum(t > limit for t in side) for side in times]
        bound = "at least " if statistics.median(times[1]) > limit else ""
        name, of = f"Stable-Baselines3 ({options})", f"seeds not within {limit:g} s"
        print(f"return {goal}: ours {a:.1f} s ({late[0]} of {len(mine)} {of}), {name} {bound}{b:.1f} s ({late[1]} of "
              f"{len(theirs)} {of})")  # fmt: skip
        sentence = f"times faster than Stable-Baselines3's PPO ({options}) to a return of {goal}"
        # A median of ours that is itself the limit proves nothing, whatever the peer did.
        value = 0.0 if statistics.median(times[0]) > limit else b / a
        claims.append(common.Claim(sentence + (", at least" if bound else ""), value, 6.0))
    return claims


def main() -> None:
    flags = [
        ("--seeds", {"type": int, "default": 3, "help": "of ours, and of the peer with our noise"}),
        (
            "--peer-seeds",
            {
                "type": int,
                "default": 0,
                "help": "of the peer as it comes; 0: 1 if quick, else as ours",
            },
        ),
        ("--limit", {"type": float, "default": 900.0, "help": "seconds of training at most, each"}),
        ("--pairs", {"default": "", "help": "pairs of cores, such as 0-1,2-3; one process on each at a time"}),
        ("--out", {"default": "", "help": "folder of the finished seeds, kept and taken up again; none: not kept"}),
    ]
    args = common.arguments(__doc__ or "", flags)
    pairs = parse_pairs(args.pairs)
    scratch = tempfile.TemporaryDirectory()
    out = Path(args.out or scratch.name)
    out.mkdir(parents=True, exist_ok=True)
    chosen = out / "kind.json"
    if not chosen.exists():
        chosen.write_text(json.dumps(faster_env()))
    kind = json.loads(chosen.read_text())
    theirs = args.peer_seeds or (1 if args.quick else args.seeds)
    counts = {"peer": theirs, "peer_sigma": args.seeds, "ours": args.seeds}
    cells = [(side, seed) for side, seeds in counts.items() for seed in range(seeds)]  # the long ones first
    run_cells(cells, kind, args.limit, pairs, out)
    found = {c: json.loads((out / f"{c[0]}-{c[1]}.json").read_text()) for c in cells}
    limit = min(said["limit"] for said in found.values())
    curves = {side: [found[c]["curve"] for c in cells if c[0] == side] for side in counts}
    for (side, seed), said in found.items():
        show(f"{f'Stable-Baselines3, {kind}, {PEERS[side]}' if side in PEERS else 'ours'}, seed {seed}", said["curve"])
    print()
    claims = [c for side, options in PEERS.items() for c in claims_of(curves["ours"], curves[side], limit, options)]
    common.report("ppo_wallclock", claims, args.json, {"limit": limit, "pairs": args.pairs, "curves": curves})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        name, number, vectorisation, most, file = sys.argv[2:]
        cell(name, int(number), vectorisation, float(most), Path(file))
    else:
        main()
