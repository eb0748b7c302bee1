"""From a library and demonstrations on disk to a run folder: what `robot-cl compose` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from policies.actor import ActorPolicy
from policies.card import Parent, SkillCard
from policies.composed import ComposedActor
from policies.hashing import output_hash
from policies.library import Library, Published
from policies.policy import Policy
from robot_cl.compose import Choice, Play, Progress, choose
from robot_cl.composition_files import FILE, write_route, write_run
from robot_cl.data.atomic import write_json
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.demonstrations import Demonstrations, Pick
from robot_cl.paths import new_run_folder, runs_root
from robot_cl.provenance import provenance
from robot_cl.routes import ROUTES, Known, Route, RouteSettings, whole
from robot_cl.run_config import plain
from robot_cl.skills import base_policy, find_base, find_skills

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
    routes: Any = None  # of zero_shot, composition, residual, guarded, fresh; none: all
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
    """The run folder, what was chosen and why, and the skill it was published as, if that was asked for; else
    `refusal` says why it was not."""

    folder: Path
    choice: Choice
    published: Published | None
    refusal: str = ""


@dataclass(frozen=True)
class Job:
    """What the options name: the library and base, its skills, the demonstrations, and the task."""

    options: ComposeOptions
    library: Library
    base: ActorPolicy
    known: Known
    dataset: StoredDataset
    demos: Demonstrations
    task: str


def compose(options: ComposeOptions, progress: Progress | None = None) -> Composed:
    """Raises ValueError, LookupError or OSError in one sentence, before anything is written; what cannot be published
    is kept as a run all the same."""
    job = read(options)
    routes = tuple(as_list(options.routes) or ROUTES)
    if set(routes) - set(ROUTES):
        raise LookupError(f"no route {sorted(set(routes) - set(ROUTES))[0]!r}; routes: {', '.join(ROUTES)}")
    choice = choose(
        job.known,
        job.demos,
        options.settings(),
        held_out=options.held_out,
        tolerance=options.tolerance,
        refit=options.refit,
        play=player(job.task, options) if options.episodes else None,
        routes=routes,
        wrap=lambda route: route.policy(job.base.interface, job.task),
        progress=progress,
    )
    folder = write(job, choice)
    try:
        return Composed(folder, choice, publish(job, choice.chosen.route) if options.publish else None)
    except ValueError as problem:
        return Composed(folder, choice, None, str(problem))


def read(options: ComposeOptions) -> Job:
    library, names = find_library(options)
    base, dataset = base_policy(library), open_dataset(options.data)
    widths = (dataset.meta.obs_dim, dataset.meta.act_dim)
    if widths != (base.obs_dim, base.act_dim):
        raise ValueError(
            f"dataset {dataset.name} has {widths[0]} observations and {widths[1]} actions, base {library.folder.name} "
            f"reads {base.obs_dim} and gives {base.act_dim}; demonstrations must come from the base's own robot"
        )
    task = options.task or dataset.meta.task or base.task
    if not task:
        raise ValueError(f"neither {dataset.name} nor base {library.folder.name} says its task; add task=NAME")
    known = what_is_known(library, names, base.actor, options.preference)
    demos = Demonstrations.of(dataset, options.demos, options.pick)
    return Job(options, library, base, known, dataset, demos, str(task))


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


def player(task: str, options: ComposeOptions) -> Play:
    from robot_cl.evaluate import evaluate

    def play(policy: Policy) -> np.ndarray:
        return np.array(evaluate(policy, task, options.episodes, CHOICE_SEED, options.shift).returns)

    return play


def publish(job: Job, route: Route) -> Published:
    """The chosen route as a skill. Raises ValueError where it cannot be one."""
    adapter, name = whole(route, job.known.skills), str(job.options.publish)
    if adapter is None:
        level = getattr(route.module, "level", "parameter")
        why = "weighs its skills by the observation" if level == "parameter" else f"mixes at the level of {level}s"
        why = why if route.weights is None else "is the bare base"
        raise ValueError(f"the chosen {route.name} {why} and is no skill of its own; leave out publish=")
    weights = {skill: weight for skill, weight in (route.weights or {}).items() if weight}
    card = SkillCard(
        name,
        description=f"{route.name}: {route.said}",
        learner="compose",
        seed=job.options.seed,
        interface=job.base.interface.to_dict(),
        control_dt=job.base.interface.control_dt,
        datasets={job.dataset.meta.id: job.dataset.meta.hash},
        parents=tuple(Parent(skill, job.library.card(skill).content, weight) for skill, weight in weights.items()),
    )
    return job.library.publish(name, adapter.with_header(job.library.header), card)


def write(job: Job, choice: Choice) -> Path:
    """The run folder: provenance, what was chosen and why, and the policy."""
    options, route = job.options, choice.chosen.route
    record = provenance(job.task, job.dataset, options.seed, torch.get_num_threads(), "cpu")
    config = plain(options) | {"task": job.task, "learner": {"name": "compose"}}
    label = options.name or f"compose-{job.task}".replace("/", "-")
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), label)
    card = {
        "step": 0,
        "task": job.task,
        "shift": options.shift,
        "data": options.data,
        "learner": "compose",
        "interface": job.base.interface.to_dict(),
        "label": f"{route.name.replace('_', '-')}: {route.said}",
    }
    write_json(folder / FILE, told(job, choice))
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_run(folder, job.base.interface, record, text, lambda inside: write_route(inside, route, job.known, card))
    return folder


def told(job: Job, choice: Choice) -> dict[str, Any]:
    """composition.json: plain data about the choice, for people and for the report."""
    route = choice.chosen.route
    return {
        "chosen": route.name,
        "made_of": route.said,
        "why": choice.why,
        "measure": choice.measure,
        "routes": [judged.to_dict() for judged in choice.judged],
        "refused": choice.refused,
        "left_out": choice.left_out,
        "coefficients": coefficients(route, job.demos),
        "library": str(job.library.folder),
        "base": job.library.header.base,
        "skills": {name: job.library.card(name).content for name in job.known.skills},
        "demonstrations": {"data": job.dataset.meta.id, "episodes": job.demos.episodes, "steps": len(job.demos)},
        "outputs": output_hash(route.policy().act, job.demos.obs[:64].numpy()),
        "composer": asdict(job.options.settings()),
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
