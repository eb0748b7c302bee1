"""Model-based learning where most of the state is a distraction: does the model's loss decide what is learned?

Pendulum with 15 distracting dimensions (5000 steps, 5 seeds) and Hopper with 10 and a 2×64 model (12 000 steps, 3
seeds: a trend, not a result). The learner is `mbpo` with everything equal but the loss of its model, and, with no
imagined data at all, soft actor-critic alone. Every seed has distractors of its own; the seeds of a cell are trained as
one stack in one process. Finished cells stay in runs/benchmarks/distractors and are not run again:

    python benchmarks/distractors.py --cell pendulum/vagram     one cell
    python benchmarks/distractors.py --jobs 8                   those that are missing, side by side, then the table

A score is the mean of the deterministic policy's returns over the last fifth of the evaluations.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from common import ROOT, Claim, arguments, report, table
from pendulum import Distractors, swing
from torch import Tensor

import sim
from dynamics.ensemble import EnsembleConfig
from policies.critics import CriticConfig
from robot_cl.batch import Transitions
from robot_cl.data.atomic import write_json
from robot_cl.learners.mbpo import MBPO, MBPOConfig
from robot_cl.learners.model_config import ModelConfig, ModelLoss, Ramp
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.sac import tanh_actor

FOLDER = ROOT / "runs/benchmarks/distractors"
ALONE = "no model"
ORDER = ("vagram", "normalised_mse", "mse", "value_difference", ALONE)


class Worlds(Protocol):
    """N worlds that begin again by themselves; info["final_obs"] is the true successor, as in sim."""

    def reset(self, seed: int) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]: ...


@dataclass(frozen=True)
class Setting:
    """A world with its sizes: what one cell trains, for any loss."""

    make: Callable[[int], Worlds]
    obs_dim: int
    act_dim: int
    limit: int  # steps of an episode
    dims: int  # distractors
    seeds: int
    steps: int  # environment steps per seed
    eval_every: int
    episodes: int  # per evaluation and seed
    batch: int
    config: MBPOConfig

    def quick(self) -> Setting:
        return replace(self, seeds=2, steps=self.steps // 4, eval_every=self.eval_every // 2)


class Pendulums:
    """N pendulums of `pendulum.swing` with episodes of 200 steps, as worlds. Remembers angles, speeds and the time."""

    def __init__(self, rows: int):
        self.rows = rows

    def reset(self, seed: int) -> np.ndarray:
        self.rng = np.random.default_rng(seed)
        self._begin()
        return self.obs()

    def _begin(self) -> None:
        self.theta = self.rng.uniform(-np.pi, np.pi, self.rows)
        self.speed, self.time = self.rng.uniform(-1.0, 1.0, self.rows), 0

    def obs(self) -> np.ndarray:
        return np.stack([np.cos(self.theta), np.sin(self.theta), self.speed], -1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.theta, self.speed, reward = swing(self.theta, self.speed, action[:, 0])
        self.time += 1
        over, final = np.full(self.rows, self.time == 200), self.obs()
        if self.time == 200:
            self._begin()
        return self.obs(), reward, np.zeros(self.rows, dtype=bool), over, {"final_obs": final}


class Distracted:
    """N = P·K worlds, K in a row per seed, whose observations end in the seed's distractors."""

    def __init__(self, worlds: Worlds, distractors: list[Distractors], each: int):
        self.worlds, self.distractors, self.each = worlds, distractors, each

    def reset(self, seed: int) -> np.ndarray:
        self.rng = np.random.default_rng(seed)
        self.extra = np.concatenate([d.start(self.each, self.rng) for d in self.distractors])
        return np.concatenate([self.worlds.reset(seed=seed), self.extra], -1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """action (N, act_dim) -> obs to act on next, true successor, reward, terminated, truncated."""
        obs, reward, terminated, truncated, info = self.worlds.step(action)
        parts = np.split(self.extra, len(self.distractors))
        after = np.concatenate([d.step(part) for d, part in zip(self.distractors, parts, strict=True)])
        fresh = np.concatenate([d.start(self.each, self.rng) for d in self.distractors])
        self.extra = np.where((terminated | truncated)[:, None], fresh, after)
        successor = np.concatenate([info["final_obs"], after], -1)
        return np.concatenate([obs, self.extra], -1), successor, reward, terminated, truncated


# -- what is trained --------------------------------------------------------------------------------------------------


def learner_config(hidden: int, model: ModelConfig, **options: Any) -> MBPOConfig:
    actor = replace(tanh_actor(), hidden=(hidden, hidden))
    critic = CriticConfig(hidden=(hidden, hidden), layer_norm=True)
    return MBPOConfig(actor=actor, critic=critic, model=model, **options)


def pendulum() -> Setting:
    ensemble = EnsembleConfig(3, 2, (32, 32), (32, 32))
    model = ModelConfig(ensemble=ensemble, every=250, first=500, steps=250, rollouts=20.0, keep=10_000, decay=0.0)
    config = learner_config(
        64, model, lr=1e-3, discount=0.98, warmup=500, share=Ramp(0.0, 0.8, 500, 2000), temperature=0.2
    )
    return Setting(Pendulums, 3, 1, 200, 15, 5, 5000, 250, 10, 128, config)


def hopper() -> Setting:
    ensemble = EnsembleConfig(3, 2, (64, 64), (64, 64))
    model = ModelConfig(
        ensemble=ensemble, every=500, first=1000, steps=250, rollouts=20.0, keep=20_000, decay=0.0, batch=128
    )
    config = learner_config(
        64, model, lr=1e-3, warmup=1000, share=Ramp(0.0, 0.8, 1000, 6000), entropy_per_action=-1 / 3, temperature=0.2
    )
    return Setting(
        lambda rows: sim.make("hopper", num_worlds=rows, threads=1), 11, 3, 1000, 10, 3, 12_000, 1000, 5, 128, config
    )


SETTINGS: dict[str, Callable[[], Setting]] = {"pendulum": pendulum, "hopper": hopper}
CELLS = [f"{world}/{loss}" for world in SETTINGS for loss in ORDER]


def setting(cell: str, quick: bool) -> Setting:
    """The world of a cell with the model's loss put in; without a model nothing is imagined."""
    world, loss = cell.split("/")
    s = SETTINGS[world]().quick() if quick else SETTINGS[world]()
    if loss == ALONE:
        return replace(s, config=replace(s.config, share=Ramp(0.0, 0.0)))
    return replace(s, config=replace(s.config, model=replace(s.config.model, loss=ModelLoss(loss))))


def run_cell(s: Setting) -> dict[str, Any]:
    """Train the seeds of a cell as one stack. Returns steps, returns (T, P), and seconds."""
    distractors = [Distractors.draw(s.dims, np.random.default_rng(seed)) for seed in range(s.seeds)]
    worlds = Distracted(s.make(s.seeds), distractors, 1)
    judges = Distracted(s.make(s.seeds * s.episodes), distractors, s.episodes)
    width, began = s.obs_dim + s.dims, time.process_time()
    learner = MBPO(s.config, width, s.act_dim, s.seeds, 0)
    buffer = ReplayBuffer(s.steps, s.seeds, width, s.act_dim)
    learner.attach_replay(buffer)
    rng, obs = np.random.default_rng(1), worlds.reset(seed=1)
    curve: dict[str, Any] = {"steps": [], "returns": [], "model_error": None}
    due = 0.0
    for t in range(1, s.steps + 1):
        if t <= s.config.warmup:
            action = rng.uniform(-1.0, 1.0, (s.seeds, s.act_dim))
        else:
            state = torch.tensor(obs, dtype=torch.float32).unsqueeze(1)
            action = learner.explore(state, learner.noise(1, s.act_dim))[:, 0].numpy()
        after, successor, reward, terminated, truncated = worlds.step(action)
        buffer.add(row(obs, action, reward, successor, terminated, truncated))
        obs, due = after, due + (s.config.updates if t > s.config.warmup else 0.0)
        for _ in range(int(due)):
            metrics = learner.update_online(buffer.sample(s.batch, learner.rng), None)
            if "model_error" in metrics:
                curve["model_error"] = metrics["model_error"].tolist()
        due -= int(due)
        if t % s.eval_every == 0:
            returns = evaluate(learner, judges, s)
            curve["steps"].append(t)
            curve["returns"].append(returns.tolist())
            print(f"{t:6d} {time.process_time() - began:6.0f} s  {np.round(returns)}", file=sys.stderr, flush=True)
    return curve | {"cpu_seconds": time.process_time() - began}


def row(obs: np.ndarray, action: np.ndarray, reward: np.ndarray, after: np.ndarray, *flags: np.ndarray) -> Transitions:
    """One step of P worlds as (P, 1, 1)."""
    parts = [torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (obs, action, reward, after, *flags)]
    return Transitions(*parts)


def evaluate(learner: MBPO, worlds: Distracted, s: Setting) -> np.ndarray:
    """Mean return (P,) of each seed's deterministic policy over the first episodes of its worlds."""
    obs, rows = worlds.reset(seed=1000), s.seeds * s.episodes
    total, going = np.zeros(rows), np.ones(rows, dtype=bool)
    for _ in range(s.limit):
        with torch.no_grad():
            action = mode(learner, torch.tensor(obs, dtype=torch.float32), s)
        obs, _, reward, terminated, truncated = worlds.step(action)
        total += going * reward
        going &= ~(terminated | truncated)
        if not going.any():
            break
    return total.reshape(s.seeds, -1).mean(1)


def mode(learner: MBPO, obs: Tensor, s: Setting) -> np.ndarray:
    return learner.actor.mode(obs.view(s.seeds, s.episodes, -1)).flatten(0, 1).numpy()


# -- cells and the table ----------------------------------------------------------------------------------------------


def file_of(cell: str, quick: bool) -> Path:
    return FOLDER / ("quick" if quick else "full") / f"{cell.replace('/', '-').replace(' ', '-')}.json"


def run_missing(cells: list[str], quick: bool, jobs: int) -> None:
    """Every cell without a file in a process of its own, `jobs` at once."""
    missing = [cell for cell in cells if not file_of(cell, quick).exists()]
    flags = ["--quick"] if quick else []
    with ThreadPoolExecutor(jobs) as pool:
        commands = [[sys.executable, __file__, "--cell", cell, *flags] for cell in missing]
        for done in pool.map(lambda command: subprocess.run(command, check=False), commands):
            if done.returncode:
                raise RuntimeError(f"{' '.join(done.args)} ended with {done.returncode}")


def scores(cell: dict[str, Any]) -> np.ndarray:
    """Mean over the last fifth of the evaluations, (P,)."""
    returns = np.array(cell["returns"])
    return returns[-max(1, len(returns) // 5) :].mean(0)


def show(world: str, cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Print a world's table. Returns the median score by loss."""
    rows, medians = [], {}
    for loss, cell in cells.items():
        values, half = scores(cell), np.array(cell["returns"])[len(cell["returns"]) // 2 - 1]
        medians[loss] = float(np.median(values))
        error = float(np.mean(cell["model_error"])) if cell["model_error"] else "none"
        spread = f"{values.min():.0f} to {values.max():.0f}"
        rows.append((loss, medians[loss], spread, float(np.median(half)), error, cell["cpu_seconds"]))
    first = next(iter(cells.values()))
    print(f"\n{world}: {len(first['returns'][0])} seeds, {first['steps'][-1]} steps")
    print(table(("model's loss", "median return", "seeds", "half way", "model error", "CPU seconds"), rows))
    return medians


def plot(folder: Path, world: str, cells: dict[str, dict[str, Any]]) -> Path:
    """Median return over steps with the range of the seeds, one colour per loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for loss, cell in cells.items():
        steps, returns = np.array(cell["steps"]), np.array(cell["returns"])
        (line,) = axis.plot(steps, np.median(returns, 1), label=loss)
        axis.fill_between(steps, returns.min(1), returns.max(1), color=line.get_color(), alpha=0.12)
    axis.set_xlabel("environment steps")
    axis.set_ylabel("return")
    axis.legend()
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{world}.png", dpi=110)
    return folder / f"{world}.png"


def claims_of(world: str, medians: dict[str, float]) -> list[Claim]:
    if not {"vagram", "normalised_mse", "mse"} <= set(medians):
        return []
    vagram, normalised, raw = (medians[k] for k in ("vagram", "normalised_mse", "mse"))
    return [
        Claim(f"{world}: median return of VaGraM above normalised MSE", vagram - normalised, 0.0),
        Claim(f"{world}: median return of normalised MSE above raw MSE", normalised - raw, 0.0),
    ]


def main() -> None:
    options = [
        ("--cell", {"help": f"run this cell only: {', '.join(CELLS)}"}),
        ("--worlds", {"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS), "help": "which worlds"}),
        ("--jobs", {"type": int, "default": 2, "help": "processes at once; 0: show what is there"}),
        ("--again", {"action": "store_true", "help": "run the cell even if it is there"}),
    ]
    args = arguments(__doc__ or "", options)
    torch.set_num_threads(1)
    if args.cell:
        if args.cell not in CELLS:
            raise SystemExit(f"there is no cell {args.cell!r}; cells: {', '.join(CELLS)}")
        path = file_of(args.cell, args.quick)
        if args.again or not path.exists():
            found = run_cell(setting(args.cell, args.quick))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        return
    if args.jobs:
        run_missing([c for c in CELLS if c.split("/")[0] in args.worlds], args.quick, args.jobs)
    claims, details = [], {}
    for world in args.worlds:
        files = {loss: file_of(f"{world}/{loss}", args.quick) for loss in ORDER}
        cells = {loss: json.loads(path.read_text()) for loss, path in files.items() if path.exists()}
        if not cells:
            continue
        claims += claims_of(world, show(world, cells))
        print(f"wrote {plot(file_of('', args.quick).parent, world, cells)}")
        details[world] = cells
    report("distractors", claims, args.json, details)


if __name__ == "__main__":
    main()
