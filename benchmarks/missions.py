"""Do trained policies drive robots through DDS for ten minutes? Arm and quadrotor at 100 Hz, vehicle at 50 Hz.

Each robot is simulated in a process of its own; the policy, trained by the stack (mission_parts/train.py), is exported
with two un-merged skills, rehearsed, and drives from another process that has no torch. A skill is swapped every 5 s,
goals change, and every two minutes the robot's process is killed and restarted: then nothing may drive before the
operator says so. All robots run side by side. Missed deadlines say as much about the neighbours as about the code: the
load average stands beside them.

    python benchmarks/missions.py --minutes 10
    python benchmarks/missions.py --quick            one minute
    python benchmarks/missions.py --robots arm
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import Claim, arguments, report, table  # noqa: E402

from benchmarks.bridge_parts.echo import free_domain  # noqa: E402

PARTS = ROOT / "benchmarks" / "mission_parts"
ROBOTS = ("arm", "vehicle", "quadrotor")


def export_bundle(robot: str, folder: Path) -> Path:
    """The robot's base with its two skills un-merged, their weights an input of the graph."""
    from policies.composed import ComposedActor
    from policies.composers.composer import CompositionShape
    from policies.composers.fixed import Fixed
    from policies.mixture import Mixture
    from policies.skill_file import read_skill
    from robot_cl.checkpoint import load_policy
    from robot_cl.export import ExportOptions, export_policy

    base: Any = load_policy(PARTS / "weights" / robot)
    paths = [p for p in sorted((PARTS / "weights" / robot).glob("*.safetensors")) if p.name != "policy.safetensors"]
    mixture = Mixture(base.actor, {p.stem: read_skill(p)[0] for p in paths})
    fixed = Fixed(CompositionShape.of(mixture, base.obs_dim), [1.0, *[0.0] * (len(paths) - 1)])
    composed = ComposedActor(mixture, fixed, interface=base.interface)
    options = ExportOptions(licence="Apache-2.0", source=f"mission_parts/weights/{robot}", task=base.task)
    return export_policy(composed, folder / robot, options=options).folder


def rehearsed(bundle: Path, robot_file: Path) -> bool:
    from robot_cl.deploy.rehearse import RehearseOptions, rehearse

    found = rehearse(bundle, robot_file, RehearseOptions(seconds=5.0, latency=robot_latency(robot_file), noise=0.001))
    for check in found.checks:
        if not check.passed:
            print(f"  {robot_file.stem}: {check.name}: {check.detail}")
    return found.passed


def robot_latency(robot_file: Path) -> float:
    from robot_cl.deploy.robot_file import load_robot

    return 0.5 * load_robot(robot_file).control_dt


def fly(robots: list[str], minutes: float, patient: bool, folder: Path) -> list[dict[str, Any]]:
    """All missions side by side."""
    missions = {}
    for robot in robots:
        robot_file, bundle = ROOT / "configs" / "robot" / f"{robot}.yaml", export_bundle(robot, folder)
        if not rehearsed(bundle, robot_file):
            raise SystemExit(f"{robot} did not pass its rehearsal; nothing can be armed")
        missions[robot] = (robot_file, bundle, free_domain())
    running = []
    for robot, (robot_file, bundle, domain) in missions.items():
        words = [sys.executable, str(PARTS / "drive.py"), robot, robot_file, bundle, domain, minutes]
        words += ["patient"] if patient else []
        running.append(subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True))
    results = []
    for process in running:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a mission ended with exit code {process.returncode}")
        results.append(json.loads(out.splitlines()[-1]))
    return results


def claims_of(result: dict[str, Any]) -> list[Claim]:
    robot = result["robot"]
    return [
        Claim(f"{robot}: share of deadlines missed", result["missed_share"], 0.001, False),
        Claim(f"{robot}: commands outside box or rate", result["outside"], 0, False),
        Claim(f"{robot}: ticks that drove without an operator after a restart", result["self_starts"], 0, False),
        Claim(f"{robot}: restarts of its process survived", result["kills"], result["kills_due"]),
        Claim(f"{robot}: growth of memory from the second minute on, MB", result["memory_growth_mb"], 4.0, False),
        Claim(f"{robot}: goals reached", result["goals_reached"], 0.8),
    ]


def main() -> None:
    extra = [
        ("--minutes", {"type": float, "default": None, "help": "of each mission (10)"}),
        ("--patient", {"action": "store_true", "help": "generous time limits, to try the script on a busy machine"}),
        ("--robots", {"nargs": "*", "choices": ROBOTS, "default": list(ROBOTS), "help": "these alone"}),
    ]
    args = arguments(__doc__ or "", extra)
    minutes = args.minutes or (1.0 if args.quick else 10.0)
    before = os.getloadavg()[0]
    print(f"load average {before:.2f} on {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as folder:
        results = fly(args.robots, minutes, args.patient, Path(folder))
    head = ("robot", "Hz", "ticks", "missed", "late p99 ms", "tick p99 ms", "policy p99 ms", "skill swaps", "kills",
            "held after, ms", "interruptions", "goals reached", "crashes", "memory MB")  # fmt: skip
    keys = ("robot", "hertz", "ticks", "missed", "late_p99_ms", "tick_p99_ms", "policy_p99_ms", "swaps", "kills",
            "hold_ms_max", "interruptions", "goals_reached", "crashes", "memory_mb")  # fmt: skip
    print(table(head, [[r[k] for k in keys] for r in results]))
    print(f"load average {os.getloadavg()[0]:.2f} at the end")
    for result in results:
        if result["problem"]:
            print(f"{result['robot']}: the operator failed: {result['problem']}")
    loads = {"load_before": before, "load_after": os.getloadavg()[0]}
    details = loads | {"minutes": minutes, "patient": args.patient, "missions": results}
    report("missions", [claim for r in results for claim in claims_of(r)], args.json, details)


if __name__ == "__main__":
    main()
