"""robot-cl report"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class ReportOptions:
    """Options of `report`."""

    out: str | None = None  # where the page goes, a file or a folder; none: the run folder
    title: str | None = None  # heading; none: the run's name
    csv: str | None = None  # also write the curves as a table: mean, smallest and largest seed
    png: str | None = None  # also write the curves as one figure
    figures: bool = False  # also write plots/ as PNG and PDF, and the numbers as CSV, beside the page


def run(call: Call, options: ReportOptions) -> Outcome:
    from robot_cl.commands.runs import find_run, typed, with_sweeps_opened
    from robot_cl.curves import write_csv, write_png
    from robot_cl.report import write_report
    from robot_cl.run_folder import open_run

    named = [find_run(word) for word in call.words]
    runs = with_sweeps_opened(named)
    out = Path(options.out) if options.out else None
    if out is None and named != runs:
        out = named[-1] / "report.html"
    with call.working("writing the report"):
        page = write_report(runs, out, options.title)
        for path, write in ((options.csv, write_csv), (options.png, write_png)):
            if path:
                write(runs[-1], Path(path))
        beside = figures(runs[-1]) if options.figures else []
    size = page.stat().st_size / 1e3
    large = f"{size / 1e3:.1f} MB" if size >= 1e3 else f"{size:.0f} kB"
    call.say(f"{page.name}: {large}, opens from disk without network")
    for figure in beside:
        call.say(f"{figure.relative_to(runs[-1])}")
    wrote = [str(p) for p in (page, options.csv, options.png, *beside) if p]
    whose = f" {typed(runs[-1])}"
    has_policy = (runs[-1] / "checkpoints" / "last").exists()
    following = f"export{whose} --to bundle" if has_policy else "serve"
    following = f"verify{whose}" if open_run(runs[-1]).trained else following
    return Outcome({"files": wrote}, wrote=page, next=following)


def figures(run: Path) -> list[Path]:
    """What a paper needs of a run: its curves and, of a stream of tasks, its matrices and numbers."""
    from robot_cl.continual import summary
    from robot_cl.curves import load_metrics, write_csv, write_png
    from robot_cl.report_continual import write_figures, write_numbers

    made = []
    if load_metrics(run).names:
        (run / "plots").mkdir(exist_ok=True)
        made = [run / "curves.csv", run / "plots" / "curves.png", run / "plots" / "curves.pdf"]
        write_csv(run, made[0])
        for path in made[1:]:
            write_png(run, path)
    if (run / summary.FILE).exists():
        made += write_numbers(run) + write_figures(run)
    return made


REPORT = Verb(
    run=run,
    usage="RUN [RUN ...] [key=value ...]",
    about="One self-contained HTML page: films, scores with intervals, curves with bands, configuration, receipt.\n"
    "Several runs, such as an offline one and the online one that continues it, make one page.",
    examples=(
        "robot-cl report last",
        "robot-cl report runs/2026-01-31-iql out=page.html",
        "robot-cl report last csv=curves.csv png=curves.png",
        "robot-cl report last figures=true",
    ),
    options=lambda: ReportOptions,
    words=(1, 8),
)
