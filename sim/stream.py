"""Streams: tasks that arrive one after another, each with a shift of the world and a budget, as data.

What a stream measures (forgetting, transfer) depends on how its tasks relate: they differ enough that one policy does
not serve all, two of them combine earlier ones, or an earlier one returns. Each stream says so in `about`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.shift import parse

MEASURES = ("return", "success")


@dataclass(frozen=True)
class Stage:
    """One task of a stream: `task` (of ours, or of a suite) under `shift`, with `steps` control steps to learn it.

    Scores are scaled so that `untrained` is 0 and `solved` is 1, in the unit of `measure`: the return of an episode,
    or (suites that tell) its success. `action_repeat` control steps are made with each action; `steps` counts actions.
    """

    name: str
    task: str
    steps: int
    shift: str = "none"
    untrained: float = 0.0
    solved: float = 1.0
    measure: str = "return"
    action_repeat: int = 1

    def __post_init__(self) -> None:
        parse(self.shift)
        if self.steps < 1 or self.action_repeat < 1:
            raise ValueError(f"stage {self.name!r}: steps and action_repeat must be at least 1")
        if self.measure not in MEASURES:
            raise ValueError(f"stage {self.name!r}: measure is one of {', '.join(MEASURES)}, got {self.measure!r}")
        if not self.solved > self.untrained:
            raise ValueError(f"stage {self.name!r}: solved ({self.solved:g}) must be above untrained")


@dataclass(frozen=True)
class Stream:
    """Tasks in order. Every method starts from the same base policy, trained on `base` for its `steps`.

    `announced`: whether methods are told when one task ends and the next begins.
    """

    name: str
    about: str
    base: Stage
    stages: tuple[Stage, ...]
    announced: bool = True

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"stream {self.name!r} needs at least one task and different names, got {names}")

    def hidden(self) -> Stream:
        """The same tasks, their borders not announced."""
        return replace(self, announced=False)

    def scaled(self, steps: int | None = None, base_steps: int | None = None, tasks: int | None = None) -> Stream:
        """With `steps` for each task, `base_steps` for the base, only the first `tasks`; None leaves it as it is."""
        stages = self.stages[:tasks]
        if steps is not None:
            stages = tuple(replace(stage, steps=steps) for stage in stages)
        base = self.base if base_steps is None else replace(self.base, steps=base_steps)
        return replace(self, stages=stages, base=base)


def shifts(task: str, steps: int, solved: float, named: Sequence[tuple[str, str]], untrained: float = 0.0) -> tuple:
    """Stages of one task under (name, shift) pairs."""
    return tuple(Stage(name, task, steps, shift, untrained, solved) for name, shift in named)


def walker(name: str, steps: int) -> Stage:
    return Stage(name, f"walker-{name}", steps, solved=1000.0, action_repeat=2)


def meta_world(names: Sequence[str], steps: int = 1_000_000) -> tuple[Stage, ...]:
    """Meta-World tasks, a name ending in " 2" being the second time of the task before the blank."""
    return tuple(Stage(name, f"metaworld/{name.split()[0]}", steps, measure="success") for name in names)


CHEETAH, HOPPING = 150_000, 150_000
# One unit for all of the stream's tasks: with four times the budget PPO alone ends at 6,950 on the quickest of them
# (large thighs, the best of seeds 100 to 102, benchmarks/continual.py --seed 100 --only halfcheetah_shifts/level-2).
RUNNING = 7000.0
HALFCHEETAH_SHIFTS = Stream(
    "halfcheetah_shifts",
    "half-cheetah under gravity, wiring, size, grip with weakness and delay; one combines two earlier, one returns",
    Stage("unchanged", "halfcheetah", 300_000, solved=RUNNING),
    shifts("halfcheetah", CHEETAH, RUNNING, (
        ("low gravity", "gravity0.5"),
        ("back leg reversed", "command.bthigh=-1+command.bshin=-1"),
        ("large thighs", "size.bthigh1.4+size.fthigh1.4"),
        ("slippery, weak and late", "friction0.3+gain0.7+latency1"),
        ("back leg reversed in low gravity", "gravity0.5+command.bthigh=-1+command.bshin=-1"),
        ("low gravity again", "gravity0.5"),
    )),
)  # fmt: skip
WALKER2D_SHIFTS = Stream(
    "walker2d_shifts",
    "the walker of Gymnasium under gravity, grip, size, weakness and delay; one returns",
    Stage("unchanged", "walker2d", 600_000, solved=5000.0),
    shifts("walker2d", HOPPING, 5000.0, (
        ("low gravity", "gravity0.6"),
        ("slippery", "friction0.3"),
        ("large thigh", "size.thigh1.3"),
        ("weak left leg", "gain.thigh_left_joint0.4+gain.leg_left_joint0.4"),
        ("late", "latency1"),
        ("low gravity again", "gravity0.6"),
    )),
)  # fmt: skip
WALKER = Stream(
    "walker",
    "the walker of dm_control stands, walks, runs and walks backward; the last contradicts the two before",
    walker("stand", 300_000),
    tuple(walker(name, 200_000) for name in ("stand", "walk", "run", "backward")),
)
VEHICLE_REGIMES = Stream(
    "vehicle_regimes",
    "the ground vehicle to waypoints with its commands scaled, reversed, loaded and late; one returns",
    Stage("unchanged", "vehicle-waypoint", 100_000, untrained=-2.0, solved=2.5),
    shifts("vehicle-waypoint", 50_000, 2.5, (
        ("steering reversed", "command.turn=-1"),
        ("drive reversed", "command.speed=-1"),
        ("half steering", "command.turn=0.5"),
        ("both reversed", "command.turn=-1+command.speed=-1"),
        ("loaded and late", "payload6+latency1"),
        ("steering reversed again", "command.turn=-1"),
    ), untrained=-2.0),
)  # fmt: skip
QUADROTOR_REGIMES = Stream(
    "quadrotor_regimes",
    "the quadrotor hovers with its rates scaled or reversed, with a payload, with weak thrust; one returns",
    Stage("unchanged", "quadrotor-hover", 200_000, solved=200.0),
    shifts("quadrotor-hover", 100_000, 200.0, (
        ("half rates", "command.roll_rate=0.5+command.pitch_rate=0.5"),
        ("payload", "payload0.12"),
        ("yaw reversed", "command.yaw_rate=-1"),
        ("weak thrust", "command.thrust=0.8"),
        ("half rates with a payload", "command.roll_rate=0.5+command.pitch_rate=0.5+payload0.12"),
        ("yaw reversed again", "command.yaw_rate=-1"),
    )),
)  # fmt: skip
ARM = Stream(
    "arm",
    "the arm reaches, pushes a puck, and reaches around a post",
    Stage("reach", "arm-skills-reach", 200_000, solved=400.0),
    tuple(Stage(name, f"arm-skills-{name}", 200_000, solved=400.0) for name in ("reach", "push", "obstacle")),
)
CW10_TASKS = (
    "hammer-v3", "push-wall-v3", "faucet-close-v3", "push-back-v3", "stick-pull-v3", "handle-press-side-v3",
    "push-v3", "shelf-place-v3", "window-close-v3", "peg-unplug-side-v3",
)  # fmt: skip
META_BASE = Stage("reach", "metaworld/reach-v3", 1_000_000, measure="success")
CW10 = Stream(
    "cw10", "Continual World's ten tasks of Meta-World (Wołczyk et al. 2021)", META_BASE, meta_world(CW10_TASKS)
)
CW20 = Stream(
    "cw20",
    "Continual World's ten tasks of Meta-World, twice",
    META_BASE,
    meta_world([*CW10_TASKS, *(f"{name} 2" for name in CW10_TASKS)]),
)
STREAMS: dict[str, Stream] = {
    stream.name: stream
    for stream in (HALFCHEETAH_SHIFTS, WALKER2D_SHIFTS, WALKER, VEHICLE_REGIMES, QUADROTOR_REGIMES, ARM, CW10, CW20)
}


def get_stream(name: str) -> Stream:
    """A stream by name. Raises LookupError listing what there is."""
    if name in STREAMS:
        return STREAMS[name]
    near = difflib.get_close_matches(name, STREAMS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise LookupError(f"no stream {name!r}; {hint}streams: {', '.join(STREAMS)}")
