"""Control steps per second of hopper, halfcheetah and ant: raw mj_step, mujoco.rollout, Gymnasium, SB3, EnvPool, ours.

Without a policy: raw mj_step, mujoco.rollout and our worlds replay the same recorded actions from the same states.
With a policy: the same numpy network (64, 64) drives a Gymnasium loop, SB3's SubprocVecEnv(8), EnvPool and our worlds,
resets included. The peers take turns, several rounds long, and ratios are medians over rounds, because machines are
shared. EnvPool is installed into .bench-venv/ by the script, apart from everything else.

    python benchmarks/world_speed.py --quick
    python benchmarks/world_speed.py --tasks hopper --rounds 9
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from common import Claim, arguments, report, table
from world_peers import (
    ENVPOOL,
    ORIGINAL,
    Driven,
    EnvPool,
    Ours,
    Peer,
    Raw,
    Recording,
    Rollout,
    driven_gymnasium,
    driven_ours,
    driven_subproc,
    envpool_missing,
)

BUSY = "(cores busy with other work meanwhile)"


class Bystanders:
    """CPU time of everything else on the machine between making this and `cores`, by /proc/stat (Linux; else NaN)."""

    def __init__(self) -> None:
        self._begin = self._read()

    def cores(self) -> float:
        """How many cores others kept busy on average: near 0 on an idle machine, where the rates mean what they say."""
        busy, own, now = (b - a for a, b in zip(self._begin, self._read(), strict=True))
        return max(0.0, (busy - own) / now)

    def _read(self) -> tuple[float, float, float]:
        stat, usage = Path("/proc/stat"), os.times()
        ticks = [int(v) for v in stat.read_text().split("\n")[0].split()[1:]] if stat.exists() else [0, 0, 0, 0, 0]
        busy = (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") if stat.exists() else float("nan")
        return busy, usage.user + usage.system + usage.children_user + usage.children_system, time.monotonic()


def measure(peers: list[Peer], rounds: int, steps: int) -> dict[str, list[float]]:
    """Steps per second of each peer in each round; the order moves on by one every round."""
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for k in range(rounds):
        for peer in peers[k % len(peers) :] + peers[: k % len(peers)]:
            rates[peer.name].append(peer.run(steps))
    return rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of one's rate by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def slow_peers(task: str, rounds: int, steps: int) -> dict[str, float]:
    """Median rates of the peers that do not depend on the number of worlds."""
    peers = [driven_gymnasium(task), driven_subproc(task)]
    rates = measure(peers, rounds, steps // 4)
    for peer in peers:
        peer.close()
    return {f"{name}, with policy": statistics.median(values) for name, values in rates.items()}


def compare(task: str, num_worlds: int, rounds: int, steps: int, envpool: bool) -> tuple[list[Claim], dict[str, float]]:
    """Claims and median rates of one task at one number of worlds."""
    recording = Recording(task, num_worlds, steps)
    bare: list[Peer] = [Raw(recording, n) for n in (1, 2)] + [Rollout(recording, 2)]
    bare += [Ours(recording, n) for n in (1, 2)]
    others = Bystanders()
    rates = measure(bare, rounds, steps)
    busy = others.cores()
    driven: list[Driven | EnvPool] = [driven_ours(task, num_worlds)] + ([EnvPool(task, num_worlds)] if envpool else [])
    with_policy = measure(driven, rounds, steps)
    for peer in driven:
        peer.close()
    where = f"{task}, {num_worlds} worlds"
    claims = [
        Claim(f"{where}: ours / raw mj_step on {n} thread{'s' * (n > 1)}", ratio(rates, *names), 0.8)
        for n, names in enumerate(zip((o.name for o in bare[3:]), (r.name for r in bare[:2]), strict=True), 1)
    ]
    if envpool:
        faster = ratio(with_policy, "ours", "EnvPool")
        claims.append(Claim(f"{where}: ours / EnvPool under the same policy", faster, 1.0))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    medians |= {f"{name}, with policy": statistics.median(values) for name, values in with_policy.items()}
    return claims, medians | {BUSY: busy}


def cell(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def main() -> None:
    options = arguments(
        (__doc__ or "").strip(),
        [
            ("--tasks", {"nargs": "+", "default": list(ORIGINAL), "choices": list(ORIGINAL)}),
            ("--worlds", {"nargs": "+", "type": int, "default": [64, 256]}),
            ("--rounds", {"type": int, "default": 0, "help": "turns of each peer (15 with --quick, else 45)"}),
        ],
    )
    rounds = options.rounds or (15 if options.quick else 45)
    missing = envpool_missing()
    if missing:
        print(f"EnvPool is left out: {ENVPOOL} cannot be installed here ({missing})")
    claims: list[Claim] = []
    columns: dict[str, dict[str, float]] = {}
    for task in options.tasks:
        steps = {"hopper": 3000, "halfcheetah": 6000, "ant": 1500}[task]  # a quarter of a second on one core
        slow = slow_peers(task, max(1, rounds // 3), steps)
        for num_worlds in options.worlds:
            found, rates = compare(task, num_worlds, rounds, steps, not missing)
            claims, columns[f"{task} {num_worlds}"] = claims + found, rates | slow
    names = list(next(iter(columns.values())))
    print(table(("control steps/s (median)", *columns), [(n, *(cell(c[n]) for c in columns.values())) for n in names]))
    report("world_speed", claims, options.json, {"rounds": rounds, "steps_per_second": columns})


if __name__ == "__main__":
    main()
