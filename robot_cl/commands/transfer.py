"""robot-cl transfer"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb


def run(call: Call, options: Any) -> Outcome:
    """A new study, or with a RUN the rest of one."""
    from robot_cl.commands.runs import find_run, typed
    from robot_cl.config import read_options
    from robot_cl.plain_files import read_json
    from robot_cl.transfer_run import FILE, TransferOptions, proceed, start

    def began(folder: Path) -> None:
        call.resume = f"continue with: robot-cl transfer {typed(folder)}"

    with call.progress("fitting and playing") as bar:
        if call.words:
            if call.overrides:
                raise ValueError(f"a study goes on with its own options; leave {call.overrides[0]!r} out")
            folder = find_run(call.words[0])
            began(folder)
            folder = proceed(folder, bar)
        else:
            folder = start(read_options(TransferOptions, call.overrides), bar, began)
    call.resume = ""
    data = read_json(folder / FILE)
    show(call, data)
    return Outcome(data, wrote=folder, next=f"report {typed(folder)}")


def show(call: Call, data: dict[str, Any]) -> None:
    import numpy as np

    from robot_cl.scores import interval_text

    table = call.table("row", "what it is", "demos ", "mean return [95 %] ", "of the expert ")
    for row in data["rows"]:
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        mean = interval_text(row["mean"], row["interval"], 1)
        table.add_row(row["name"], row["what"], str(row["demonstrations"]), mean, share)
    call.console.print(table)
    for name, of in data["by_demonstrations"].items():
        means = ", ".join(f"{count}: {mean:,.1f}" for count, mean in of["mean"].items())
        reached = f"80 % of the expert with {of['to_80']}" if of["to_80"] else "80 % of the expert not reached"
        shares = "" if of["area"] is None else f"; {reached}; area {of['area']:.2f}"
        call.say(f"{name}: return by demonstrations {means}{shares}")
    whole = np.mean(data["left_out"][""])
    for name, returns in data["left_out"].items():
        if name:
            call.say(f"α(s) without {name}: {np.mean(returns):,.1f} ({np.mean(returns) - whole:+,.1f})")
    for name, of in data["matrix"].items():
        cells = ", ".join(f"{task} {interval_text(i['estimate'], (i['low'], i['high']))}" for task, i in of.items())
        call.say(f"{name or 'base'}: {cells}")
    call.say(f"expert: {data['expert']:,.1f}; {data['draws']} draws of {data['demonstrations']} demonstrations")
    for sentence in data["coverage"]:
        call.say(f"coverage: {sentence}")


def _options() -> type:
    from robot_cl.transfer_run import TransferOptions

    return TransferOptions


TRANSFER = Verb(
    run=run,
    usage="[RUN] | data=NAME [skills=[A,B]] [demos=10] [counts=[1,3,10]] [key=value ...]",
    about="What skills are worth for a new task, measured so that nothing can hide: eight rows from the bare base to\n"
    "a network trained from scratch, on the same demonstrations and updates; four interventions that show where a\n"
    "gain comes from; demonstrations to 80 % of the expert; skills left out one at a time; base and skills on every\n"
    "task named by tasks; and which parts of the claim lie inside what was trained. What is known is kept as it goes:\n"
    "with a RUN, a study that was stopped goes on.",
    examples=(
        "robot-cl transfer data=hopper/hop-demos-v0 skills=[stand,walk] demos=10 draws=3 episodes=10",
        "robot-cl transfer data=hopper/hop-demos-v0 counts=[1,3,10] tasks=[hopper,hopper:gravity0.6]",
        "robot-cl transfer data=hopper/hop-demos-v0 interventions=false rows=[base,scratch,residual]",
        "robot-cl transfer last",
    ),
    options=_options,
    words=(0, 1),
    free=True,
)
