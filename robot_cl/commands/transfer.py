"""robot-cl transfer"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb
from robot_cl.compose_run import ComposeOptions, as_list


@dataclass
class TransferOptions(ComposeOptions):
    """Options of `transfer`; those that choose between routes are not used."""

    episodes: int = 10  # roll-outs of each row and draw, from the same starts
    draws: int = 3  # disjoint draws of the demonstrations, each row fitted to each
    counts: Any = None  # numbers of demonstrations for the curve, such as [1,3,10]; none: only demos
    rows: Any = None  # rows of the table; none: all eight and the residual
    interventions: bool = True  # the four controls as well
    expert: float | None = None  # return that counts as 1; none: the mean of the demonstrations
    tasks: Any = None  # for the matrix: tasks (TASK or TASK:SHIFT) on which the base and every skill are played

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.episodes < 2:
            raise ValueError(f"draws={self.draws} and episodes={self.episodes}; expected at least 1 and 2")


def run(call: Call, options: TransferOptions) -> Outcome:
    import yaml

    from robot_cl import transfer
    from robot_cl.compose_run import read
    from robot_cl.data.atomic import write_json
    from robot_cl.paths import new_run_folder, runs_root
    from robot_cl.provenance import provenance
    from robot_cl.run_config import plain

    options.demos *= options.draws
    job = read(options)
    options.demos //= options.draws
    draws = divided(job.demos, options.draws)
    expert = options.expert or expert_return(job, options)
    names = [*(as_list(options.rows) or transfer.ROWS), *(transfer.INTERVENTIONS if options.interventions else ())]
    play = player(job, options)
    with call.progress("fitting and playing") as bar:
        rows = transfer.table(job.known, draws, options.settings(), play, expert, names, bar)
        curves = learning(job, draws, options, play, expert, bar)
        left = transfer.leave_one_out(job.known, draws[0], options.settings(), play)
        matrix = crossed(job, options)
    cards = {name: job.library.card(name) for name in job.known.skills}
    said = transfer.coverage(options.shift, transfer.describe_skill_shifts(cards), job.demos, job.base.actor)
    data = {
        "task": job.task, "shift": options.shift, "expert": expert, "rows": [asdict(row) for row in rows],
        "by_demonstrations": curves, "left_out": {name: r.tolist() for name, r in left.items()},
        "matrix": matrix, "coverage": said, "demonstrations": options.demos, "draws": options.draws,
    }  # fmt: skip
    folder = new_run_folder(Path(options.out) if options.out else runs_root(), options.name or f"transfer-{job.task}")
    write_json(folder / "provenance.json", provenance(job.task, job.dataset, options.seed, 1, "cpu"))
    write_json(folder / "transfer.json", data)
    config = {"kind": "transfer", **plain(options), "task": job.task}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    show(call, data)
    return Outcome(json.loads(json.dumps(data)), wrote=folder, next=f"report {folder}")


def divided(demos: Any, draws: int) -> list[Any]:
    """Disjoint sets of whole episodes, equally many each."""
    import torch

    from robot_cl.demonstrations import Demonstrations

    each, found = demos.episodes // draws, []
    for k in range(draws):
        part = demos.where((demos.episode >= k * each) & (demos.episode < (k + 1) * each))
        found.append(Demonstrations(part.obs, part.action, part.episode - torch.tensor(k * each)))
    return found


def expert_return(job: Any, options: TransferOptions) -> float:
    """Mean return of the demonstrations themselves."""
    whole = [e.ret for e in job.dataset.episodes() if e.complete][: options.demos * options.draws]
    return sum(whole) / len(whole)


def player(job: Any, options: TransferOptions) -> Any:
    """Plays a module, always from the same starts."""
    from robot_cl.compose_run import player as plays
    from robot_cl.routes import Route

    play = plays(job.task, options)
    return lambda module: play(Route("row", module, None).policy(job.base.interface, job.task))


def learning(
    job: Any, draws: Sequence[Any], options: TransferOptions, play: Any, expert: float, progress: Any
) -> dict[str, Any]:
    """For α(s), the residual and a fresh adapter: mean return by number of demonstrations, to-80 % and area."""
    from robot_cl import transfer

    counts = sorted({int(c) for c in as_list(options.counts)} | {options.demos})
    if counts[-1] > options.demos or counts[0] < 1:
        raise ValueError(f"counts={counts} reach beyond demos={options.demos}; raise demos")
    found: dict[str, dict[int, float]] = {}
    for count in counts:
        fewer = [d.where(d.episode < count) for d in draws]
        for row in transfer.table(
            job.known, fewer, options.settings(), play, expert, ("learned α(s)", "residual", "fresh adapter"), progress
        ):
            found.setdefault(row.name, {})[count] = row.mean
    return {
        name: {
            "mean": {str(c): m for c, m in means.items()},
            "to_80": (lambda n: None if n == float("inf") else n)(transfer.demonstrations_to(means, expert)),
            "area": transfer.area_over_demonstrations(means, expert),
        }
        for name, means in found.items()
    }  # fmt: skip


def crossed(job: Any, options: TransferOptions) -> dict[str, Any]:
    """Mean return and its interval of the base ("") and each skill on each task."""
    import numpy as np

    from policies.actor import ActorPolicy
    from robot_cl import stats, transfer
    from robot_cl.continual.promotion import paired_returns

    tasks = [str(task) for task in as_list(options.tasks)]
    if not tasks:
        return {}

    def play_on(actor: Any, task: str) -> np.ndarray:
        policy: Any = ActorPolicy(actor, 0, job.base.interface, job.task)
        return paired_returns(policy, [task], options.episodes, 500_000)[task]

    found = transfer.cross_matrix(job.known, tasks, play_on)

    def interval(returns: np.ndarray) -> dict[str, float]:
        return asdict(stats.stratified_bootstrap(returns, np.random.default_rng(0), stats.mean))

    return {name: {task: interval(r) for task, r in of.items()} for name, of in found.items()}


def show(call: Call, data: dict[str, Any]) -> None:
    import numpy as np

    from robot_cl.scores import interval_text

    table = call.table("row", "what it is", "demos ", "mean return [95 %] ", "of the expert ")
    for row in data["rows"]:
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        mean = interval_text(row["mean"], row["interval"], 1)
        table.add_row(row["name"], row["what"], str(row["demonstrations"]), mean, share)
    call.console.print(table)
    for name, of in data["by_demonstrations"].items():
        means = ", ".join(f"{count}: {mean:,.1f}" for count, mean in of["mean"].items())
        reached = f"80 % of the expert with {of['to_80']}" if of["to_80"] else "80 % of the expert not reached"
        call.say(f"{name}: return by demonstrations {means}; {reached}; area {of['area']:.2f}")
    whole = np.mean(data["left_out"][""])
    for name, returns in data["left_out"].items():
        if name:
            call.say(f"α(s) without {name}: {np.mean(returns):,.1f} ({np.mean(returns) - whole:+,.1f})")
    for name, of in data["matrix"].items():
        cells = ", ".join(f"{task} {interval_text(i['estimate'], (i['low'], i['high']))}" for task, i in of.items())
        call.say(f"{name or 'base'}: {cells}")
    call.say(f"expert: {data['expert']:,.1f}; {data['draws']} draws of {data['demonstrations']} demonstrations")
    for sentence in data["coverage"]:
        call.say(f"coverage: {sentence}")


TRANSFER = Verb(
    run=run,
    usage="data=NAME [skills=[A,B]] [demos=10] [counts=[1,3,10]] [key=value ...]",
    about="What skills are worth for a new task, measured so that nothing can hide: eight rows from the bare base to\n"
    "a network trained from scratch, on the same demonstrations and updates; four interventions that show where a\n"
    "gain comes from; demonstrations to 80 % of the expert; skills left out one at a time; base and skills on every\n"
    "task named by tasks; and which parts of the claim lie inside what was trained.",
    examples=(
        "robot-cl transfer data=hopper/hop-demos-v0 skills=[stand,walk] demos=10 draws=3 episodes=10",
        "robot-cl transfer data=hopper/hop-demos-v0 counts=[1,3,10] tasks=[hopper,hopper:gravity0.6]",
        "robot-cl transfer data=hopper/hop-demos-v0 interventions=false rows=[base,scratch,residual]",
    ),
    options=lambda: TransferOptions,
)
