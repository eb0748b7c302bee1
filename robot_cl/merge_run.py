"""Several skills of one base as one policy on disk: what `robot-cl merge` does."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from policies.adapter import Adapter, compress, distance
from policies.card import Parent, SkillCard
from policies.library import Library, Published
from policies.lora import base_digest, merge_into
from policies.merging import LINEAR, MERGE
from policies.merging.adapters import merge_adapters, merge_deltas, shares
from robot_cl.checkpoint import write_policy
from robot_cl.compose_run import as_list
from robot_cl.composition_files import write_run
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.provenance import provenance
from robot_cl.run_config import plain
from robot_cl.skills import base_policy, find_skills


@dataclass
class MergeOptions:
    """Options of `merge`."""

    skills: Any = "???"  # skills to merge, such as [a,b,c]
    how: str = "ties"  # average, task_arithmetic, ties, dare, breadcrumbs, doge or concrete
    weights: Any = None  # one number per skill; none: 1 each
    settings: dict[str, float] = field(default_factory=dict)  # of the operator, such as density and scale
    rank: int | None = None  # of the published skill; none: as many as it takes
    seed: int = 0  # of what is dropped at random
    base: str | None = None  # start of the base's digest, or a run; needed where several libraries fit
    publish: str | None = None  # also add the result to the library, as a skill of this name
    name: str | None = None  # of the run folder after its date
    out: str | None = None  # folder for the run folder; none: runs

    def __post_init__(self) -> None:
        if self.how not in MERGE:
            from robot_cl.data.naming import not_found

            raise not_found("merge operator", self.how, MERGE)
        known = settings_of()[self.how]
        strange = sorted(set(self.settings) - set(known))
        if strange:
            raise ValueError(f"{self.how} has no setting {strange[0]!r}; it has {', '.join(known) or 'none'}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected 1 or more, or leave it out for as many as it takes")
        counts = {key: value for key, value in self.settings.items() if isinstance(known[key], int)}
        for key, value in counts.items():
            if value != int(value) or value < 0:
                raise ValueError(f"settings.{key} is {value:g}; expected a count")
        self.settings = {**self.settings, **{key: int(value) for key, value in counts.items()}}


def settings_of() -> dict[str, dict[str, float]]:
    """operator -> {setting: default}, read off the operators themselves."""
    found = {}
    for how, operator in MERGE.items():
        parameters = inspect.signature(operator).parameters.values()
        found[how] = {p.name: p.default for p in parameters if isinstance(p.default, (int, float))}
    return found


@dataclass(frozen=True)
class Merged:
    """The run folder, the weights, how far each skill is from the merge, and what was published."""

    folder: Path
    weights: dict[str, float]
    distances: dict[str, float]
    published: Published | None


def merge(options: MergeOptions) -> Merged:
    """Raises ValueError, LookupError or OSError in one sentence, before anything is written."""
    names = [str(name) for name in as_list(options.skills)]
    library = find_skills(names, options.base)
    base = base_policy(library)
    skills = {name: library.adapter(name) for name in names}
    row = [float(w) for w in as_list(options.weights)] or [1.0] * len(names)
    deltas = merge_deltas(skills, options.how, row, options.seed, **options.settings)
    adapter = merge_adapters(skills, options.how, row, options.seed, options.rank, **options.settings)
    weights = dict(zip(names, row, strict=True))
    record = provenance(base.task, None, options.seed, torch.get_num_threads(), "cpu")
    label = options.name or f"merge-{options.how}"
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), label)
    try:
        published = _publish(library, base, adapter, weights, options) if options.publish else None
    except (ValueError, OSError):
        folder.rmdir()  # nothing is left of a merge that was refused
        raise
    distances = {name: distance(adapter, skill) for name, skill in skills.items()}
    # As it was published: cut to a rank, it is another policy, and what grows on this one names it as its parent.
    actor = merge_into(copy.deepcopy(base.actor), library.adapter(published.card.name) if published else deltas)
    _write(folder, options, library, base, actor, _below(options, skills, weights, library), record)
    return Merged(folder, weights, distances, published)


def _below(
    options: MergeOptions, skills: dict[str, Adapter], weights: dict[str, float], library: Library
) -> dict[str, Any] | None:
    """What a skill trained on top of this policy has as parents: the merged skill, or the skills of a plain sum."""
    if options.publish:
        return {"base": library.header.base, "weights": {options.publish: 1.0}}
    if options.how not in LINEAR:
        return None
    row = torch.tensor(list(weights.values()), dtype=torch.float64)
    parts = shares(skills, options.how, row, **options.settings).tolist()
    return {"base": library.header.base, "weights": dict(zip(weights, parts, strict=True))}


def _publish(
    library: Library, base: Any, adapter: Adapter, weights: dict[str, float], options: MergeOptions
) -> Published:
    parents = tuple(Parent(name, library.card(name).content, weight) for name, weight in weights.items())
    text = f"{options.how} of {', '.join(f'{w:g} {n}' for n, w in weights.items())}"
    card = SkillCard(
        str(options.publish), description=text, learner="merge", seed=options.seed, parents=parents,
        interface=base.interface.to_dict(), control_dt=base.interface.control_dt,
    )  # fmt: skip
    return library.publish(str(options.publish), compress(adapter, options.rank), card)


def _write(
    folder: Path, options: MergeOptions, library: Library, base: Any, actor: Any, below: dict[str, Any] | None,
    record: dict[str, Any],
) -> None:  # fmt: skip
    names = as_list(options.skills)
    card = {
        "step": 0, "task": base.task, "learner": "merge", "interface": base.interface.to_dict(),
        "label": f"{options.how} of {', '.join(names)}",
    } | ({"composition": below} if below else {})  # fmt: skip
    config = plain(options) | {"task": base.task, "data": None, "learner": {"name": "merge"}}
    assert base_digest(base.actor) == library.header.base
    write_run(
        folder, base.interface, record, yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        lambda checkpoint: write_policy(checkpoint, actor, card),
    )  # fmt: skip
