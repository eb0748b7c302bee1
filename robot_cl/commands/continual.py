"""robot-cl continual"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb

NUMBERS = {"acc": "ACC", "forgetting": "forgetting", "bwt": "BWT", "forward_transfer": "forward transfer"}


def run(call: Call, options: Any) -> Outcome:
    """A new run, or with a RUN the rest of one."""
    from robot_cl.commands.runs import find_run, typed
    from robot_cl.commands.train import start_of
    from robot_cl.config import read_groups
    from robot_cl.continual import summary
    from robot_cl.continual.run import ContinualConfig, proceed, read_continual, start
    from robot_cl.learners import config_classes

    def began(folder: Path) -> None:
        call.resume = f"continue with: robot-cl continual {typed(folder)}"

    if call.words:
        if call.overrides:
            raise ValueError(f"a run goes on with its own options; leave {call.overrides[0]!r} out")
        known = find_run(call.words[0])
        read_continual(known)
        began(known)
        folder = watched(call, lambda progress: proceed(known, progress))
    else:
        config, chosen = read_groups(ContinualConfig, {"learner": config_classes()}, "continual", call.overrides)
        config, learner = replace(config, base=start_of(config.base)), chosen["learner"][1]
        folder = watched(call, lambda progress: start(config, learner, progress, began))
    data = summary.read(folder)
    show(call, data)
    return Outcome({"continual": data}, wrote=folder, next=f"report {typed(folder)}")


def watched(call: Call, work: Any) -> Path:
    """`work(progress)` with a bar -> the run folder."""
    with call.progress("learning") as bar:
        folder: Path = work(lambda what, done, total: bar(done, total, what))
    call.resume = ""
    return folder


def show(call: Call, data: dict[str, Any]) -> None:
    """One row per method."""
    table = call.table("method", *(f"{label} [95 %] " for label in NUMBERS.values()), "kB/task ", "minutes ")
    for name, entry in data["methods"].items():
        cells = [interval_text(entry["metrics"].get(number)) for number in NUMBERS]
        table.add_row(name, *cells, f"{entry['bytes_per_task'] / 1000:.1f}", f"{entry['wall_s'] / 60:.1f}")
    call.console.print(table)
    stream = data["stream"]
    call.say(f"{stream['name']}: {len(data['tasks'])} tasks, seeds {', '.join(map(str, data['seeds']))}")
    call.say("scores: 0 is untrained, 1 is solved, as the stream defines them; forward transfer is against reset")
    call.say(f"simulator: {data['simulator']}")


def interval_text(number: dict[str, Any] | None) -> str:
    """'0.41 [0.38, 0.44]', or nothing."""
    if number is None:
        return ""
    ends = "" if number["low"] is None else f" [{number['low']:.2f}, {number['high']:.2f}]"
    return f"{number['estimate']:.2f}{ends}"


def _options() -> type:
    from robot_cl.continual.run import ContinualConfig

    return ContinualConfig


CONTINUAL = Verb(
    run=run,
    usage="[RUN] | stream=NAME methods=[library,finetune,reset] [key=value ...]",
    about="Learn the tasks of a stream one after another, with several methods from the same base and on the same\n"
    "budgets, and measure what each keeps and what each carries over. Forward transfer needs the method reset, which\n"
    "learns every task alone. With a RUN: go on where it stopped; the result is that of a run never interrupted.",
    examples=(
        "robot-cl continual stream=halfcheetah_shifts methods=[library,finetune,packnet,reset] seeds=3",
        "robot-cl continual stream=vehicle_regimes methods=[library,reset] steps=20000 base_steps=50000 hidden=true",
        "robot-cl continual last",
    ),
    options=_options,
    words=(0, 1),
    free=True,
)
