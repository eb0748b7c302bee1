"""How much of each skill survives a merge: two to eight skills on one base, every operator.

Skills are adapters of one frozen actor for a point mass that sees a cue and has to reach the place the cue stands for
(the base has learned to stand still). Kept: (return of the merge − return of the base) / (return of the skill − return
of the base), mean over the skills merged, on episodes started anew. Each operator's settings are chosen once, on three
skills, and stay fixed from two to eight. For comparison a ridge router picks one skill per observation. Each seed draws
world, base, skills and episodes anew; what is finished is kept under runs/benchmarks/merging and not run again.

    python benchmarks/merging.py [--quick] [--json]
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import ROOT, Claim, arguments, report, table
from torch import Tensor

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import Adapter, Header
from policies.lora import attach, base_digest, extract, linear_layers, merge_into
from policies.merging import MERGE
from policies.merging.adapters import merge_deltas
from policies.merging.concrete import concrete_ranks
from policies.mixture import Mixture
from policies.networks import generators
from policies.routers.ridge import Ridge

TASKS, CUE, DT, STEPS, RANK = 8, 6, 0.1, 40, 8
GRID: dict[str, dict[str, tuple[float, ...]]] = {
    "average": {},
    "task_arithmetic": {"scale": (0.3, 0.5, 0.7, 1.0)},
    "ties": {"density": (0.2, 0.5, 0.9), "scale": (0.7, 1.0, 1.5)},
    "dare": {"drop": (0.3, 0.7), "scale": (0.3, 0.5, 0.7, 1.0)},
    "breadcrumbs": {"density": (0.6, 0.85), "scale": (0.3, 0.5, 0.7, 1.0)},
    "doge": {"density": (0.3, 0.7), "scale": (0.5, 1.0)},
    "concrete": {"scale": (0.3, 0.5, 0.7, 1.0)},
}


class PointMass:
    """Unit mass on a plane with a cue (CUE,) per task; obs (B, 4 + CUE), action (B, 2) is the force."""

    def __init__(self, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        angle = torch.arange(TASKS) * 2.3999  # the golden angle: neighbours in number are far apart in place
        self.goal = torch.stack([angle.cos(), angle.sin()], 1) * 0.8
        self.cue = torch.nn.functional.normalize(torch.randn(TASKS, CUE, generator=rng), dim=1) * 2.0

    def start(self, task: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """State (B, 4) and the noisy cue (B, CUE) of this episode."""
        state = torch.randn(len(task), 4, generator=rng) * torch.tensor([0.5, 0.5, 0.2, 0.2])
        return state, self.cue[task] + torch.randn(len(task), CUE, generator=rng) * 0.1

    def step(self, state: Tensor, force: Tensor) -> Tensor:
        velocity = state[:, 2:] + DT * (3.0 * force - 0.5 * state[:, 2:])
        return torch.cat([state[:, :2] + DT * velocity, velocity], 1)

    def expert(self, state: Tensor, task: Tensor) -> Tensor:
        return (2.0 * (self.goal[task] - state[:, :2]) - 1.2 * state[:, 2:]).clamp(-1, 1)

    def stand_still(self, state: Tensor) -> Tensor:
        return (-1.2 * state[:, 2:]).clamp(-1, 1)

    def episodes(self, policy: Callable[[Tensor], Tensor], task: int, count: int, seed: int) -> float:
        """Mean return: minus the distance to the goal, averaged over the episode."""
        rng, tasks = torch.Generator().manual_seed(seed), torch.full((count,), task)
        state, cue = self.start(tasks, rng)
        total = torch.zeros(count)
        for _ in range(STEPS):
            state = self.step(state, policy(torch.cat([state, cue], 1)))
            total -= (state[:, :2] - self.goal[task]).norm(dim=1)
        return float(total.mean()) / STEPS

    def visits(self, task: Tensor, seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor]:
        """Observations and expert actions along episodes with disturbed actions."""
        rng = torch.Generator().manual_seed(seed)
        state, cue = self.start(task, rng)
        rows, answers = [], []
        for _ in range(STEPS):
            rows.append(torch.cat([state, cue], 1))
            answers.append(self.expert(state, task))
            push = (answers[-1] + noise * torch.randn(answers[-1].shape, generator=rng)).clamp(-1, 1)
            state = self.step(state, push)
        return torch.cat(rows), torch.cat(answers)


def imitate(actor: StackedGaussianActor, parameters: list, obs: Tensor, action: Tensor, steps: int, seed: int) -> None:
    """Squared error of the deterministic action; obs (P, N, d) or shared (N, d)."""
    optimiser, rng = torch.optim.Adam(parameters, 3e-3), torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(0, obs.shape[-2], (256,), generator=rng)
        loss = (actor.mode(obs[..., rows, :]) - action[..., rows, :]).square().sum(-1).mean(-1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def trained_base(world: PointMass, seed: int, steps: int) -> StackedGaussianActor:
    """An actor that stands still whatever the cue."""
    actor = StackedGaussianActor(4 + CUE, 2, generators(seed, 1), ActorConfig(hidden=(128, 128), activation="silu"))
    obs, _ = world.visits(torch.arange(TASKS).repeat(25), seed=1)
    actor.normalizer.fit(obs)
    imitate(actor, list(actor.parameters()), obs, world.stand_still(obs[:, :4]), steps, seed)
    return actor.requires_grad_(False)


def trained_skills(world: PointMass, base: StackedGaussianActor, seed: int, steps: int) -> dict[str, Adapter]:
    """One adapter per task, all trained side by side on the shared base."""
    parts = [world.visits(torch.full((100,), task), seed=10 + task) for task in range(TASKS)]
    obs, action = (torch.stack(side) for side in zip(*parts, strict=True))
    student = copy.deepcopy(base)
    imitate(student, attach(student, RANK, generators(seed, TASKS), scale=2.0), obs, action, steps, seed)
    header = Header(base_digest(base), "pointmass", base.normalizer.digest)
    return {f"task{k}": extract(student, k, header) for k in range(TASKS)}


def acting(actor: StackedGaussianActor) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(lambda obs: actor.mode(obs)[0])


class Study:
    """Base, skills and their returns. `kept` scores a policy on the first `count` tasks."""

    def __init__(self, seed: int, steps: int, episodes: int):
        self.world, self.count = PointMass(seed), episodes
        self.base = trained_base(self.world, seed, steps)
        self.skills = trained_skills(self.world, self.base, seed, steps)
        self.low = [self.world.episodes(acting(self.base), k, episodes, 77) for k in range(TASKS)]
        self.high = [
            self.world.episodes(acting(merge_into(copy.deepcopy(self.base), s)), k, episodes, 77)
            for k, s in enumerate(self.skills.values())
        ]

    def kept(self, policy: Callable[[Tensor], Tensor], count: int) -> float:
        """Share of the skills' gain over the base that is left, mean over tasks."""
        shares = []
        for k in range(count):
            own = self.world.episodes(policy, k, self.count, 77)
            shares.append((own - self.low[k]) / (self.high[k] - self.low[k]))
        return statistics.mean(shares)

    def some(self, count: int) -> dict[str, Adapter]:
        return dict(itertools.islice(self.skills.items(), count))

    def merged(self, how: str, count: int, settings: Mapping[str, float]) -> Callable[[Tensor], Tensor]:
        return acting(merge_into(copy.deepcopy(self.base), merge_deltas(self.some(count), how, **settings)))  # type: ignore[arg-type]

    def concrete_with_observations(self, count: int, settings: Mapping[str, float]) -> Callable[[Tensor], Tensor]:
        """Concrete on ranks, with the layers' inputs on 16 observations of each skill."""
        skills, inputs = self.some(count), dict[str, list[Tensor]]()
        for k, skill in enumerate(skills.values()):
            module = merge_into(copy.deepcopy(self.base), skill)
            obs, _ = self.world.visits(torch.tensor([k]), seed=300 + k)
            handles = [layer.register_forward_hook(lambda _, args, out, name=name: inputs.setdefault(name, []).append(
                args[0].reshape(-1, args[0].shape[-1]))) for name, _, _, layer in linear_layers(module)]  # fmt: skip
            acting(module)(obs[torch.linspace(0, len(obs) - 1, 16).long()])  # type: ignore[arg-type]
            for handle in handles:
                handle.remove()
        seen = {name: torch.stack(parts) for name, parts in inputs.items()}
        merged = concrete_ranks(list(skills.values()), seen, torch.Generator().manual_seed(0), **settings)
        return acting(merge_into(copy.deepcopy(self.base), merged))  # type: ignore[arg-type]

    def routed(self, count: int) -> Callable[[Tensor], Tensor]:
        """A ridge router's choice per observation, through the mixture kernel."""
        skills, router = self.some(count), Ridge(4 + CUE)
        for k, name in enumerate(skills):
            obs, _ = self.world.visits(torch.full((10,), k), seed=500 + k)
            router.observe(self.base.normalizer(obs), name)
        mixture = Mixture(self.base, {name: skills[name] for name in router.skills})

        @torch.no_grad()
        def act(obs: Tensor) -> Tensor:
            choice = router.select(self.base.normalizer(obs)).indices[:, 0]
            with mixture.using(torch.nn.functional.one_hot(choice, count).float()) as actor:
                return actor.mode(obs)[0]  # type: ignore[operator]

        return act


def best_settings(study: Study, how: str) -> dict[str, float]:
    """The grid's best on three skills."""
    names = list(GRID[how])
    choices = [dict(zip(names, values, strict=True)) for values in itertools.product(*GRID[how].values())]
    return max(choices, key=lambda settings: study.kept(study.merged(how, 3, settings), 3))


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    seeds, steps, episodes = (1, 600, 32) if options.quick else (5, 1500, 100)
    records = [kept_record(seed, steps, episodes) for seed in range(seeds)]
    shares = {how: torch.tensor([r["kept"][how] for r in records]) for how in records[0]["kept"]}  # (seeds, 7) each
    mean = {how: runs.mean(0).tolist() for how, runs in shares.items()}
    half = {how: half_interval(runs) for how, runs in shares.items()}
    chosen = {f"{how}, seed {seed}": s for seed, r in enumerate(records) for how, s in r["settings"].items()}
    gain = statistics.mean(r["gain"] for r in records)
    print(f"share of the skills' gain kept, {seeds} seeds (± half of the 95 % interval over seeds), settings chosen on "
          f"three skills; gain of a skill over the base, mean distance: {gain:.3f}\n")  # fmt: skip
    cells = {how: [f"{m:.2f} ± {h:.2f}" for m, h in zip(mean[how], half[how], strict=True)] for how in mean}
    print(table(("operator", *(f"{n} skills" for n in range(2, 9))), [(how, *row) for how, row in cells.items()]))
    static = max((how for how in mean if "router" not in how), key=lambda how: mean[how][-1])
    routed = mean["ridge router, one skill per row"][-1]
    report("merging", [
        Claim(f"choosing per observation keeps more of eight skills than the best merge ({static}), by",
              routed - mean[static][-1], 0.0),
        Claim(f"eight skills: best merge ({static}) above the plain average",
              mean[static][-1] - mean["average"][-1], 0.0),
    ], options.json, {"kept": mean, "half intervals": half, "settings": chosen})  # fmt: skip


def kept_record(seed: int, steps: int, episodes: int) -> dict[str, Any]:
    """One seed's shares per operator and number of skills; what has been run already is read from disk."""
    path = ROOT / "runs" / "benchmarks" / "merging" / f"seed{seed}-{steps}-{episodes}.json"
    record = json.loads(path.read_text()) if path.exists() else {"kept": {}, "settings": {}}
    missing = [how for how in MERGE if how not in record["kept"]]
    if not missing:
        return record
    study, counts = Study(seed, steps, episodes), range(2, TASKS + 1)
    kept: dict[str, list[float]] = record["kept"]
    for how in missing:
        settings = record["settings"][how] = best_settings(study, how)
        kept[how] = [study.kept(study.merged(how, n, settings), n) for n in counts]
        if how == "concrete":
            few = [study.kept(study.concrete_with_observations(n, settings), n) for n in counts]
            kept["concrete on ranks, 16 observations"] = few
    kept["ridge router, one skill per row"] = [study.kept(study.routed(n), n) for n in counts]
    record["gain"] = statistics.mean(h - low for h, low in zip(study.high, study.low, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return record


def half_interval(runs: Tensor) -> list[float]:
    """Half of the 95 % interval of the mean over seeds (Student's t), per column; NaN for one seed."""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(runs), 1.96)
    return (t * runs.std(0) / len(runs) ** 0.5).tolist() if len(runs) > 1 else [float("nan")] * runs.shape[1]


if __name__ == "__main__":
    main()
