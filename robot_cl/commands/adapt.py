"""robot-cl adapt"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from robot_cl.commands.evaluate import Subject


@dataclass
class AdaptOptions:
    """Options of `adapt`."""

    robot: str | None = None  # vehicle or quadrotor, with the planner that drives it; instead of POLICY
    task: str | None = None  # of POLICY; none: the one it was trained on
    changes: list[str] = field(default_factory=lambda: ["gain"])  # of gain, bias, payload, friction, mass; for POLICY
    regimes: int | None = None  # changed robots to learn from; none: 256 for a POLICY, 600 for a robot
    updates: int | None = None  # gradient steps of the flow; none: 4000 for a POLICY, 8000 for a robot
    seed: int = 0  # of everything that is drawn
    held_out: int = 12  # changed robots, drawn anew, to measure on
    member: int | None = None  # one of a run's training seeds; none: the first
    out: str | None = None  # folder to write; none: a dated one among the runs


def run(call: Call, options: AdaptOptions) -> Outcome:
    """A flow for a policy's task, or for a robot with its planner."""
    if bool(call.words) == bool(options.robot):
        raise ValueError("robot-cl adapt takes a POLICY or robot=NAME, one of the two")
    if options.held_out < 2:
        raise ValueError(f"held_out must be at least 2, got {options.held_out}")
    return _robot(call, options) if options.robot else _policy(call, options)


def around(call: Call, subject: Subject, folder: str) -> Subject:
    """The same policies with the flow of a folder around them. Raises OSError or ValueError if it does not fit."""
    from robot_cl.adapt.task import TaskLearned

    learned, load = TaskLearned.load(folder), subject.load
    if learned.card["trigger"] is None:
        call.say(f"the flow in {folder} stays out of the way: no setting surely earned more than the policy alone")
    name, label = f"{subject.name} with flow", f"{subject.label} with flow"
    return replace(subject, name=name, label=label, load=lambda member: learned.wrap(load(member)))


def _policy(call: Call, options: AdaptOptions) -> Outcome:
    import numpy as np

    from robot_cl.adapt.task import TaskConfig, family, learn_for
    from robot_cl.commands.runs import find_source
    from robot_cl.evaluate import evaluate, load, task_of

    source, owner = find_source(call.words[0])
    policy = load(source, options.member or 0 if owner is not None else options.member)
    task = options.task or task_of(policy)
    usual = TaskConfig()
    config = TaskConfig(
        tuple(options.changes), worlds=options.regimes or usual.worlds,
        flow_updates=options.updates or usual.flow_updates,
    )  # fmt: skip
    with call.progress(f"preparing for changes of {task}") as bar:
        learned = learn_for(policy, task, config, options.seed, bar)
    shifts = family(task, config.changes, options.held_out, np.random.default_rng([options.seed, 1]))
    rows = {}
    with call.progress("measuring on changes not trained on") as bar:
        for k, (name, one) in enumerate((("without flow", policy), ("with flow", learned.wrap(policy)))):
            same, changed = (evaluate(one, task, options.held_out, shift=s) for s in (None, shifts))
            rows[name] = {"unchanged": same.mean, "changed": changed.mean}
            bar(k + 1, 2)
    table = call.table("policy", "unchanged ", "changed ")
    for name, row in rows.items():
        table.add_row(f"{call.words[0]} {name}", f"{row['unchanged']:.1f}", f"{row['changed']:.1f}")
    call.console.print(table)
    call.say(f"mean return of {options.held_out} episodes; changes ({', '.join(config.changes)}) were drawn anew")
    learned.card["held_out"] = rows
    folder = _write(learned, options, task)
    if learned.card["trigger"] is None:
        call.say(
            f"none of {len(learned.card['tried'])} settings of the flow surely earned more in changed worlds without "
            "costing in unchanged ones: it stays out of the way, and the policy acts alone"
        )
        return Outcome({"card": learned.card}, wrote=folder)
    trigger, trust = learned.card["trigger"], learned.card["trust"]
    call.say(
        f"the flow acts where a step is more than {trigger:.1f} deviations off, and moves an action by {trust:g} at "
        f"most: the best of {len(learned.card['tried'])} settings played in other worlds"
    )
    following = f"evaluate {typed(call.words[0])} adapt={typed(folder)} shift=gain1.5"
    return Outcome({"card": learned.card}, wrote=folder, next=following)


def _robot(call: Call, options: AdaptOptions) -> Outcome:
    from robot_cl.adapt.learn import LearnConfig, family, learn
    from robot_cl.adapt.missions import compare
    from robot_cl.adapt.robots import prepared

    usual = LearnConfig()
    config = LearnConfig(
        regimes=options.regimes or usual.regimes, flow_updates=options.updates or usual.flow_updates,
        first_updates=min(usual.first_updates, options.updates or usual.first_updates),
    )  # fmt: skip
    prepared(str(options.robot))  # an unknown name is told before anything is computed
    with call.working("exploring, fitting"):
        learned = learn(str(options.robot), config, options.seed, call.say)
    regimes = family(learned.robot, options.held_out, options.seed)
    with call.working("measuring on changes not trained on"):
        rows = compare(learned, regimes, options.seed)
    table = call.table("on the yard map", "arrived ", "waypoints ", "steps ")
    for name, o in rows.items():
        table.add_row(name, f"{int(o.success.sum())} of {len(o.success)}", f"{o.fraction.mean():.2f}",
                      f"{o.steps.mean():.0f}")  # fmt: skip
    call.console.print(table)
    learned.card["held_out"] = {n: {"arrived": float(o.success.mean()), "waypoints": float(o.fraction.mean())}
                                for n, o in rows.items()}  # fmt: skip
    return Outcome({"card": learned.card}, wrote=_write(learned, options, str(options.robot)))


def _write(learned: Any, options: AdaptOptions, name: str) -> Path:
    from robot_cl.data.atomic import whole_folder
    from robot_cl.paths import runs_root

    final = Path(options.out) if options.out else _fresh(runs_root() / f"{date.today().isoformat()}-adapt-{name}")
    with whole_folder(final.parent, final) as folder:
        learned.save(folder)
    return final.relative_to(Path.cwd()) if final.is_relative_to(Path.cwd()) else final


def _fresh(path: Path) -> Path:
    """The path, or the first with a number behind it that does not exist."""
    tries = (path if k == 1 else path.with_name(f"{path.name}-{k}") for k in range(1, 10_000))
    return next(p for p in tries if not p.exists())


ADAPT = Verb(
    run=run,
    usage="POLICY|robot=NAME [key=value ...]",
    about="Prepare a policy, or a robot with its planner, for changes of the robot: explore it and its changed kin in\n"
    "simulation, fit a model of the unchanged one and an action flow, and measure both on changes not trained on.\n"
    "Writes model.safetensors, flow.safetensors and card.json, which `evaluate adapt=FOLDER` puts around the policy.",
    examples=(
        "robot-cl adapt halfcheetah-medium",
        "robot-cl adapt hopper-medium changes=[gain,friction]",
        "robot-cl adapt runs/2026-01-31-ppo task=vehicle-waypoint",
        "robot-cl adapt robot=vehicle",
    ),
    options=lambda: AdaptOptions,
    words=(0, 1),
)
