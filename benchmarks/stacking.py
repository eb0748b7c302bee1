"""What stacking, thin loops and late imports are worth: seeds at once, MOORL against SB3's SAC, the first words.

    python benchmarks/stacking.py [--quick] [--json] [--only seeds,moorl,sampling,words,stream]

Seeds: whole runs of PPO and behaviour cloning (worlds and batches included), five seeds in one run, which shares them
out to processes as it comes, against five runs one after the other, whose worlds are stepped by all cores, with one
torch thread or several, whichever is faster. MOORL against Stable-Baselines3's SAC on one HalfCheetah, both with an
update per step, 256 transitions per update, networks of 256 x 2 and the same number of torch threads; Gymnasium's
environment for the peer, ours for MOORL, as each comes. MOORL runs with compile=true, and without, which is told beside
it; compiling is not in the rates. Sampling: the time of drawing a batch within whole updates. Words: new processes of
the command line. Stream: the processor time of each task of a continual run of 50 tasks, with small budgets. What runs
against something else takes turns with it, and medians count.

A part that was measured is kept in runs/benchmarks/stacking/ and not measured again.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import Claim, arguments, measured, report

from policies.critics import CriticConfig
from robot_cl.continual import loop
from robot_cl.continual.loop import Measuring
from robot_cl.continual.method import MethodConfig
from robot_cl.continual.methods import method_class
from robot_cl.continual.route import played
from robot_cl.continual.run import ContinualConfig, prepare
from robot_cl.data.collect import collect, random_part
from robot_cl.learners.bc import BCConfig
from robot_cl.learners.iql import IQLConfig
from robot_cl.learners.moorl import MOORLConfig, Tasks
from robot_cl.learners.ppo import PPOConfig
from robot_cl.run import Run
from robot_cl.run_config import TrainConfig
from robot_cl.seeding import cores, use_torch_threads
from robot_cl.train import resolve
from sim.stream import Stage, Stream

SEEDS, TASK = 5, "halfcheetah"
STEPS_BEFORE = 10_000  # of SB3's and of ours before anything is timed: warm-up, without updates


def run_of(config: TrainConfig, learner: Any) -> Run:
    """A run that writes nothing."""
    return Run(resolve(replace(config, eval_every=0, tensorboard=False), learner), learner)


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def dataset(place: Path, steps: int) -> str:
    return str(collect(TASK, [random_part(TASK)], steps, f"{TASK}/random-v0", root=place).path)


# Five seeds


def seeds(name: str, quick: bool) -> dict[str, float]:
    place = Path(tempfile.mkdtemp(prefix="robot-cl-seeds-"))
    if name == "ppo":
        config, learner = TrainConfig(task=TASK, online_steps=20_000 if quick else 65_536), PPOConfig()
    else:
        config, learner = TrainConfig(data=dataset(place, 20_000), offline_steps=500 if quick else 2000), BCConfig()
    threads = resolve(config, learner).torch_threads or 1
    processes = resolve(replace(config, seeds=SEEDS), learner).processes or 1

    def alone(torch_threads: int) -> None:
        use_torch_threads(torch_threads)
        for seed in range(SEEDS):
            run_of(replace(config, seed=seed, torch_threads=torch_threads), learner).go()
        use_torch_threads(threads)

    def stacked(processes: int | None) -> None:
        run_of(replace(config, seeds=SEEDS, processes=processes), learner).go()

    works: dict[str, Callable[[], None]] = {
        "five seeds stacked": lambda: stacked(None),
        "five seeds stacked in one process": lambda: stacked(1),
    }
    singles = [f"five runs one after the other, {n} torch thread{'s' * (n > 1)}" for n in sorted({1, threads})]
    works |= {name: lambda n=n: alone(n) for name, n in zip(singles, sorted({1, threads}), strict=True)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 if quick else 3):
        for name, work in works.items():
            times[name].append(seconds_of(work))
    shutil.rmtree(place)
    best = min(singles, key=lambda name: statistics.median(times[name]))
    ratios = [s / a for s, a in zip(times["five seeds stacked"], times[best], strict=True)]
    return {
        "processes of the stack": processes,
        **{f"seconds, {name}": statistics.median(took) for name, took in times.items()},
        "ratio": statistics.median(ratios),
        "ratio, lowest": min(ratios),
        "ratio, highest": max(ratios),
    }


# MOORL against SAC


def moorl(quick: bool) -> dict[str, float]:
    import gymnasium
    from stable_baselines3 import SAC

    place, block, rounds = Path(tempfile.mkdtemp(prefix="robot-cl-moorl-")), 150 if quick else 400, 3 if quick else 5
    use_torch_threads(cores())
    total = STEPS_BEFORE + (rounds + 1) * block
    data = dataset(place, 20_000)
    config = TrainConfig(data=data, task=TASK, offline_steps=0, online_steps=total, torch_threads=cores())
    # SB3's critics are not normalised, MOORL's are: with the peer's networks for the claim, and as they come.
    normalised = MOORLConfig(tasks=Tasks.both, inner=5, meta=0.5, whole_batches=False, warmup=STEPS_BEFORE)
    same = replace(normalised, critic=CriticConfig())
    compiled = replace(config, compile=True)
    runs = {"ours": run_of(compiled, same), "normalised": run_of(compiled, normalised), "plain": run_of(config, same)}
    turns = {name: run.turns() for name, run in runs.items()}
    sac = SAC("MlpPolicy", gymnasium.make("HalfCheetah-v5"), seed=0, device="cpu", learning_starts=STEPS_BEFORE)
    assert all(run.plan.updates == 1.0 and run.plan.horizon == 1 for run in runs.values())
    assert config.batch == sac.batch_size == 256
    for turn in turns.values():
        for _ in islice(turn, STEPS_BEFORE):
            pass
    compiling = seconds_of(lambda: [None for _ in islice(turns["ours"], same.inner + 1)])
    sac.learn(STEPS_BEFORE)
    works: dict[str, Callable[[], object]] = {
        name: lambda turn=turn: [None for _ in islice(turn, block)] for name, turn in turns.items()
    }
    works["SB3"] = lambda: sac.learn(block, reset_num_timesteps=False)
    rates: dict[str, list[float]] = {name: [] for name in works}
    for k in range(rounds + 1):
        for name, work in works.items():
            rate = block / seconds_of(work)
            if k:  # the first warms up, and compiles
                rates[name].append(rate)
    shutil.rmtree(place)
    captured = runs["ours"].learner.captured
    assert captured.recordings and not captured.refused
    assert runs["ours"].learner.step >= rounds * block and sac._n_updates >= rounds * block
    ratios = [a / b for a, b in zip(rates["ours"], rates["SB3"], strict=True)]
    return {
        "torch threads": cores(),
        "MOORL, environment steps per second": statistics.median(rates["ours"]),
        "MOORL with its normalised critics, environment steps per second": statistics.median(rates["normalised"]),
        "MOORL without compile=true, environment steps per second": statistics.median(rates["plain"]),
        "seconds until it is compiled": compiling,
        "SB3 SAC, environment steps per second": statistics.median(rates["SB3"]),
        "ratio": statistics.median(ratios),
        "ratio, lowest": min(ratios),
        "ratio, highest": max(ratios),
    }


# Sampling within updates


def sampling(quick: bool) -> dict[str, float]:
    place, calls, found = Path(tempfile.mkdtemp(prefix="robot-cl-sampling-")), 100 if quick else 400, dict[str, float]()
    use_torch_threads(cores())
    data = dataset(place, 50_000)
    for name, learner in (("iql", IQLConfig()), ("bc", BCConfig())):
        run = run_of(TrainConfig(data=data, offline_steps=10**6, torch_threads=cores()), learner)
        sampler = run.sampler
        assert sampler is not None
        shares = []
        for _ in range(7):
            update = seconds_of(lambda run=run: [run.updates.offline() for _ in range(calls)]) / calls
            draw = seconds_of(lambda sampler=sampler: [sampler.sample(256) for _ in range(calls)]) / calls
            shares.append(draw / update)
        found |= {f"{name}: share of an update, in %": 100 * statistics.median(shares)}
        found |= {f"{name}: update, ms": 1e3 * update, f"{name}: drawing its batch, µs": 1e6 * draw}
    shutil.rmtree(place)
    return found


# First words


def words(quick: bool) -> dict[str, float]:
    place, python = Path(tempfile.mkdtemp(prefix="robot-cl-words-")), sys.executable
    commands = {
        "python alone": [python, "-c", "pass"],
        "import of the command line": [python, "-c", "import robot_cl.cli"],
        "robot-cl --help": [str(Path(python).with_name("robot-cl")), "--help"],
        "robot-cl train --help": [str(Path(python).with_name("robot-cl")), "train", "--help"],
        "robot-cl list": [str(Path(python).with_name("robot-cl")), "list"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for k in range(4 if quick else 12):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=place, capture_output=True, check=True)
            took = time.perf_counter() - began
            if k:  # the first writes bytecode
                times[name].append(took)
    shutil.rmtree(place)
    found = {f"{name}, s": statistics.median(took) for name, took in times.items()}
    return found | {f"{name}, s, slowest": max(took) for name, took in times.items()}


# A long stream


def long_stream(tasks: int, steps: int, further: float = 0.0) -> Stream:
    """Vehicles whose drive and steering are scaled otherwise in every task; `further` along by a part of a task."""
    task, worst, best = "vehicle-waypoint", -2.0, 2.5
    scales = [0.02 * (k + further) for k in range(tasks)]
    shifts = [f"command.speed={1.5 - scale:.2f}+command.turn={0.5 + scale:.2f}" for scale in scales]
    stages = tuple(Stage(f"task {k}", task, steps, shift, worst, best) for k, shift in enumerate(shifts))
    return Stream("long", "many small changes", Stage("unchanged", task, 4 * steps, "none", worst, best), stages)


class Clock:
    """Adds up the processor time spent in what it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - began

        return call


def stream(name: str, quick: bool) -> dict[str, Any]:
    """Processor time of learning each task. What fills the matrix of results after each task is not the method's cost:
    there the base is scored in place of every policy, and the time is left out."""
    tasks, steps = (12, 2048) if quick else (50, 4096)
    place = Path(tempfile.mkdtemp(prefix="robot-cl-stream-"))
    use_torch_threads(1)
    config = ContinualConfig(
        stream="vehicle_regimes", methods=(name,), seeds=1, steps=steps, base_steps=4 * steps, tasks=1, num_worlds=32,
        threads=1,
        measuring=Measuring(1, points=1, curve_episodes=1), options=MethodConfig(trial_worlds=2, trial_steps=50),
    )  # fmt: skip
    setup, _ = prepare(place, config, PPOConfig())
    setup = replace(setup, stream=long_stream(tasks, steps), folder=place / name)
    scoring, learning = Clock(), list[float]()
    method, learn_stage = method_class(name), loop.learn_stage

    def stage(*args: Any) -> dict[str, Any]:
        before, began = scoring.seconds, time.process_time()
        row = learn_stage(*args)
        learning.append(time.process_time() - began - (scoring.seconds - before))
        return row

    timed = type(method.__name__, (method,), {"policy": lambda self, j: self.setup.base})
    plain = {"score": loop.score, "learn_stage": learn_stage, "method_class": method_class}
    vars(loop).update(score=scoring.timed(loop.score), learn_stage=stage, method_class=lambda _: timed)
    try:
        loop.run_method(name, setup, config.measuring)
        found = same_found(method(setup), long_stream(tasks, steps, 0.5)) if name == "library" else {}
    finally:
        vars(loop).update(plain)
        shutil.rmtree(place)
    early, late = (statistics.mean(learning[a:b]) for a, b in ((4, 14), (tasks - 10, tasks)))
    slope = float(np.polyfit(np.arange(4, tasks), learning[4:], 1)[0])
    return {
        "tasks": tasks,
        "processor seconds of learning a task, mean": statistics.mean(learning),
        "last ten over tasks 5 to 14": late / early,
        "growth from task 5 to the last by a straight line, over the mean": slope
        * (tasks - 5)
        / statistics.mean(learning[4:]),
        "processor seconds of learning tasks 5 to 14, mean": early,
        "processor seconds of learning the last ten, mean": late,
        "learning": [round(s, 3) for s in learning],
        **found,
    }


def same_found(library: Any, between: Stream) -> dict[str, float]:
    """On tasks between those that were learned: does the shortlist hold what trying everything would choose?"""
    tasks = len(library.setup.stream.stages)
    loop.restore(library, library.setup.folder / f"{tasks - 1:02d}")
    few = [library.decide(stage).routes[0] for stage in between.stages]
    library.config = replace(library.config, shortlist=tasks)
    everything = [library.decide(stage).routes[0] for stage in between.stages]
    return {
        "compositions in the library": len({str(played(routes[0])) for routes in library.routes}),
        "new tasks for which the shortlist finds what trying everything finds": statistics.mean(
            a.mix == b.mix for a, b in zip(few, everything, strict=True)
        ),
        "score of what it finds, mean": statistics.mean(route.trial for route in few),
        "score of what trying everything finds, mean": statistics.mean(route.trial for route in everything),
    }


def main() -> None:
    flags = [("--only", {"default": "seeds,moorl,sampling,words,stream", "help": "parts, with commas between"})]
    args = arguments(__doc__ or "", flags)
    wanted, claims, details = args.only.split(","), list[Claim](), dict[str, Any]()

    def part(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        details[name] = measured("stacking", name, args.quick, measure)
        return details[name]

    if "seeds" in wanted:
        for name in ("ppo", "bc"):
            found = part(f"seeds-{name}", lambda name=name: seeds(name, args.quick))
            claims.append(Claim(f"{name}: five seeds stacked over five runs in turn", found["ratio"], 0.6, False))
    if "moorl" in wanted:
        found = part("moorl", lambda: moorl(args.quick))
        name = "MOORL with compile=true over SB3's SAC, environment steps per second"
        claims.append(Claim(name, found["ratio"], 1.5))
    if "sampling" in wanted:
        found = part("sampling", lambda: sampling(args.quick))
        share = found["iql: share of an update, in %"]
        claims.append(Claim("IQL: drawing the batch, % of an update", share, 2.0, False))
    if "words" in wanted:
        found = part("words", lambda: words(args.quick))
        for name, most in (("import of the command line", 0.5), ("robot-cl --help", 0.5), ("robot-cl list", 1.0)):
            claims.append(Claim(f"{name}, s", found[f"{name}, s"], most, False))
    if "stream" in wanted:
        for name in ("finetune", "library"):
            found = part(f"stream-{name}", lambda name=name: stream(name, args.quick))
            claims.append(Claim(f"{name}: time of learning a task, last ten of {found['tasks']} over tasks 5 to 14",
                                found["last ten over tasks 5 to 14"], 1.2, False))  # fmt: skip
    report("stacking", claims, args.json, details)


if __name__ == "__main__":
    main()
