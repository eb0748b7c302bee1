"""Few demonstrations of a new task for a walker that knows others: skills on a frozen base against learning anew.

    python benchmarks/few_shot.py --tiny                      seconds: whether the code runs
    python benchmarks/few_shot.py --quick                     10 demonstrations, a small network
    python benchmarks/few_shot.py --device cuda --prepare     experts' recordings, base and skills; the rest follows
    python benchmarks/few_shot.py --device cuda --tasks stand-walk --only "fresh adapter"
    python benchmarks/few_shot.py --table                     print what has been measured so far

Tasks of dm_control's walker: stand → walk, and stand + walk → run. A base (diffusion, five steps) learned from noisy
standing, skills imitate experts on it (ours, tools/train_experts.py, or with `--teachers shared` those of the shared
data), a demonstration is one expert episode. All draws of demonstrations and all their numbers train side by side,
every row from the same demonstrations; the last policy counts. Finished cells are JSON under runs/benchmarks/few_shot
and are not measured again. What is claimed of them is in few_shot_parts/claims.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Claim, arguments, provenance, report, table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from few_shot_parts import walker
from few_shot_parts.cheetah import CheetahSetting, cheetah_sizes
from few_shot_parts.choice import ORDER, choose
from few_shot_parts.claims import CLAIMS
from few_shot_parts.results import Results, rows_of
from few_shot_parts.rows import LEARNED, PREFERRED, TASKS, Play, Rows
from few_shot_parts.setting import FULL, SCORE_SEED, SMALL, TINY, TRIAL_SEED, Setting, Sizes
from few_shot_parts.speed import SpeedSetting, speed_sizes

KEPT = ROOT / "runs" / "benchmarks" / "few_shot"
# Measured at every number of demonstrations; other rows at ten of them only.
_TRAINED = ("scratch", "scratch with own statistics", "full fine-tune", "fresh adapter", "residual",
            "guarded residual")  # fmt: skip
EVERY_COUNT = {*_TRAINED, "fixed α", "learned α(s)", "composition"}


class Bench:
    """Measures and keeps the cells of one task."""

    def __init__(self, setting: Setting, name: str):
        self.setting, self.name = setting, name
        self.rows, self.sizes = Rows(setting, TASKS[name]), setting.sizes

    def path(self, row: str) -> Path:
        folder = self.setting.folder / f"{self.name}-dart{self.setting.dart:g}"
        return folder / f"{row.replace(' ', '_').replace('α', 'alpha')}.json"

    def seeds(self) -> list[int]:
        return [SCORE_SEED + i for i in range(self.sizes.episodes)]

    def trial_seeds(self) -> list[int]:
        """Starts that choices may look at, apart from those that are scored."""
        return [TRIAL_SEED + i for i in range(self.sizes.trials)]

    def play(self, policy: Play, seeds: Sequence[int], who: Sequence[int] | None = None) -> walker.Episodes:
        """Each member, or those of `who`, from each start: row k · E + i is the k-th of them from seeds[i]."""
        members = self.rows.members
        who = range(members) if who is None else who
        rows = torch.zeros(members, len(seeds), self.setting.widths[0], device=self.setting.device)

        @torch.inference_mode()
        def act(obs: np.ndarray) -> np.ndarray:
            rows[list(who)] = torch.from_numpy(obs).to(rows.device).view(len(who), len(seeds), -1)
            return policy(rows)[list(who)].flatten(0, 1).cpu().numpy()

        return self.setting.roll(act, self.rows.task.name, list(seeds) * len(who))

    def measure_learned(self, row: str) -> None:
        if self.path(row).exists():
            return
        began = time.monotonic()
        print(f"{self.name}: {row}", flush=True)
        policy = LEARNED[row](self.rows)
        trained = time.monotonic()
        members = self.sizes.members
        who = [p for p, (_, count) in enumerate(members) if row in EVERY_COUNT or count == self.sizes.main_count]
        episodes = self.play(policy, self.seeds(), who)
        by_member = zip(who, *(x.reshape(len(who), -1) for x in (episodes.returns, episodes.fell)), strict=True)
        cells: list[dict[str, Any]] = [
            {"draw": members[p][0], "count": members[p][1], "returns": r.tolist(), "fell": f.tolist()}
            for p, r, f in by_member
        ]
        if row in ORDER:
            trials = self.play(policy, self.trial_seeds(), who).returns.reshape(len(who), -1)
            for cell, returns in zip(cells, trials, strict=True):
                cell["trials"] = returns.tolist()
        self.keep(row, cells, train_s=trained - began, play_s=time.monotonic() - trained)

    def measure_given(self, row: str, act: walker.Act) -> None:
        """A policy that needs no demonstration."""
        if self.path(row).exists():
            return
        seeds = [SCORE_SEED + i for i in range(self.sizes.episodes * self.sizes.draws)]
        with torch.inference_mode():
            trials = self.setting.roll(act, self.rows.task.name, self.trial_seeds()).returns.tolist()
            e = self.setting.roll(act, self.rows.task.name, seeds)
        by_draw = zip(*(x.reshape(self.sizes.draws, -1) for x in (e.returns, e.fell)), strict=True)
        cells = [{"draw": d, "count": 0, "returns": r.tolist(), "fell": f.tolist(), "trials": trials}
                 for d, (r, f) in enumerate(by_draw)]  # fmt: skip
        self.keep(row, cells)

    def measure_choice(self) -> None:
        """Decisions on held-out demonstrations or trial episodes; the chosen row's policy learned from all of them."""
        if self.path("choice").exists():
            return
        print(f"{self.name}: choice", flush=True)
        self.keep("choice", choose(self.rows, self.play))

    def keep(self, row: str, cells: list[dict[str, Any]], **seconds: float) -> None:
        path, facts = self.path(row), {"row": row, "sizes": self.sizes.digest, "kind": self.sizes.kind}
        facts |= {"device": self.setting.device, "expert": self.setting.expert(self.rows.task.name)[1],
                  "commit": provenance()["commit"]}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        facts |= {"cells": cells} | {k: round(v, 1) for k, v in seconds.items()}
        part.write_text(json.dumps(facts), encoding="utf-8")
        part.replace(path)
        if cells and "fell" in cells[0]:
            means = [f"{c}: {np.mean([x for cell in cells if cell['count'] == c for x in cell['returns']]):.0f}"
                     for c in sorted({cell["count"] for cell in cells})]  # fmt: skip
            print(f"    return at demonstrations {', '.join(means)} {seconds}", flush=True)

    def measure(self, only: Sequence[str], late: Callable[[], bool]) -> None:
        """Every row, or those named in their order; none begins once it is `late`."""
        rows, task = self.rows, self.rows.task
        given = {"expert": rows.expert, "base zero-shot": lambda: rows.zero_shot({})}
        given |= {f"{s} skill zero-shot": lambda s=s: rows.zero_shot({s: 1.0}) for s in task.parents}
        if self.name == "speed-limit":
            given[PREFERRED] = lambda: rows.preferred(lambda act: self.setting.roll(act, task.name, self.trial_seeds()))
        for row, make in given.items():
            if (not only or row in only) and not self.path(row).exists():
                self.measure_given(row, make())
        for row in only or [*LEARNED, "choice"]:
            if late():
                return
            if row == "choice":
                self.measure_choice()
            elif row in LEARNED:
                self.measure_learned(row)


def setting_of(task: str, sizes: Sizes, folder: Path, args: argparse.Namespace) -> Setting:
    """Tasks of other bodies have a folder, sizes and a setting of their own."""
    kinds = {"shift": (CheetahSetting, cheetah_sizes), "speed-limit": (SpeedSetting, speed_sizes)}
    if task not in kinds:
        return Setting(sizes, folder, args.device, args.threads, args.dart, args.state, args.teachers)
    (cls, sized), state = kinds[task], args.state and args.state / task
    return cls(sized(sizes), folder / task, args.device, args.threads, args.dart, state)


def main() -> None:
    extra = (
        ("--tiny", {"action": "store_true", "help": "a few steps of everything, to try the code"}),
        ("--tasks", {"nargs": "+", "choices": list(TASKS), "default": list(TASKS)}),
        ("--only", {"nargs": "+", "metavar": "ROW", "default": [], "help": "rows to measure; none: all"}),
        ("--counts", {"nargs": "+", "type": int, "help": "numbers of demonstrations, other than the sizes' own"}),
        ("--prepare", {"action": "store_true", "help": "only recordings, base and skills"}),
        ("--table", {"action": "store_true", "help": "measure nothing, print what is there"}),
        ("--kind", {"choices": ["diffusion", "flow"], "default": "diffusion"}),
        ("--teachers", {"choices": list(walker.TEACHERS), "default": "own", "help": "who demonstrates on the walker"}),
        ("--dart", {"type": float, "default": 0.0, "help": "noise under which experts demonstrate"}),
        ("--device", {"default": "cpu"}),
        ("--threads", {"type": int, "default": 1, "help": "threads that step worlds"}),
        ("--minutes", {"type": float, "default": 1e9, "help": "no row begins after so many"}),
        ("--state", {"type": Path, "default": None, "help": "where recordings and weights lie; none: with the cells"}),
        ("--out", {"type": Path, "default": None}),
    )
    args, began = arguments(__doc__ or "", extra), time.monotonic()
    sizes = TINY if args.tiny else SMALL if args.quick else FULL
    sizes = replace(sizes, kind=args.kind, counts=tuple(args.counts or sizes.counts))
    parts = ["tiny" if args.tiny else "quick" if args.quick else "full"]
    parts += [name for name in (args.kind, args.teachers) if name not in ("diffusion", "own")]
    folder = args.out or KEPT / "-".join([*parts, *map(str, args.counts or [])])
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    benches = {name: Bench(setting_of(name, sizes, folder, args), name) for name in args.tasks}
    if args.prepare:
        for name, bench in benches.items():
            bench.setting.skills(TASKS[name].parents)
            bench.setting.demonstrations(TASKS[name].name)
    claims: list[Claim] = []
    details = {}
    for name, bench in benches.items():
        if not (args.table or args.prepare):
            bench.measure(args.only, lambda: time.monotonic() - began > 60.0 * args.minutes)
        results = Results(bench.path("x").parent, TASKS[name])
        lines = rows_of(results)
        if not lines:
            continue
        print(f"\n{name} ({', '.join(results.experts)})\n")
        third = "normalised cost" if name == "speed-limit" else "episodes without a fall"
        head = ("row", "demonstrations", "mean return [95 %]", "IQM", third, "mean of each draw")
        print(table(head, lines))
        claims += CLAIMS[name](results)
        details[name] = {"rows": lines, "decisions": results.decisions}
    report("few_shot", claims, args.json, details)


if __name__ == "__main__":
    main()
