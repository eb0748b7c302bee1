"""robot-cl demo"""

from __future__ import annotations

from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb


def run(call: Call, options: Any) -> Outcome:
    from robot_cl.commands.train import shown
    from robot_cl.demo import run_demo
    from robot_cl.scores import interval_text

    result = run_demo(call, options)
    table = call.table("what", "mean return [95 %] ")
    table.add_row("behaviour in the data", f"{result.behaviour:,.0f}")
    for name, entry in (("learned from the data alone", result.offline), ("after practice", result.online)):
        table.add_row(name, interval_text(entry.mean, entry.mean_interval))
    call.console.print(table)
    if not result.improves:
        call.say("this time the policy did not improve at every stage; see the curves in the report")
    call.say(f"{result.seconds:.0f} s, at most {result.peak_gb:.1f} GB of memory")
    call.say(f"film    {shown(result.film)}")
    call.say(f"report  {shown(result.report)}  (opens from disk, needs no network)")
    return Outcome(result.to_dict(), wrote=shown(result.report.parent), next="list")


def _options() -> type:
    from robot_cl.demo import DemoOptions

    return DemoOptions


DEMO = Verb(
    run=run,
    usage="[key=value ...]",
    about="The whole journey with what ships in the package: film a behaviour, record a dataset, learn a policy from\n"
    "it offline, improve it online, evaluate, film and report. Minutes on two cores, no network, less than 3 GB.",
    examples=("robot-cl demo", "robot-cl demo seeds=1 online_steps=200000", "robot-cl demo quick=true out=/tmp/demo"),
    options=_options,
)
