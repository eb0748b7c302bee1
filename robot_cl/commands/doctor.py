"""robot-cl doctor"""

from __future__ import annotations

from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "bad": "[red]✗[/]"}


def run(call: Call, options: Any) -> Outcome:
    from rich.markup import escape

    from robot_cl.doctor import examine

    with call.working("examining"):
        findings = examine()
    width = max(len(f.name) for f in findings)
    for finding in findings:
        call.mark(f"{MARKS[finding.state]} {escape(f'{finding.name:<{width}}  {finding.found}')}")
        if finding.fix:
            call.mark(f"  {'':<{width}}  [dim]fix:[/] {escape(finding.fix)}")
    bad = sum(f.state == "bad" for f in findings)
    call.say(f"{bad} of {len(findings)} need a fix" if bad else "everything the demo needs is here")
    data = {"findings": [f.to_dict() for f in findings], "ok": not bad}
    return Outcome(data, next=None if bad else "demo", code=1 if bad else 0)


DOCTOR = Verb(
    run=run,
    usage="",
    about="Python, torch, MuJoCo, OpenGL, GPU, ROS, disk and memory: one line each, and the fix where one is missing.\n"
    "✓ is there, • is missing but everything else works, ✗ has to be fixed (exit code 1).",
    examples=("robot-cl doctor", "robot-cl doctor --json"),
)
