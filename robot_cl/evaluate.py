"""How good a policy is: episodes with named seeds in parallel worlds, and statistics that say how sure they are.

Episode k is the one a plain Gymnasium loop plays after `env.reset(seed=seed + k)`, to the last bit, however many
worlds and threads play it: each world plays one episode, and none is dropped for being long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import sim
from policies.policy import Policy
from robot_cl import stats
from robot_cl.data.collect import check_fit, policy_name
from robot_cl.data.reference import find_reference
from robot_cl.provenance import simulator_fingerprint
from robot_cl.suite_worlds import SuiteWorlds, is_suite
from sim.spec import Interface

MAX_WORLDS = 64
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Film:
    """What a film of one episode needs: qpos (T, nq) every `dt` seconds of simulated time, and which episode it is.

    `model` is MuJoCo's, None: that of the task.
    """

    task: str
    qpos: np.ndarray
    dt: float
    seed: int
    total: float
    shift: Any = None
    model: Any = None


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of the episodes with `seeds`, in that order, and what they amount to.

    The intervals are bootstrap 95 % over episodes (None for a single one). `score` is 100 (mean − low)/(high − low) of
    the scale that `reference` names, or None. `simulator` is the fingerprint of what computed the physics. `success`
    is what the environment says about each episode, None where it says nothing.
    """

    policy: str
    task: str
    shift: Any
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    fell: list[bool]
    mean: float
    mean_interval: tuple[float, float] | None
    iqm: float
    iqm_interval: tuple[float, float] | None
    score: float | None
    reference: str | None
    simulator: str
    interface: str
    wall_s: float
    success: list[bool] | None = None
    film: Film | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the film."""
        return asdict(replace(self, film=None)) | {"film": None}


def evaluate(
    policy: Policy | str | Path,
    task: str | None = None,
    episodes: int = 20,
    seed: int = 1000,
    shift: Any = None,
    *,
    member: int | None = None,
    worlds: int = MAX_WORLDS,
    threads: int | None = None,
    film_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Evaluation:
    """Play `episodes` episodes with seeds seed, seed + 1, ...; `policy` is one, or whatever `load_policy` accepts.

    `task` defaults to what the policy was trained on, `shift` to none. With `film_seconds` the start of the median
    episode comes back as `film`. Raises ValueError or LookupError where policy and task do not fit together.
    """
    if episodes < 1 or worlds < 1:
        raise ValueError(f"episodes and worlds must be at least 1, got {episodes} and {worlds}")
    if not 0.0 <= film_seconds < float("inf"):
        raise ValueError(f"film is {film_seconds:g} seconds; expected a number, or 0 for none")
    if isinstance(policy, (str, Path)):
        policy = load(policy, member)
    task = task or task_of(policy)
    began, parts = time.monotonic(), []
    for first in range(0, episodes, worlds):
        count = min(worlds, episodes - first)
        world = open_worlds(task, count, threads, shift)
        check_interface(policy, world.interface, task)
        parts.append(_play(world, policy, seed + first, film_seconds, _part_of(progress, first, count, episodes)))
    played = _Episodes.cat(parts)
    seeds = [seed + k for k in range(episodes)]
    film = None
    if film_seconds:
        middle = int(np.argsort(played.returns, kind="stable")[(episodes - 1) // 2])
        dt = world.interface.control_dt * _stride(world.interface.control_dt)
        film = Film(task, played.qpos[middle], dt, seeds[middle], float(played.returns[middle]), shift, world.model)
    return _summarise(policy, task, shift, seeds, played, world, time.monotonic() - began, film)


def open_worlds(task: str, count: int, threads: int | None = None, shift: Any = None) -> Any:
    """`count` worlds of a task or of a suite's environment. Raises LookupError or ValueError for what there is not."""
    if not is_suite(task):
        return sim.make(task, num_worlds=count, threads=threads, shift=shift)
    if shift is not None:
        raise ValueError(f"shifts change our own tasks, and {task} is an environment of a suite")
    return SuiteWorlds(task, count)


def load(source: str | Path, member: int | None = None) -> Policy:
    """A run, checkpoint folder, SB3 zip, behaviour file, or the name of an embedded behaviour."""
    from robot_cl.checkpoint import load_policy

    return load_policy(source, member=member)


def task_of(policy: Policy) -> str:
    """The task a policy was made for. Raises ValueError if it does not say."""
    task = getattr(policy, "task", None) or getattr(getattr(policy, "card", None), "task", None)
    if not task:
        raise ValueError(f"policy {policy_name(policy)!r} does not say which task it was made for; add task=NAME")
    return str(task)


def check_interface(policy: Policy, interface: Interface, task: str) -> None:
    """Raises ValueError if the policy's channels, or at least their counts, are not the world's."""
    theirs = getattr(policy, "interface", None)
    if theirs is None:
        check_fit(policy, interface, task)
    elif theirs.digest != interface.digest:
        difference = theirs.difference(interface)
        name = policy_name(policy)
        raise ValueError(f"policy {name!r} does not fit task {task!r}: {difference} (policy against task)")


@dataclass(frozen=True)
class _Episodes:
    """Finished episodes: returns, lengths, fell (terminated) and success (1, 0 or −1: unknown), each (N,), and sparse
    qpos, one (T_i, nq) each or none."""

    returns: np.ndarray
    lengths: np.ndarray
    fell: np.ndarray
    success: np.ndarray
    qpos: list[np.ndarray]

    @staticmethod
    def cat(parts: Sequence[_Episodes]) -> _Episodes:
        names = ("returns", "lengths", "fell", "success")
        returns, lengths, fell, success = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return _Episodes(returns, lengths, fell, success, [qpos for part in parts for qpos in part.qpos])


def _play(world: Any, policy: Policy, seed: int, film_seconds: float, progress: Progress | None) -> _Episodes:
    """The first episode of every world; a world that has finished idles until the last one has."""
    n = world.num_worlds
    limit = world.task.time_limit if hasattr(world, "task") else 1000  # for the progress bar only
    returns, lengths, fell = np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    success = np.full(n, -1)
    action, going = np.zeros((n, world.interface.act_dim), dtype=np.float32), np.ones(n, dtype=bool)
    stride, frames = _stride(world.interface.control_dt), []
    filmed = max(1, round(film_seconds / world.interface.control_dt)) if film_seconds else 0
    obs = world.reset(seed=seed)
    policy.reset()
    t = 0
    while going.any():
        if t < filmed and t % stride == 0:
            frames.append(world.get_qpos())
        _act(policy, obs.astype(np.float32), going, action)
        obs, _, terminated, truncated, info = world.step(action)
        ended = going & (terminated | truncated)
        returns[ended], lengths[ended] = info["episode_return"][ended], info["episode_length"][ended]
        fell[ended] = terminated[ended]
        if "success" in info:
            success[ended] = info["success"][ended]
        going &= ~ended
        t += 1
        if progress is not None and (t % 20 == 0 or not going.any()):
            progress(n if not going.any() else n * min(t / limit, 1.0), n)
    qpos = [np.stack([f[i] for f in frames[: -(-int(lengths[i]) // stride)]]) for i in range(n)] if frames else []
    return _Episodes(returns, lengths, fell, success, qpos)


def _act(policy: Policy, obs: np.ndarray, going: np.ndarray, action: np.ndarray) -> None:
    """Fill the rows of `action` (N, act_dim) that are still going, from obs (N, obs_dim) float32.

    One row at a time, because a matrix product rounds differently for every batch size and a walking body amplifies
    the last bit within a second: only so an episode does not depend on how many others are played beside it. A policy
    that remembers its rows (`remembers = True`) has to see them all at once.
    """
    if getattr(policy, "remembers", False):
        action[going] = policy.act(obs)[going]
        return
    for i in np.flatnonzero(going):
        action[i] = policy.act(obs[i : i + 1])[0]


def _stride(control_dt: float, fps: float = 15.0) -> int:
    """Control steps per film frame: at most `fps` frames per second, in real time."""
    return max(1, round(1.0 / (control_dt * fps)))


def _part_of(progress: Progress | None, first: int, count: int, episodes: int) -> Progress | None:
    return None if progress is None else lambda done, total: progress(first + count * done / total, episodes)


def _summarise(
    policy: Policy, task: str, shift: Any, seeds: list[int], played: _Episodes, world: Any, wall_s: float, film: Any
) -> Evaluation:
    returns, reference = played.returns, find_reference(task)
    several = len(returns) > 1
    mean, iqm = float(stats.mean(returns)), float(stats.iqm(returns))
    return Evaluation(
        policy=policy_name(policy),
        task=task,
        shift=None if shift is None else str(shift),
        seeds=seeds,
        returns=returns.tolist(),
        lengths=played.lengths.tolist(),
        fell=played.fell.tolist(),
        mean=mean,
        mean_interval=_ends(returns, seeds[0], stats.mean) if several else None,
        iqm=iqm,
        iqm_interval=_ends(returns, seeds[0], stats.iqm) if several else None,
        score=reference.score(mean) if reference else None,
        reference=reference.name if reference else None,
        simulator=getattr(world, "fingerprint", None) or simulator_fingerprint(task),
        interface=world.interface.digest,
        wall_s=round(wall_s, 3),
        success=None if (played.success < 0).any() else (played.success > 0).tolist(),
        film=film,
    )


def _ends(returns: np.ndarray, seed: int, statistic: stats.Statistic) -> tuple[float, float]:
    interval = stats.stratified_bootstrap(returns, np.random.default_rng(seed), statistic)
    return interval.low, interval.high
