"""The whole demo as a newcomer runs it: time, memory, the first film, and whether each step is better than the last.

    python benchmarks/journey.py [--json]

It runs `robot-cl demo` in a temporary folder. Improvements are differences of mean returns; the intervals printed are
95 % over seeds and episodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import common


def main() -> None:
    args = common.arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "robot_cl.cli", "demo", "--json"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    rows = [
        ("behaviour in the data", told["behaviour_mean"], ""),
        ("learned from the data alone", told["offline_mean"], told["offline_interval"]),
        ("after practice", told["online_mean"], told["online_interval"]),
    ]
    print(common.table(("what", "mean return", "95 % interval"), rows))
    gain = told["online_interval"][0] - told["offline_interval"][1]
    claims = [
        common.Claim("minutes from dataset to report and film", told["seconds"] / 60, 10.0, at_least=False),
        common.Claim("peak memory, GB", told["peak_gb"], 3.0, at_least=False),
        common.Claim("seconds to the first film", told["first_film_s"], 60.0, at_least=False),
        common.Claim("offline − behaviour, lower end", told["offline_interval"][0] - told["behaviour_mean"], 0.0),
        common.Claim("online lower end − offline upper end", gain, 0.0),
    ]
    common.report("journey", claims, args.json, told)


if __name__ == "__main__":
    main()
