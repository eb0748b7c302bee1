"""VaGraM against squared errors where most of the state is a distraction.

A pendulum with D distracting dimensions, dynamics networks of 2×16 units, 4000 steps, everything equal but the loss.
Measured on fresh data: the error of the critic's value at the predicted next state, the same for the true value (from
value iteration), and the squared error over all dimensions, which VaGraM is expected to make worse.

How much is gained hangs on how far the critic itself depends on the distractors, so the full run also prints the table
for critics with less and more weight decay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from common import Claim, arguments, report, table
from pendulum import Critics, Distractors, TrueValue, collect, fit_critics
from torch import Tensor

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import gradient_step, member_errors, optimiser
from dynamics.losses import Errors, GradientTable, Loss, VaGraM, ValueDifference, mse, normalised_mse, value_gradient
from dynamics.stacked import EnsembleStack

STEPS, TRANSITIONS, MEMBERS, DECAY, BATCH, HELD = 4000, 20_000, 2, 0.1, 256, 2000
LOSSES = ("raw MSE", "normalised MSE", "VaGraM", "value difference")
COLUMNS = ("critic value", "true value", "all dimensions")
Row = dict[str, float]


class Bench:
    """The worlds, data and critics of some seeds, and all their models as one stack: loss by loss, seed by seed."""

    def __init__(self, dims: int, seeds: int, true: TrueValue, decay: float):
        self.true, self.seeds = true, seeds
        rngs = [np.random.default_rng(seed) for seed in range(seeds)]
        worlds = [Distractors.draw(dims, rng) for rng in rngs]
        plenty = [collect(w, 5 * TRANSITIONS, true, rng) for w, rng in zip(worlds, rngs, strict=True)]
        self.test = [collect(w, 4000, true, rng) for w, rng in zip(worlds, rngs, strict=True)]
        self.critics = fit_critics(plenty, true, range(seeds), decay)  # they have seen more than the models
        self.data = side_by_side([first(d, TRANSITIONS) for d in plenty])
        config = EnsembleConfig(MEMBERS, 1, (16, 16), (16, 16), gaussian=False)
        starts = [torch.Generator().manual_seed(100 * seed) for _ in LOSSES for seed in range(seeds)]
        self.models = EnsembleStack(3 + dims, 1, config, starts)
        columns = (d.unflatten(0, (seeds, -1)) for d in (self.data.obs, self.data.action, self.data.reward))
        obs, action, reward = (c.repeat(len(LOSSES), *[1] * (c.dim() - 1)) for c in columns)
        after = self.data.next_obs.unflatten(0, (seeds, -1)).repeat(len(LOSSES), 1, 1)
        self.models.measure(obs, action, reward, after)

    def losses(self, data: SimpleNamespace) -> Loss:
        """One loss for the whole stack, on these rows: each part of it by its own."""
        states = data.next_obs.unflatten(0, (self.seeds, -1))
        gradient = value_gradient(lambda x: self.value(x), states)[1].flatten(0, 1)
        table: dict[str, Loss] = {
            "raw MSE": mse,
            "normalised MSE": normalised_mse,
            "VaGraM": VaGraM(GradientTable(gradient.unsqueeze(0))),
            "value difference": ValueDifference([self.value]),
        }
        nets = self.seeds * MEMBERS

        def loss(e: Errors) -> Tensor:
            parts = [part(e, slice(k * nets, (k + 1) * nets)) for k in range(len(LOSSES))]
            return torch.cat([table[name](own) for name, own in zip(LOSSES, parts, strict=True)])

        return loss

    def value(self, x: Tensor) -> Tensor:
        """Rows (seeds·n, obs_dim), one seed after the other, each by its own critic -> (seeds·n,)."""
        return self.critics(x.view(self.seeds, -1, x.shape[-1])).flatten()

    def train(self, lr: float) -> None:
        """All models at once; each keeps its weights of the epoch that was best by its own loss on held-out rows."""
        rngs = [torch.Generator().manual_seed(seed) for seed in range(self.seeds)]
        orders = [torch.randperm(TRANSITIONS, generator=g) + p * TRANSITIONS for p, g in enumerate(rngs)]
        held = torch.stack([order[:HELD] for order in orders])
        rows = [order[HELD:] for order in orders]
        # A bootstrap per seed and member, the same under every loss.
        own = [r[torch.randint(len(r), (MEMBERS, len(r)), generator=g)] for r, g in zip(rows, rngs, strict=True)]
        pool = torch.cat(own)  # (seeds·members, N)
        loss, opt = self.losses(self.data), optimiser(self.models, lr, (0.0,))
        best = self.judge(loss, held)
        kept = [p.detach().clone() for p in self.models.parameters()]
        epoch = pool.shape[1] // BATCH
        for step in range(STEPS):
            if step % epoch == 0:
                pool = pool.gather(1, torch.rand(pool.shape, generator=rngs[0]).argsort(1))
            index = pool[:, (step % epoch) * BATCH : (step % epoch + 1) * BATCH].repeat(len(LOSSES), 1)
            gradient_step(self.models, opt, loss, self.data, index)
            if (step + 1) % epoch == 0 or step == STEPS - 1:
                now = self.judge(loss, held)
                better, best = now < best, torch.minimum(now, best)
                for p, q in zip(kept, self.models.parameters(), strict=True):
                    p[better] = q.detach()[better]
        with torch.no_grad():
            for p, q in zip(kept, self.models.parameters(), strict=True):
                q.copy_(p)

    def judge(self, loss: Loss, held: Tensor) -> Tensor:
        with torch.no_grad():
            index = held.repeat_interleave(MEMBERS, 0).repeat(len(LOSSES), 1)
            return loss(member_errors(self.models, self.data, index))

    def measure(self) -> dict[str, Row]:
        """Root mean squared value errors and mean squared error over all dimensions, by loss."""
        test = side_by_side(self.test)
        obs, action, after = (c.unflatten(0, (self.seeds, -1)) for c in (test.obs, test.action, test.next_obs))
        shared = [c.repeat_interleave(MEMBERS, 0).repeat(len(LOSSES), 1, 1) for c in (obs, action)]
        with torch.no_grad():
            predicted = shared[0] + self.models.means(*shared, with_reward=False)[0]
        predicted = predicted.unflatten(0, (len(LOSSES), self.seeds, MEMBERS))  # (loss, seed, member, B, obs_dim)
        rows = {}
        for name, said in zip(LOSSES, predicted, strict=True):
            critic = self.value(said.flatten(0, 2)).view(said.shape[:-1]) - self.critics(after).unsqueeze(1)
            truth = torch.tensor(self.true(said.numpy()) - self.true(after.numpy())[:, None])
            error = (said - after.unsqueeze(1)).square().sum(-1).mean()
            rows[name] = dict(zip(COLUMNS, (root(critic), root(truth), float(error)), strict=True))
        return rows

    def about(self) -> Row:
        return average([about(self.critics, p, self.true, test) for p, test in enumerate(self.test)])


def side_by_side(data: list[SimpleNamespace]) -> SimpleNamespace:
    """Data sets as one, row after row."""
    names = ("obs", "action", "reward", "next_obs", "terminated")
    return SimpleNamespace(**{name: torch.cat([getattr(d, name) for d in data]) for name in names})


def first(data: SimpleNamespace, rows: int) -> SimpleNamespace:
    return SimpleNamespace(**{k: v[:rows] for k, v in vars(data).items() if isinstance(v, Tensor)})


def part(e: Errors, rows: slice) -> Errors:
    """The errors of some networks of a stack."""
    names = ("state", "reward", "state_scale", "reward_scale", "next_obs", "terminated", "index")
    return replace(e, **{name: getattr(e, name)[rows] for name in names})


def root(error: Tensor) -> float:
    return float(error.square().mean(-1).sqrt().mean())


def about(critics: Critics, p: int, true: TrueValue, test: SimpleNamespace) -> Row:
    """Error of a critic, spread of the value, and gradient per standard deviation on pendulum and distractors."""
    value = torch.tensor(true(test.obs.numpy()), dtype=torch.float32)
    every: Callable[[Tensor], Tensor] = lambda x: critics(x.expand(len(critics.mean), -1, -1))[p]  # noqa: E731
    said, gradient = value_gradient(every, test.obs)
    gradient = gradient * test.obs.std(0)
    return {
        "value std": float(value.std()),
        "critic error": float((said - value).square().mean().sqrt()),
        "gradient on pendulum": float(gradient[:, :3].norm(dim=-1).mean()),
        "gradient on distractors": float(gradient[:, 3:].norm(dim=-1).mean()),
    }


def average(rows: list[Row]) -> Row:
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


def run(dims: int, seeds: int, true: TrueValue, decay: float, lr: float) -> dict[str, Row]:
    bench = Bench(dims, seeds, true, decay)
    bench.train(lr)
    rows = bench.measure()
    print(f"\nD = {dims}, {seeds} seeds, critic weight decay {decay}: " + text(bench.about()))
    print(table(("loss", *COLUMNS), [(name, *row.values()) for name, row in rows.items()]), flush=True)
    return rows


def text(row: Row) -> str:
    return ", ".join(f"{k} {v:.3g}" for k, v in row.items())


def main() -> None:
    learning_rate = ("--lr", {"type": float, "default": 3e-3, "help": "learning rate of the dynamics networks"})
    args = arguments(__doc__ or "", [learning_rate])
    torch.set_num_threads(1)
    start, true = time.monotonic(), TrueValue()
    plain, crowded = (run(dims, 3, true, DECAY, args.lr) for dims in (0, 10))
    minutes = (time.monotonic() - start) / 60

    def ratio(rows: dict[str, Row]) -> float:
        return rows["VaGraM"]["critic value"] / rows["normalised MSE"]["critic value"]

    def crowded_ratio(first: str, second: str, column: str) -> float:
        return crowded[first][column] / crowded[second][column]

    claims = [
        Claim("VaGraM / normalised MSE, value error, D = 10, at most", ratio(crowded), 0.75, at_least=False),
        Claim("VaGraM / normalised MSE, value error, D = 10, at least", ratio(crowded), 0.45),
        Claim("VaGraM / normalised MSE, value error, D = 0, at most", ratio(plain), 1.15, at_least=False),
        Claim("VaGraM / normalised MSE, value error, D = 0, at least", ratio(plain), 0.85),
        Claim("VaGraM / raw MSE, all-dimension error, D = 10",
              crowded_ratio("VaGraM", "raw MSE", "all dimensions"), 1.0),
        Claim("value difference / VaGraM, true-value error, D = 10",
              crowded_ratio("value difference", "VaGraM", "true value"), 1.0),
        Claim("minutes for both tables", minutes, 5.0, at_least=False),
    ]
    details = {"D=0": plain, "D=10": crowded}
    if not args.quick:
        details |= {f"D=10, decay {d}": run(10, 3, true, d, args.lr) for d in (0.0, 1.0)}
    report("value_gradient", claims, args.json, details)


if __name__ == "__main__":
    main()
