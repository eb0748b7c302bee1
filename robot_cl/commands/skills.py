"""robot-cl skills add | list | show | search | check | remove | rollback"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from policies.card import SkillCard
    from policies.library import Library, Published


@dataclass
class AddOptions:
    """Options of `skills add`."""

    name: str = "???"  # of the skill: a-z, 0-9, - and _
    description: str = ""  # one line for the card, found by search
    member: int = 0  # which of the run's training seeds
    overwrite: bool = False  # make this a new version of a skill of that name; the earlier one can be brought back


def run_add(call: Call, options: AddOptions) -> Outcome:
    from robot_cl.commands.runs import find_run
    from robot_cl.skills import add_run

    word = call.words[0]
    run = Path(word) if (Path(word) / "policy.json").exists() else find_run(word)
    with call.working(f"adding {options.name}"):
        library, published = add_run(run, options.name, None, options.member, options.description, options.overwrite)
    return added(call, library, published)


def added(call: Call, library: Library, published: Published) -> Outcome:
    """What publishing said, and the warning about skills that do nearly the same."""
    card = published.card
    scores = ", ".join(f"{task} {value:,.0f}" for task, value in card.scores.items()) or "not evaluated"
    call.say(f"{card.name}: rank {max(card.ranks.values())} on base {library.folder.name}, {scores}")
    for other, distance in published.near:
        call.mark(f"[yellow]•[/] {other} does nearly the same: {100 * distance:.1f} % apart (skills show {other})")
    data = {"skill": told(library, card), "near": [list(pair) for pair in published.near]}
    return Outcome(data, wrote=library.path(card.name).parent, next=f"skills show {card.name}")


def told(library: Library, card: SkillCard) -> dict[str, Any]:
    """A card as plain data, with the library's base."""
    return asdict(card) | {"library": str(library.folder)}


@dataclass
class BaseOptions:
    """Options of verbs that look at one library or at all."""

    base: str | None = None  # start of the base's digest, or a run with that base; none: wherever the name is found


def run_list(call: Call, options: BaseOptions) -> Outcome:
    from rich.markup import escape

    from robot_cl.skills import open_libraries

    found, libraries = [], open_libraries(options.base)
    for library in libraries:
        table = call.table("skill", "learner", "rank ", "scores", "parents", "added")
        for name in library.names():
            card = library.card(name)
            found.append(told(library, card))
            table.add_row(*map(escape, _row(card)))
        call.say(f"base {library.folder.name}: {len(library)} skills in {library.folder}")
        if len(library):
            call.console.print(table)
        for name, problem in sorted(library.damaged.items()):
            call.mark(f"[red]✗[/] {name}: {escape(problem)}")
    if not libraries:
        call.say("no skills yet")
    following = f"skills show {found[0]['name']}" if found else "skills add RUN name=NAME"
    return Outcome({"skills": found}, next=following)


def _row(card: SkillCard) -> list[str]:
    scores = ", ".join(f"{task} {value:,.0f}" for task, value in card.scores.items())
    parents = ", ".join(f"{p.coefficient:.2g} {p.skill}" for p in card.parents)
    when = f"{datetime.fromtimestamp(card.created):%Y-%m-%d %H:%M}" if card.created else ""  # a stream has no clock
    return [card.name, card.learner, str(max(card.ranks.values(), default=0)), scores, parents, when]


def run_show(call: Call, options: BaseOptions) -> Outcome:
    from rich.markup import escape

    from robot_cl.skills import find_skills

    name = call.words[0]
    library = find_skills([name], options.base)
    card, near = library.load(name).card, library.search(name, 3)
    rows = {
        "does": card.description,
        "base": f"{card.header.base[:12]} in {library.folder}",
        "interface": _interface(card),
        "normaliser": card.header.normalizer[:12],
        "learner": f"{card.learner}, seed {card.seed}" if card.learner else "",
        "data": ", ".join(f"{data} (sha256 {digest[:12]})" for data, digest in card.datasets.items()),
        "scores": ", ".join(f"{task} {value:,.1f}" for task, value in card.scores.items()),
        "simulator": card.fingerprint if card.scores else "",
        "parents": ", ".join(f"{p.coefficient:.3g} {p.skill} (content {p.content[:12]})" for p in card.parents),
        "ranks": ", ".join(f"{layer} {rank}" for layer, rank in card.ranks.items()),
        "content": card.content[:12],
        "nearest": ", ".join(f"{other} ({100 * distance:.0f} % apart)" for other, distance in near),
        "versions": f"{len(library.store.versions(name))} earlier",
        "licence": card.licence,
    }
    table = call.table(card.name, "")
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    call.console.print(table)
    data = {"skill": told(library, card), "near": [list(pair) for pair in near]}
    return Outcome(data, next=f"compose skills=[{name}] data=NAME")


def _interface(card: SkillCard) -> str:
    widths = {side: len(card.interface.get(side, ())) for side in ("obs", "action")}
    if not any(widths.values()):
        return f"channels not named ({card.header.interface[:12]})"
    period = f", every {1000 * card.control_dt:g} ms" if card.control_dt else ""
    return f"{widths['obs']} observations → {widths['action']} actions{period} ({card.header.interface[:12]})"


@dataclass
class SearchOptions:
    """Options of `skills search`."""

    like: str | None = None  # a skill: find those that do most nearly the same, instead of words on the cards
    count: int = 10  # how many to show
    base: str | None = None  # start of the base's digest, or a run with that base; none: all libraries


def run_search(call: Call, options: SearchOptions) -> Outcome:
    from robot_cl.skills import find_skills, open_libraries

    found: list[dict[str, Any]] = []
    if options.like:
        library = find_skills([options.like], options.base)
        for name, distance in library.search(options.like, options.count):
            found.append({"name": name, "library": str(library.folder), "distance": distance})
    elif not call.words:
        raise ValueError('say what to look for: robot-cl skills search "low gravity", or like=SKILL')
    else:
        for library in open_libraries(options.base):
            names = library.search_text(" ".join(call.words), options.count)
            found += [{"name": name, "library": str(library.folder), "distance": None} for name in names]
    table = call.table("skill", "base", "apart ")
    for entry in found:
        apart = "" if entry["distance"] is None else f"{100 * entry['distance']:.0f} %"
        table.add_row(entry["name"], Path(entry["library"]).name, apart)
    call.console.print(table) if found else call.say("nothing found")
    return Outcome({"found": found}, next=f"skills show {found[0]['name']}" if found else "skills list")


def run_check(call: Call, options: BaseOptions) -> Outcome:
    """Everything is read and verified; exit code 1 if something cannot be trusted."""
    from robot_cl.skills import check_library, open_libraries

    problems, count = [], 0
    for library in open_libraries(options.base):
        problems += check_library(library)
        count += len(library)
    for problem in problems:
        call.say(f"✗ {problem}")
    if not problems:
        call.say(f"✓ {count} skills: weights, digests, cards and bases agree")
    return Outcome({"skills": count, "problems": problems}, next="skills list", code=1 if problems else 0)


def run_remove(call: Call, options: BaseOptions) -> Outcome:
    from robot_cl.skills import find_skills

    name = call.words[0]
    library = find_skills([name], options.base)
    children = [n for n in library.names() if name in {p.skill for p in library.card(n).parents}]
    library.remove(name)
    call.say(f"removed {name} from base {library.folder.name}; every other skill is unchanged")
    if children:
        call.say(f"  {', '.join(children)} came from it, holds it whole, and goes on acting as before")
    return Outcome({"removed": name, "library": str(library.folder)}, wrote=library.folder,
                   next=f"skills rollback {name}")  # fmt: skip


def run_rollback(call: Call, options: BaseOptions) -> Outcome:
    from robot_cl.skills import find_history

    name = call.words[0]
    library = find_history(name, options.base)
    card = library.rollback(name)
    call.say(f"{name} is what it was before: content {card.content[:12]}")
    return Outcome({"skill": told(library, card)}, wrote=library.path(name).parent, next=f"skills show {name}")


def run_log(call: Call, options: BaseOptions) -> Outcome:
    from robot_cl.skills import open_libraries

    entries: list[dict[str, Any]] = []
    for library in open_libraries(options.base):
        table = call.table("when", "what", "skill", "content")
        for entry in library.store.journal.entries():
            if entry["op"] == "begin":
                continue
            entries.append(entry | {"library": str(library.folder)})
            done = entry["do"] if entry["op"] == "done" else f"{entry['do']} undone"
            when = f"{datetime.fromtimestamp(entry['at']):%Y-%m-%d %H:%M:%S}"
            table.add_row(when, done, entry["skill"], str(entry.get("content", ""))[:12])
        call.say(f"base {library.folder.name}")
        call.console.print(table)
    return Outcome({"journal": entries}, next="skills list")


ADD = Verb(
    run=run_add,
    usage="RUN name=NAME [key=value ...]",
    about="Take the skill out of a run that was trained with trainable=adapter, and keep it in the library of\n"
    "its base, which is made if need be. The card says base, interface, data, seed, learner, scores and simulator. A\n"
    "copy of a skill that is there already is refused, one that does nearly the same is announced.",
    examples=(
        "robot-cl skills add last --name hop-low-gravity",
        "robot-cl skills add runs/2026-01-31-ppo-hopper name=hop description='hops at 0.6 g' member=2",
    ),
    options=lambda: AddOptions,
    words=(1, 1),
)
LIST = Verb(
    run=run_list,
    usage="[base=BASE]",
    about="The skills under ./library, or under $ROBOT_CL_LIBRARY if that is set, by base.",
    examples=("robot-cl skills list", "robot-cl skills list base=3fa2c1 --json"),
    options=lambda: BaseOptions,
)
SHOW = Verb(
    run=run_show,
    usage="NAME [base=BASE]",
    about="A skill's card, verified against its weights: what it fits, where it comes from, its scores, what is near.",
    examples=("robot-cl skills show hop-low-gravity",),
    options=lambda: BaseOptions,
    words=(1, 1),
)
SEARCH = Verb(
    run=run_search,
    usage='"WORDS" | like=NAME [key=value ...]',
    about="Skills whose cards hold the words, or those that do most nearly the same as a skill, whatever factors they\n"
    "are written in.",
    examples=('robot-cl skills search "low gravity"', "robot-cl skills search like=hop-low-gravity"),
    options=lambda: SearchOptions,
    words=(0, 8),
)
CHECK = Verb(
    run=run_check,
    usage="[base=BASE]",
    about="Read every skill and every base, verify all digests, and name what cannot be trusted (exit code 1).",
    examples=("robot-cl skills check", "robot-cl skills check base=3fa2c1"),
    options=lambda: BaseOptions,
)
REMOVE = Verb(
    run=run_remove,
    usage="NAME [base=BASE]",
    about="Take a skill out of the library. It stays in the history, and rollback brings it back.",
    examples=("robot-cl skills remove hop-low-gravity",),
    options=lambda: BaseOptions,
    words=(1, 1),
)
ROLLBACK = Verb(
    run=run_rollback,
    usage="NAME [base=BASE]",
    about="Bring back the version before the present one, or before the removal, as a new version.",
    examples=("robot-cl skills rollback hop-low-gravity",),
    options=lambda: BaseOptions,
    words=(1, 1),
)
LOG = Verb(
    run=run_log,
    usage="[base=BASE]",
    about="The journal: what was published, removed and brought back, and when.",
    examples=("robot-cl skills log",),
    options=lambda: BaseOptions,
)
