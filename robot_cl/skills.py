"""Skills between runs and the library: what a run has learned goes in, and comes back out as a policy.

A library folder belongs to one base and holds it in .base/, a checkpoint like any other, so that skills can be used
without the run that the base came from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.nn.utils import parameters_to_vector

from policies.actor import ActorPolicy, StackedGaussianActor
from policies.adapter import Adapter, Header, linear_combination
from policies.card import SkillCard
from policies.composers.preference import posterior
from policies.library import Library, Published
from policies.library_base import bases
from policies.lora import base_digest, layer_shapes, merge_into
from robot_cl.checkpoint import checkpoint_folder, load_actor, load_adapted, load_policy, read_card, write_policy
from robot_cl.data.atomic import whole_folder
from robot_cl.paths import library_root
from sim.spec import Interface

BASE_FOLDER = ".base"


@dataclass(frozen=True)
class RunSkill:
    """A skill as a run has left it: the adapter, what is known about it, and the frozen base below it.

    `parents` {skill: coefficient} is the composition the base was made of, where it is not a base of its own; `below`
    is then the digest of the base that the parents belong to.
    """

    adapter: Adapter
    card: SkillCard
    base: StackedGaussianActor
    interface: Interface
    task: str | None
    parents: Mapping[str, float]
    below: str


def run_skill(run: Path | str, member: int = 0) -> RunSkill:
    """The skill that a run with trainable=adapter (or one of its checkpoints) has trained, with its card filled in.

    Raises LookupError for a run that trained no adapter, ValueError, OSError.
    """
    from robot_cl.skill_cards import card_of_run, composition_below

    folder = checkpoint_folder(run)
    base, adapter = load_adapted(folder, member)
    said = read_card(folder)
    interface = Interface.from_dict(said["interface"])
    header = Header(adapter.header.base, interface.digest, adapter.header.normalizer)
    below, parents = composition_below(folder, member)
    card = card_of_run(folder, member).filled(interface=interface.to_dict(), control_dt=interface.control_dt)
    return RunSkill(adapter.with_header(header), card, base, interface, said.get("task"), parents, below)


def add_run(
    run: Path | str,
    name: str,
    root: Path | None = None,
    member: int = 0,
    description: str = "",
    overwrite: bool = False,
) -> tuple[Library, Published]:
    """Publish the skill of a run in the library of its base, which is made if need be.

    A skill trained on top of a merged composition is stored whole, with that composition as its parents.
    Raises ValueError for a copy of a skill already there, a taken name, a mismatch, or a composition whose skills have
    been replaced since; LookupError, OSError.
    """
    skill = run_skill(run, member)
    card = skill.card.filled(name=name, description=description)
    if skill.parents:
        library = find_base(skill.below, root)
        return library, library.publish(name, residual_of(skill, library), card, overwrite, skill.parents)
    library = library_of(skill.base, skill.interface, skill.task, root)
    card = card.filled(spread=_spread(checkpoint_folder(run), library))
    return library, library.publish(name, skill.adapter, card, overwrite)


def residual_of(skill: RunSkill, library: Library) -> Adapter:
    """The adapter of a skill that was trained on top of others, as `Library.publish` takes it with `parents`.

    Raises ValueError if what it was trained on is not that composition as the library has it now.
    """
    if skill.below != library.header.base:
        raise ValueError(
            f"this skill belongs to base {skill.below[:12]}, the library is of base {library.folder.name}; "
            "name a run on the library's own base"
        )
    bare = base_policy(library).actor
    mixed = with_skills(bare, {name: library.adapter(name) for name in skill.parents}, skill.parents)
    then, now, never = (parameters_to_vector(actor.parameters()).detach() for actor in (skill.base, mixed, bare))
    if (now - then).norm() > 0.01 * (now - never).norm() + 1e-6:  # rounding is a thousand times smaller
        made_of = " + ".join(f"{weight:.3g} {name}" for name, weight in skill.parents.items())
        raise ValueError(
            f"this skill was trained on {made_of}, which the library {library.folder.name} has not as it was then; "
            "bring back the version of that time (robot-cl skills rollback), add this skill, and go on from there"
        )
    return skill.adapter.with_header(replace(skill.adapter.header, base=library.header.base))


def _spread(checkpoint: Path, library: Library) -> float:
    """How far the skill's training seeds lie apart, in units of the sketch; 0 where there is one, or bases differ."""
    members = range(int(read_card(checkpoint)["actor"]["population"]))
    seeds = [load_adapted(checkpoint, member)[1] for member in members]
    if len(seeds) < 2 or any(seed.header.base != library.header.base for seed in seeds):
        return 0.0
    _, std = posterior(seeds, library.sketch)
    return float(std.square().mean().sqrt())


def library_of(
    base: StackedGaussianActor, interface: Interface, task: str | None = None, root: Path | None = None
) -> Library:
    """The library of a base of population 1, with the base's weights in it; made if it is not there yet."""
    header = header_of(base, interface)
    library = Library.create(root or library_root(), header, layer_shapes(base))
    if not (library.folder / BASE_FOLDER).exists():
        card = {"step": 0, "task": task, "interface": interface.to_dict()}
        with suppress(FileExistsError), whole_folder(library.folder, library.folder / BASE_FOLDER) as folder:
            write_policy(folder, base, card)  # another process may have been first: its base is the same one
    return library


def header_of(base: StackedGaussianActor, interface: Interface) -> Header:
    return Header(base_digest(base), interface.digest, base.normalizer.digest)


def find_base(base: str | Path | None = None, root: Path | None = None) -> Library:
    """The library of a base, named by the start of its digest, by its folder, or by a run whose policy it is; None: the
    only one there is. Raises LookupError naming those that exist."""
    folders = bases(root or library_root())
    if base is not None and Path(base).is_dir():
        path = Path(base)
        if (path / "base.json").exists():
            return Library(path)
        base = base_digest(load_actor(checkpoint_folder(path)).member(0))[:12]
    fits = [f for f in folders if base is None or f.name.startswith(str(base)[:12])]
    if len(fits) == 1:
        return Library(fits[0])
    there = ", ".join(f.name for f in folders) or "none yet; robot-cl skills add RUN makes one"
    said = "several" if base is None and folders else f"{len(fits)}"
    which = "" if base is None else f" of base {str(base)[:12]!r}"
    where = root or library_root()
    raise LookupError(f"there must be one library{which} in {where}, there are {said}; name one: {there}")


def open_libraries(base: str | None = None, root: Path | None = None) -> list[Library]:
    """All libraries, or the one of `base`."""
    return [Library(f) for f in bases(root or library_root())] if base is None else [find_base(base, root)]


def find_history(name: str, base: str | None = None, root: Path | None = None) -> Library:
    """The library that has, or had, a skill. Raises LookupError if none or several do."""
    holding = [library for library in open_libraries(base, root) if library.store.versions(name)]
    if len(holding) == 1:
        return holding[0]
    if not holding:
        raise LookupError(f"there is no earlier version of {name!r}; what has versions is in: robot-cl skills log")
    there = ", ".join(library.folder.name for library in holding)
    raise LookupError(f"several libraries have an earlier version of {name!r}; add base= one of {there}")


def find_skills(names: list[str], base: str | None = None, root: Path | None = None) -> Library:
    """The library that holds all these skills. Raises LookupError if none or several do, ValueError for no names."""
    if not names:
        raise ValueError("no skills were named; write skills=[a,b]")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"skill {twice[0]!r} is named twice; name it once, with a larger weight to count more")
    if base is not None:
        library = find_base(base, root)
        for name in names:
            library.card(name)
        return library
    libraries = open_libraries(None, root)
    holding = [library for library in libraries if set(names) <= set(library.names())]
    if len(holding) == 1:
        return holding[0]
    if holding:
        there = ", ".join(library.folder.name for library in holding)
        raise LookupError(f"{', '.join(names)} is in {len(holding)} libraries; add base= one of {there}")
    raise _missing(names, libraries, root or library_root())


def _missing(names: list[str], libraries: list[Library], root: Path) -> LookupError:
    from robot_cl.data.naming import not_found

    known = {name: library for library in libraries for name in library.names()}
    damaged = {name: why for library in libraries for name, why in library.damaged.items()}
    for name in names:
        if name not in known and name in damaged:
            return LookupError(f"skill {name!r} is damaged: {damaged[name]}")
        if name not in known:
            return not_found("skill", name, known, "" if known else "robot-cl skills add RUN makes the first one")
    where = ", ".join(f"{name} on base {known[name].folder.name}" for name in names)
    return LookupError(f"these skills in {root} do not share a base: {where}; rebase one of them first")


def base_policy(library: Library) -> ActorPolicy:
    """The base of a library, verified. Raises LookupError if its weights are not there, ValueError if it is another."""
    folder = library.folder / BASE_FOLDER
    if not folder.exists():
        raise LookupError(f"{library.folder} does not hold its base's weights; add a skill of a run on it once more")
    policy: Any = load_policy(folder)
    clause = header_of(policy.actor, policy.interface).mismatch(library.header)
    if clause:
        raise ValueError(f"{folder} is not the base of its library: {clause}; restore it from a copy")
    policy.name = f"base {library.folder.name}"
    return policy


def check_library(library: Library) -> list[str]:
    """One sentence per skill, and about the base, that cannot be trusted. Empty: all is well."""
    problems = library.check()
    try:
        base_policy(library)
    except (LookupError, ValueError, OSError) as problem:
        problems.append(str(problem))
    return problems


def skill_policy(library: Library, weights: Mapping[str, float]) -> ActorPolicy:
    """The base with skills added at constant coefficients {skill: coefficient}: exact, and as fast as the base."""
    policy = base_policy(library)
    policy.actor = with_skills(policy.actor, {n: library.adapter(n) for n in weights}, weights)
    policy.name = " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in weights.items()) or policy.name
    return policy


def with_skills(
    base: StackedGaussianActor, skills: Mapping[str, Adapter], weights: Mapping[str, float]
) -> StackedGaussianActor:
    """A copy of the base whose weights hold Σ coefficient · ΔW: what a residual skill is trained on."""
    used = [name for name, weight in weights.items() if weight]
    merged = copy.deepcopy(base)
    if used:
        merge_into(merged, linear_combination([skills[n] for n in used], [weights[n] for n in used]))
    return merged
