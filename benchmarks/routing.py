"""Which skill fits this context? Routers, gates and smoothing on contexts of a simulated point mass.

A point mass follows one of nine references (sines, ramps, steps of its own frequency, size and stiffness) under a PD
controller; a context is the last six positions, velocities and commands, standardised. Which six references are
skills and which three stay unknown is drawn per seed. Training is imbalanced 100 : 1. The shifts are real: a heavier
mass and a later command. Gates are compared where both admit half of what comes without a shift, as a robot sets
it beforehand; other shares, and what is wrong where both are made to admit a fifth under the shift, are printed too.
Every number is the mean over seeds, ± half of its 95 % interval.

    python benchmarks/routing.py [--quick] [--json]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from common import Claim, arguments, report, table
from torch import Tensor

from policies.gates import SDMGate, SoftmaxGate
from policies.routers import ROUTERS, Router
from policies.routers.ridge import Ridge
from policies.smoothing import Smoother

KNOWN, UNKNOWN, WINDOW, DT = 6, 3, 6, 0.05
COUNTS = [int(2000 * 100 ** (-k / (KNOWN - 1))) for k in range(KNOWN)]  # 2000 … 20
SHARE = 0.2  # of the contexts under a shift that both gates admit
SHIFTS = {"mass × 1.5": (1.5, 0), "mass × 2.5": (2.5, 0), "latency + 3 steps": (1.0, 3), "both": (2.0, 3)}


def reference(kind: Tensor, t: Tensor, phase: Tensor) -> Tensor:
    """Position asked for at time t (s) by reference `kind` (N,), with the phase of this run."""
    frequency = 1.0 + 0.45 * kind
    sine = torch.sin(frequency * t + phase)
    triangle = 2 / math.pi * torch.asin(torch.sin(frequency * t + phase).clamp(-1, 1))
    steps = torch.sign(sine) * 0.8
    shape = (kind % 3).long()
    return torch.where(shape == 0, sine, torch.where(shape == 1, triangle, steps)) * (0.6 + 0.1 * kind)


def contexts(kind: Tensor, seed: int, mass: float = 1.0, latency: int = 0) -> Tensor:
    """One context (N, 3 · WINDOW) per run of each reference, at a random time, with ±5 % of mass and sensor noise."""
    rng, n = torch.Generator().manual_seed(seed), len(kind)
    mass_of = mass * (1.0 + 0.05 * torch.randn(n, generator=rng))
    phase, x, v = torch.rand(n, generator=rng) * 6.28, torch.zeros(n), torch.zeros(n)
    stiff = 20.0 + 4.0 * kind
    end, rows = torch.randint(40, 80, (n,), generator=rng), []
    delayed = [torch.zeros(n)] * (latency + 1)
    for i in range(80):
        t = torch.tensor(i * DT)
        command = (stiff * (reference(kind, t, phase) - x) - 4.0 * v).clamp(-25, 25)
        delayed = [*delayed[1:], command]
        v = v + DT * (delayed[0] - 0.5 * v) / mass_of
        x = x + DT * v
        rows.append(torch.stack([x, v * 0.3, command * 0.1], 1))
    track = torch.stack(rows)  # (80, N, 3)
    index = end[None] - torch.arange(WINDOW)[:, None]
    taken = track[index, torch.arange(n)[None]]  # (WINDOW, N, 3)
    flat = taken.permute(1, 0, 2).reshape(n, -1)
    return flat + torch.randn(flat.shape, generator=rng) * 0.05


class World:
    """One draw of which references are skills (0 … 5) and which are unknown (6 … 8)."""

    def __init__(self, seed: int):
        order = torch.randperm(KNOWN + UNKNOWN, generator=torch.Generator().manual_seed(seed + 31))
        self.reference = order.float()
        sample = contexts(self.reference[:KNOWN].repeat_interleave(200), seed + 50)
        self.mean, self.std = sample.mean(0), sample.std(0)

    def contexts(self, skill: Tensor, seed: int, mass: float = 1.0, latency: int = 0) -> Tensor:
        return (contexts(self.reference[skill], seed, mass, latency) - self.mean) / self.std

    def even(
        self, rows: int, seed: int, skills: range = range(KNOWN), mass: float = 1.0, latency: int = 0
    ) -> tuple[Tensor, Tensor]:
        """`rows` contexts of each skill, and the skills."""
        skill = torch.arange(skills.start, skills.stop).repeat_interleave(rows)
        return self.contexts(skill, seed, mass, latency), skill


def taught(kind: str, seed: int, world: World, counts: Sequence[int] = COUNTS) -> Router:
    router = ROUTERS[kind](3 * WINDOW)
    for k, count in enumerate(counts):
        x, _ = world.even(count, 1000 * seed + k, range(k, k + 1))
        for chunk in x.split(100):
            router.observe(chunk, f"skill{k}")
    return router


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Probability that an unknown case scores higher than a known one."""
    both = torch.cat([known, unknown])
    rank = both.argsort().argsort().double() + 1
    n, m = len(known), len(unknown)
    return float((rank[n:].sum() - m * (m + 1) / 2) / (n * m))


def accuracies(seed: int, test_rows: int) -> dict[str, float]:
    """Balanced accuracy and open-set AUROC of each router under 100 : 1 imbalance."""
    world = World(seed)
    x, label = world.even(test_rows, seed + 500)
    strange, _ = world.even(test_rows, seed + 700, range(KNOWN, KNOWN + UNKNOWN))
    found = {}
    for kind in ROUTERS:
        router = taught(kind, seed, world)
        found[f"accuracy {kind}"] = float((router.select(x).indices[:, 0] == label).double().mean())
        energy = [-torch.logsumexp(router.logits(part), 1) for part in (x, strange)]
        found[f"AUROC energy of {kind}"] = auroc(*energy)
    router = taught("nearest_mean", seed, world)
    distance = [-router.logits(part).max(1).values for part in (x, strange)]
    found["AUROC nearest-mean distance"] = auroc(*distance)
    found["AUROC Mahalanobis distance of bare contexts"] = auroc(*(router.open_set_score(p) for p in (x, strange)))
    default = taught("ridge", seed, world)
    found["AUROC open-set score"] = auroc(*(default.open_set_score(part) for part in (x, strange)))
    return found


def gates(seed: int, rows: int) -> dict[str, float]:
    """Wrong and admitted under each shift, both gates admitting the same share in distribution."""
    world = World(seed)
    router = taught("ridge", seed, world, [400] * KNOWN)
    held, label = world.even(rows, seed + 900)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    held, label = held[order], label[order]
    plain, judge = SoftmaxGate(), SDMGate()
    x, right = world.even(rows, seed + 1100)
    fitted = {g.name: g.fit(router.whitened(held), router.logits(held), label) for g in (plain, judge)}

    def score(gate: SoftmaxGate, context: Tensor) -> tuple[Tensor, Tensor]:
        return gate.probability(router.whitened(context), router.logits(context)).max(1)

    found = {"accuracy in distribution": float((router.logits(x).argmax(1) == right).double().mean())}
    for admission in (0.5, 0.7, 0.9):
        cut = {name: score(g, x)[0].quantile(1 - admission) for name, g in fitted.items()}
        for shift, (mass, latency) in SHIFTS.items():
            moved, truth = world.even(rows, seed + 1300, mass=mass, latency=latency)
            found[f"accuracy, {shift}"] = float((router.logits(moved).argmax(1) == truth).double().mean())
            for name, gate in fitted.items():
                s, predicted = score(gate, moved)
                wrong = (s >= cut[name]) & (predicted != truth)
                found[f"{name} wrong and admitted, {shift}, at {admission}"] = float(wrong.double().mean())
                found[f"{name} admitted, {shift}, at {admission}"] = float((s >= cut[name]).double().mean())
    for shift, (mass, latency) in SHIFTS.items():
        moved, truth = world.even(rows, seed + 1300, mass=mass, latency=latency)
        for name, gate in fitted.items():
            s, predicted = score(gate, moved)
            surest = s.topk(int(SHARE * len(s))).indices
            wrong = (predicted[surest] != truth[surest]).double().mean()
            found[f"{name} wrong and admitted, {shift}, admitting a fifth of it"] = SHARE * float(wrong)
    return found


def smoothing(seed: int, steps: int) -> dict[str, float]:
    """Accuracy of the newest choice in a stream of contexts, persistent (40 alike) or independent."""
    world, rng = World(seed), torch.Generator().manual_seed(seed)
    router = taught("ridge", seed, world, [200] * KNOWN)
    found = {}
    for stream in ("persistent", "independent"):
        length = 40 if stream == "persistent" else 1
        kind = torch.randint(0, KNOWN, (-(-steps // length),), generator=rng).repeat_interleave(length)[:steps]
        x = world.contexts(kind, seed + 2000) + torch.randn(steps, 3 * WINDOW, generator=rng) * 0.15
        log_p = torch.log_softmax(router.logits(x) * 8.0, 1)
        window, smoother = torch.softmax(log_p, 1), Smoother()
        mean = torch.stack([window[max(0, i - 31) : i + 1].mean(0) for i in range(steps)])
        smooth = torch.stack([smoother(p, f) for p, f in zip(log_p, router.whitened(x), strict=True)])
        for name, answer in (("as it is", log_p), ("moving average", mean), ("LAME", smooth)):
            found[f"{stream}, {name}"] = float((answer.argmax(1) == kind).double().mean())
    return found


def order_error(seed: int) -> float:
    """Largest ‖ΔW‖ between orders of learning, and between one robot and three that exchange what they know."""
    world = World(seed)
    parts = [(f"skill{k}", world.even(60, seed + k, range(k, k + 1))[0]) for k in range(KNOWN)]
    chunks = [(name, chunk) for name, x in parts for chunk in x.split(20)]
    rng, found = torch.Generator().manual_seed(seed), []
    for _ in range(5):
        router = Ridge(3 * WINDOW)
        for i in torch.randperm(len(chunks), generator=rng).tolist():
            router.observe(chunks[i][1], chunks[i][0])
        found.append(router.weights)
    robots = [Ridge(3 * WINDOW, robot=f"robot{r}") for r in range(3)]
    for i, (name, chunk) in enumerate(chunks):
        robots[i % 3].observe(chunk, name)
    for one, other in itertools.permutations(robots, 2):
        one.merge(other)
    found += [robot.weights for robot in robots]
    return max(float((w - found[0]).norm()) for w in found)


def over_seeds(run: Callable[[int], dict[str, float]], seeds: int) -> dict[str, tuple[float, float]]:
    """Mean and half of the 95 % interval per entry."""
    results = [run(seed) for seed in range(seeds)]
    found = {}
    for key in results[0]:
        values = torch.tensor([r[key] for r in results], dtype=torch.float64)
        found[key] = (float(values.mean()), float(1.96 * values.std() / math.sqrt(seeds)) if seeds > 1 else math.nan)
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    seeds = 3 if options.quick else 10
    routers = over_seeds(lambda seed: accuracies(seed, 300), seeds)
    judged = over_seeds(lambda seed: gates(seed, 500), seeds)
    steady = over_seeds(lambda seed: smoothing(seed, 400 if options.quick else 2000), seeds)
    drift = max(order_error(seed) for seed in range(seeds))
    for part in (routers, judged, steady):
        print(table(("what", "mean", "±"), [(key, mean, half) for key, (mean, half) in part.items()]) + "\n")
    report("routing", claims(routers, judged, steady, drift), options.json, {**routers, **judged, **steady})


def claims(
    routers: dict[str, tuple[float, float]],
    judged: dict[str, tuple[float, float]],
    steady: dict[str, tuple[float, float]],
    drift: float,
) -> list[Claim]:
    value = {key: mean for part in (routers, judged, steady) for key, (mean, _) in part.items()}
    gain = value["accuracy ridge"] - value["accuracy nearest_mean"]
    best = max(value[k] for k in value if k.startswith("AUROC") and "open-set" not in k)
    found = [
        Claim("largest ‖ΔW‖ of ridge between orders of learning and exchange", drift, 1e-5, at_least=False),
        Claim("100 : 1 imbalance: accuracy of ridge above the nearest mean", gain, 0.0),
        Claim("100 : 1 imbalance: open-set AUROC above the best of energy and nearest-mean distance",
              value["AUROC open-set score"] - best, 0.0),
        Claim("LAME on independent contexts, change of accuracy",
              value["independent, LAME"] - value["independent, as it is"], -0.01),
        Claim("LAME on persistent contexts, change of accuracy",
              value["persistent, LAME"] - value["persistent, as it is"], 0.0),
    ]  # fmt: skip
    for shift in SHIFTS:
        key = f"wrong and admitted, {shift}, at 0.5"
        share = value[f"sdm {key}"] / max(value[f"softmax {key}"], 1e-9)
        words = f"{shift}, both admit half in distribution: wrong-and-admitted, gate over softmax"
        found.append(Claim(words, share, 0.5, at_least=False))
    return found


if __name__ == "__main__":
    main()
