"""One mission: a bundle drives a robot in another process through DDS, and an operator disturbs it on purpose.

    python benchmarks/mission_parts/drive.py ROBOT ROBOT_FILE BUNDLE DOMAIN MINUTES [patient]

Every 5 s the other skill comes in, every few seconds there is a new goal, and every two minutes (or a third of a short
mission) the robot's process is killed and started anew. Nothing here imports torch. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.bridge_parts.echo import network  # noqa: E402
from robot_cl.deploy.bundle import PolicyBundle  # noqa: E402
from robot_cl.deploy.caller import ThreadCaller  # noqa: E402
from robot_cl.deploy.clock import MonotonicClock  # noqa: E402
from robot_cl.deploy.dds import DdsTransport  # noqa: E402
from robot_cl.deploy.modes import DRIVING, Mode, RunnerConfig, Step  # noqa: E402
from robot_cl.deploy.realtime import punctual  # noqa: E402
from robot_cl.deploy.receipt import require_receipt  # noqa: E402
from robot_cl.deploy.record import Recorder  # noqa: E402
from robot_cl.deploy.robot_file import load_robot  # noqa: E402
from robot_cl.deploy.runner import Runner  # noqa: E402

TURN = {"arm": 0.0, "vehicle": 1 / 3, "quadrotor": 2 / 3}  # robots are not killed all at once
SWAP_S, KILL_S, WATCH_S, PATIENCE_S = 5.0, 120.0, 0.5, 20.0
GOAL_S = {"arm": 6.0, "vehicle": 12.0, "quadrotor": 6.0}
PATIENT = RunnerConfig(stale_s=0.45, damp_s=0.9, late_hold=1000, late_damp=10_000)  # for a machine that is busy
REACHED_M = {"arm": 0.05, "vehicle": 0.5, "quadrotor": 0.3}


def new_goal(robot: str, rng: np.random.Generator, place: np.ndarray) -> dict[str, float]:
    """Somewhere like in training: in the half shell before the arm, near where the others are."""
    if robot == "arm":
        out, around, height = rng.uniform(0.35, 0.55), rng.uniform(-1.0, 1.0), rng.uniform(0.15, 0.5)
        return {"x": out * np.cos(around), "y": out * np.sin(around), "z": height}
    away, around = rng.uniform(1.0, 2.5) if robot == "vehicle" else rng.uniform(0.3, 0.8), rng.uniform(-np.pi, np.pi)
    # Back towards the origin when it has strayed, so that ten minutes stay in one place.
    centre = place[:2] if np.linalg.norm(place[:2]) < (8.0 if robot == "vehicle" else 1.0) else 0.5 * place[:2]
    x, y = centre + away * np.array([np.cos(around), np.sin(around)])
    return {"x": x, "y": y} | ({"z": rng.uniform(1.0, 2.0)} if robot == "quadrotor" else {})


class Watch:
    """A listener: the newest step, commands outside box or rate, and whether it drove when nobody had said so."""

    def __init__(self, spec: Any):
        channels = spec.channels
        self.low, self.high, rate = (np.array([getattr(c, k) for c in channels]) for k in ("low", "high", "rate"))
        self.most = rate * spec.control_dt + 1e-9
        self.last: Step | None = None
        self.command: np.ndarray | None = None
        self.commands = self.outside = self.self_starts = 0
        self.may_drive = True

    def step(self, step: Step) -> None:
        self.last = step
        if step.command is not None:
            bad = not np.isfinite(step.command).all() or (step.command < self.low - 1e-9).any()
            bad = bad or (step.command > self.high + 1e-9).any()
            if self.command is not None and step.mode is not Mode.ESTOP:
                bad = bad or (np.abs(step.command - self.command) > self.most).any()
            self.commands, self.outside, self.command = self.commands + 1, self.outside + int(bad), step.command
        self.self_starts += int(step.mode in DRIVING and not self.may_drive)


class Mission:
    """Remembers the robot's process, the runner, and what the operator saw."""

    def __init__(self, robot: str, robot_file: Path, bundle: Path, domain: int, minutes: float, patient: bool):
        self.robot, self.robot_file, self.bundle, self.domain = robot, robot_file, bundle, domain
        self.seconds = 60.0 * minutes
        self.kill_every = min(KILL_S, self.seconds / 3)
        self.rng = np.random.default_rng(0)
        require_receipt(bundle, robot_file)
        policy, spec = PolicyBundle.load(bundle), load_robot(robot_file)
        self.skills, self.spec, self.clock = policy.skill_names, spec, MonotonicClock()
        self.process = self.spawn(0)
        self.transport = DdsTransport(spec, self.clock, **network(domain))
        self.watch, self.folder = Watch(spec), tempfile.TemporaryDirectory()
        self.recorder = Recorder(Path(self.folder.name) / "a.mcap", policy.contract, spec)
        caller, config = ThreadCaller(policy, self.clock), PATIENT if patient else RunnerConfig()
        self.runner = Runner(
            policy, policy.contract, self.transport, self.clock, config, caller, (self.watch, self.recorder)
        )
        self.misses: list[float] = []  # metres from the goal when the next one was set
        self.holds_ms: list[float] = []  # from the kill to HOLD
        self.memory: list[float] = []  # MB, once a second
        self.interruptions = self.swaps = self.kills = 0
        self.reports: list[dict[str, int]] = []
        self.problem = ""

    def spawn(self, seed: int) -> subprocess.Popen:
        script = str(ROOT / "benchmarks" / "mission_parts" / "robot.py")
        words = [sys.executable, script, str(self.robot_file), str(self.bundle), str(self.domain), str(seed)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def run(self) -> dict[str, Any]:
        self.until(lambda: self.transport.read() is not None)
        person = threading.Thread(target=self.operate, daemon=True)
        with punctual():
            self.until(self.enabled)
            self.runner.start()
            person.start()
            self.runner.run(self.seconds)
        person.join(PATIENCE_S)
        self.process.terminate()
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self.reports.append(json.loads(out.splitlines()[-1]))
        self.recorder.close()
        self.transport.close()
        return self.result()

    def enabled(self) -> bool:
        try:
            self.runner.enable()
        except ValueError:  # no state as fresh as it must be, on a busy machine
            return False
        return True

    def operate(self) -> None:
        """The person beside the robot, in a thread of its own."""
        try:
            self._operate()
        except Exception as problem:
            self.problem = repr(problem)
            self.runner.finish()

    def _operate(self) -> None:
        begin, parent = time.monotonic(), os.getppid()
        kill_every = self.kill_every
        due = {"swap": SWAP_S, "goal": 0.0, "kill": kill_every * (1.0 + TURN[self.robot]), "memory": 1.0}
        while (now := time.monotonic() - begin) < self.seconds - 2.0:
            if os.getppid() != parent:
                raise RuntimeError("whoever started this mission is gone")
            if now >= due["memory"]:
                due["memory"] += 1.0
                self.memory.append(resident_mb())
            if now >= due["kill"] and now < self.seconds - 10.0:
                due["kill"] += kill_every
                self.kill_and_restart()
            if self.runner.mode in (Mode.HOLD, Mode.DAMP):
                self.interruptions += 1
                self.lead_back()
            if now >= due["swap"]:
                due["swap"] += SWAP_S
                self.swap()
            if now >= due["goal"] or self.arrived():
                due["goal"] = now + GOAL_S[self.robot]
                self.set_goal()
            time.sleep(0.05)

    def swap(self) -> None:
        """The other skill comes in."""
        self.swaps += 1
        on = self.swaps % len(self.skills)
        self.runner.order("skills " + " ".join(f"{s}={float(k == on)}" for k, s in enumerate(self.skills)))

    def place(self) -> np.ndarray:
        """Where the tip, chassis or frame is now (3,)."""
        assert self.watch.last is not None
        key = "tip" if self.robot == "arm" else "base"
        return self.watch.last.values[[self.spec.signal_index[f"{key}.position.{a}"] for a in "xyz"]]

    def miss(self) -> float:
        goals = self.runner.mind.builder.goals
        return float(np.linalg.norm([goals[a] - self.place()["xyz".index(a)] for a in goals]))

    def arrived(self) -> bool:
        """Only the vehicle has arrived for good: the others are to stay."""
        return self.robot == "vehicle" and self.watch.last is not None and self.miss() < 0.5 * REACHED_M["vehicle"]

    def set_goal(self) -> None:
        if self.watch.last is None:
            return
        if self.runner.mode is Mode.ACTIVE and self.goal_was_set:
            self.misses.append(self.miss())
        wanted = new_goal(self.robot, self.rng, self.place())
        self.runner.order("goal " + " ".join(f"{k}={v:.4f}" for k, v in wanted.items()))
        self.goal_was_set = True

    goal_was_set = False

    def kill_and_restart(self) -> None:
        self.kills += 1
        self.process.kill()
        killed = self.clock.now()
        self.process.wait()
        self.until(lambda: self.runner.mode in (Mode.HOLD, Mode.DAMP))
        self.watch.may_drive = False
        held = next(t for t, mode, _ in reversed(self.runner.history) if mode is Mode.HOLD)
        self.holds_ms.append(1e3 * (held - killed))
        self.process = self.spawn(self.kills)
        heard = self.transport.inbox.accepted
        self.until(lambda: self.transport.inbox.accepted > heard + 5)
        time.sleep(WATCH_S)  # it is back, and nothing may happen by itself
        self.lead_back()
        self.goal_was_set = False

    def lead_back(self) -> None:
        """What only a person may do."""
        self.watch.may_drive = True
        if self.runner.mode is Mode.DAMP:
            self.runner.order("enable")
        self.runner.order("start")
        self.until(lambda: self.runner.mode in DRIVING, patience=5.0, needed=False)

    def until(self, wanted: Callable[[], Any], patience: float = PATIENCE_S, needed: bool = True) -> None:
        end = time.monotonic() + patience
        while not wanted():
            if time.monotonic() > end:
                if needed:
                    raise RuntimeError(f"{self.robot}: waited in vain in {self.runner.mode}: {self.runner.reason}")
                return
            time.sleep(0.005)

    def result(self) -> dict[str, Any]:
        stats, ticks = self.runner.stats, round(self.seconds / self.spec.control_dt)
        settled, last = np.array(self.memory[60:120] or self.memory[:10]), np.array(self.memory[-30:])
        sums = {key: sum(r[key] for r in self.reports) for key in ("commands", "outside", "crashes")}
        return {
            "robot": self.robot, "hertz": 1.0 / self.spec.control_dt, "seconds": self.seconds, "ticks": ticks,
            "missed": int(stats.events["missed"]), "missed_share": stats.events["missed"] / ticks,
            "late_p99_ms": 1e3 * stats.percentile("late", 99), "tick_p99_ms": 1e3 * stats.percentile("tick", 99),
            "policy_p99_ms": 1e3 * stats.percentile("policy", 99), "age_p99_ms": 1e3 * stats.percentile("age", 99),
            "commands": self.watch.commands, "outside": self.watch.outside + sums["outside"], "swaps": self.swaps,
            "kills": self.kills, "kills_due": int((self.seconds - 10.0) / self.kill_every - TURN[self.robot]),
            "hold_ms_max": max(self.holds_ms, default=float("nan")),
            "self_starts": self.watch.self_starts, "interruptions": self.interruptions, "crashes": sums["crashes"],
            "goals": len(self.misses), "goals_reached": float(np.mean(np.array(self.misses) < REACHED_M[self.robot]))
            if self.misses else float("nan"), "miss_median_m": float(np.median(self.misses or [np.nan])),
            "memory_growth_mb": float(np.median(last) - np.median(settled)), "memory_mb": float(np.median(last)),
            "recording_dropped": self.recorder.dropped, "events": dict(stats.events), "problem": self.problem,
        }  # fmt: skip


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    robot, robot_file, bundle, domain, minutes = sys.argv[1:6]
    mission = Mission(robot, Path(robot_file), Path(bundle), int(domain), float(minutes), "patient" in sys.argv[6:])
    result = mission.run()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
