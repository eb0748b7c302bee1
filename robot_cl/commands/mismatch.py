"""robot-cl mismatch"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from robot_cl.batch import Transitions
    from robot_cl.mismatch import Study


@dataclass
class MismatchOptions:
    """Options of `mismatch`."""

    task: str | None = None  # the true world; none: the data's
    widths: tuple[int, ...] = (32, 128)  # capacities: units in each of two hidden layers
    steps: tuple[int, ...] = (200, 800, 3200)  # lengths of training, in gradient steps
    losses: tuple[str, ...] = ("nll", "normalised_mse", "vagram")  # also mse and value_difference
    rows: int = 50_000  # transitions of each slice that are trained on, at most
    discount: float = 0.99  # per control step
    episodes: int = 4  # of the planner in the true world, per model
    length: int = 150  # control steps of an episode, at most
    samples: int = 96  # plans the planner draws per control step
    horizon: int = 8  # control steps it looks ahead
    policy: str | None = None  # run, checkpoint or behaviour that proposes plans; none: a run's, or the data's, cloned
    attack: int = 4  # generations of the attack on a model's last weights, 0: none
    seed: int = 0  # of first weights, batches, planner and bootstrap
    name: str | None = None  # of the folder after its date; none: that of the data
    out: str | None = None  # folder for the folder; none: runs


@dataclass(frozen=True)
class Source:
    """One word of the command line: experience, the task it comes from, and what acted in it, if that is known."""

    name: str
    data: Transitions
    task: str | None
    policy: Path | None


def run(call: Call, options: MismatchOptions) -> Outcome:
    from robot_cl.mismatch import Bench, run_study
    from robot_cl.mismatch_page import headline, write_study
    from robot_cl.paths import new_run_folder, runs_root

    sources = [find_source(word) for word in call.words]
    task = the_task(sources, options.task)
    config = study_config(options)
    with call.working("reading the data and its values"):
        bench = Bench({s.name: s.data for s in sources}, task, config, the_policy(sources, options.policy))
    with call.progress("training and trying models") as bar:
        study = run_study(bench, bar)
    label = options.name or "mismatch-" + "-".join(s.name for s in sources).replace("/", "-")[:60]
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), label)
    about = {"label": ", ".join(s.name for s in sources), "facts": facts(sources, task, options)}
    write_study(folder, study, about)
    show(call, study)
    call.say(headline(study))
    return Outcome(data_of(study), wrote=folder, next=following(study, sources, task))


def find_source(word: str) -> Source:
    """A dataset, or a run: what it learned from, else what it lived through. Raises LookupError, ValueError."""
    from robot_cl.commands.runs import find_run
    from robot_cl.data.store import find_dataset, list_datasets

    if word in list_datasets() or (Path(word) / "meta.json").exists():
        found = find_dataset(word)
        return Source(found.name, found.transitions(), found.meta.task, None)
    try:
        folder = find_run(word)
    except LookupError as problem:
        known = ", ".join(list(list_datasets())[:8])
        raise LookupError(f"{problem}; nor is {word!r} a dataset{f': {known}' if known else ''}") from None
    return of_run(folder)


def of_run(folder: Path) -> Source:
    from robot_cl.data.store import open_dataset
    from robot_cl.plain_files import read_json
    from robot_cl.replay_files import lived
    from robot_cl.run_config import read_config
    from sim.spec import Interface

    config, _ = read_config(folder)
    if config.data:
        found = open_dataset(config.data)
        return Source(folder.name, found.transitions(), config.task or found.meta.task, folder)
    interface = Interface.from_dict(read_json(folder / "interface.json"))
    experience = lived(folder, interface.obs_dim, interface.act_dim, config.num_worlds or 1)
    if experience is None:
        raise LookupError(f"{folder} has neither a dataset nor a replay buffer; name a dataset, or a run of mbpo")
    return Source(folder.name, experience, config.task, folder)


def the_task(sources: list[Source], wanted: str | None) -> str:
    tasks = {s.task for s in sources if s.task}
    if wanted is None and len(tasks) > 1:
        raise ValueError(f"the data come from {', '.join(sorted(tasks))}; say which is the true world with task=NAME")
    task = wanted or next(iter(tasks), None)
    if task is None:
        raise ValueError("the data do not say which task they come from; give task=NAME")
    return task


def the_policy(sources: list[Source], named: str | None) -> Callable[[Any], Any] | None:
    """Raw observations (rows, obs_dim) -> actions, as tensors; None if there is no policy but the data's."""
    from robot_cl.checkpoint import load_policy

    where = named or next((str(s.policy) for s in sources if s.policy), None)
    if where is None:
        return None
    from robot_cl.commands.runs import find_source as find_policy

    policy = load_policy(find_policy(where)[0])

    def act(obs: Any) -> Any:
        import torch

        return torch.as_tensor(policy.act(obs.numpy()))

    return act


def study_config(options: MismatchOptions) -> Any:
    from dataclasses import fields

    from dynamics.planner import PlannerConfig
    from robot_cl.mismatch import StudyConfig

    planner = PlannerConfig(samples=options.samples, horizon=options.horizon, policy_share=0.5)
    shared = {f.name: getattr(options, f.name) for f in fields(StudyConfig) if f.name != "planner"}
    return StudyConfig(planner=planner, **shared)


def show(call: Call, study: Study) -> None:
    from robot_cl.mismatch_page import table_row

    table = call.table("models", "metric", "Spearman [95 %] ", "Pearson [95 %] ", "return lost by choosing by it ")
    for c in study.correlations:
        row = table_row(c)
        mark = "  best" if study.best.get(c.slice) == c.metric else ""
        table.add_row(c.slice, row["metric"] + mark, row["spearman"], row["pearson"], row["regret"])
    call.console.print(table)
    lost = sum(row["return_lost"] for row in study.epochs) / len(study.epochs)
    call.say(f"stopping at the best likelihood instead of the best return costs {lost:,.1f} of return on average")
    call.say(f"the planner expects {study.exploitation:,.1f} more of its plans than they earn")
    if study.attack is not None:
        a = study.attack
        change = f"{a.before:,.1f} → {a.after:,.1f}, nll {a.nll_before:.3g} → {a.nll_after:.3g}"
        call.say(f"an attack on the last weights of the likeliest model: return {change}")


def data_of(study: Study) -> dict[str, Any]:
    from robot_cl.mismatch_page import plain

    return plain(study)


def following(study: Study, sources: list[Source], task: str) -> str:
    """Train with the loss whose models earned most."""
    by_loss: dict[str, list[float]] = {}
    for m in study.members:
        by_loss.setdefault(m.loss, []).append(m.ret)
    best = max(by_loss, key=lambda loss: sum(by_loss[loss]) / len(by_loss[loss]))
    data = next((f"data={s.name}" for s in sources if s.policy is None), "online_steps=50000")
    return f"train learner=mbpo learner.model.loss={best} {data} task={task}"


def facts(sources: list[Source], task: str, options: MismatchOptions) -> list[tuple[str, str]]:
    from robot_cl.provenance import simulator_fingerprint

    listed = [(s.name, f"{len(s.data):,} transitions") for s in sources]
    shown = ("widths", "steps", "losses", "episodes", "length", "samples", "horizon", "discount", "policy", "seed")
    values = [(name, getattr(options, name)) for name in shown]
    texts = [(name, ", ".join(map(str, v)) if isinstance(v, tuple) else str(v)) for name, v in values]
    return [*listed, ("true world", task), ("simulator", simulator_fingerprint(task)), *texts]


MISMATCH = Verb(
    run=run,
    usage="DATASET|RUN [DATASET|RUN ...] [key=value ...]",
    about="Does a better model mean a better policy? Train a population of dynamics models (capacity × length of\n"
    "training × loss × data), let a planner use each of them in the true world, and print how well every error ranks\n"
    "them by return: Pearson and Spearman with bootstrap 95 % intervals. Also: what a likelihood-keeping attack on\n"
    "the last weights destroys, how much more the planner expects than it gets, and what stopping at the best\n"
    "likelihood costs. Several datasets are slices of the population; one is split into all and poor episodes.\n"
    "Writes CSV, JSON, plots and a page.",
    examples=(
        "robot-cl mismatch hopper/medium-v0",
        "robot-cl mismatch hopper/low-v0 hopper/expert-v0 losses=[nll,vagram,mse] steps=[500,5000]",
        "robot-cl mismatch last policy=hopper-medium attack=10",
        "robot-cl mismatch hopper/medium-v0 widths=[16,64,256] --json",
    ),
    options=lambda: MismatchOptions,
    words=(1, 6),
)
