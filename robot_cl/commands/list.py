"""robot-cl list"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass(frozen=True)
class Shelf:
    """One kind of thing with a name: where the name is typed, and name -> one line about each."""

    where: str
    items: Callable[[], dict[str, str]]


SHIFT_LINES = {
    "friction": "friction0.5: factor on all contacts",
    "gravity": "gravity0.6: factor on gravity",
    "mass": "mass1.5: factor on every body's mass",
    "payload": "payload2: kg at the torso",
    "latency": "latency2: control steps by which actions come late",
    "noise": "noise0.01: standard deviation added to every observation",
    "gain": "gain=0.8 or gain.JOINT=0.8: factor on motor forces",
    "bias": "bias=0.1 or bias.JOINT=0.1: added to commands, in their unit",
    "command": "command.JOINT=-1: factor on commands; −1 is a motor wired the wrong way round",
    "size": "size.BODY=1.3: factor on a limb's length and thickness",
}


def _table(module: str, name: str) -> Callable[[], dict[str, str]]:
    """Names of an explicit table, each with the first sentence of its member's docstring."""

    def items() -> dict[str, str]:
        from robot_cl.commands.tables import described

        return described(module, name)

    return items


def _tasks() -> dict[str, str]:
    from sim.tasks import TASKS

    return {name: f"{task.original}, {1 / task.control_dt:.0f} Hz" for name, task in TASKS.items()}


def _datasets() -> dict[str, str]:
    from robot_cl.data.store import list_datasets

    return {
        name: f"{meta.steps:,} steps of {meta.task or 'an unknown task'}, return {meta.return_mean:.0f}"
        for name, meta in list_datasets().items()
    }


def _behaviours() -> dict[str, str]:
    from robot_cl.data.behaviours import list_behaviours

    def line(card: Any) -> str:
        known = f", return {card.mean_return:.0f}" if card.mean_return is not None else ""
        return f"{card.task or 'any task'}{known}"

    return {name: line(card) for name, card in list_behaviours().items()}


def _robots() -> dict[str, str]:
    from robot_cl.commands.deploy import robot_files
    from robot_cl.deploy.robot_file import load_robot

    def line(path: Path) -> str:
        spec = load_robot(path)
        hears, sends = (", ".join(t.topic for t in topics) for topics in (spec.state, spec.command))
        return f"{1 / spec.control_dt:.0f} Hz, hears {hears}, commands {sends}"

    return {name: line(path) for name, path in robot_files().items()}


def _runs() -> dict[str, str]:
    from robot_cl.paths import runs_root

    root = runs_root()
    return {p.name: "" for p in sorted(root.iterdir()) if (p / "config.yaml").exists()} if root.is_dir() else {}


def _skills() -> dict[str, str]:
    from robot_cl.paths import library_root

    if not any(library_root().glob("*/base.json")):
        return {}
    from robot_cl.skills import open_libraries

    found = {}
    for library in open_libraries():
        for name in library.names():
            card = library.card(name)
            scores = ", ".join(f"{task} {value:,.0f}" for task, value in card.scores.items())
            found[name] = ", ".join(part for part in (f"base {library.folder.name}", card.description, scores) if part)
    return found


def _shifts() -> dict[str, str]:
    from sim.shift import NEUTRAL, PER_BODY, PER_JOINT

    return {kind: SHIFT_LINES[kind] for kind in (*NEUTRAL, *PER_JOINT, *PER_BODY)}


def _streams() -> dict[str, str]:
    from sim.stream import STREAMS

    return {name: f"{len(stream.stages)} tasks: {stream.about}" for name, stream in STREAMS.items()}


SHELVES: dict[str, Shelf] = {
    "tasks": Shelf("task=", _tasks),
    "datasets": Shelf("data=", _datasets),
    "behaviours": Shelf("policy=", _behaviours),
    "learners": Shelf("learner=", _table("robot_cl.learners", "LEARNERS")),
    "shifts": Shelf("shift=", _shifts),
    "streams": Shelf("stream=", _streams),
    "methods": Shelf("methods=[...]", _table("robot_cl.continual.methods", "METHODS")),
    "skills": Shelf("skills=[...]", _skills),
    "merges": Shelf("how=", _table("policies.merging", "MERGE")),
    "composers": Shelf("composer=", _table("policies.composers", "COMPOSERS")),
    "routers": Shelf("router=", _table("policies.routers", "ROUTERS")),
    "robots": Shelf("robot=", _robots),
    "transports": Shelf("transport=", _table("robot_cl.deploy.transport", "TRANSPORTS")),
    "launchers": Shelf("launch.on=", _table("robot_cl.scale.launchers", "LAUNCHERS")),
    "runs": Shelf("RUN", _runs),
}


def run(call: Call, options: Any) -> Outcome:
    wanted = call.words or list(SHELVES)
    for kind in wanted:
        if kind not in SHELVES:
            from robot_cl.data.naming import not_found

            raise not_found("kind of thing", kind, SHELVES)
    found = {kind: SHELVES[kind].items() for kind in wanted}
    for kind, items in found.items():
        _show(call, kind, SHELVES[kind].where, items)
    return Outcome({kind: dict(items) for kind, items in found.items()})


def _show(call: Call, kind: str, where: str, items: Mapping[str, str]) -> None:
    from rich.markup import escape

    call.mark(f"[bold]{kind}[/]  [dim]{escape(where)}[/]")
    width = max(map(len, items), default=0)
    for name, line in items.items():
        call.mark(f"  {escape(name):<{width}}  [dim]{escape(line)}[/]".rstrip())
    if not items:
        call.mark("  [dim]none yet[/]")


LIST = Verb(
    run=run,
    usage="[KIND ...]",
    about="Everything that has a name, and where that name is typed: " + ", ".join(SHELVES) + ".",
    examples=("robot-cl list", "robot-cl list tasks datasets", "robot-cl list --json"),
    words=(0, len(SHELVES)),
)
