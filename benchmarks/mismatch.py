"""Objective mismatch on a pendulum with ten distractors: which error of a model tells what it is worth?

A population of models (capacity × training × loss × initialisation) is scored on held-out data and by the return of a
planner that uses them in the true world. Printed are Pearson and Spearman correlations with bootstrap intervals per
slice, the metric that ranks best, the return lost by stopping at the best likelihood, the return a likelihood-keeping
attack on the last weights can destroy, and how much more the planner expects than it gets. Plots go to --plots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from common import Claim, arguments, report, table
from pendulum import Distractors, TrueValue, World, collect, fit_critic
from torch import Tensor, nn

from dynamics import mismatch
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import gradient_step, optimiser
from dynamics.losses import GradientCache, Loss, VaGraM, ValueDifference, mse, nll, normalised_mse
from dynamics.planner import MPPI, ModelRollout, PlannerConfig
from policies.networks import generators

DIMS, MEMBERS, EPISODES, STEPS = 10, 3, 16, 60
PLANNER = PlannerConfig(samples=128, horizon=5, sigma=0.6, smoothness=0.5)
FULL = "2×16 after 4000 steps"


@dataclass
class Setting:
    """World, data, critic and the pieces of episodes for open-loop errors."""

    distractors: Distractors
    data: SimpleNamespace
    test: SimpleNamespace
    pieces: tuple[Tensor, Tensor]
    critic: nn.Module


def setting(true: TrueValue, seed: int) -> Setting:
    rng = np.random.default_rng(seed)
    distractors = Distractors.draw(DIMS, rng)
    plenty, test = collect(distractors, 100_000, true, rng), collect(distractors, 4000, true, rng)
    data = SimpleNamespace(**{k: v[:20_000] for k, v in vars(plenty).items() if isinstance(v, Tensor)})
    return Setting(distractors, data, test, episode_pieces(test, 20), fit_critic(plenty, true, seed))


def episode_pieces(data: SimpleNamespace, steps: int) -> tuple[Tensor, Tensor]:
    """obs (N, steps + 1, ·) and action (N, steps, ·) cut out of whole episodes."""
    shape = (data.episodes, data.steps)
    obs, action, after = (t.unflatten(0, shape) for t in (data.obs, data.action, data.next_obs))
    starts = range(0, data.steps - steps + 1, steps)
    pieces = [torch.cat([obs[:, s : s + steps], after[:, s + steps - 1 : s + steps]], 1) for s in starts]
    return torch.cat(pieces), torch.cat([action[:, s : s + steps] for s in starts])


def losses(critic: nn.Module) -> dict[str, Loss]:
    cache = GradientCache([critic])
    cache.refresh(0)
    return {
        "mse": mse, "normalised_mse": normalised_mse, "vagram": VaGraM(cache),
        "value_difference": ValueDifference([critic]), "nll": nll,
    }


def trainings(s: Setting, width: int, loss: str, lengths: list[int]) -> Iterator[tuple[int, Ensemble]]:
    """(steps, model) at every length of one training of MEMBERS networks; first weights and batches as for any loss."""
    config = EnsembleConfig(MEMBERS, MEMBERS, (width, width), (16, 16), gaussian=loss == "nll")
    model = Ensemble(3 + DIMS, 1, config, generators(17 * width, MEMBERS))
    model.measure(s.data.obs, s.data.action, s.data.reward, s.data.next_obs)
    rng, opt, how = torch.Generator().manual_seed(1), optimiser(model, 3e-3, (0.0,)), losses(s.critic)[loss]
    for step in range(1, max(lengths) + 1):
        gradient_step(model, opt, how, s.data, torch.randint(len(s.data.obs), (MEMBERS, 256), generator=rng))
        if step in lengths:
            yield step, model


def train(s: Setting, width: int, loss: str, steps: int) -> Ensemble:
    return next(model for _, model in trainings(s, width, loss, [steps]))


def run_planner(s: Setting, model: Ensemble, episodes: int = EPISODES) -> tuple[float, float]:
    """(return per episode, expected − realised value of the chosen plans) of planning with a model, horizon 5.

    Realised is the plan's true rewards plus the critic at the state it truly leads to.
    """
    world = World(episodes, s.distractors, np.random.default_rng(5))
    rollout = ModelRollout(model, reward_fn=pendulum_reward, value_fn=s.critic, discount=0.97)
    planner = MPPI(rollout, 3 + DIMS, 1, PLANNER, torch.Generator().manual_seed(0))
    obs, total, gaps = world.obs(), np.zeros(episodes), []
    for t in range(STEPS):
        state = torch.tensor(obs, dtype=torch.float32)
        plan = planner.plan(state)
        if t % 10 == 0:
            gaps.append(mismatch.exploitation_gap(rollout(state, plan.unsqueeze(1))[:, 0], realised(s, world, plan)))
        obs, reward = world.step(plan[:, 0, 0].numpy())
        total += reward
    return float(total.mean()), float(np.mean(gaps))


def realised(s: Setting, world: World, plan: Tensor) -> np.ndarray:
    """What a plan (B, H, 1) earns when it is carried out from the world's state, which is left as it was."""
    kept, total = (world.theta, world.speed, world.extra), np.zeros(world.rows)
    for h in range(plan.shape[1]):
        obs, reward = world.step(plan[:, h, 0].numpy())
        total += 0.97**h * reward
    world.theta, world.speed, world.extra = kept
    with torch.no_grad():
        return total + 0.97 ** plan.shape[1] * s.critic(torch.tensor(obs, dtype=torch.float32)).numpy()


def pendulum_reward(obs: Tensor, action: Tensor, after: Tensor) -> Tensor:
    angle = torch.atan2(obs[:, 1], obs[:, 0])
    return -(angle.square() + 0.1 * obs[:, 2].square() + 0.004 * action[:, 0].square())


# -- the population ---------------------------------------------------------------------------------------------------


def population(
    s: Setting, widths: list[int], lengths: list[int]
) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    """Name, scores and return of every model: widths × lengths × losses × members."""
    names: list[str] = []
    returns: list[float] = []
    columns: dict[str, list[float]] = {m: [] for m in mismatch.METRICS}
    for width in widths:
        for loss in losses(s.critic):
            for steps, model in trainings(s, width, loss, lengths):
                found = mismatch.scores(model, s.test, s.pieces, s.critic)
                for k in range(MEMBERS):
                    names.append(f"2×{width} after {steps} steps, {loss}")
                    returns.append(run_planner(s, model.subset(torch.tensor([k])))[0])
                    for metric, values in found.items():
                        columns[metric].append(float(values[k]))
    return names, {k: np.array(v) for k, v in columns.items()}, np.array(returns)


def slices(names: list[str]) -> dict[str, np.ndarray]:
    groups = sorted({n.split(",")[0] for n in names})
    parts = {g: np.array([n.startswith(g + ",") for n in names]) for g in groups}
    return {"all": np.ones(len(names), dtype=bool), **parts}


def by_epoch(s: Setting, lengths: list[int]) -> tuple[int, int, float]:
    """Steps at which the likelihood and the return are best, and the return lost between them."""
    errors, returns = [], []
    for _, model in trainings(s, 16, "nll", lengths):
        errors.append(float(mismatch.one_step_errors(model, s.test)["nll"].mean()))
        returns.append(run_planner(s, model)[0])
    a, b, lost = mismatch.epoch_regret(np.array(errors), np.array(returns))
    return lengths[a], lengths[b], lost


def attack(s: Setting, generations: int) -> mismatch.Gap:
    model = train(s, 16, "nll", 2000).subset(torch.tensor([0]))

    def likelihood(m: Ensemble) -> float:
        return float(mismatch.one_step_errors(m, s.test)["nll"].mean())

    rng = np.random.default_rng(0)
    return mismatch.adversarial_gap(model, likelihood, lambda m: run_planner(s, m, 6)[0], rng, generations, sigma=0.06)


def plot(folder: Path, columns: dict[str, np.ndarray], returns: np.ndarray, names: list[str]) -> Path:
    """Return against every metric, one colour per loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(14, 6), sharey=True)
    kinds = [n.split(", ")[1] for n in names]
    for axis, (metric, values) in zip(axes.flat, columns.items(), strict=False):
        for kind in sorted(set(kinds)):
            mask = np.array([k == kind for k in kinds])
            axis.scatter(values[mask], returns[mask], s=14, label=kind)
        axis.set_xlabel(metric)
        if metric != "nll":
            axis.set_xscale("log")
    axes[0, 0].set_ylabel("return")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels())
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "mismatch.png", dpi=110)
    return folder / "mismatch.png"


def interval(i: mismatch.Interval) -> str:
    return f"{i.value:+.2f} [{i.low:+.2f}, {i.high:+.2f}]"


def main() -> None:
    args = arguments(__doc__ or "", [("--plots", {"type": Path, "default": Path("runs/mismatch"), "help": "folder"})])
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    s = setting(TrueValue(), 0)
    widths, lengths = ([16], [400, 4000]) if args.quick else ([8, 16, 64], [400, 1500, 4000])
    names, columns, returns = population(s, widths, lengths)
    groups = slices(names)
    rows = mismatch.report(columns, returns, groups, rng)
    cells = [(r.slice, r.metric, interval(r.spearman), interval(r.pearson), r.regret) for r in rows]
    print(table(("slice", "metric", "Spearman with return", "Pearson", "return lost by choosing by it"), cells))
    print("\nbest ranking metric: " + ", ".join(f"{g}: {mismatch.best_metric(rows, g)}" for g in groups))
    # The models of the value-gradient table: one capacity, one length, its four losses.
    same = groups[FULL] & np.array([not n.endswith("nll") for n in names])
    between = mismatch.with_interval(mismatch.spearman, columns["raw_mse"][same], columns["value_error"][same], rng)
    print(f"all-dimension error against value error, {same.sum()} models, {FULL}: Spearman {interval(between)}")
    expected = np.mean([run_planner(s, train(s, 16, loss, 1500))[1] for loss in ("mse", "vagram")])
    print(f"exploitation gap (expected − realised value of the chosen plans): {expected:.3g}")
    by_nll, by_return, lost = by_epoch(s, [250, 500, 1000, 2000, 4000])
    print(f"best likelihood after {by_nll} steps, best return after {by_return}: {lost:.3g} of return lost")
    gap = attack(s, 4 if args.quick else 20)
    print(f"attack on the last weights: return {gap.before:.4g} → {gap.after:.4g}, nll {gap.nll_before:.4g} → "
          f"{gap.nll_after:.4g}")
    print(f"wrote {plot(args.plots, columns, returns, names)}")
    ranked = {r.metric: -r.spearman.value for r in rows if r.slice == "all"}  # 1: ranks exactly by return
    gain = ranked["value_error"] - ranked["nll"]
    claims = [
        Claim("models in the population", len(returns), 12),
        Claim(f"Spearman of all-dimension and value error, {FULL}", between.value, 0.0, at_least=False),
        Claim("how much better value error ranks than likelihood does (Spearman with return)", gain, 0.0),
    ]
    details = {"metrics": {k: v.tolist() for k, v in columns.items()}, "returns": returns.tolist(), "models": names}
    report("mismatch", claims, args.json, details)


if __name__ == "__main__":
    main()
