"""robot-cl export"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_cl.commands.helptext import REQUIRED
from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class ExportWords:
    """Options of `export`."""

    to: str = REQUIRED  # folder of the bundle; an older bundle there is replaced
    member: int | None = None  # which of the training seeds; none: the first
    task: str | None = None  # world whose interface to use, where the policy does not know its own
    skills: list[str] = field(default_factory=list)  # of the library, on their base; their weights become an input
    weights: list[float] = field(default_factory=list)  # at the start, one for each skill; none: equal shares
    base: str | None = None  # base of the skills; none: found
    licence: str = "unknown"  # of the policy, an SPDX name
    guard: int = 0  # also calibrate a novelty guard on so many rollouts
    flow: str | None = None  # folder that `robot-cl adapt` wrote: its flow realigns actions on a robot that changed


def run(call: Call, options: ExportWords) -> Outcome:
    from robot_cl.export import ExportOptions, export, export_policy

    if len(call.words) == bool(options.skills):
        raise ValueError("export needs a RUN (or another policy), or skills=[a,b] of the library, and not both")
    target, more = Path(options.to), ExportOptions(licence=options.licence)
    prepared = flow_to_wear(options.flow) if options.flow else None  # told before anything is written
    with call.working("exporting and comparing with torch"):
        if options.skills:
            policy = composition(options)
            task = options.task or policy.task
            more.source, more.task = f"skills {', '.join(options.skills)}", task or ""
            report = export_policy(policy, target, options=more)
        else:
            from robot_cl.commands.runs import find_source

            source, _ = find_source(call.words[0])
            report = export(source, target, options.member, options.task, more)
        if prepared is not None:
            report = wearing(report, prepared)
    call.say(f"max |torch − onnx| {report.parity:.1e} (allowed 1.0e-05), {report.size / 1e3:.0f} kB")
    if report.skills:
        call.say(f"skill weights are an input of the graph: {', '.join(report.skills)}")
    data: dict[str, Any] = {
        "bundle": str(report.folder), "sha256": report.sha256, "size": report.size, "parity": report.parity,
        "skills": list(report.skills),
    }  # fmt: skip
    if options.guard:
        data["guard"] = guarded(call, report.folder, options.task, options.guard)
    return Outcome(data, wrote=report.folder, next=f"deploy rehearse {typed(report.folder)}")


def flow_to_wear(folder: str) -> Any:
    """What `adapt` made, if it is of use. Raises OSError, ValueError."""
    from robot_cl.adapt.task import TaskLearned

    prepared = TaskLearned.load(folder)
    if prepared.card["trigger"] is None:
        raise ValueError(
            f"{folder}: no setting of this flow surely earned more than the policy alone, so there is nothing to wear; "
            "export without flow=, or run robot-cl adapt again with more regimes= or other changes="
        )
    return prepared


def wearing(report: Any, prepared: Any) -> Any:
    """The bundle with the flow that was prepared for its task. Raises ValueError if it does not fit."""
    from robot_cl.adapt.choice import config_of
    from robot_cl.export_flow import add_flow

    return add_flow(report, prepared.model, prepared.flow, config=config_of(prepared.card))


def composition(options: ExportWords) -> Any:
    """The named skills on their base, each with a constant weight, as one policy with interface and task."""
    from policies.composed import ComposedActor
    from policies.composers.composer import CompositionShape
    from policies.composers.fixed import Fixed
    from policies.mixture import Mixture
    from robot_cl.skills import base_policy, find_skills

    if options.weights and len(options.weights) != len(options.skills):
        raise ValueError(f"weights has {len(options.weights)} numbers for {len(options.skills)} skills; give one each")
    library = find_skills(options.skills, options.base)
    base = base_policy(library)
    mixture = Mixture(base.actor, {name: library.adapter(name) for name in options.skills})
    fixed = Fixed(CompositionShape.of(mixture, base.obs_dim), options.weights or None)
    policy: Any = ComposedActor(mixture, fixed, interface=base.interface)
    policy.task = base.task
    return policy


def guarded(
    call: Call, folder: Path, task: str | None, rollouts: int, alpha: float = 0.1, steps: int = 200,
    shift: str | None = None,
) -> dict:  # fmt: skip
    """Calibrate the bundle's guard and say what it promises."""
    from robot_cl.deploy.guard import GuardConfig, calibrate_bundle

    with call.progress(f"playing {rollouts} rollouts for the guard") as bar:
        guard = calibrate_bundle(folder, task, rollouts, steps, GuardConfig(alpha=alpha), progress=bar, shift=shift)
    seconds = guard.horizon * _control_dt(folder)
    call.say(
        f"guard: at most {100 * alpha:g} % false alarms in {seconds:g} s of healthy driving, "
        f"calibrated on {len(guard.maxima)} of {rollouts} rollouts"
    )
    return {"alpha": alpha, "threshold": guard.threshold, "rollouts": rollouts, "seconds": seconds}


def _control_dt(folder: Path) -> float:
    from robot_cl.deploy.bundle import read_contract

    return read_contract(folder).control_dt


EXPORT = Verb(
    run=run,
    usage="RUN to=FOLDER [key=value ...]",
    about="Turn a policy into a bundle that a robot can run without torch: an ONNX graph with the normaliser inside,\n"
    "and a contract that names every number going in and out. Refused where the graph differs from torch by more than\n"
    "1e-5. Skills of the library go along un-merged, so that they can be weighed anew while the robot moves.",
    examples=(
        "robot-cl export last --to bundle",
        "robot-cl export runs/2026-01-31-ppo --to bundle guard=100",
        "robot-cl export skills=[hop-low-gravity,hop-heavy] weights=[1,0] --to bundle",
        "robot-cl export last --to bundle flow=runs/2026-01-31-adapt-hopper",
        "robot-cl export halfcheetah-medium --to bundle task=halfcheetah",
    ),
    options=lambda: ExportWords,
    words=(0, 1),
)
