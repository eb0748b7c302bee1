"""A pendulum with distracting dimensions and its true value, for the benchmarks of the dynamics package.

The pendulum is Gymnasium's Pendulum-v1 as a function of arrays. The distractors follow
d' = W d + 0.1 sin(A d) with W ~ N(0, 1) and A ~ N(0, 10)²; once an entry has left ±20 the next vector is a fixed random
one. They cannot be controlled, earn nothing, and are far larger than the pendulum's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from policies.networks import StackedMLP

SPEED, TORQUE, DT, DISCOUNT = 8.0, 2.0, 0.05, 0.97
ACTIONS = np.linspace(-1.0, 1.0, 9)


def swing(theta: np.ndarray, speed: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(next theta, next speed, reward) for action in [-1, 1]; radians, rad/s, uniform rod of 1 m and 1 kg."""
    torque = TORQUE * np.clip(action, -1.0, 1.0)
    angle = (theta + np.pi) % (2 * np.pi) - np.pi
    reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = np.clip(speed + (15.0 * np.sin(theta) + 3.0 * torque) * DT, -SPEED, SPEED)
    return theta + speed * DT, speed, reward


class TrueValue:
    """Optimal discounted value and action of the pendulum on a grid, by value iteration with bilinear look-up."""

    def __init__(self, cells: int = 121):
        self.cells = cells
        self.angles = np.linspace(-np.pi, np.pi, cells)
        self.speeds = np.linspace(-SPEED, SPEED, cells)
        theta, speed = np.meshgrid(self.angles, self.speeds, indexing="ij")
        moves = [swing(theta, speed, np.full_like(theta, a)) for a in ACTIONS]
        places = [self._corners(t, s) for t, s, _ in moves]
        rewards = np.stack([r for _, _, r in moves])
        table = np.zeros((cells, cells))
        for _ in range(2000):
            q = rewards + DISCOUNT * np.stack([self._look(table, p) for p in places])
            change, table = np.abs(q.max(0) - table).max(), q.max(0)
            if change < 1e-4:
                break
        self.table, self.policy = table, ACTIONS[q.argmax(0)]

    def _corners(self, theta: np.ndarray, speed: np.ndarray) -> tuple:
        angle = (theta + np.pi) % (2 * np.pi)
        x = angle / (2 * np.pi) * (self.cells - 1)
        y = (np.clip(speed, -SPEED, SPEED) + SPEED) / (2 * SPEED) * (self.cells - 1)
        i, j = np.minimum(x.astype(int), self.cells - 2), np.minimum(y.astype(int), self.cells - 2)
        return i, j, x - i, y - j

    @staticmethod
    def _look(table: np.ndarray, place: tuple) -> np.ndarray:
        i, j, x, y = place
        left, right = table[i, j] * (1 - y) + table[i, j + 1] * y, table[i + 1, j] * (1 - y) + table[i + 1, j + 1] * y
        return left * (1 - x) + right * x

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """obs (..., 3 + D): cos, sin, speed and distractors -> value (...,)."""
        return self._look(self.table, self._corners(np.arctan2(obs[..., 1], obs[..., 0]), obs[..., 2]))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Greedy action (..., ) in [-1, 1]."""
        i, j, x, y = self._corners(np.arctan2(obs[..., 1], obs[..., 0]), obs[..., 2])
        return self.policy[i + (x > 0.5), j + (y > 0.5)]


@dataclass
class Distractors:
    """D dimensions that have nothing to do with the pendulum; `step` maps (N, D) to (N, D)."""

    linear: np.ndarray
    wave: np.ndarray
    home: np.ndarray

    @classmethod
    def draw(cls, dims: int, rng: np.random.Generator) -> Distractors:
        return cls(rng.normal(size=(dims, dims)), rng.normal(0, 10, (dims, dims)) ** 2, rng.normal(size=dims))

    def start(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(0.0, 0.1, (rows, len(self.home)))

    def step(self, d: np.ndarray) -> np.ndarray:
        after = d @ self.linear.T + 0.1 * np.sin(d @ self.wave.T)
        return np.where((np.abs(d) > 20.0).any(-1, keepdims=True), self.home, after)


class World:
    """N pendulums with distractors; remembers theta, speed (N,) and the distractors (N, D)."""

    def __init__(self, rows: int, distractors: Distractors, rng: np.random.Generator):
        self.rng, self.distractors, self.rows = rng, distractors, rows
        self.reset()

    def reset(self) -> np.ndarray:
        self.theta = self.rng.uniform(-np.pi, np.pi, self.rows)
        self.speed = self.rng.uniform(-1.0, 1.0, self.rows)
        self.extra = self.distractors.start(self.rows, self.rng)
        return self.obs()

    def obs(self) -> np.ndarray:
        pendulum = np.stack([np.cos(self.theta), np.sin(self.theta), self.speed], -1)
        return np.concatenate([pendulum, self.extra], -1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """action (N,) in [-1, 1] -> obs (N, 3 + D), reward (N,)."""
        self.theta, self.speed, reward = swing(self.theta, self.speed, action)
        self.extra = self.distractors.step(self.extra)
        return self.obs(), reward


def collect(distractors: Distractors, count: int, true: TrueValue, rng: np.random.Generator) -> SimpleNamespace:
    """`count` transitions of 200-step episodes in which half of the actions are greedy and half are random."""
    rows, steps = max(1, count // 200), min(200, count)
    world = World(rows, distractors, rng)
    obs, parts = world.obs(), []
    for _ in range(steps):
        random = rng.uniform(-1.0, 1.0, rows)
        action = np.where(rng.uniform(size=rows) < 0.5, random, true.act(obs))
        next_obs, reward = world.step(action)
        parts.append((obs, action[:, None], reward, next_obs))
        obs = next_obs
    names = ("obs", "action", "reward", "next_obs")
    # Time is the second axis, so that row i * steps + t is step t of episode i.
    columns = [np.stack([p[k] for p in parts], 1) for k in range(4)]
    flat = [torch.tensor(c.reshape(rows * steps, *c.shape[2:]), dtype=torch.float32) for c in columns]
    named = dict(zip(names, flat, strict=True))
    return SimpleNamespace(**named, terminated=torch.zeros(rows * steps), episodes=rows, steps=steps)


class Critics(nn.Module):
    """P critics of the whole observation, 2×64 tanh: raw (P, B, obs_dim) -> (P, B); of one critic also (B, obs_dim)."""

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, obs: Tensor, value: Tensor, seeds: Sequence[int]):
        """Statistics of obs (P, N, obs_dim) and value (P, N)."""
        super().__init__()
        for name, statistic in (("mean", obs.mean(1, keepdim=True)), ("std", obs.std(1, keepdim=True))):
            self.register_buffer(name, statistic)
        for name, statistic in (("shift", value.mean(1, keepdim=True)), ("scale", value.std(1, keepdim=True))):
            self.register_buffer(name, statistic)
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.net = StackedMLP(obs.shape[-1], (64, 64), 1, rngs, "tanh")

    def forward(self, x: Tensor) -> Tensor:
        value = self.net((x - self.mean) / self.std).squeeze(-1) * self.scale + self.shift
        return value if x.dim() == 3 else value[0]


def fit_critics(
    data: Sequence[SimpleNamespace], true: TrueValue, seeds: Sequence[int], decay: float = 0.1, steps: int = 4000
) -> Critics:
    """Side by side, each regressed on the true value of the states in its data.

    `decay` is AdamW's weight decay: it settles how much the critics still depend on the distractors.
    """
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    obs = torch.stack([d.obs for d in data])
    target = torch.stack([torch.tensor(true(d.obs.numpy()), dtype=torch.float32) for d in data])
    critics = Critics(obs, target, seeds)
    opt = torch.optim.AdamW(critics.parameters(), lr=3e-3, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        rows = torch.stack([torch.randint(target.shape[1], (256,), generator=rng) for rng in rngs])
        batch = obs.gather(1, rows.unsqueeze(-1).expand(-1, -1, obs.shape[-1]))
        opt.zero_grad(set_to_none=True)
        ((critics(batch) - target.gather(1, rows)) / critics.scale).square().mean(1).sum().backward()
        opt.step()
        schedule.step()
    return critics.requires_grad_(False)


def fit_critic(data: SimpleNamespace, true: TrueValue, seed: int, decay: float = 0.1, steps: int = 4000) -> Critics:
    """One critic alone."""
    return fit_critics([data], true, [seed], decay, steps)
