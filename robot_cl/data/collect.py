"""Datasets made here: any policy, with noise, sampled or not, alone or in a mixture, on batched worlds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from policies.policy import Policy
from robot_cl.data.minari_io import Progress
from robot_cl.data.recording import Recording
from robot_cl.data.reference import simulator_fingerprint
from robot_cl.data.store import StoredDataset, new_folder, write_dataset
from robot_cl.paths import data_root

# Two episodes of the usual 1000 steps per world: few episodes are cut, and the worlds are stepped together.
STEPS_PER_WORLD = 2000
MAX_WORLDS = 64
REPLAY_NOISE = (0.6, 0.4, 0.2, 0.1)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Matrices of a few worlds are too small to share out; waiting for a second thread can take far longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SampledPolicy(Policy, Protocol):
    """A policy with a distribution of its own."""

    def sample(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """obs (B, obs_dim) -> an action (B, act_dim) drawn with `rng`."""
        ...


class UniformPolicy:
    """Actions uniform in [-1, 1]; its deterministic action is zero. Remembers nothing."""

    name = "random"

    def __init__(self, obs_dim: int, act_dim: int):
        self.obs_dim, self.act_dim = obs_dim, act_dim

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), self.act_dim), dtype=np.float32)

    def sample(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, (len(obs), self.act_dim)).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class Part:
    """One behaviour of a mixture: `share` of the steps, relative to the other parts' shares.

    `noise` is the standard deviation of Gaussian noise added to the action, which is then clipped to [-1, 1].
    `stochastic` draws from the policy's own distribution (it then needs `sample`) instead of taking its mean.
    """

    policy: Policy
    noise: float = 0.0
    share: float = 1.0
    stochastic: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.noise) and self.noise >= 0.0):
            raise ValueError(f"noise is a standard deviation in action units, zero or more, got {self.noise}")
        if not (np.isfinite(self.share) and self.share > 0.0):
            raise ValueError(f"share must be positive, got {self.share}")
        if self.stochastic and not hasattr(self.policy, "sample"):
            raise ValueError(f"policy {policy_name(self.policy)!r} has no distribution to sample; give a noise instead")

    def action(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """obs (B, obs_dim) -> the action as executed, (B, act_dim) float32 in [-1, 1]."""
        action = self.policy.sample(obs, rng) if self.stochastic else self.policy.act(obs)  # type: ignore[attr-defined]
        if self.noise:
            action = action + self.noise * rng.standard_normal(action.shape, dtype=np.float32)
        return np.clip(action, -1.0, 1.0, dtype=np.float32)

    def provenance(self) -> dict[str, Any]:
        digest = getattr(self.policy, "digest", None)
        record = {"policy": policy_name(self.policy), "digest": digest if isinstance(digest, str) else None}
        return record | {"noise": self.noise, "stochastic": self.stochastic}


def random_part(task: str, share: float = 1.0) -> Part:
    """Uniform actions on `task`. Raises LookupError for an unknown task."""
    import sim

    interface = sim.make(task, threads=1).interface
    return Part(UniformPolicy(interface.obs_dim, interface.act_dim), share=share, stochastic=True)


def replay_like(policies: Sequence[Policy], random_share: float = 0.1) -> list[Part]:
    """A mixture like a learner's replay buffer: uniform actions first, then better and better behaviour.

    Several policies, worst first, get an equal share each with noise 0.1; a single one gets equal shares under
    falling noise.
    """
    if not policies:
        raise ValueError("a replay-like mixture needs at least one policy")
    if len(policies) == 1:
        parts = [Part(policies[0], noise) for noise in REPLAY_NOISE]
    else:
        parts = [Part(policy, 0.1) for policy in policies]
    first = policies[0]
    share = random_share / (1.0 - random_share) * len(parts)
    return [Part(UniformPolicy(first.obs_dim, first.act_dim), share=share, stochastic=True), *parts]


def collect(
    task: str,
    policy: Policy | Sequence[Part],
    steps: int,
    name: str,
    *,
    noise: float = 0.0,
    stochastic: bool = False,
    seed: int = 0,
    num_worlds: int | None = None,
    threads: int | None = None,
    world_options: dict[str, Any] | None = None,
    storage: str = "hdf5",
    root: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> StoredDataset:
    """Steps `task` with a policy, or with the parts of a mixture one after the other, and stores the dataset `name`.

    `noise` and `stochastic` belong to a lone policy (see `Part`); `world_options` go to `sim.make` (action_repeat,
    shift, ...). Exactly `steps` transitions are stored, episode by
    episode; the last episode of each world is cut where its share of the steps ends. The same arguments give the
    same dataset, bit for bit. `progress(done, steps)` is called about every percent. World i of part k draws from
    seed + MAX_WORLDS k + i, so seeds of datasets that must not share starts lie that far apart.
    Raises ValueError or LookupError if the policy does not fit the task, before anything is written.
    """
    new_folder(name, "collect", root or data_root(), overwrite)
    parts = [Part(policy, noise, 1.0, stochastic)] if isinstance(policy, Policy) else list(policy)
    recording, interface = record(task, parts, steps, seed, num_worlds, threads, world_options, progress)
    total = sum(part.share for part in parts)
    provenance = [part.provenance() | {"share": round(part.share / total, 6)} for part in parts]
    source = {"kind": "collect", "task": task, "seed": seed, "parts": provenance}
    source["world_options"] = {key: repr(value) for key, value in (world_options or {}).items()}
    return write_dataset(
        name,
        recording,
        interface,
        task=task,
        source=source,
        simulator=simulator_fingerprint(),
        storage=storage,
        root=root,
        overwrite=overwrite,
    )


def record(
    task: str,
    parts: Sequence[Part],
    steps: int,
    seed: int = 0,
    num_worlds: int | None = None,
    threads: int | None = None,
    world_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Recording, Any]:
    """As `collect`, but in memory: (recording, the world's interface)."""
    if steps < 1 or not parts:
        raise ValueError(f"collecting needs a step and a policy at least, got {steps} steps, {len(parts)} policies")
    import sim

    counts = shares(steps, [part.share for part in parts])
    recordings, done = [], 0
    for k, (part, count) in enumerate(zip(parts, counts, strict=True)):
        if not count:
            continue
        worlds = min(num_worlds or max(1, min(MAX_WORLDS, count // STEPS_PER_WORLD)), count)
        first_seed = seed + k * (num_worlds or MAX_WORLDS)
        world = sim.make(task, num_worlds=worlds, threads=threads, seed=first_seed, **(world_options or {}))
        check_fit(part.policy, world.interface, task)
        rng = np.random.default_rng([seed, k])
        report = None if progress is None else _shifted(progress, done, steps)
        with one_torch_thread():
            recordings.append(record_part(world, part, count, rng, first_seed, report))
        done += count
    return Recording.cat(recordings), world.interface


def record_part(
    world: Any, part: Part, steps: int, rng: np.random.Generator, seed: int, progress: Progress | None = None
) -> Recording:
    """`steps` transitions of one behaviour on all worlds of `world`, which is reset with `seed` first.

    World i gives the episodes of its generator seed + i. Its quota is steps/num_worlds, rounded so that the sum is
    exact; the episode running then is cut, marked truncated and not complete.
    """
    quota = np.full(world.num_worlds, steps // world.num_worlds)
    quota[: steps % world.num_worlds] += 1
    buffers = _Buffers.empty(int(quota.max()), world.num_worlds, world.interface.obs_dim, world.interface.act_dim)
    obs = world.reset(seed=seed)
    part.policy.reset()
    every = max(1, buffers.length // 100)
    for t in range(buffers.length):
        seen = obs.astype(np.float32)
        action = part.action(seen, rng)
        obs, reward, terminated, truncated, info = world.step(action)
        buffers.put(t, seen, action, reward, info["final_obs"], terminated, truncated)
        ended = terminated | truncated
        if ended.any():
            part.policy.reset(ended)
        if progress is not None and (t % every == 0 or t + 1 == buffers.length):
            progress(min((t + 1) * world.num_worlds, steps), steps)
    return buffers.recording(quota, seed)


@dataclass
class _Buffers:
    """What N worlds did in T steps, (N, T, ...): one world's episodes lie one after the other."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @staticmethod
    def empty(length: int, worlds: int, obs_dim: int, act_dim: int) -> _Buffers:
        lead = (worlds, length)
        obs, action, next_obs = (np.empty((*lead, width), dtype=np.float32) for width in (obs_dim, act_dim, obs_dim))
        return _Buffers(obs, action, np.empty(lead, np.float32), next_obs, np.empty(lead, bool), np.empty(lead, bool))

    @property
    def length(self) -> int:
        return self.reward.shape[1]

    def put(self, t: int, *values: np.ndarray) -> None:
        fields = (self.obs, self.action, self.reward, self.next_obs, self.terminated, self.truncated)
        for field, value in zip(fields, values, strict=True):
            field[:, t] = value

    def recording(self, quota: np.ndarray, seed: int) -> Recording:
        kept = np.arange(self.length) < quota[:, None]  # (N, T)
        ended = (self.terminated | self.truncated) & kept
        last = np.zeros_like(kept)
        last[np.arange(len(quota)), quota - 1] = True
        self.truncated |= last & ~ended
        stops = (ended | last)[kept].nonzero()[0] + 1
        worlds = np.nonzero(kept)[0][stops - 1]
        first = np.searchsorted(worlds, np.arange(len(quota)))
        return Recording(
            obs=self.obs[kept],
            action=self.action[kept],
            reward=self.reward[kept],
            next_obs=self.next_obs[kept],
            terminated=self.terminated[kept],
            truncated=self.truncated[kept],
            lengths=np.diff(stops, prepend=0),
            seeds=seed + worlds,
            ordinals=np.arange(len(worlds)) - first[worlds],
            complete=ended[kept][stops - 1],
        )


def shares(steps: int, weights: Sequence[float]) -> list[int]:
    """`steps` split in proportion to `weights`, by cumulative rounding, so that the sum is exact."""
    edges = np.round(steps * np.cumsum(weights) / np.sum(weights)).astype(int)
    return np.diff(edges, prepend=0).tolist()


def check_fit(policy: Policy, interface: Any, task: str) -> None:
    """Raises ValueError if the policy's widths are not the task's."""
    mine, theirs = (policy.obs_dim, policy.act_dim), (interface.obs_dim, interface.act_dim)
    if mine != theirs:
        raise ValueError(
            f"policy {policy_name(policy)!r} reads {mine[0]} observations and gives {mine[1]} actions, "
            f"task {task} has {theirs[0]} and {theirs[1]}"
        )


def policy_name(policy: Policy) -> str:
    return str(getattr(policy, "name", type(policy).__name__))


def _shifted(progress: Progress, offset: int, total: int) -> Progress:
    return lambda done, _: progress(offset + done, total)
