"""Action flow matching on a vehicle and a quadrotor whose dynamics change in the middle of a mission.

One step: how far an executed action lands from where the nominal model said the planned one would, on a kinematic
vehicle (0.2 s, 1 m/s, π/2 rad/s) under the paper's 11 gain pairs and under coupled changes none of which was trained
on. Evidence and query are always drawn apart; a flow whose evidence holds its own query is trained beside, to show the
leak, and evidence of another regime is handed over, to show that it is used.

Missions: MuJoCo robots on maps of 18 and 33 waypoints, changed from 15 % to 80 % of the way, beside no adaptation,
online update only, recursive least squares on gains, a domain-randomised model, an in-context model and an oracle that
plans with a model fitted to the very regime. --missions vehicle quadrotor (default: both; --quick: vehicle, one map).
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import Claim, arguments, report, table
from flow_learning import Learned, learn
from flow_missions import Outcome, build, mission
from flow_one_step import one_step

from sim.robots.regimes import UNCHANGED

METHODS = (
    "no adaptation", "online update", "least squares", "domain-randomised", "in context", "action flow",
    "action flow, judged", "oracle",
)  # fmt: skip


# -- missions ---------------------------------------------------------------------------------------------------------


def summary(outcomes: list[Outcome], rows: np.ndarray) -> tuple[float, ...]:
    """Means over robots `rows` of all maps: waypoint fraction, success, early progress, one-step miss, steps."""
    columns = ("fraction", "success", "early", "miss", "steps")
    return tuple(float(np.mean([np.mean(getattr(o, c)[rows]) for o in outcomes])) for c in columns)


def missions(name: str, quick: bool) -> tuple[list[Claim], dict[str, dict[str, tuple[float, ...]]]]:
    known, maps, seeds = learn(name, quick), ("yard",) if quick else ("yard", "field"), 1 if quick else 3
    regimes = [UNCHANGED, *known.setup.tests]
    gains = np.array([bool(r.gain) and not (r.slip or r.cross) for r in regimes for _ in range(seeds)])
    plain = np.array([r is UNCHANGED for r in regimes for _ in range(seeds)])
    slices = {"gains": gains, "coupled": ~gains & ~plain, "all changed": ~plain, "unchanged": plain}
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for method in METHODS:
        start = time.process_time()
        outcomes = [mission(known, method, m, regimes, seeds) for m in maps]
        found[method] = {part: summary(outcomes, rows) for part, rows in slices.items()}
        print(f"{name}, {method}: {time.process_time() - start:.0f} s of processor time", flush=True)
    for part in slices:
        print(f"\n{name}, {part}: {', '.join(maps)}, {seeds} seeds, {int(slices[part].sum())} robots per map")
        header = ("method", "waypoints", "success", "early", "miss", "steps")
        print(table(header, [(m, *f[part]) for m, f in found.items()]))
    return claims_of(name, known, found), found


def claims_of(name: str, known: Learned, found: dict[str, dict[str, tuple[float, ...]]]) -> list[Claim]:
    flow, none = found["action flow"], found["no adaptation"]
    others = [
        Claim(f"{name}: early progress, flow / online update", flow["all changed"][2] /
              max(found["online update"]["all changed"][2], 1e-9), 1.0),
        Claim(f"{name}: waypoints on coupled changes, flow − least squares",
              flow["coupled"][0] - found["least squares"]["coupled"][0], 0.0),
        Claim(f"{name}: steps of an unchanged robot, flow / none", flow["unchanged"][4] / none["unchanged"][4],
              1.02, at_least=False),
    ]  # fmt: skip
    gained = flow["all changed"][1] / max(none["all changed"][1], 1e-9)
    first = Claim(f"{name}: mission success, flow / no adaptation", min(gained, 1e3), 1.342)
    return [first, *others, Claim(f"{name}: ms of processor time per decision of one robot", one_decision(known), 20.0,
                                  at_least=False)]  # fmt: skip


def one_decision(known: Learned) -> float:
    """Median over 100 decisions of planner and flow together, with the flow asked at every step."""
    controller, chase = build("action flow", known, np.zeros(1, dtype=int), 0)
    chase.goal, spent = np.ones((1, known.setup.goal_dim), dtype=np.float32), []
    pose, rng = np.zeros((1, known.setup.obs_dim), dtype=np.float32), np.random.default_rng(0)
    for _ in range(110):
        start = time.thread_time()
        controller.act(pose)
        spent.append(time.thread_time() - start)
        pose = (pose + rng.normal(0, 0.3, pose.shape)).astype(np.float32)
    return 1e3 * float(np.median(spent[10:]))


def main() -> None:
    which = ("--missions", {"nargs": "*", "default": None, "help": "robots: vehicle quadrotor; none for one step only"})
    args = arguments(__doc__ or "", [which])
    torch.set_num_threads(1)
    robots = args.missions if args.missions is not None else (["vehicle"] if args.quick else ["vehicle", "quadrotor"])
    claims, rows = one_step(args.quick)
    details: dict[str, object] = {"one step": rows}
    for name in robots:
        more, found = missions(name, args.quick)
        claims += more
        details[name] = found
    report("action_flow", claims, args.json, details)


if __name__ == "__main__":
    main()
