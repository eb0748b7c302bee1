"""How soon an unannounced change is noticed, and how often nothing is taken for one.

    python benchmarks/detector.py [--quick] [--json]

One robot at a time, as on a real one: a policy runs half-cheetah, a dynamics model learned beforehand in the unchanged
world predicts each step, and the detector reads its errors. At a random step the world changes to one of the stream's
shifts and nobody says so. Delay: control steps until the alarm, with the share never noticed within 2,000 steps. False
alarms: per 100,000 steps of the same robot in a world that never changes, and before the switches. Two more rows vary
the detector's threshold: delay is traded against false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass

import common
import numpy as np
import torch

import sim
from policies.normalizer import Normalizer
from robot_cl import stats
from robot_cl.batch import Transitions
from robot_cl.checkpoint import load_policy
from robot_cl.continual.change import ChangeWatch
from robot_cl.continual.detector import DetectorConfig, ShiftDetector
from robot_cl.data.behaviours import list_behaviours
from sim.stream import get_stream

TASK, PATIENCE, NOISE = "halfcheetah", 2000, 0.1
THRESHOLDS = {"default": DetectorConfig().threshold, "quicker": 10.0, "quieter": 40.0}
SETTINGS = {name: DetectorConfig(threshold=value) for name, value in THRESHOLDS.items()}


@dataclass(frozen=True)
class Robots:
    """N robots in one policy's hands, each in a world of its own shift."""

    shifts: list[str]
    steps: int
    seed: int

    def run(self) -> Transitions:
        """(1, T, N): what all of them saw; actions carry a little noise, as exploration would."""
        cards = {name: card for name, card in list_behaviours().items() if card.task == TASK}
        policy = load_policy(max(cards, key=lambda name: cards[name].mean_return or 0.0))
        world = sim.make(TASK, len(self.shifts), threads=1, seed=self.seed, shift=self.shifts)
        rng, obs = np.random.default_rng(self.seed), world.reset(seed=self.seed)
        rows: list[list[np.ndarray]] = []
        for _ in range(self.steps):
            action = np.clip(policy.act(obs.astype(np.float32)) + NOISE * rng.standard_normal((len(obs), 6)), -1, 1)
            after, reward, terminated, truncated, info = world.step(action)
            rows.append([obs, action, reward, info["final_obs"], terminated, truncated])
            obs = after
        columns = [torch.from_numpy(np.stack(c).astype(np.float32)).unsqueeze(0) for c in zip(*rows, strict=True)]
        return Transitions(*columns)


def trained_watch(steps: int) -> ChangeWatch:
    """A dynamics model of the unchanged world."""
    seen = Robots(["none"] * 16, steps, 1).run()
    watch = ChangeWatch(Normalizer(seen.obs_dim).fit(seen.obs), seen.act_dim, updates=400)
    for part in range(0, steps, 250):
        watch.learn(Transitions(*(x[:, part : part + 250] for x in vars(seen).values())))
    return watch


def alarms(losses: np.ndarray, config: DetectorConfig) -> list[int]:
    """Steps at which one robot's detector rings on losses (T,)."""
    detector, found, begun = ShiftDetector(config), list[int](), 0
    while begun < len(losses):
        rang = detector.observe(losses[begun:])
        if rang is None:
            break
        begun += rang + 1
        found.append(begun - 1)
    return found


def delays(losses: np.ndarray, switch: int, config: DetectorConfig) -> tuple[int | None, int]:
    """Delay of the first alarm after the switch, None if it never came, and alarms before it; losses (T,)."""
    rang = alarms(losses, config)
    after = [t - switch for t in rang if t >= switch]
    return (after[0] if after else None), sum(t < switch for t in rang)


def main() -> None:
    args = common.arguments(__doc__ or "", [("--seed", {"type": int, "default": 0, "help": "other episodes"})])
    torch.set_num_threads(1)
    robots, quiet_steps = (2, 10_000) if args.quick else (10, 20_000)
    watch = trained_watch(1000 if args.quick else 4000)
    rng, rows, kinds = np.random.default_rng(args.seed), [], get_stream("halfcheetah_shifts").stages[:5]
    switched: dict[str, list[tuple[np.ndarray, int]]] = {}
    for stage in kinds:
        at = rng.integers(2000, 4000, robots)
        plans = ["+".join(f"{term}@{t}" for term in stage.shift.split("+")) for t in at]
        losses = watch.losses(Robots(plans, 4000 + PATIENCE, 7 + args.seed).run())  # (T, N)
        switched[stage.name] = [(losses[: t + PATIENCE, i], int(t)) for i, t in enumerate(at)]
    quiet = watch.losses(Robots(["none"] * robots, quiet_steps, 11 + args.seed).run())
    summary = {}
    for name, config in SETTINGS.items():
        every: list[int | None] = []
        early = steps_before = 0
        for kind, runs in switched.items():
            found = [delays(losses, t, config) for losses, t in runs]
            late = [d for d, _ in found if d is not None]
            every += [d for d, _ in found]
            early, steps_before = early + sum(n for _, n in found), steps_before + sum(t for _, t in runs)
            if name == "default":
                middle = float(np.median(late)) if late else float("inf")
                rows.append((kind, len(late), len(found), middle, max(late, default=0)))
        false = sum(len(alarms(quiet[:, i], config)) for i in range(robots))
        caught = [d for d in every if d is not None]
        summary[name] = {
            "median": float(np.median(caught)), "p90": float(np.percentile(caught, 90)), "noticed": len(caught),
            "of": len(every), "false_quiet": 1e5 * false / quiet.size, "false_before": 1e5 * early / steps_before,
        }  # fmt: skip
    print(common.table(("change", "noticed", "of", "median delay", "longest delay"), rows))
    header = ("detector", "median delay", "90 % within", "noticed", "false alarms per 1e5 steps", "before a change")
    shown = ("median", "p90", "noticed", "false_quiet", "false_before")
    listed = [(name, *(found[key] for key in shown)) for name, found in summary.items()]
    print("\n" + common.table(header, listed))
    chosen = summary["default"]
    share = stats.wilson(int(chosen["noticed"]), int(chosen["of"]))
    ends = f"[{share.low:.3f}, {share.high:.3f}]"
    print(f"\nnoticed within {PATIENCE:,} steps: {share.estimate:.3f} {ends}; {quiet.size:,} steps without a change")
    claims = [
        common.Claim("median delay in control steps", chosen["median"], 500, at_least=False),
        common.Claim(f"share of changes noticed within {PATIENCE} steps", share.estimate, 0.95),
        common.Claim("false alarms per 100,000 steps without a change", chosen["false_quiet"], 5.0, at_least=False),
    ]
    common.report("detector", claims, args.json, {"settings": summary, "changes": rows})


if __name__ == "__main__":
    main()
