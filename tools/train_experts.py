"""Train the walker experts whose demonstrations the few-shot benchmark uses (benchmarks/few_shot_parts/experts).

    python tools/train_experts.py walker-stand
    python tools/train_experts.py walker-run --demonstrator walker-run-sac.npz
    python tools/train_experts.py walker-walk --demonstrator walker-run-own.safetensors --width 128
    python tools/train_experts.py walker-walk --demonstrator walker-walk-own.safetensors --cap 1.3 --width 128
    python tools/train_experts.py walker-walk --publish

Soft actor-critic on batched worlds with action repeat 2 and layer-normalised critics. With a demonstrator half of each
batch comes from its noisy episodes (RLPD, Ball et al. 2023), and the card says so; without one learning starts from
nothing. The policy is measured every few thousand steps on the same start states and kept while it is the best;
training ends `MARGIN` above the bar or at the step limit. `--minutes` stops earlier; the same command goes on.

Walking is rewarded for any speed above 1 m/s, so that its expert may well run. With `--cap` the reward it learns from
falls off above that speed (it is measured by the true one), and the demonstrator's episodes are slowed down. With
`--slower 2` nothing is trained: the demonstrator is told that it moves 2 m/s faster than it does, and the runner walks.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import sim
from policies.actor import ActorPolicy, StackedGaussianActor
from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.checkpoint import load_tensors, save_tensors
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.data.behaviours import Behaviour, BehaviourCard, load_behaviour, save_behaviour
from robot_cl.data.sampler import Sampler
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.rlpd import RLPD, RLPDConfig
from robot_cl.learners.rollout import Collector, play
from robot_cl.learners.sac import tanh_actor
from sim.task import State, Task
from sim.tasks import dm_walker

PLACE = Path(__file__).resolve().parents[1] / "benchmarks" / "few_shot_parts" / "experts"
REPEAT, WORLDS, WARMUP = 2, 4, 2000
BARS = {"walker-stand": 950.0, "walker-walk": 900.0, "walker-run": 500.0}
MARGIN = 40.0
FORWARD = 16  # where observations say the root's forward velocity
MEASURE_EVERY, MEASURE_EPISODES, MEASURE_SEED = 5000, 10, 1000
SCORED_EPISODES, SCORED_SEED = 40, 5000  # of a published expert: none of them chose it
NOISES = (0.0, 0.2, 0.5)  # σ of the Gaussian added to the demonstrator's actions, one world each


@dataclass
class Progress:
    """Steps per world so far, the best mean return and the steps at which it was reached."""

    steps: int = 0
    best: float = float("-inf")
    best_at: int = 0


class ExpertRun:
    """Remembers learner, worlds, buffer and progress; `folder` holds all of it between two processes."""

    def __init__(
        self, task: str, demonstrator: Behaviour | None, seed: int, folder: Path, cap: float | None = None,
        width: int = 256,
    ):  # fmt: skip
        self.task, self.demonstrator, self.seed, self.folder, self.cap = task, demonstrator, seed, folder, cap
        learned: str | Task = task if cap is None else capped(cap)
        self.batch = width  # as many rows as units: what a smaller network needs, at its price
        share = 0.0 if demonstrator is None else 0.5
        critic = CriticConfig(layer_norm=True, hidden=(width, width))
        config = RLPDConfig(
            actor=replace(tanh_actor(), hidden=(width, width)), critic=critic, critics=2, offline_share=share,
            entropy_per_action=-1.0, temperature=0.1, actor_every=2,
        )
        self.world = sim.make(learned, num_worlds=WORLDS, threads=1, seed=seed, action_repeat=REPEAT)
        widths = self.world.interface.obs_dim, self.world.interface.act_dim
        self.learner = RLPD(config, *widths, seeds=1, seed=seed)
        self.learner.actor.normalizer.clip = 1e6  # raw observations, as soft actor-critic reads them without data
        self.collector = Collector(self.world, 1, seed)
        self.buffer = ReplayBuffer(config.capacity, 1, *widths)
        self.progress, self.sampler = Progress(), None
        if demonstrator is not None:
            self.sampler = Sampler.over(demonstrations(demonstrator, learned, seed, cap), self.learner.rng, "cpu")
        self.measured = sim.make(task, num_worlds=MEASURE_EPISODES, threads=1, action_repeat=REPEAT)

    def round(self) -> None:
        """One step in every world and as many updates."""
        self.buffer.add(self.collector.collect(self.learner, 1))
        self.progress.steps += 1
        if len(self.buffer) < WARMUP:
            return
        old = self.batch // 2 if self.sampler else 0
        for _ in range(WORLDS):
            offline = self.sampler.sample(old) if self.sampler else None
            self.learner.update_online(self.buffer.sample(self.batch - old, self.learner.rng), offline)

    def measure(self) -> float:
        """Mean return of the deterministic policy; the best so far is written with its card."""
        actor, p = self.learner.actor, self.progress
        returns = play(ActorPolicy(actor), self.measured, MEASURE_SEED)
        score = float(returns.mean())
        if score > p.best:
            p.best, p.best_at = score, p.steps * WORLDS
            save_behaviour(self.folder.parent / f"{self.task}-expert.safetensors", self.as_behaviour(returns))
        return score

    def as_behaviour(self, returns: np.ndarray) -> Behaviour:
        made = "none" if self.demonstrator is None else self.demonstrator.name
        notes = {"algorithm": "sac" if self.demonstrator is None else "rlpd", "demonstrator": made,
                 "steps": self.progress.steps * WORLDS, "seed": self.seed, "action_repeat": REPEAT,
                 "cap": self.cap, "episodes": len(returns), "first_seed": MEASURE_SEED}  # fmt: skip
        card = BehaviourCard(
            f"{self.task}-expert", self.task, "relu", "tanh", None, round(float(returns.mean()), 1),
            round(float(returns.std()), 1), "tools/train_experts.py", notes,
        )  # fmt: skip
        return Behaviour(as_arrays(self.learner.actor), card)

    def save(self) -> None:
        with whole_folder(self.folder.parent, self.folder, overwrite=True) as folder:
            save_tensors(folder / "learner.safetensors", self.learner.state_dict())
            save_tensors(folder / "replay.safetensors", {"rows": self.buffer.since(0)})
            np.savez(folder / "world.npz", **self.collector.state())  # type: ignore[arg-type]
            write_json(folder / "progress.json", vars(self.progress))

    def restore(self) -> None:
        """Go on from the folder, if there is one."""
        if not (self.folder / "progress.json").exists():
            return
        self.learner.load_state_dict(load_tensors(self.folder / "learner.safetensors"))
        self.buffer.add_packed(load_tensors(self.folder / "replay.safetensors")["rows"])
        with np.load(self.folder / "world.npz", allow_pickle=False) as state:
            self.collector.restore({name: state[name] for name in state.files})
        self.progress = Progress(**json.loads((self.folder / "progress.json").read_text(encoding="utf-8")))


def capped(cap: float) -> Task:
    """Walking whose reward for moving falls from all at `cap` m/s to nothing at 1 m/s more."""

    def reward(before: State, after: State, action: np.ndarray) -> np.ndarray:
        standing = dm_walker.reward(before, after, action, 0.0) / 6.0
        moving = dm_walker.reward(before, after, action, dm_walker.WALK_SPEED) - standing
        return standing + moving * np.clip(cap + 1.0 - after["speed"][:, 0], 0.0, 1.0)

    return replace(dm_walker.WALK, reward=reward)


def demonstrations(
    behaviour: Behaviour, task: str | Task, seed: int, cap: float | None, worlds: int = 24
) -> Transitions:
    """One episode of each world, σ of the added noise in turn from NOISES: (worlds · 500,) transitions.

    With a cap, actions shrink as the walker gets faster, in each world from another speed on."""
    world = sim.make(task, num_worlds=worlds, threads=1, action_repeat=REPEAT)
    rng, sigma = np.random.default_rng(seed), np.resize(NOISES, worlds)[:, None]
    slow = np.linspace(1.5, 4.0, worlds)[:, None]
    obs, going, rows = world.reset(seed=10_000 + seed * worlds), True, []
    while going:
        meant = behaviour.act(obs) * (1.0 if cap is None else np.clip(slow - obs[:, FORWARD, None], 0.3, 1.0))
        action = np.clip(meant + sigma * rng.standard_normal((worlds, behaviour.act_dim)), -1, 1)
        after, reward, terminated, truncated, info = world.step(action)
        columns = (obs, action, reward, info["final_obs"], terminated, truncated)
        rows.append(Transitions(*(torch.tensor(np.asarray(x), dtype=torch.float32) for x in columns)))
        obs, going = after, not (terminated | truncated).all()
    return Transitions.cat(rows)


def as_arrays(actor: StackedGaussianActor) -> dict[str, np.ndarray]:
    """A lone tanh-Gaussian actor with a head for σ, as plain arrays; observations stay raw."""
    layers = [(layer.weight[0].detach().numpy(), layer.bias[0, 0].detach().numpy()) for layer in actor.net.layers]
    arrays = {f"{k}{i}": array.copy() for i, pair in enumerate(layers) for k, array in zip("Wb", pair, strict=True)}
    last, act = len(layers) - 1, actor.act_dim
    for key in "Wb":
        whole = arrays[f"{key}{last}"]
        arrays[f"{key}{last}"], arrays[f"log_std_{key}"] = whole[:act].copy(), whole[act:].copy()
    return arrays


def slowed(runner: Behaviour, by: float, task: str) -> None:
    """Write a runner that believes it moves faster by so many m/s, with what it is worth."""
    arrays = {name: array.copy() for name, array in runner.arrays.items()}
    arrays["b0"] = arrays["b0"] + by * arrays["W0"][:, FORWARD]
    world = sim.make(task, num_worlds=MEASURE_EPISODES, threads=1, action_repeat=REPEAT)
    returns = play(Behaviour(arrays, runner.card), world, MEASURE_SEED)
    name, notes = f"{task}-slow", {"demonstrator": runner.name, "slower": by, "action_repeat": REPEAT}
    card = replace(runner.card, name=name, task=task, mean_return=round(float(returns.mean()), 1),
                   std_return=round(float(returns.std()), 1), source="tools/train_experts.py", notes=notes)  # fmt: skip
    save_behaviour(PLACE / f"{name}.safetensors", Behaviour(arrays, card))
    print(f"{PLACE / name}.safetensors: {card.mean_return} ± {card.std_return} on {task}")


def publish(best: Path, task: str) -> None:
    """Put the best policy so far in its place; its card says what it scores on episodes that did not choose it."""
    chosen = load_behaviour(best)
    world = sim.make(task, num_worlds=SCORED_EPISODES, threads=1, action_repeat=REPEAT)
    returns = play(chosen, world, SCORED_SEED)
    notes = chosen.card.notes | {"episodes": SCORED_EPISODES, "first_seed": SCORED_SEED}
    name = f"{task}-own" if notes["cap"] is None else f"{task}-capped"
    card = replace(chosen.card, name=name, mean_return=round(float(returns.mean()), 1),
                   std_return=round(float(returns.std()), 1), notes=notes)  # fmt: skip
    save_behaviour(PLACE / f"{name}.safetensors", Behaviour(chosen.arrays, card))
    print(f"{PLACE / name}.safetensors: {card.mean_return} ± {card.std_return} over {SCORED_EPISODES} episodes")


def train(run: ExpertRun, limit: int, minutes: float) -> bool:
    """Whether training is over: the bar passed by MARGIN, or `limit` steps made."""
    start, p, every = time.monotonic(), run.progress, MEASURE_EVERY // WORLDS
    while p.steps * WORLDS < limit:
        run.round()
        if p.steps % every:
            continue
        score, spent = run.measure(), time.monotonic() - start
        print(f"{run.task} {p.steps * WORLDS} steps {spent:.0f} s: {score:.0f}, best {p.best:.0f}", flush=True)
        run.save()
        if p.best >= BARS[run.task] + MARGIN:
            return True
        if spent > 60 * minutes:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(BARS))
    parser.add_argument("--demonstrator", type=Path, help="behaviour file whose noisy episodes fill half of each batch")
    parser.add_argument("--cap", type=float, help="m/s above which walking is no longer rewarded")
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers, and rows per batch")
    parser.add_argument("--slower", type=float, help="m/s that a runner is told it is faster; nothing is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps at most")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop for now after so many")
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    parser.add_argument("--publish", action="store_true", help="score the best so far on fresh episodes, keep it, stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    best = args.out / f"{args.task}-expert.safetensors"
    if args.publish:
        publish(best, args.task)
        return
    if args.slower is not None:
        slowed(load_behaviour(args.demonstrator), args.slower, args.task)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    demonstrator = load_behaviour(args.demonstrator) if args.demonstrator else None
    run = ExpertRun(args.task, demonstrator, args.seed, args.out / args.task, args.cap, args.width)
    run.restore()
    over = train(run, args.steps, args.minutes)
    print(f"{best}: {run.progress.best:.1f}" + ("" if over else "; run the same command again to go on"))


if __name__ == "__main__":
    main()
