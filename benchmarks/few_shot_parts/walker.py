"""The walker of dm_control for few-shot learning: who demonstrates, what was recorded, how a policy is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sim
from robot_cl.data.behaviours import Behaviour, load_behaviour

EXPERTS = Path(__file__).resolve().parent / "experts"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "walker"
TEACHERS = ("own", "shared")  # experts trained here (tools/train_experts.py), or those that data came from
SOURCES = {"walker-stand": "walker-stand-sac", "walker-walk": "walker-run-sac", "walker-run": "walker-run-sac"}
# Who shows the skill of walking. It has to walk: walking is rewarded at any speed above 1 m/s, so that both experts of
# walking run, and a skill learned from them would solve running already.
WALKERS = {"own": "walker-walk-capped", "shared": "walker-walk-slow"}
REPEAT, HORIZON = 2, 500  # control steps per decision; decisions per episode
OBS, ACT, HEIGHT = 24, 6, 14  # widths, and where the torso's height is in the observation
FALLEN, UP_BY = 0.7, 100  # m of torso height (standing is 1.2), decisions after which it counts: episodes start lying

Act = Callable[[np.ndarray], np.ndarray]  # obs (N, OBS) -> action (N, ACT)


@dataclass(frozen=True)
class Episodes:
    """obs (E, T, OBS) and action (E, T, ACT) float32, returns (E,), fell (E,) bool."""

    obs: np.ndarray
    action: np.ndarray
    returns: np.ndarray
    fell: np.ndarray


def expert(task: str, teachers: str = "own") -> tuple[Behaviour, str]:
    """The policy that demonstrates a task, and where it comes from."""
    if teachers == "own":
        name = f"{task}-own.safetensors"
        return load_behaviour(EXPERTS / name), f"experts/{name}"
    path = SHARED / f"{SOURCES[task]}.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not here: leave out `--teachers shared`, and our own experts demonstrate")
    return load_behaviour(path), f"shared/data/walker/{path.name}"


def skill_expert(name: str, teachers: str = "own") -> Behaviour:
    """Who shows a skill of the library."""
    if name == "walk":
        return load_behaviour(EXPERTS / f"{WALKERS[teachers]}.safetensors")
    return expert(f"walker-{name}", teachers)[0]


def roll(
    act: Act, task: str, seeds: Sequence[int], threads: int, horizon: int = HORIZON,
    sigma: np.ndarray | float = 0.0, label_noise: bool = True, keep: bool = True,
    repeat: int = REPEAT, shift: str | None = None, height: int = HEIGHT,
) -> Episodes:  # fmt: skip
    """One episode from each start seed. `sigma` (E,) or a number is the noise added to the action executed.

    The action recorded is the one executed, or with `label_noise` False the one intended (DART, Laskey et al. 2017).
    `height` is where observations say how high the torso is.
    """
    count = len(seeds)
    world = sim.make(task, num_worlds=count, threads=threads, shift=shift, action_repeat=repeat)
    rng, scale = np.random.default_rng(seeds[0]), np.broadcast_to(sigma, count)[:, None]
    obs, returns, lowest = world.reset(seed=list(seeds)), np.zeros(count), np.full(count, np.inf)
    kept_obs, kept_action = [], []
    for t in range(horizon):
        intended = np.asarray(act(obs.astype(np.float32)))
        noise = scale * rng.standard_normal(intended.shape) if scale.any() else 0.0
        executed = np.clip(intended + noise, -1.0, 1.0)
        if keep:
            kept_obs.append(obs.astype(np.float32))
            kept_action.append((executed if label_noise else intended).astype(np.float32))
        obs, reward, _, _, info = world.step(executed)
        returns += reward
        if t >= min(UP_BY, horizon // 2):
            lowest = np.minimum(lowest, info["final_obs"][:, height])
    if not keep:
        kept_obs = kept_action = [np.zeros((count, 0), np.float32)]
    return Episodes(np.stack(kept_obs, 1), np.stack(kept_action, 1), returns, lowest < FALLEN)
