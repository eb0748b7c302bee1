"""What every benchmark prints and how: claims as numbers against a target, with the provenance of the run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Claim:
    """One sentence, its measured value and the target it is held against (`at_least` False: value ≤ target)."""

    claim: str
    value: float
    target: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


def arguments(description: str, extra: Sequence[tuple[str, dict]] = ()) -> argparse.Namespace:
    """`--quick` answers in minutes on two cores; `--json` makes the last line one JSON object."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller, in minutes on two cores")
    parser.add_argument("--json", action="store_true", help="last line is one JSON object")
    for flag, options in extra:
        parser.add_argument(flag, **options)
    return parser.parse_args()


def provenance(packages: Sequence[str] = ("mujoco", "gymnasium", "torch", "numpy")) -> dict[str, object]:
    """Command, commit, versions and hardware of this run."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "commit": git("rev-parse", "--short", "HEAD") or "none",
        "dirty": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in packages},
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats with four significant digits."""

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows]
    return "\n".join(lines)


def measured(benchmark: str, name: str, quick: bool, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part of a benchmark, kept in runs/benchmarks/BENCHMARK/ so that the others can be measured at another time.

    Prints it, and returns what is kept or what `measure()` gives now: name -> number or text, with the commit it was
    measured at. To measure again, remove the file.
    """
    kept = ROOT / "runs" / "benchmarks" / benchmark / f"{name}{'-quick' if quick else ''}.json"
    if not kept.exists():
        found = measure() | {"measured at commit": str(provenance()["commit"])}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(kept.read_text())
    print(table((name, "measured"), [(k, v) for k, v in found.items() if not isinstance(v, (list, dict))]), flush=True)
    return found


def report(name: str, claims: Sequence[Claim], as_json: bool, details: object = None) -> None:
    """Print the claims as a table, and as the last line one JSON object when asked."""
    verdict = {True: "holds", False: "MISSED"}
    rows = [(c.claim, c.value, f"{'≥' if c.at_least else '≤'} {c.target:g}", verdict[c.holds]) for c in claims]
    print("\n" + table(("claim", "measured", "target", ""), rows))
    if as_json:
        listed = [{**asdict(c), "holds": c.holds} for c in claims]
        print(json.dumps({"name": name, "claims": listed, "provenance": provenance(), "details": details}))
