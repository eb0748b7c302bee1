"""robot-cl skills rebase | export | import"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from policies.library import Library


@dataclass
class RebaseOptions:
    """Options of `skills rebase`."""

    to: str = "???"  # the new base: a run, a checkpoint, or the start of the digest of a library's base
    base: str | None = None  # the old base, where a skill of that name is in several libraries
    data: str | None = None  # dataset whose observations align the bases; none: the skill's own episodes in its task
    episodes: int = 8  # of the skill, where its own episodes are used
    gate: float = 0.1  # accepted if at most this share of the gap to the skill's actions is left
    steps: int = 1500  # updates, where aligning is not enough and the skill is distilled
    force: bool = False  # keep the result even if it was not accepted
    overwrite: bool = False  # replace skills of the same name on the new base
    seed: int = 0  # of everything random


def run_rebase(call: Call, options: RebaseOptions) -> Outcome:
    from robot_cl.moving import move_skill
    from robot_cl.skills import find_skills

    library = find_skills(call.words, options.base)
    target = new_home(options.to)
    table = call.table("skill", "by", "naive ", "aligned ", "left ", "")
    moved: list[dict[str, Any]] = []
    with call.progress("moving skills") as bar:
        for k, name in enumerate(call.words):
            bar(k, len(call.words), name)
            report, kept = move_skill(library, name, target, options)
            moved.append({"name": name, "kept": kept} | asdict(report))
            shares = [f"{100 * share:.1f} %" for share in (report.naive, report.procrustes, report.final)]
            verdict = "accepted" if report.accepted else "kept, not accepted" if kept else "refused"
            table.add_row(name, report.method, *shares, verdict)
    call.console.print(table)
    call.say(
        f"share of the gap between the new base and the skill's actions that is left; accepted at {options.gate:g}"
    )
    refused = [entry["name"] for entry in moved if not entry["kept"]]
    if refused:
        call.say(f"{', '.join(refused)} stay where they are; try more steps=, data=, or train them on the new base")
    return Outcome({"moved": moved, "library": str(target.folder)}, wrote=target.folder, next="skills list",
                   code=1 if refused else 0)  # fmt: skip


def new_home(word: str) -> Library:
    """The library of a base named by the start of its digest, or by a run, whose library is made if need be."""
    from robot_cl.commands.runs import find_run
    from robot_cl.moving import library_of_run
    from robot_cl.skills import find_base

    try:
        return find_base(word)
    except LookupError:
        return library_of_run(Path(word) if Path(word).exists() else find_run(word))


@dataclass
class ExportOptions:
    """Options of `skills export`."""

    out: str | None = None  # folder to write; none: the skill's name, in the working directory
    base: str | None = None  # start of the base's digest, or a run with that base


def run_export(call: Call, options: ExportOptions) -> Outcome:
    from policies.peft_io import export_peft
    from robot_cl.skills import find_skills

    name = call.words[0]
    library = find_skills([name], options.base)
    folder = export_peft(library.load(name).adapter, Path(options.out or name), library.folder.name)
    call.say(f"{name}: adapter_model.safetensors and adapter_config.json, for peft.PeftModel.from_pretrained")
    following = f"skills import {typed(folder)} name={name}"
    return Outcome({"name": name, "folder": str(folder)}, wrote=folder, next=following)


@dataclass
class ImportOptions:
    """Options of `skills import`."""

    name: str | None = None  # of the skill; none: the name on its card, or the folder's
    base: str | None = None  # the base it belongs to: start of a digest, or a run; none: what the folder says
    description: str = ""  # one line for the card
    overwrite: bool = False  # replace a skill of that name


def run_import(call: Call, options: ImportOptions) -> Outcome:
    from robot_cl.commands.skills import added
    from robot_cl.moving import import_skill

    library, published = import_skill(Path(call.words[0]), options)
    return added(call, library, published)


REBASE = Verb(
    run=run_rebase,
    usage="SKILL [SKILL ...] to=RUN|BASE [key=value ...]",
    about="Move skills to a new base of the same architecture. First the layers of both bases are aligned on\n"
    "observations (Procrustes); if too much of the skill is lost, the old policy's actions are distilled on the new\n"
    "base. What is not accepted stays where it is (exit code 1).",
    examples=(
        "robot-cl skills rebase hop-low-gravity to=runs/2026-02-07-iql-hopper",
        "robot-cl skills rebase hop kick to=9be044 data=hopper/medium-v0 gate=0.05",
    ),
    options=lambda: RebaseOptions,
    words=(1, 64),
)
EXPORT = Verb(
    run=run_export,
    usage="SKILL [out=FOLDER]",
    about="Write a skill in the format of peft, its scale inside the factors.",
    examples=("robot-cl skills export hop-low-gravity out=hop-adapter",),
    options=lambda: ExportOptions,
    words=(1, 1),
)
IMPORT = Verb(
    run=run_import,
    usage="FOLDER|FILE name=NAME [base=BASE]",
    about="Take in an adapter that peft wrote, or a skill.safetensors of another library. Scaling is folded into the\n"
    "factors; what is more than low-rank factors, or pickled, is refused. An adapter that names no base needs base=.",
    examples=(
        "robot-cl skills import hop-adapter name=hop base=3fa2c1",
        "robot-cl skills import elsewhere/hop/skill.safetensors",
    ),
    options=lambda: ImportOptions,
    words=(1, 1),
)
