"""robot-cl report"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class ReportOptions:
    """Options of `report`."""

    out: str | None = None  # where the page goes; none: report.html in the run folder
    title: str | None = None  # heading; none: the run's name
    csv: str | None = None  # also write the curves as a table: mean, smallest and largest seed
    png: str | None = None  # also write the curves as one figure


def run(call: Call, options: ReportOptions) -> Outcome:
    from robot_cl.commands.runs import find_run
    from robot_cl.curves import write_csv, write_png
    from robot_cl.report import write_report
    from robot_cl.run_folder import open_run

    runs = [find_run(word) for word in call.words]
    with call.working("writing the report"):
        page = write_report(runs, Path(options.out) if options.out else None, options.title)
        for path, write in ((options.csv, write_csv), (options.png, write_png)):
            if path:
                write(runs[-1], Path(path))
    size = page.stat().st_size / 1e6
    call.say(f"{page.name}: {size:.1f} MB, opens from disk without network")
    wrote = [str(p) for p in (page, options.csv, options.png) if p]
    following = "verify" if open_run(runs[-1]).trained else "export"
    return Outcome({"files": wrote}, wrote=page, next=f"{following} {runs[-1]}")


REPORT = Verb(
    run=run,
    usage="RUN [RUN ...] [key=value ...]",
    about="One self-contained HTML page: films, scores with intervals, curves with bands, configuration, receipt.\n"
    "Several runs, such as an offline one and the online one that continues it, make one page.",
    examples=(
        "robot-cl report last",
        "robot-cl report runs/2026-01-31-iql out=page.html",
        "robot-cl report last csv=curves.csv png=curves.png",
    ),
    options=lambda: ReportOptions,
    words=(1, 8),
)
