"""More than one worker: what kill -9 costs a sweep, eight publishers on one library, two collectors against one.

    python benchmarks/scale.py [--quick] [--json] [--only kills,publishers,collection] [--launchers joblib,ray]

Kills: a sweep of 32 tiny runs on two workers, of which one is killed ten times at random moments while jobs run; the
table must hold every job once, with the policy that an undisturbed sweep gives, to the last bit. Publishers: eight
processes with 500 skills each, and 20 more that all eight try to publish, into one library; its skills, its journal and
what each publisher was told must agree. Collection: `robot-cl data collect` in shards with one worker and with two, the
whole commands against each other. A part that was measured is kept in runs/benchmarks/scale/ and not measured again.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Claim, arguments, measured, report
from library_scale import header_of, random_skill, shapes_of, walker_base

from policies.library import Library
from robot_cl.data.collect import collect, random_part
from robot_cl.scale.launchers import Launching, On
from robot_cl.scale.sweep import Sweep
from robot_cl.scale.training import train_jobs

RUNS, KILLS, WORKERS = 32, 10, 2
PUBLISHERS, SHARED = 8, 20
TINY = ["learner.actor.hidden=[8]", "batch=16", "log_every=100", "eval_every=0", "tensorboard=false"]


# A sweep whose workers are killed


def sweep_of(place: Path, name: str, launching: Launching, runs: int, steps: int) -> Sweep:
    data = place / "data"
    if not data.exists():
        collect("hopper", [random_part("hopper")], 400, "hopper/tiny-v0", root=data)
    words = [f"data={data / 'hopper/tiny-v0'}", f"offline_steps={steps}", f"checkpoint_every={steps // 8}", *TINY]
    jobs = train_jobs([["learner=bc", f"seed={seed}", *words] for seed in range(runs)], launching)
    return Sweep.create(place, name, "train", jobs, launching)


class Killer(threading.Thread):
    """Kills, `count` times, the process that has taken up a job which is not done."""

    def __init__(self, sweep: Sweep, count: int, seed: int):
        super().__init__(daemon=True)
        self.sweep, self.count, self.rng, self.pids = sweep, count, random.Random(seed), set[int]()

    def run(self) -> None:
        while len(self.pids) < self.count:
            time.sleep(self.rng.uniform(0.3, 1.5))
            victims = self.victims()
            if victims:
                pid = self.rng.choice(victims)
                os.kill(pid, signal.SIGKILL)
                self.pids.add(pid)

    def victims(self) -> list[int]:
        found = []
        for path in self.sweep.folder.glob("jobs/*/attempts.jsonl"):
            lines = path.read_text().splitlines()
            pid = json.loads(lines[-1])["pid"] if lines else os.getpid()
            running = not self.sweep.settled(int(path.parent.name)) and Path(f"/proc/{pid}").exists()
            if running and pid != os.getpid() and pid not in self.pids:
                found.append(pid)
        return found


def policies(sweep: Sweep) -> dict[int, bytes]:
    found = {}
    for number, result in sweep.results().items():
        last = Path(result["run"]) / "checkpoints"
        found[number] = (last / (last / "last").read_text().strip() / "policy.safetensors").read_bytes()
    return found


def kills(on: str, quick: bool) -> dict[str, Any]:
    runs, strikes, steps = (8, 3, 1500) if quick else (RUNS, KILLS, 1500)
    place = Path(tempfile.mkdtemp(prefix="robot-cl-sweep-"))
    launching = Launching(On(on), WORKERS, retries=KILLS, address="local" if on == "submitit" else None)
    began = time.monotonic()
    calm = sweep_of(place, "calm", Launching(), runs, steps).go()
    alone = time.monotonic() - began
    struck = sweep_of(place, "struck", launching, runs, steps)
    killer = Killer(struck, strikes, 0)
    killer.start()
    began = time.monotonic()
    struck.go()
    rows = list(csv.DictReader((struck.folder / "table.csv").read_text().splitlines()))
    expected, found = policies(calm), policies(struck)
    result = {
        "runs": runs,
        "kills": len(killer.pids),
        "runs finished": len(found),
        "rows of the table": len(rows),
        "different runs in the table": len({row["run"] for row in rows}),
        "runs that differ from an undisturbed sweep": sum(found.get(n) != expected[n] for n in expected),
        "jobs taken up again": sum(struck.attempts(n) - 1 for n in found),
        "seconds": time.monotonic() - began,
        "seconds of the undisturbed sweep, one worker": alone,
    }
    shutil.rmtree(place)
    return result


# Many publishers


def publish(root: str, who: int, count: int, barrier: Any, out: Any) -> None:
    """Own skills and everybody's, each announced with what the library said."""
    torch.set_num_threads(1)
    base = walker_base()
    header, shapes = header_of(base), shapes_of(base)
    barrier.wait()
    library, said = Library.create(Path(root), header, shapes), []
    for k in range(count + SHARED):
        common = k % (count // SHARED + 1) == 0 and k // (count // SHARED + 1) < SHARED
        seed = 10**7 + k if common else 10_000 * who + k
        name = f"skill-{who}-{k:04d}"
        try:
            content = library.publish(name, random_skill(shapes, header, seed)).card.content
        except ValueError:
            content = ""
        said.append((name, content, common))
    out.put(said)


def publishers(quick: bool) -> dict[str, Any]:
    count = 40 if quick else 500
    context, root = multiprocessing.get_context("spawn"), Path(tempfile.mkdtemp(prefix="robot-cl-library-"))
    barrier, out = context.Barrier(PUBLISHERS + 1), context.Queue()
    crowd = [context.Process(target=publish, args=(str(root), w, count, barrier, out)) for w in range(PUBLISHERS)]
    for process in crowd:
        process.start()
    barrier.wait()
    began = time.monotonic()
    said = [line for _ in crowd for line in out.get()]
    seconds = time.monotonic() - began
    for process in crowd:
        process.join()
    base = walker_base()
    library = Library.create(root, header_of(base), shapes_of(base))
    told = {name: content for name, content, _ in said if content}
    here = {name: library.card(name).content for name in library.names()}
    lines = [json.loads(line) for line in (library.folder / "journal.jsonl").read_text().splitlines()]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    orderly = [a["op"] == "begin" and b["op"] == "done" and a["skill"] == b["skill"] for a, b in pairs]
    result = {
        "publishers": PUBLISHERS,
        "skills of their own": sum(not common for *_, common in said),
        "skills in the library": len(here),
        "acknowledged but not there, or other": sum(here.get(name) != content for name, content in told.items()),
        "there but not acknowledged": len(here.keys() - told.keys()),
        "copies": len(here) - len(set(here.values())),
        "of the skills that all eight tried, published": sum(bool(c) for _, c, common in said if common),
        "journal lines": len(lines),
        "journal lines out of order": 2 * sum(not good for good in orderly),
        "skills without their journal lines": len(here.keys() - {a["skill"] for a, _ in pairs}),
        "damaged": len(library.check()),
        "publications per second": len(here) / seconds,
        "bytes per skill, file": library.path(next(iter(here))).stat().st_size,
        "bytes per skill, whole folder": sum(p.stat().st_size for p in library.folder.rglob("*") if p.is_file())
        / len(here),
        "seconds": seconds,
    }
    shutil.rmtree(root)
    return result


# Collection


def collection(quick: bool) -> dict[str, Any]:
    steps, shards = (200_000, 4) if quick else (2_400_000, 8)
    place, found = Path(tempfile.mkdtemp(prefix="robot-cl-collect-")), dict[str, Any]()
    for workers in (1, 2):
        words = ["task=hopper", "policy=hopper-medium", f"steps={steps}", f"shards={shards}", "stochastic=false"]
        words += [f"name=hopper/by-{workers}-v0", f"launch.jobs={workers}", "storage=arrow", "noise=0.1"]
        began = time.monotonic()
        command = [sys.executable, "-m", "robot_cl.cli", "data", "collect", *words, "--json"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        found[f"seconds with {workers}"] = time.monotonic() - began
        found[f"hash with {workers}"] = json.loads(done.stdout.splitlines()[-1])["dataset"]["hash"]
    shutil.rmtree(place)
    efficiency = found["seconds with 1"] / 2 / found["seconds with 2"]
    return found | {"steps": steps, "shards": shards, "efficiency": efficiency}


# All of it


def part(name: str, measure: Callable[[], dict[str, Any]], quick: bool) -> dict[str, Any]:
    return measured("scale", name, quick, measure)


def main() -> None:
    flags = [("--only", {"default": "kills,publishers,collection", "help": "parts, with commas between"}),
             ("--launchers", {"default": "joblib,ray,submitit", "help": "whose workers are killed"})]  # fmt: skip
    args = arguments(__doc__ or "", flags)
    torch.set_num_threads(1)
    wanted, claims, details = args.only.split(","), [], {}
    for on in args.launchers.split(",") if "kills" in wanted else ():
        found = details[f"kills {on}"] = part(f"kills-{on}", lambda on=on: kills(on, args.quick), args.quick)
        said = f"{on}: {found['kills']} kills among {found['runs']} runs"
        claims += [
            Claim(f"{said}: runs finished", found["runs finished"], found["runs"]),
            Claim(f"{said}: rows of the table that are there twice or missing",
                  abs(found["rows of the table"] - found["runs"])
                  + found["rows of the table"] - found["different runs in the table"], 0, False),
            Claim(f"{said}: runs that differ from an undisturbed sweep",
                  found["runs that differ from an undisturbed sweep"], 0, False),
        ]  # fmt: skip
    if "publishers" in wanted:
        found = details["publishers"] = part("publishers", lambda: publishers(args.quick), args.quick)
        own = found["skills of their own"]
        lost = ("acknowledged but not there, or other", "there but not acknowledged", "journal lines out of order",
                "skills without their journal lines", "damaged")  # fmt: skip
        claims += [
            Claim(f"{PUBLISHERS} publishers: skills in the library", found["skills in the library"], own + SHARED),
            Claim(f"{PUBLISHERS} publishers: copies", found["copies"], 0, False),
            Claim(f"{PUBLISHERS} publishers: skills or journal lines lost, out of order or damaged",
                  sum(found[name] for name in lost), 0, False),
        ]  # fmt: skip
    if "collection" in wanted:
        found = details["collection"] = part("collection", lambda: collection(args.quick), args.quick)
        claims += [
            Claim("collection: scaling efficiency from one worker to two", found["efficiency"], 0.8),
            Claim("collection: datasets of one worker and of two that differ",
                  float(found["hash with 1"] != found["hash with 2"]), 0, False),
        ]  # fmt: skip
    report("scale", claims, args.json, details)


if __name__ == "__main__":
    main()
