"""robot-cl compare"""

from __future__ import annotations

from dataclasses import dataclass

from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class CompareOptions:
    """Options of `compare`."""

    mixed: bool = False  # allow results of different simulators in one table
    seed: int = 0  # of the bootstrap


def run(call: Call, options: CompareOptions) -> Outcome:
    from robot_cl.checkpoint import checkpoint_folder
    from robot_cl.commands.runs import find_run, plain_names, typed
    from robot_cl.compare import compare
    from robot_cl.scores import headline_entry, interval_text, read_scores

    runs = [find_run(word) for word in call.words]
    named = []
    for path in runs:
        try:
            named.append((path.name, headline_entry(read_scores(path))))
        except LookupError:
            checkpoint_folder(path)  # what has no policy cannot be evaluated, and says so
            raise LookupError(f"{path} has no evaluation yet; run: robot-cl evaluate {typed(path)}") from None
    rows = compare(named, options.mixed, options.seed)
    shown = plain_names([row.name for row in rows])
    table = call.table(
        "run", "policy", "episodes ", "mean [95 %] ", "IQM [95 %] ", "score ", "difference [95 %] ", "P(better) [95 %] "
    )
    for row, name in zip(rows, shown, strict=True):
        entry, better, gain = row.entry, row.improvement, row.difference
        table.add_row(
            name,
            entry.label,
            f"{entry.members} × {len(entry.seeds)}" if entry.members > 1 else str(len(entry.seeds)),
            interval_text(entry.mean, entry.mean_interval),
            interval_text(entry.iqm, entry.iqm_interval),
            "" if entry.score is None else f"{entry.score:.1f}",
            "" if gain is None else interval_text(gain.estimate, (gain.low, gain.high)),
            "" if better is None else interval_text(better.estimate, (better.low, better.high), 2),
        )
    call.console.print(table)
    call.say(f"difference and P(better) are against {shown[0]}; differences pair episodes that share a seed")
    return Outcome({"rows": [row.to_dict() for row in rows]}, next=f"report {' '.join(map(typed, runs))}")


COMPARE = Verb(
    run=run,
    usage="RUN RUN [RUN ...] [key=value ...]",
    about="A table of runs with intervals, the paired difference to the first and the probability of improvement.\n"
    "Runs that different simulators evaluated are not mixed without being asked.",
    examples=("robot-cl compare runs/2026-01-31-bc runs/2026-01-31-iql", "robot-cl compare bc iql --json"),
    options=lambda: CompareOptions,
    words=(2, 12),
)
