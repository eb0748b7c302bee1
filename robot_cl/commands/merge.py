"""robot-cl merge"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from robot_cl.merge_run import MergeOptions


def run(call: Call, options: MergeOptions) -> Outcome:
    from robot_cl.commands.train import shown
    from robot_cl.merge_run import merge

    with call.working(f"merging by {options.how}"):
        merged = merge(options)
    table = call.table("skill", "weight ", "distance to the merge ")
    for name, weight in merged.weights.items():
        table.add_row(name, f"{weight:g}", f"{100 * merged.distances[name]:.0f} %")
    call.console.print(table)
    call.say("distance between the changes of the weights, relative to the larger one; 0 %: the same skill")
    if merged.published is not None:
        card = merged.published.card
        call.say(f"published as skill {card.name}, rank {max(card.ranks.values())}")
    folder = shown(Path(merged.folder))
    data = {"how": options.how, "weights": merged.weights, "distances": merged.distances,
            "skill": merged.published.card.name if merged.published else None}  # fmt: skip
    return Outcome(data, wrote=folder, next=f"evaluate {typed(folder)}")


def _options() -> type:
    from robot_cl.merge_run import MergeOptions

    return MergeOptions


def _settings(words: list[str]) -> str:
    """The settings of every operator."""
    from robot_cl.merge_run import settings_of

    lines = []
    for how, known in settings_of().items():
        lines.append(f"  {how:<16}{', '.join(f'{key}={value:g}' for key, value in known.items()) or 'none'}")
    return "settings of each operator (settings.KEY=VALUE):\n" + "\n".join(lines)


MERGE = Verb(
    run=run,
    usage="skills=[A,B,C] [how=ties] [weights=[1,1,1]] [key=value ...]",
    about="Several skills of one base as one policy, and with publish= as one skill. One skill at weight 1 comes back\n"
    "as it is. A merge costs nothing when it acts and loses some of every skill; with demonstrations, compose first.",
    examples=(
        "robot-cl merge skills=[hop,kick] how=ties",
        "robot-cl merge skills=[hop,kick] how=average weights=[0.7,0.3] publish=both",
        "robot-cl merge skills=[a,b,c] how=breadcrumbs settings.density=0.8 settings.scale=0.5",
    ),
    options=_options,
    more_help=_settings,
)
