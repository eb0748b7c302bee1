"""Where the time goes: every workload of tools/profiled.py under py-spy, as flame graphs and one page.

    python tools/profile_all.py                        all of them, into docs/performance/ and docs/performance.md
    python tools/profile_all.py --only moorl tick      these; the page keeps what it has of the others
    python tools/profile_all.py --quick --out /tmp/x   in a minute or two, elsewhere

py-spy looks at the running process from outside two hundred times a second, so that what is profiled is hardly slowed.
Each sample belongs to the innermost frame that a row of PARTS knows. Samples of waiting threads are not counted.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import flame  # noqa: E402
from common import provenance, table  # noqa: E402
from profiled import WORK  # noqa: E402

RATE = 200  # samples per second
PARTS = {  # part of the work -> what the frames of it look like, and its colour; the first that fits counts
    "imports": (r"<frozen importlib|_find_and_load|_call_with_frames_removed", "#d9d9d9"),
    "physics": (r"\(sim/(stepping|pool|world|env|disturbance)|\(mujoco", "#8dd3c7"),
    "tasks and interfaces": (r"\(sim/", "#b3de69"),
    "drawing batches": (r"\((robot_cl/)?(data/sampler|learners/replay|learners/draws|batch)\.py", "#ffffb3"),
    "optimiser and targets": (r"learners/optim\.py|torch/optim|polyak|copy_into|\(follow|meta_step", "#fdb462"),
    "backward pass": (r"torch/autograd|backward", "#fb8072"),
    "forward pass": (r"\(policies/|\(dynamics/|torch/nn|torch/functional", "#80b1d3"),
    "inference (onnxruntime)": (r"onnxruntime|deploy/bundle", "#80b1d3"),
    "bridge and runner": (r"robot_cl/deploy", "#bebada"),
    "film, report, evaluation": (r"robot_cl/(film|report|evaluate|svg|scores|stats)|matplotlib|imageio", "#fccde5"),
    "checkpoints, metrics, digests": (r"robot_cl/(checkpoint|metrics|run|data)|safetensors|tensorboard", "#bc80bd"),
    "losses and the rest of learning": (r"robot_cl/learners|benchmarks/|robot_cl/", "#ccebc5"),
}
OTHER = "other"
WAITING = r"Condition\.wait|Event\.wait|Queue\.get|select|wait \(|poll"


def part_of(frame: str) -> str | None:
    return next((name for name, (pattern, _) in PARTS.items() if re.search(pattern, frame)), None)


def colour(frame: str) -> str:
    part = part_of(frame)
    return PARTS[part][1] if part else "#eeeeee"


def shares(stacks: list[tuple[list[str], int]]) -> dict[str, float]:
    """Part -> share of all samples."""
    counts: Counter[str] = Counter()
    for stack, count in stacks:
        backward = next((frame for frame in stack if ".backward (" in frame), None)  # its products are not forward
        frames = reversed(stack) if backward is None else [backward]
        found = next((part for frame in frames if (part := part_of(frame))), OTHER)
        counts[found] += count
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.most_common()}


def shortened(frame: str) -> str:
    """`name (path:line)` without line, and without what comes before a package."""
    frame = re.sub(r":\d+\)$", ")", frame)
    return re.sub(r"\([^)]*/(site-packages|main|tools)/", "(", frame).replace("(./", "(")


def profiled(name: str, quick: bool) -> tuple[dict[str, Any], list[tuple[list[str], int]]]:
    """The facts of a workload and its samples."""
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists() and shutil.which("py-spy") is None:
        raise SystemExit("py-spy is not installed here; run: pip install py-spy")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks.txt"
        words = [sys.executable, str(ROOT / "tools/profiled.py"), name, *(["--quick"] if quick else [])]
        spying = [str(spy) if spy.exists() else "py-spy", "record", "--format", "raw", "--rate", str(RATE)]
        command = [*spying, "--function", "--output", str(raw), "--", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        facts = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not facts or not raw.exists():
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        stacks = flame.read_stacks(raw.read_text())
    return json.loads(facts[-1]), [(kept, count) for stack, count in stacks if (kept := within(stack))]


def within(stack: list[str]) -> list[str]:
    """The frames below the timed part; all of a stack of another thread; none of what came before or after or waits."""
    frames = [shortened(frame) for frame in stack]
    if not frames[0] or re.match(WAITING, frames[-1]):
        return []
    place = next((k for k, frame in enumerate(frames) if frame.startswith("timed (")), None)
    if place is not None:
        return frames[place + 1 :]
    return [] if frames[0].startswith("<module>") else frames


def floor_of(facts: dict[str, Any]) -> dict[str, float]:
    """Seconds of one core per unit that are needed at least, by what needs them."""
    return {
        "matrix products": facts["flops"] / facts["matrix_rate"],
        "physics": facts["physics_steps"] * facts["step_seconds"],
        "batches": facts["batch_bytes"] / facts["copy_rate"],
    }


def page(kept: dict[str, dict[str, Any]], notes: str) -> str:
    """docs/performance.md."""
    rows = []
    for name, found in kept.items():
        facts, unit = found["facts"], found["facts"]["seconds"] / found["facts"]["count"]
        floor = floor_of(facts)
        least = sum(floor.values())
        parts = (si(s) if s else "" for s in floor.values())
        rows.append((name, facts["unit"], si(unit), *parts, f"{least / unit:.0%}", facts["note"]))
    head = ("workload", "unit", "measured", "floor: products", "physics", "bytes", "floor / measured", "")
    lines = [
        "# Where the time goes",
        "",
        "Made by `make profile`; anyone can make it again. Flame graphs are read from the top: a bar is as wide as the",
        "time spent in a function and what it calls; its colour says which part of the work it is. The floor is what",
        "the machine needs at least: floating-point operations over the rate of a bare product of 256-wide",
        "matrices, physics steps times a bare `mj_step`, bytes of batches over the rate of a plain copy. All of it is",
        "processor time on one torch thread, so that what else the machine did meanwhile plays little part.",
        "",
        table(head, rows),
        "",
        notes.strip(),
    ]
    for name, found in kept.items():
        parts = [(part, f"{share:.1%}") for part, share in found["shares"].items() if share >= 0.005]
        p, facts = found["provenance"], found["facts"]
        lines += [
            "",
            f"## {name}",
            "",
            f"{WORK[name].__doc__ or ''} {facts['count']:,} × {facts['unit']} in {facts['seconds']:.1f} s; "
            f"matrix rate {facts['matrix_rate'] / 1e9:.0f} GFLOP/s, bare mj_step {1e6 * facts['step_seconds']:.1f} µs, "
            f"copy {facts['copy_rate'] / 1e9:.1f} GB/s. Commit {p['commit']}, {p['cores']} × {p['processor']}, "
            f"{found['samples']} samples.",
            "",
            table(("part", "share"), parts),
            "",
            f"![{name}](performance/{name}.svg)",
        ]
    return "\n".join(lines) + "\n"


def si(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(WORK), choices=list(WORK), help="these workloads")
    parser.add_argument("--quick", action="store_true", help="shorter")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the page and of performance/")
    args = parser.parse_args()
    folder = args.out / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        facts, stacks = profiled(name, args.quick)
        found = {"facts": facts, "shares": shares(stacks), "samples": sum(count for _, count in stacks)}
        (folder / f"{name}.json").write_text(json.dumps(found | {"provenance": provenance()}, indent=1) + "\n")
        title = f"{name}: {facts['count']:,} × {facts['unit']} in {facts['seconds']:.1f} s"
        (folder / f"{name}.svg").write_text(flame.draw(flame.tree(stacks), title, colour))
        print(title, {part: round(share, 3) for part, share in found["shares"].items()}, flush=True)
    kept = {n: json.loads((folder / f"{n}.json").read_text()) for n in WORK if (folder / f"{n}.json").exists()}
    notes = folder / "notes.md"
    (args.out / "performance.md").write_text(page(kept, notes.read_text() if notes.exists() else ""))
    print(f"wrote {args.out / 'performance.md'}")


if __name__ == "__main__":
    main()
