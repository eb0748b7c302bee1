"""From a library and demonstrations on disk to a run folder: what `robot-cl compose` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from policies.composed import ComposedActor
from policies.hashing import output_hash
from policies.library import Library, Published
from policies.policy import Policy
from robot_cl.compose import Choice, Play, Progress, choose
from robot_cl.composition_files import write_route, write_run
from robot_cl.data.atomic import write_json
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.demonstrations import Demonstrations, Pick
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.provenance import provenance
from robot_cl.routes import ROUTES, Known, Route, RouteSettings, whole
from robot_cl.run_config import plain
from robot_cl.skills import base_policy, find_base, find_skills

FILE = "composition.json"
CHOICE_SEED = 500_000  # first episode of the roll-outs that choose: not those that evaluations report


@dataclass
class ComposeOptions(RouteSettings):
    """Options of `compose`."""

    data: str = "???"  # dataset with the demonstrations
    skills: Any = None  # skills to compose, such as [a,b]; none: all of the base
    task: str | None = None  # none: the dataset's
    shift: str | None = None  # a change of the world, for roll-outs
    demos: int = 10  # complete episodes of the dataset to learn from
    pick: Pick = Pick.first  # which episodes: first, or best by return
    episodes: int = 0  # roll-outs of each route that decide between them; 0: the held-out loss decides
    held_out: float = 0.2  # share of the demonstrations that judge and are not learned from
    tolerance: float = 0.05  # a cheaper route may lose this much, as a share of the lowest held-out loss
    refit: bool = True  # fit what was chosen to all demonstrations
    routes: Any = None  # of zero_shot, composition, residual, fresh; none: all of them
    preference: Any = None  # ibcl only: the wanted share of each skill; none: learned from the demonstrations
    base: str | None = None  # start of the base's digest, or a run; needed where several libraries fit
    publish: str | None = None  # also add the result to the library, as a skill of this name
    name: str | None = None  # of the run folder after its date
    out: str | None = None  # folder for the run folder; none: runs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demos < 1 or self.episodes < 0:
            raise ValueError(f"demos={self.demos} and episodes={self.episodes}; expected at least 1 and 0")

    def settings(self) -> RouteSettings:
        return RouteSettings(**{f.name: getattr(self, f.name) for f in fields(RouteSettings)})


@dataclass(frozen=True)
class Composed:
    """The run folder, what was chosen and why, and the skill it was published as, if that was asked for."""

    folder: Path
    choice: Choice
    published: Published | None


def compose(options: ComposeOptions, progress: Progress | None = None) -> Composed:
    """Raises ValueError, LookupError or OSError in one sentence, before anything is written."""
    library, names = find_library(options)
    base, dataset = base_policy(library), open_dataset(options.data)
    task = options.task or dataset.meta.task or base.task
    check_demonstrations(dataset, base, library)
    routes = tuple(as_list(options.routes) or ROUTES)
    if set(routes) - set(ROUTES):
        raise LookupError(f"no route {sorted(set(routes) - set(ROUTES))[0]!r}; routes: {', '.join(ROUTES)}")
    known = what_is_known(library, names, base.actor, options.preference)
    choice = choose(
        known,
        Demonstrations.of(dataset, options.demos, options.pick),
        options.settings(),
        held_out=options.held_out,
        tolerance=options.tolerance,
        refit=options.refit,
        play=player(str(task), options) if options.episodes else None,
        routes=routes,
        wrap=lambda route: route.policy(base.interface, task),
        progress=progress,
    )
    published = None
    if options.publish:
        published = publish(library, choice.chosen.route, known, options, dataset)
    folder = write(options, library, known, choice, dataset, base.interface, task)
    return Composed(folder, choice, published)


def find_library(options: ComposeOptions) -> tuple[Library, list[str]]:
    names = [str(name) for name in as_list(options.skills)]
    if names:
        return find_skills(names, options.base), names
    library = find_base(options.base)
    if not len(library):
        raise ValueError(f"{library.folder} holds no skill yet; robot-cl skills add RUN --name NAME adds one")
    return library, library.names()


def what_is_known(library: Library, names: list[str], base: Any, preference: Any = None) -> Known:
    skills = {name: library.load(name) for name in names}
    shares = None if preference is None else tuple(float(share) for share in as_list(preference))
    if shares is not None and len(shares) != len(names):
        raise ValueError(f"preference has {len(shares)} numbers for {len(names)} skills; give one for each")
    return Known(
        base,
        {name: skill.adapter for name, skill in skills.items()},
        {name: skill.card.spread for name, skill in skills.items()},
        {name: library.sketch(skill.adapter) for name, skill in skills.items()},
        shares,
    )


def check_demonstrations(dataset: StoredDataset, base: Policy, library: Library) -> None:
    widths = (dataset.meta.obs_dim, dataset.meta.act_dim)
    if widths != (base.obs_dim, base.act_dim):
        raise ValueError(
            f"dataset {dataset.name} has {widths[0]} observations and {widths[1]} actions, base {library.folder.name} "
            f"reads {base.obs_dim} and gives {base.act_dim}; demonstrations must come from the base's own robot"
        )


def player(task: str, options: ComposeOptions) -> Play:
    from robot_cl.evaluate import evaluate

    def play(policy: Policy) -> np.ndarray:
        return np.array(evaluate(policy, task, options.episodes, CHOICE_SEED, options.shift).returns)

    return play


def publish(library: Library, route: Route, known: Known, options: ComposeOptions, dataset: StoredDataset) -> Published:
    """The chosen route as a skill. Raises ValueError where it cannot be one."""
    from policies.card import Parent, SkillCard

    adapter = whole(route, known.skills)
    if adapter is None:
        why = "is the bare base" if route.weights is not None else "weighs its skills by the observation"
        raise ValueError(f"the chosen {route.name} {why} and is no skill of its own; leave out publish=")
    parents = tuple(
        Parent(name, library.card(name).content, weight) for name, weight in (route.weights or {}).items() if weight
    )
    card = SkillCard(
        str(options.publish), description=f"{route.name}: {route.said}", learner="compose", seed=options.seed,
        datasets={dataset.meta.id: dataset.meta.hash}, parents=parents,
    )  # fmt: skip
    return library.publish(str(options.publish), adapter.with_header(library.header), card)


def write(
    options: ComposeOptions, library: Library, known: Known, choice: Choice, dataset: StoredDataset, interface: Any,
    task: str | None,
) -> Path:  # fmt: skip
    """The run folder: provenance, what was chosen and why, and the policy."""
    route = choice.chosen.route
    record = provenance(task, dataset, options.seed, torch.get_num_threads(), "cpu")
    config = plain(options) | {"task": task, "learner": {"name": "compose"}}
    label = options.name or f"compose-{task or dataset.name}".replace("/", "-")
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), label)
    card = {
        "step": 0, "task": task, "data": options.data, "learner": "compose", "shift": options.shift, "interface": interface.to_dict(),
        "label": f"{route.name.replace('_', '-')}: {route.said}",
    }  # fmt: skip
    write_json(folder / FILE, told(library, known, choice, dataset, options))
    write_run(
        folder, interface, record, yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        lambda checkpoint: write_route(checkpoint, route, known, card),
    )  # fmt: skip
    return folder


def told(
    library: Library, known: Known, choice: Choice, dataset: StoredDataset, options: ComposeOptions
) -> dict[str, Any]:
    """composition.json: plain data about the choice, for people and for the report."""
    demos = Demonstrations.of(dataset, options.demos, options.pick)
    route = choice.chosen.route
    return {
        "chosen": route.name,
        "made_of": route.said,
        "why": choice.why,
        "measure": choice.measure,
        "routes": [
            {
                "name": j.name,
                "made_of": j.route.said,
                "loss": j.loss,
                "relative": j.relative,
                "returns": list(j.returns),
            }
            for j in choice.judged
        ],
        "refused": choice.refused,
        "left_out": choice.left_out,
        "coefficients": coefficients(route, demos),
        "library": str(library.folder),
        "base": library.header.base,
        "skills": {name: library.card(name).content for name in known.skills},
        "demonstrations": {"data": dataset.meta.id, "episodes": demos.episodes, "steps": len(demos)},
        "outputs": output_hash(route.policy().act, demos.obs[:64].numpy()),
        "composer": asdict(options.settings()),
    }


@torch.no_grad()
def coefficients(route: Route, demos: Demonstrations) -> dict[str, dict[str, float]]:
    """{skill: mean, deviation, smallest, largest coefficient over the demonstrations}, layers averaged."""
    if not isinstance(route.module, ComposedActor):
        return {n: {"mean": w, "std": 0.0, "min": w, "max": w} for n, w in (route.weights or {}).items()}
    found = route.module.coefficients(demos.obs)
    if not isinstance(found, torch.Tensor):  # computed inside each layer
        return {}
    per_skill = found if found.dim() == 2 else found.flatten(2).mean(2)
    stats = zip(route.module.mixture.names, per_skill.T, strict=True)
    return {
        name: {"mean": float(c.mean()), "std": float(c.std(correction=0)), "min": float(c.min()), "max": float(c.max())}
        for name, c in stats
    }


def as_list(value: Any) -> list[Any]:
    """[a, b] as it is, one value as a list of one, None as none."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None or value == "all" else [value]
