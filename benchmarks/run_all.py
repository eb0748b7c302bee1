"""Run benchmarks and write docs/results.md.

    python benchmarks/run_all.py                 every script, then the page
    python benchmarks/run_all.py planner gate    these two
    python benchmarks/run_all.py --quick         the short form of each
    python benchmarks/run_all.py --page          only write the page again

What each script printed is kept in docs/results/NAME.json, so that one can be measured again without the others. A
hand-written docs/results/NAME.md beside it (why a target was missed, what was tried) is shown under the numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "results"
PARTS = {
    "pendulum", "flow_learning", "flow_missions", "flow_one_step", "offline_cells", "offline_data", "offline_methods",
    "offline_workers", "world_peers",
}  # fmt: skip
NOT_BENCHMARKS = {"common", "run_all"} | PARTS
ON_A_GPU = {"gpu"}  # skipped where torch sees none, and what is kept of them stays


def names() -> list[str]:
    return sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem not in NOT_BENCHMARKS)


def run(name: str, quick: bool) -> bool:
    """Run one script; keep its printed lines and its JSON line. False if it failed."""
    if name in ON_A_GPU and not torch.cuda.is_available():
        print(f"== {name}: skipped, because torch sees no GPU here")
        return True
    command = [sys.executable, f"benchmarks/{name}.py", "--json", *(["--quick"] if quick else [])]
    print(f"== {name}: {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.rstrip().splitlines()
    try:
        record = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        print(f"{name} ended with status {done.returncode} and no JSON line; nothing kept", file=sys.stderr)
        return False
    record["output"] = "\n".join(lines[:-1])
    record["minutes"] = round((time.monotonic() - start) / 60, 1)
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(record["output"])
    return done.returncode == 0


def page() -> str:
    """docs/results.md from everything kept."""
    records = [json.loads(p.read_text()) for p in sorted(KEPT.glob("*.json"))]
    lines = [
        "# Results",
        "",
        "Every number with its command, commit, seeds and hardware, written by `make bench`. Peers are measured in the",
        "same run. On shared machines ratios mean something, single times little. A missed target stays in the table.",
        "",
        "| benchmark | claim | measured | target | |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        for c in r["claims"]:
            sign, verdict = "≥" if c.get("at_least", True) else "≤", "holds" if c["holds"] else "**missed**"
            link = f"[{r['name']}](#{r['name']})"
            lines.append(f"| {link} | {c['claim']} | {c['value']:.4g} | {sign} {c['target']:g} | {verdict} |")
    for r in records:
        p = r["provenance"]
        versions = ", ".join(f"{k} {v}" for k, v in p["versions"].items())
        lines += [
            "",
            f"## {r['name']}",
            "",
            f"`{p['command']}` at commit {p['commit']}{' (with uncommitted changes)' if p['dirty'] else ''}, "
            f"{r['minutes']} min, {p['cores']} × {p['processor']}, load {p['load_average']}, "
            f"Python {p['python']}, {versions}.",
            "",
            "```",
            r["output"].strip(),
            "```",
        ]
        note = KEPT / f"{r['name']}.md"
        if note.exists():
            lines += ["", note.read_text().strip()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="the short form of each")
    parser.add_argument("--page", action="store_true", help="run nothing, only write docs/results.md")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names())}")
    failed = [] if args.page else [n for n in args.names or names() if not run(n, args.quick)]
    (ROOT / "docs" / "results.md").write_text(page())
    print(f"wrote docs/results.md{'; failed: ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
