"""robot-cl gate"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import find_source, typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from robot_cl.continual.release_gate import GateVerdict


@dataclass
class GateOptions:
    """Options of `gate`."""

    tasks: tuple[str, ...] = ()  # each task or task:shift; none: the one the old policy was trained on
    episodes: int = 120  # per task and side, on the same seeds
    seed: int = 3000  # of the first episode
    margin: float = 0.05  # tolerated loss per task, as a share of the old mean
    confidence: float = 0.95  # of "no worse"
    skill: str | None = None  # NEW (a run that trained an adapter) against this skill's present version
    base: str | None = None  # which library, where several have the skill
    member: int = 0  # training seed of NEW's adapter
    rate: float = 1.0  # how far the skill moves towards NEW, such as 0.2 for one learned fast on a robot
    threads: int | None = None  # none: all cores


def run(call: Call, options: GateOptions) -> Outcome:
    """NEW against OLD, or against a skill; exit code 1 if it is not promoted."""
    if options.skill is not None:
        if len(call.words) != 1:
            raise ValueError("skill=NAME takes the place of OLD; write robot-cl gate NEW skill=NAME")
        verdict = gate_skill(call, options)
        after = f"skills rollback {options.skill}" if verdict.promoted else f"skills show {options.skill}"
    else:
        if len(call.words) != 2:
            raise ValueError("the gate needs two policies: robot-cl gate NEW OLD, or robot-cl gate NEW skill=NAME")
        verdict = gate_two(call, options)
        word = call.words[0] if verdict.promoted else call.words[1]
        after = f"report {typed(word)}" if find_source(word)[1] else f"evaluate {typed(word)}"
    show(call, verdict)
    keep(call, options, verdict)
    return Outcome(_data(verdict), next=after, code=0 if verdict.promoted else 1)


def keep(call: Call, options: GateOptions, verdict: GateVerdict) -> None:
    """gate.json in NEW's folder, if it is a run, for its report."""
    import json

    from robot_cl.plain_files import write_whole

    owner = find_source(call.words[0])[1]
    if owner is not None:
        against = f"skill {options.skill}" if options.skill else call.words[1]
        text = json.dumps(_data(verdict) | {"against": against}, indent=1, allow_nan=False)
        write_whole(owner / "gate.json", text + "\n")


def gate_two(call: Call, options: GateOptions) -> GateVerdict:
    from robot_cl.checkpoint import load_policy
    from robot_cl.continual.promotion import gate_policies
    from robot_cl.continual.release_gate import GateConfig

    new, old = (load_policy(find_source(word)[0]) for word in call.words)
    tasks = options.tasks or _own_task(old)
    config = GateConfig(options.margin, options.confidence)
    with call.working("playing the same episodes with both"):
        return gate_policies(new, old, tasks, options.episodes, options.seed, config, options.threads)


def gate_skill(call: Call, options: GateOptions) -> GateVerdict:
    from policies.fast_slow import part_way
    from robot_cl.commands.runs import find_run
    from robot_cl.continual.promotion import promote_skill
    from robot_cl.continual.release_gate import GateConfig
    from robot_cl.skills import base_policy, find_skills, residual_of, run_skill

    assert options.skill is not None
    library = find_skills([options.skill], options.base)
    found, base = run_skill(find_run(call.words[0]), options.member), base_policy(library)
    tasks = options.tasks or _own_task(base)
    config = GateConfig(options.margin, options.confidence)
    fast, parents = (residual_of(found, library), found.parents) if found.parents else (found.adapter, None)
    if options.rate != 1.0:
        fast, parents = library.whole(fast, parents)[0] if parents else fast, None
        fast = part_way(library.adapter(options.skill), fast, options.rate)
    with call.working("playing the same episodes with both versions"):
        return promote_skill(
            library, base, options.skill, fast, found.card, tasks, options.episodes, options.seed, config, parents,
            options.threads,
        )  # fmt: skip


def _own_task(policy: Any) -> tuple[str, ...]:
    if getattr(policy, "task", None) is None:
        raise ValueError("nothing says which task this policy is for; give tasks=[TASK,TASK:SHIFT]")
    return (policy.task,)


def show(call: Call, verdict: GateVerdict) -> None:
    from robot_cl.continual.release_gate import PERCENTILES

    columns = (f"{q} % old → new " for q in PERCENTILES)
    table = call.table("task", "mean old → new ", "at worst ", "tolerated ", *columns, "")
    for task in verdict.tasks:
        pairs = [f"{a:.4g} → {b:.4g}" for a, b in task.percentiles.values()]
        table.add_row(
            task.task, f"{task.old:.4g} → {task.new:.4g}", f"{task.lower:+.4g}", f"−{task.tolerated:.4g}", *pairs,
            "no worse" if task.passed else "refused",
        )  # fmt: skip
    call.console.print(table)
    for task in verdict.tasks:
        if not task.passed:
            call.say(task.sentence())
    call.say("promoted: no task got worse" if verdict.promoted else "not promoted: the old one stays")


def _data(verdict: GateVerdict) -> dict[str, Any]:
    tasks = [{**vars(task), "passed": task.passed, "says": task.sentence()} for task in verdict.tasks]
    return {"promoted": verdict.promoted, "tasks": tasks}


GATE = Verb(
    run=run,
    usage="NEW [OLD] [tasks=[TASK,TASK:SHIFT]] [skill=NAME] [key=value ...]",
    about="Whether a new policy may take the place of an old one: both play the same episodes, and it passes if on\n"
    "every task the one-sided bound of the paired difference stays within the margin. With skill=NAME, a run that\n"
    "trained an adapter becomes that skill's new version only if it passes; rollback brings the version before back.\n"
    "Exit code 1 if it does not pass.",
    examples=(
        "robot-cl gate runs/2026-02-01-iql runs/2026-01-31-iql tasks=[hopper,hopper:gravity0.8]",
        "robot-cl gate last skill=hop-low-gravity tasks=[hopper:gravity0.6] episodes=100",
    ),
    options=lambda: GateOptions,
    words=(1, 2),
)
