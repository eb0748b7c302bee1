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
from types import SimpleNamespace

import numpy as np
import torch
from common import Claim, arguments, report, table
from pendulum import Distractors, TrueValue, collect, fit_critic
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.losses import GradientCache, Loss, VaGraM, ValueDifference, mse, normalised_mse, value_gradient
from policies.networks import generators

STEPS, TRANSITIONS, MEMBERS, DECAY = 4000, 20_000, 2, 0.1
LOSSES: dict[str, Callable[[nn.Module], Loss]] = {
    "raw MSE": lambda critic: mse,
    "normalised MSE": lambda critic: normalised_mse,
    "VaGraM": lambda critic: VaGraM(fresh_cache(critic)),
    "value difference": lambda critic: ValueDifference([critic]),
}
COLUMNS = ("critic value", "true value", "all dimensions")
Row = dict[str, float]


def fresh_cache(critic: nn.Module) -> GradientCache:
    cache = GradientCache([critic])
    cache.refresh(0)
    return cache


def measure(model: Ensemble, critic: nn.Module, true: TrueValue, test: SimpleNamespace) -> Row:
    """Root mean squared value errors and mean squared error over all dimensions, averaged over the members."""
    with torch.no_grad():
        predicted = test.obs + model(test.obs, test.action).delta  # (E, B, obs_dim)
        rows = predicted.reshape(-1, predicted.shape[-1])
        critic_error = critic(rows).reshape(predicted.shape[:2]) - critic(test.next_obs)
        true_error = torch.tensor(true(predicted.numpy()) - true(test.next_obs.numpy()))
    error = (predicted - test.next_obs).square().sum(-1)
    return dict(zip(COLUMNS, (root(critic_error), root(true_error), float(error.mean())), strict=True))


def root(error: Tensor) -> float:
    return float(error.square().mean(-1).sqrt().mean())


def one_seed(dims: int, seed: int, true: TrueValue, decay: float, lr: float) -> tuple[dict[str, Row], Row]:
    """Every loss on one world -> rows by loss, and what the critic is like."""
    rng = np.random.default_rng(seed)
    distractors = Distractors.draw(dims, rng)
    plenty = collect(distractors, 5 * TRANSITIONS, true, rng)  # the critic has seen more than the model
    data = SimpleNamespace(**{k: v[:TRANSITIONS] for k, v in vars(plenty).items() if isinstance(v, Tensor)})
    test = collect(distractors, 4000, true, rng)
    critic = fit_critic(plenty, true, seed, decay)
    rows = {}
    for name, make in LOSSES.items():
        config = EnsembleConfig(MEMBERS, 1, (16, 16), (16, 16), gaussian=False)
        model = Ensemble(3 + dims, 1, config, generators(100 * seed, MEMBERS))
        how = FitConfig(lr=lr, max_steps=STEPS, patience=10**6, weight_decay=(0.0,))
        fit(model, data, make(critic), how, torch.Generator().manual_seed(seed))
        rows[name] = measure(model, critic, true, test)
    return rows, about(critic, true, test)


def about(critic: nn.Module, true: TrueValue, test: SimpleNamespace) -> Row:
    """Error of the critic, spread of the value, and gradient per standard deviation on pendulum and distractors."""
    value = torch.tensor(true(test.obs.numpy()), dtype=torch.float32)
    said, gradient = value_gradient(critic, test.obs)
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
    results = [one_seed(dims, seed, true, decay, lr) for seed in range(seeds)]
    rows = {name: average([r[0][name] for r in results]) for name in LOSSES}
    print(f"\nD = {dims}, {seeds} seeds, critic weight decay {decay}: " + text(average([r[1] for r in results])))
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
