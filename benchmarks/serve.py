"""How quickly `robot-cl serve` answers 200 readers at once over a folder of 10,000 runs.

    python benchmarks/serve.py [--quick] [--json] [--readers 200] [--runs 10000] [--seconds 20]

Run folders are written to a temporary folder, ten of which grow while the readers read. The server is the command
itself in a process of its own. Each reader keeps a connection and asks again a second after every answer, twice as
often as a page that follows its run does: for the list, searches, sorted and later pages, runs, curves, files and
skills. Then requests that must be refused: paths out of the folder, links, a file too large.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

LEARNERS, TASKS = ("iql", "bc", "ppo", "uni_o4", "sac"), ("hopper", "halfcheetah", "walker2d", "ant")
THINK, LIVE = 1.0, 10  # seconds between an answer and the next question; runs that grow
REFUSED = (
    "/runs/..%2f..%2fetc%2fpasswd", "/runs/{run}/files/..%2f..%2f..%2fetc%2fpasswd", "/runs/{run}/files/link.txt",
    "/runs/{run}/files/huge.csv", "/runs/{run}/files/%2fetc%2fpasswd", "/runs/nothing", "/runs?page=0",
)  # fmt: skip


def fill(root: Path, count: int) -> list[str]:
    """`count` run folders with the files that a short training leaves, and 200 skills beside them. The runs' names."""
    rng, names = random.Random(0), []
    for k in range(count):
        name = f"2026-01-{k % 28 + 1:02d}-{k:06d}-{rng.choice(LEARNERS)}-{k}"
        run = root / name
        run.mkdir(parents=True)
        task = rng.choice(TASKS)
        (run / "config.yaml").write_text(
            f"task: {task}\ndata: {task}/medium-v0\noffline_steps: 100000\nonline_steps: 0\nseeds: 2\n"
            f"learner:\n  name: {name.split('-')[4]}\n  lr: 0.0003\n  actor:\n    hidden: [256, 256]\n"
        )
        steps = [(1000 * s, p) for s in range(60) for p in (0, 1)]
        rows = [f"{s},offline,{p},1.0,{rng.random():.5f},{rng.random():.5f}" for s, p in steps]
        (run / "metrics.csv").write_text("step,phase,member,time_s,q_loss,value_loss\n" + "\n".join(rows) + "\n")
        mean = 3000 * rng.random()
        entry = {"mean": mean, "mean_interval": [mean - 50, mean + 50], "simulator": f"{task} mujoco 3.11.0"}
        (run / "evaluation.json").write_text(json.dumps({"format": 1, "entries": [entry]}))
        names.append(name)
    for k in range(200):
        card = root.parent / "library" / "3fa2c1" / f"skill-{k}" / "card.json"
        card.parent.mkdir(parents=True)
        card.write_text(json.dumps({"name": f"skill-{k}", "description": "hops", "scores": {"hopper": 10.0 * k}}))
    (root.parent / "library" / "3fa2c1" / "base.json").write_text("{}")
    (root / names[0] / "link.txt").symlink_to("/etc/passwd")
    with (root / names[0] / "huge.csv").open("wb") as file:
        file.truncate(100_000_000)
    return names


def address(rng: random.Random, names: list[str]) -> str:
    """What a reader asks for next."""
    run, live = rng.choice(names), rng.choice(names[:LIVE])
    kinds = [
        ("/runs", 6), (f"/api/runs?page={rng.randint(1, 20)}", 3), (f"/runs?q={rng.choice(LEARNERS)}", 3),
        (f"/runs?sort=-return&page={rng.randint(1, 5)}", 2), (f"/runs/{run}", 4), (f"/api/runs/{live}/curves", 5),
        (f"/runs/{run}/files/config.yaml", 2), ("/skills", 1), ("/page/style.css", 1),
    ]  # fmt: skip
    return rng.choices([a for a, _ in kinds], [w for _, w in kinds])[0]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> int:
    """One request on a kept connection -> its status, once the body is read."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next((int(line.split(":")[1]) for line in head if line.startswith("content-length")), 0)
    await reader.readexactly(length)
    return int(head[0].split()[1])


async def read_on(port: int, names: list[str], seed: int, until: float, times: list[float], bad: list[str]) -> None:
    """One reader: questions with pauses between them, until the clock says so."""
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(rng.random() * THINK)
    while time.perf_counter() < until:
        path = address(rng, names)
        began = time.perf_counter()
        status = await ask(reader, writer, path)
        times.append(time.perf_counter() - began)
        if status != 200:
            bad.append(f"{status} {path}")
        await asyncio.sleep(THINK)
    writer.close()


async def grow(root: Path, names: list[str], until: float) -> None:
    """Trainings that write a row now and then."""
    step = 60_000
    while time.perf_counter() < until:
        step += 1000
        for name in names[:LIVE]:
            with (root / name / "metrics.csv").open("a") as file:
                file.write(f"{step},offline,0,1.0,0.5,0.5\n{step},offline,1,1.0,0.5,0.5\n")
        await asyncio.sleep(1.0)


async def load(root: Path, port: int, names: list[str], readers: int, seconds: float) -> tuple[list[float], list[str]]:
    times, bad = list[float](), list[str]()
    until = time.perf_counter() + seconds
    reading = [read_on(port, names, k, until, times, bad) for k in range(readers)]
    await asyncio.gather(grow(root, names, until), *reading)
    return times, bad


async def refusals(port: int, run: str) -> list[str]:
    """What was not refused with a 4xx."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = [(path, await ask(reader, writer, path.format(run=run))) for path in REFUSED]
    writer.close()
    return [f"{status} {path}" for path, status in answered if not 400 <= status < 500]


def serve(root: Path) -> tuple[subprocess.Popen[str], int]:
    """The command in a process of its own -> it and its port."""
    code = "import sys; from robot_cl.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "serve", "port=0", f"runs={root}", f"library={root.parent / 'library'}"]
    env = os.environ | {"PYTHONPATH": str(common.ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    process.stdout.readline()
    return process, int(process.stdout.readline().split()[0].rsplit(":", 1)[1])


def wait_for_index(port: int, count: int) -> float:
    """Seconds until the list knows all runs."""
    import urllib.request

    began = time.perf_counter()
    while time.perf_counter() - began < 600:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/runs", timeout=10) as answer:
                said = json.load(answer)
            if said["complete"] and said["found"] == count:
                return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the list never became complete")


def main() -> None:
    flags = [
        ("--readers", {"type": int, "default": 200}),
        ("--runs", {"type": int, "default": 10_000}),
        ("--seconds", {"type": float, "default": 0.0, "help": "of reading (8 with --quick, else 20)"}),
    ]
    args = common.arguments(__doc__ or "", flags)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "runs"
        names = fill(root, args.runs)
        process, port = serve(root)
        try:
            ready = wait_for_index(port, args.runs)
            seconds = args.seconds or (8.0 if args.quick else 20.0)
            times, bad = asyncio.run(load(root, port, names, args.readers, seconds))
            let_through = asyncio.run(refusals(port, names[0]))
        finally:
            process.terminate()
            process.wait()
    cuts = statistics.quantiles(times, n=1000)
    shown = [
        ("answers", len(times)), ("answers per second", len(times) / seconds), ("median, ms", 1e3 * cuts[499]),
        ("p99, ms", 1e3 * cuts[989]), ("slowest, ms", 1e3 * max(times)), ("first list complete, s", ready),
    ]  # fmt: skip
    print(common.table((f"{args.readers} readers, {args.runs:,} runs", "measured"), shown))
    claims = [
        common.Claim("p99 of answers, ms", 1e3 * cuts[989], 200.0, at_least=False),
        common.Claim("answers other than 200", len(bad), 0, at_least=False),
        common.Claim("paths out, links and huge files that got no 4xx", len(let_through), 0, at_least=False),
    ]
    common.report("serve", claims, args.json, {"table": dict(shown), "bad": bad[:5], "let_through": let_through})


if __name__ == "__main__":
    main()
