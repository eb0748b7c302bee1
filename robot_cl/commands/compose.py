"""robot-cl compose"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb

if TYPE_CHECKING:
    from robot_cl.compose import Choice
    from robot_cl.compose_run import ComposeOptions


def run(call: Call, options: ComposeOptions) -> Outcome:
    from robot_cl.commands.train import shown
    from robot_cl.compose_run import compose

    with call.progress("composing") as bar:
        done = compose(options, bar)
    show(call, done.choice)
    if done.published is not None:
        call.say(f"published as skill {done.published.card.name}")
        for other, distance in done.published.near:
            call.mark(f"[yellow]•[/] {other} does nearly the same: {100 * distance:.1f} % apart")
    if done.refusal:
        call.say(f"not published: {done.refusal}")
    folder = shown(Path(done.folder))
    shift = f" shift={options.shift}" if options.shift else ""
    skill = done.published.card.name if done.published else None
    data = plain(done.choice) | {"skill": skill, "not_published": done.refusal}
    return Outcome(data, wrote=folder, next=f"evaluate {typed(folder)}{shift}", code=1 if done.refusal else 0)


def show(call: Call, choice: Choice) -> None:
    """The routes with what they reached, the skills' worth, and the reason."""
    from rich.markup import escape

    played = any(judged.returns for judged in choice.judged)
    columns = ["route", "made of", "held-out loss ", "of a fresh adapter's "]
    table = call.table(*columns, *(["mean return "] if played else []))
    for judged in choice.judged:
        mark = "[bold]" if judged is choice.chosen else ""
        row = [f"{mark}{judged.name.replace('_', '-')}", escape(judged.route.said), f"{judged.loss:.4g}"]
        row += [f"{judged.relative:.2f} ×", *([f"{judged.mean_return:,.1f}"] if played else [])]
        table.add_row(*row)
    call.console.print(table)
    for name, reason in choice.refused.items():
        call.say(f"  {name.replace('_', '-')} is not possible: {reason}")
    whole = next((judged.loss for judged in choice.judged if judged.name == "composition"), math.nan)
    if choice.left_out:
        parts = [f"without {name} {loss:.4g}" for name, loss in choice.left_out.items()]
        call.say(f"loss of the composition: {whole:.4g}; {', '.join(parts)}")
    call.say(choice.why)


def plain(choice: Choice) -> dict[str, Any]:
    routes = [judged.to_dict() for judged in choice.judged]
    facts = {key: value for key, value in vars(choice).items() if key not in ("judged", "chosen")}
    return {"chosen": choice.chosen.name, "routes": routes, **facts}


def _options() -> type:
    from robot_cl.compose_run import ComposeOptions

    return ComposeOptions


COMPOSE = Verb(
    run=run,
    usage="data=NAME [skills=[A,B]] [composer=psec] [demos=10] [key=value ...]",
    about="Reach a new task from a few demonstrations with the skills there are. Five routes are fitted: a skill as\n"
    "it is (zero-shot), a composition under a trained composer, a new adapter on top of the best composition\n"
    "(residual), the same only near what was demonstrated (guarded), a new adapter on the base (fresh).\n"
    "Demonstrations that were kept aside decide, or episodes=N roll-outs of each, and the reason is said. The result\n"
    "is a run: evaluate, report and export read it.",
    examples=(
        "robot-cl compose data=hopper/hop-demos-v0 skills=[stand,walk] demos=10",
        "robot-cl compose data=hopper/hop-demos-v0 composer=atlas demos=3 episodes=5",
        "robot-cl compose data=hopper/hop-demos-v0 skills=[a,b] level=noise publish=hop-new",
        "robot-cl compose data=hopper/hop-demos-v0 composer=ibcl preference=[0.7,0.3] routes=[composition]",
    ),
    options=_options,
)
