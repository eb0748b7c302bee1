"""robot-cl deploy run | say | simulate"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_cl.commands.deploy import need_robot, seconds
from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class NetworkWords:
    """Where the robot is; what a transport does not use is left alone."""

    transport: str = "dds"  # dds, rclpy, rosbridge or loopback (a simulated robot in this process)
    domain: int | None = None  # of DDS; none: ROS_DOMAIN_ID, else 0
    interface: str | None = None  # network interface of DDS, such as eth0
    peers: list[str] = field(default_factory=list)  # addresses to find robots at by unicast, instead of multicast
    host: str = "127.0.0.1"  # of rosbridge
    port: int = 9090  # of rosbridge
    ros: int = 2  # which ROS stands behind rosbridge, 1 or 2


def network(words: NetworkWords) -> dict[str, Any]:
    """The options that the named transport takes."""
    if words.transport == "dds":
        found: dict[str, Any] = {"domain": words.domain, "interface": words.interface or ""}
        return found | {"peers": tuple(words.peers), "multicast": not words.peers}
    if words.transport == "rosbridge":
        return {"host": words.host, "port": words.port, "ros": words.ros}
    return {}


@dataclass
class RunWords(NetworkWords):
    """Options of `deploy run`."""

    robot: str | None = None  # robot file, or its name in configs/robot; none: the only one that fits
    armed: bool = False  # send commands; needs a rehearsal receipt of this bundle and robot file
    dry_run: bool | None = None  # only read, and say what would be sent; none: unless armed
    start: bool = True  # armed: drive at once, else hold until someone says start
    seconds: float | None = None  # end by itself after so long; none: until Ctrl-C or stop
    max_speed: float = 1.0  # share of the robot's speed limits, such as 0.2
    ramp: Any = "1s"  # from holding to the policy's command
    stale: Any = None  # time without a state before holding; none: 3 periods, at most 100ms
    wait: float = 10.0  # seconds to wait for a first state
    record: str | None = None  # MCAP file; none: logs/<time>-<robot>.mcap
    recording: bool = True  # write what was seen and done
    remote_start: bool = False  # whether orders over the network may enable and start
    priority: int | None = None  # SCHED_FIFO priority of the control loop, 1 to 99
    others: list[str] = field(default_factory=list)  # further bundles of the same interface, for the order policy NAME
    guard: bool = True  # use the bundle's guard, where it has one
    flow: bool = True  # realign actions by the bundle's flow, where it has one
    keyboard: bool = True  # obey lines typed here: stop, hold, start, skills NAME=0.5, goal x=0.4


def run_run(call: Call, options: RunWords) -> Outcome:
    from robot_cl.deploy.run import RunOptions, run

    bundle = Path(call.words[0])
    robot = need_robot(options.robot, bundle)
    if options.armed and options.dry_run:
        raise ValueError("armed=true sends commands and dry_run=true sends none; choose one of them")
    plain = {name: getattr(options, name) for name in
             ("transport", "armed", "start", "max_speed", "wait", "recording", "remote_start", "priority", "guard",
              "flow")}  # fmt: skip
    chosen = RunOptions(
        **plain,
        seconds=float("inf") if options.seconds is None else options.seconds,
        ramp=seconds("ramp", options.ramp),
        stale=None if options.stale is None else seconds("stale", options.stale),
        record=Path(options.record) if options.record else None,
        others=tuple(Path(folder) for folder in options.others),
        network=network(options),
    )
    call.resume = "nothing is sent to the robot any more" if options.armed else ""
    typed = sys.stdin if options.keyboard and sys.stdin is not None and not sys.stdin.closed else None
    report = run(bundle, robot, chosen, call.say, typed)
    show_report(call, report)
    data = {"mode": report.mode, "reason": report.reason, "history": report.history, "statistics": report.statistics,
            "dropped": report.dropped, "notes": report.notes}  # fmt: skip
    following = f"data import {report.recording}" if report.recording else None
    return Outcome(data, wrote=report.recording, next=following)


def show_report(call: Call, report: Any) -> None:
    """Where the time went, and what happened more than never."""
    said = report.statistics
    table = call.table("milliseconds", "p50 ", "p99 ", "max ")
    meaning = {"late": "wake-up after its deadline", "tick": "one whole tick", "policy": "the policy alone",
               "age": "age of the state used"}  # fmt: skip
    for name, words in meaning.items():
        if f"{name}_p50_ms" in said:
            table.add_row(words, *(f"{said[f'{name}_{q}_ms']:.2f}" for q in ("p50", "p99", "max")))
    call.console.print(table)
    events = {name: int(count) for name, count in said.items() if not name.endswith("_ms")}
    if events:
        call.say("counted: " + ", ".join(f"{name} {count}" for name, count in events.items()))
    if report.dropped:
        call.say(f"{report.dropped} steps are missing in the recording: {report.problem or 'the disk was too slow'}")


@dataclass
class SayWords(NetworkWords):
    """Options of `deploy say`."""

    namespace: str = ""  # of the robot's topics
    wait: float = 5.0  # seconds to wait for somebody who listens


def run_say(call: Call, options: Any) -> Outcome:
    """Options and the order's own NAME=NUMBER stand side by side: what is no option belongs to the order."""
    from dataclasses import fields

    from robot_cl.config import read_options
    from robot_cl.deploy.operator import parse_order
    from robot_cl.deploy.say import say

    known = {f.name for f in fields(SayWords)}
    mine = [word for word in call.overrides if word.partition("=")[0] in known]
    chosen = read_options(SayWords, mine)
    text = " ".join([*call.words, *(word for word in call.overrides if word not in mine)])
    order = parse_order(text)
    heard = say(text, chosen.transport, chosen.namespace, chosen.wait, **network(chosen))
    call.say(f"said {text!r} to {heard} listener{'s' if heard != 1 else ''}")
    return Outcome({"order": order.verb, "values": order.values, "listeners": heard})


@dataclass
class SimulateWords(NetworkWords):
    """Options of `deploy simulate`."""

    robot: str | None = None  # robot file, or its name in configs/robot; none: the only one that fits
    task: str | None = None  # its world; none: the one of the bundle
    shift: str | None = None  # how that world differs, such as friction0.5
    seconds: float | None = None  # end by itself after so long; none: until Ctrl-C
    seed: int = 0  # of the start state


def run_simulate(call: Call, options: SimulateWords) -> Outcome:
    from robot_cl.deploy.bundle import read_contract
    from robot_cl.deploy.plants import simulated_plant
    from robot_cl.deploy.robot_file import load_robot
    from robot_cl.deploy.say import simulate

    bundle = Path(call.words[0])
    robot = need_robot(options.robot, bundle)
    contract, spec = read_contract(bundle), load_robot(robot)
    task = options.task or contract.task or spec.task or None
    plant = simulated_plant(task, contract, spec, options.seed, options.shift, goes_on=True)
    listens, sends = (", ".join(t.topic for t in topics) for topics in (spec.command, spec.state))
    call.say(f"{spec.name} in {task or 'joints that follow'}: obeys {listens}, publishes {sends}; Ctrl-C ends it")
    call.resume = "the simulated robot is gone"
    count = simulate(spec, plant, options.transport, options.seconds, **network(options))
    return Outcome({"commands": count, "return": getattr(plant, "total", None), "fell": getattr(plant, "fell", None)})


RUN = Verb(
    run=run_run,
    usage="BUNDLE [robot=NAME] [transport=dds] [armed=true] [key=value ...]",
    about="Run a bundle on a robot. Without armed=true it only listens, says what it would send, and records. Armed,\n"
    "it holds, ramps in and drives under limits and a watchdog; any doubt holds, lasting doubt damps, and only a\n"
    "person leads back up. Lines typed here are orders: stop, hold, start, skills NAME=0.5, goal x=0.4,\n"
    "policy NAME (one of others=). Ctrl-C ends the run with a stop command.",
    examples=(
        "robot-cl deploy run bundle robot=arm transport=dds dry_run=true",
        "robot-cl deploy run bundle robot=arm transport=dds armed=true max_speed=0.2",
        "robot-cl deploy run walk others=[trot,stand] robot=arm armed=true  # policy trot, while it moves",
        "robot-cl deploy run bundle transport=rosbridge host=192.168.1.5 ros=1",
        "robot-cl deploy run bundle transport=loopback armed=true seconds=10",
    ),
    options=lambda: RunWords,
    words=(1, 1),
)
SAY = Verb(
    run=run_say,
    usage="ORDER [NAME=NUMBER ...] [key=value ...]",
    about="Say something to a running policy over its operator topic (/robot_cl/operator): stop, hold,\n"
    "skills NAME=0.5 ..., goal NAME=1.2 ..., policy NAME; start, enable and reset only where the run allows it with\n"
    "remote_start=true. Any other node may publish the same words as std_msgs/String.",
    examples=(
        "robot-cl deploy say stop",
        "robot-cl deploy say skills hop=0.5 walk=1",
        "robot-cl deploy say goal x=0.4 y=0.1 domain=7",
        "robot-cl deploy say policy trot",
        "robot-cl deploy say hold transport=rosbridge host=192.168.1.5",
    ),
    more_help=lambda words: _say_help(),
    words=(1, 2),
    free=True,
)
SIMULATE = Verb(
    run=run_simulate,
    usage="BUNDLE [robot=NAME] [key=value ...]",
    about="A simulated robot in this process that talks like the real one: start it in one terminal and `deploy run`\n"
    "in another, to try everything but the hardware.",
    examples=(
        "robot-cl deploy simulate bundle robot=arm",
        "robot-cl deploy simulate bundle robot=vehicle shift=friction0.5 domain=7",
    ),
    options=lambda: SimulateWords,
    words=(1, 1),
)


def _say_help() -> str:
    from robot_cl.commands.helptext import option_lines

    return "options:\n" + option_lines(SayWords)
