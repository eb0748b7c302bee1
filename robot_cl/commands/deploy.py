"""robot-cl deploy rehearse | check | guard"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from robot_cl.commands.verb import Call, Outcome, Verb

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
MARKS = {True: "[green]✓[/]", False: "[red]✗[/]"}


def seconds(name: str, value: Any) -> float:
    """20ms, 0.02s or 0.02 -> 0.02. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*([a-z]*)\s*", str(value).lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{name} is {value!r}; expected a time such as 20ms or 0.02")
    return float(match[1]) * _UNITS[match[2]]


def robot_files() -> dict[str, Path]:
    """Name -> robot file of those in configs/robot."""
    from robot_cl.paths import config_dir

    return {path.stem: path for path in sorted((config_dir() / "robot").glob("*.yaml"))}


def find_robot(word: str | None, bundle: Path) -> Path | None:
    """A robot file by path or name; None: the only one in configs/robot that fits the bundle, if there is one.

    Raises LookupError for a name that is not there.
    """
    known = robot_files()
    if word is not None:
        if word in known:
            return known[word]
        if Path(word).exists() or word.endswith((".yaml", ".yml")):
            return Path(word)
        from robot_cl.data.naming import not_found

        raise not_found("robot", word, known, "or give the path of a robot file")
    from robot_cl.deploy.bundle import read_contract
    from robot_cl.deploy.observe import compare
    from robot_cl.deploy.robot_file import load_robot

    contract = read_contract(bundle)
    robots = {path: load_robot(path) for path in known.values()}
    fitting = [path for path, spec in robots.items() if not any(f.blocks for f in compare(contract, spec))]
    trained = [path for path in fitting if robots[path].task and robots[path].task == contract.task] or fitting
    return trained[0] if len(trained) == 1 else None


def named(robot: Path) -> str:
    """The word by which a robot file is found: its name where it is one of configs/robot."""
    return next((name for name, path in robot_files().items() if path == robot), str(robot))


def need_robot(word: str | None, bundle: Path) -> Path:
    """As `find_robot`, where there must be one. Raises ValueError."""
    found = find_robot(word, bundle)
    if found is None:
        names = ", ".join(robot_files())
        raise ValueError(f"which robot? none of configs/robot ({names}) alone fits this bundle; add robot=FILE")
    return found


@dataclass
class RehearseWords:
    """Options of `deploy rehearse`."""

    robot: str | None = None  # robot file, or its name in configs/robot; none: the one that fits, else no receipt
    latency: Any = 0  # of states and commands, such as 20ms
    jitter: Any = 0  # further delay of each message, up to so much
    drop: float = 0.0  # share of state messages that are lost
    noise: float = 0.0  # standard deviation added to every signal, in its unit
    seconds: float = 10.0  # of the drive
    ramp: Any = "500ms"  # from holding to the policy's command
    task: str | None = None  # world to drive in; none: the one the bundle was trained in
    shift: str | None = None  # how that world differs, such as friction0.5
    keep: float = 0.5  # share of the calm return that the drive must keep
    seed: int = 0  # of start state, noise and losses
    max_speed: float = 1.0  # share of the robot's speed limits


def run_rehearse(call: Call, options: RehearseWords) -> Outcome:
    from robot_cl.deploy.rehearse import RehearseOptions, rehearse

    bundle = Path(call.words[0])
    robot = find_robot(options.robot, bundle)
    times = {name: seconds(name, getattr(options, name)) for name in ("latency", "jitter", "ramp")}
    plain: dict[str, Any] = {k: v for k, v in vars(options).items() if k not in ("robot", *times)}
    with call.progress("rehearsing") as bar:
        found = rehearse(bundle, robot, RehearseOptions(**plain | times), bar)
    alone = "made from the contract alone; nothing can be armed with this"
    call.say(f"robot: {named(robot) if robot else alone}")
    show_checks(call, found.checks)
    for note in found.notes:
        call.say(f"  • {note}")
    call.say("passed" if found.passed else "not passed: nothing can be armed before this is mended")
    data = {"passed": found.passed, "checks": [asdict(c) for c in found.checks], "result": found.result,
            "robot": str(robot) if robot else None, "notes": found.notes}  # fmt: skip
    following = f"deploy check {bundle} robot={named(robot)}" if found.passed and robot else None
    return Outcome(data, wrote=found.receipt, next=following, code=0 if found.passed else 1)


def show_checks(call: Call, checks: list[Any]) -> None:
    from rich.markup import escape

    width = max(len(c.name) for c in checks)
    for check in checks:
        call.mark(f"{MARKS[check.passed]} {escape(f'{check.name:<{width}}  {check.detail}')}")


@dataclass
class CheckWords:
    """Options of `deploy check`."""

    robot: str | None = None  # robot file, or its name in configs/robot; none: the only one that fits


def run_check(call: Call, options: CheckWords) -> Outcome:
    from rich.markup import escape

    from robot_cl.deploy.receipt import require_receipt
    from robot_cl.deploy.robot_file import load_robot
    from robot_cl.deploy.run import check

    bundle = Path(call.words[0])
    robot = need_robot(options.robot, bundle)
    findings, spec = check(bundle, robot), load_robot(robot)
    for finding in findings:
        call.mark(f"{'[red]✗[/]' if finding.blocks else '[yellow]•[/]'} {escape(finding.text)}")
    blocked = any(f.blocks for f in findings)
    if not blocked:
        listens, sends = (", ".join(t.topic for t in topics) for topics in (spec.state, spec.command))
        what = "nothing forbids driving" if findings else "every name, unit, period and limit fits"
        call.mark(f"{MARKS[True]} {what}: hears {listens}, commands {sends}")
    receipt = None
    try:
        require_receipt(bundle, robot)
    except ValueError as problem:
        receipt = str(problem).replace(str(robot), named(robot))
        call.mark(f"[yellow]•[/] not to be armed yet: {escape(receipt)}")
    data = {"robot": str(robot), "findings": [asdict(f) for f in findings], "fits": not blocked, "missing": receipt}
    following = f"deploy {'rehearse' if receipt else 'run'} {bundle} robot={named(robot)}"
    return Outcome(data, next=None if blocked else following, code=1 if blocked else 0)


class Deployed(StrEnum):
    """How a deployment on a healthy robot went."""

    quiet = "quiet"
    false_alarm = "false_alarm"


@dataclass
class GuardWords:
    """Options of `deploy guard`."""

    rollouts: int = 100  # healthy ones, half of them for the statistics and half for the threshold
    alpha: float = 0.1  # share of healthy runs that may raise an alarm
    steps: int = 200  # of each rollout; the promise holds for so long
    task: str | None = None  # world to play in; none: the one the bundle was trained in
    shift: str | None = None  # what a healthy robot has that the bare world lacks, such as noise0.002+latency1
    after: Deployed | None = None  # how a deployment on a healthy robot went: moves the guard that is there


def run_guard(call: Call, options: GuardWords) -> Outcome:
    from robot_cl.commands.export import guarded

    folder = Path(call.words[0])
    if options.after is not None:
        return _moved(call, folder, options.after)
    data = guarded(call, folder, options.task, options.rollouts, options.alpha, options.steps, options.shift)
    return Outcome(data, wrote=folder / "guard.json", next=f"deploy rehearse {folder}")


def _moved(call: Call, folder: Path, after: Deployed) -> Outcome:
    """The bundle's guard after a deployment, its threshold anew from the rollouts it was calibrated on."""
    from robot_cl.deploy.guard import load_guard

    before = load_guard(folder)
    guard = before.after(after is Deployed.false_alarm)
    path = guard.save(folder)
    alpha, was = guard.config.alpha, before.config.alpha
    call.say(f"guard: {100 * was:.2f} -> {100 * alpha:.2f} % of healthy runs may raise an alarm")
    data = {"alpha": alpha, "threshold": guard.threshold, "promised": guard.config.target}
    return Outcome(data, wrote=path, next=f"deploy rehearse {folder}")


REHEARSE = Verb(
    run=run_rehearse,
    usage="BUNDLE [robot=NAME] [key=value ...]",
    about="Drive a simulated robot behind the robot file's own messages, in the weather you ask for, then drill every\n"
    "fault: dead and restarted publishers, NaN, permuted joints, stop. A pass leaves a receipt in the bundle; without\n"
    "one for this very bundle and robot file nothing can be armed. Exit code 1 if it does not pass.",
    examples=(
        "robot-cl deploy rehearse bundle",
        "robot-cl deploy rehearse bundle robot=arm latency=20ms drop=0.02 noise=0.002",
        "robot-cl deploy rehearse bundle robot=configs/robot/vehicle.yaml shift=friction0.5 seconds=30",
    ),
    options=lambda: RehearseWords,
    words=(1, 1),
)
CHECK = Verb(
    run=run_check,
    usage="BUNDLE [robot=NAME]",
    about="Compare what the policy was trained with and what the robot is, name by name: joints, order, units,\n"
    "limits, gains, period. ✗ forbids driving (exit code 1), • is worth knowing. Nothing is sent.",
    examples=("robot-cl deploy check bundle", "robot-cl deploy check bundle robot=configs/robot/ur5e.yaml --json"),
    options=lambda: CheckWords,
    words=(1, 1),
)
GUARD = Verb(
    run=run_guard,
    usage="BUNDLE [key=value ...]",
    about="Calibrate a guard that holds the robot when it meets what its rollouts never showed: the largest novelty\n"
    "of a whole run against a threshold with a promised rate of false alarms. After a deployment say how it went, and\n"
    "the rate follows a robot that slowly changes. Rehearse again afterwards. The rollouts are exact unless shift=\n"
    "gives them the noise and delay of the robot (delay in control steps): a guard that knows none alarms at once.",
    examples=(
        "robot-cl deploy guard bundle",
        "robot-cl deploy guard bundle rollouts=200 alpha=0.05",
        "robot-cl deploy guard bundle shift=noise0.002+latency1",
        "robot-cl deploy guard bundle after=false_alarm",
    ),
    options=lambda: GuardWords,
    words=(1, 1),
)
