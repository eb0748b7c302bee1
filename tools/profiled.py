"""The workloads that tools/profile_all.py looks into, each alone in a process: `python tools/profiled.py NAME`.

Each prints one line of JSON: what was done and how often, the processor time it took, and what its floor is made of:
floating-point operations (counted by torch) over the matrix rate that this process measures, physics steps times the
time of a bare mj_step, and bytes of batches over the rate of a plain copy. Everything is processor time on one torch
thread, so that what else a machine does plays little part.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import mujoco  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import sim  # noqa: E402
from robot_cl.batch import row_width  # noqa: E402
from robot_cl.data.collect import collect, random_part  # noqa: E402
from robot_cl.run import Run  # noqa: E402
from robot_cl.run_config import TrainConfig  # noqa: E402
from robot_cl.seeding import use_torch_threads  # noqa: E402
from robot_cl.train import begin, resolve, train  # noqa: E402

TASK = "halfcheetah"


@dataclass
class Facts:
    """What was done: `count` units in `seconds` of processor time, and per unit the floor's parts."""

    unit: str
    count: int
    seconds: float
    flops: float = 0.0  # per unit
    physics_steps: float = 0.0  # per unit
    batch_bytes: float = 0.0  # per unit
    note: str = ""


def timed(work: Callable[[], Any]) -> float:
    """Seconds of processor time; what is sampled in here, and in other threads, is what the flame graph shows."""
    began = time.process_time()
    work()
    return time.process_time() - began


def linear_flops(x: Any, weight: Any, *rest: Any, **more: Any) -> int:
    """Of oneDNN's x weightᵀ, which torch's counter does not know: shapes (..., d_in) and (d_out, d_in)."""
    return 2 * int(np.prod(x)) * int(weight[0])


def flops_of(work: Callable[[], Any]) -> float:
    known = {torch.ops.mkldnn._linear_pointwise: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return float(counter.get_total_flops())


def matrix_rate() -> float:
    """Floating-point operations per second of a product of two 256-wide stacks on one thread, the best of many."""
    torch.set_num_threads(1)
    a, b = torch.randn(2, 256, 256), torch.randn(2, 256, 256)
    best = float("inf")
    for _ in range(400):
        began = time.perf_counter()
        torch.bmm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * 2 * 256**3 / best


def copy_rate() -> float:
    """Bytes per second read and written by a copy that does not fit the caches."""
    a = torch.empty(2**25)
    b = torch.empty_like(a)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - began)
    return 2 * a.numel() * 4 / best


def step_seconds(task: str = TASK, steps: int = 4000) -> float:
    """Of a bare mj_step under random controls, one thread."""
    model = sim.get_task(task).load_model()
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    controls = rng.uniform(-1, 1, (steps // 5, model.nu))
    began = time.process_time()
    for control in controls:
        data.ctrl[:] = control
        for _ in range(5):
            mujoco.mj_step(model, data)
    return (time.process_time() - began) / (5 * len(controls))


def run_of(config: TrainConfig, learner: Any) -> Run:
    use_torch_threads(1)
    return Run(resolve(replace(config, torch_threads=1, threads=1), learner), learner)


def dataset(place: str, steps: int = 20_000) -> str:
    return str(collect(TASK, [random_part(TASK)], steps, f"{TASK}/random-v0", root=Path(place)).path)


def offline(config: TrainConfig, learner: Any, unit: str) -> Facts:
    """A run's offline part."""
    run = run_of(config, learner)
    run.learner.prepare(run.data)
    for _ in range(20):
        run.updates.offline()
    flops, count = flops_of(run.updates.offline), config.offline
    seconds = timed(run.go)
    width = row_width(run.interface.obs_dim, run.interface.act_dim)
    return Facts(unit, count, seconds, flops, 0.0, 4.0 * config.batch * width * config.seeds)


def demo(place: str, quick: bool) -> Facts:
    """The journey of `make demo` at a fifth of its budgets."""
    from robot_cl.cli import main
    from robot_cl.demo import DemoOptions

    whole = DemoOptions(quick=quick)
    steps, offline, online = whole.steps // 5, whole.offline_steps // 5, whole.online_steps // 5
    sizes = [f"steps={steps}", f"offline_steps={offline}", f"online_steps={online}"]
    seconds = timed(lambda: main(["demo", f"out={place}/demo", *sizes, "--quiet"]))
    note = "floor: the physics of its learning alone"
    return Facts("journey", 1, seconds, 0.0, 5.0 * (steps + whole.seeds * online), 0.0, note)


def uni_o4(place: str, quick: bool) -> Facts:
    """Uni-O4 at small sizes: fits, gated improvement, and PPO online."""
    from robot_cl.learners.uni_o4_config import UniO4Config

    learner = UniO4Config(critic_steps=300 if quick else 1500, behaviour_steps=300 if quick else 1500)
    learner.improve_steps, learner.fit.max_steps = (40, 200) if quick else (400, 1000)
    config = TrainConfig(data=dataset(place), task=TASK, online_steps=2048 if quick else 20_480, eval_every=0)
    run = run_of(config, learner)
    run.learner.prepare(run.data)
    run.updates.offline()  # the models of the gate are fitted here
    per_update, count = flops_of(run.updates.offline), run.config.offline - 2
    seconds = timed(run.go)
    physics = 5.0 * run.config.online / count
    note = "floor: all offline updates as dear as those of the fits, and the physics"
    return Facts("offline update", count, seconds, per_update, physics, 0.0, note)


def moorl(place: str, quick: bool) -> Facts:
    """MOORL online: an environment step and an update each."""
    from robot_cl.learners.moorl import MOORLConfig

    count, warmup = 150 if quick else 1000, 1000
    config = TrainConfig(data=dataset(place), task=TASK, offline_steps=0, online_steps=warmup + count, eval_every=0)
    run = run_of(config, MOORLConfig(warmup=warmup))
    turns = run.turns()
    for _ in range(warmup):
        next(turns)
    next(turns)
    flops = flops_of(run.updates.online)
    seconds = timed(lambda: [None for _ in turns])
    width = row_width(run.interface.obs_dim, run.interface.act_dim)
    return Facts("step and update", count - 1, seconds, flops, 5.0, 4.0 * config.batch * width)


def iql(place: str, quick: bool) -> Facts:
    """IQL offline."""
    from robot_cl.learners.iql import IQLConfig

    config = TrainConfig(data=dataset(place), offline_steps=200 if quick else 2000, eval_every=0)
    return offline(config, IQLConfig(), "update")


def vagram(place: str, quick: bool) -> Facts:
    """Dynamics models of the pendulum with ten distractors under four losses at once, VaGraM among them."""
    import value_gradient as bench
    from pendulum import TrueValue

    torch.set_num_threads(1)
    bench.STEPS = 200 if quick else 2000
    study = bench.Bench(10, 1, TrueValue(), 0.1)
    index = torch.zeros(len(bench.LOSSES) * bench.MEMBERS, bench.BATCH, dtype=torch.long)
    loss = study.losses(study.data)
    opt = bench.optimiser(study.models, 3e-3, (0.0,))
    flops = flops_of(lambda: bench.gradient_step(study.models, opt, loss, study.data, index))
    return Facts("gradient step", bench.STEPS, timed(lambda: study.train(3e-3)), flops)


def skill(place: str, quick: bool) -> Facts:
    """A diffusion skill: a low-rank adapter on a frozen base, by imitation."""
    from robot_cl.learners.base import Trainable
    from robot_cl.learners.psec import PSECConfig

    data = dataset(place)
    base = train(TrainConfig(data=data, offline_steps=20, eval_every=0, out=place, tensorboard=False), PSECConfig())
    learner = PSECConfig(trainable=Trainable.adapter)
    count = 200 if quick else 800
    config = TrainConfig(
        data=data, offline_steps=count, eval_every=0, init_from=str(base), out=place, torch_threads=1, tensorboard=False
    )
    run, _ = begin(config, learner)
    flops = flops_of(run.updates.offline)
    seconds = timed(run.go)
    return Facts("update", config.offline, seconds, flops)


def tick(place: str, quick: bool) -> Facts:
    """A control tick at 200 Hz: read 12 joints, ask a network of 512 x 512 x 512, judge, limit, send, record."""
    from benchmarks.bridge_parts import fuzz, inference
    from robot_cl.deploy.bundle import PolicyBundle
    from robot_cl.deploy.caller import InlineCaller
    from robot_cl.deploy.clock import VirtualClock
    from robot_cl.deploy.loopback import JointPlant, Loopback
    from robot_cl.deploy.modes import RunnerConfig
    from robot_cl.deploy.record import Recorder
    from robot_cl.deploy.runner import Runner
    from robot_cl.export import export_policy

    torch.set_num_threads(1)
    hertz = 200.0
    robot, contract = fuzz.robot(hertz), fuzz.contract(hertz)
    actor = inference.gaussian((512, 512, 512), 24, 12)
    bundle = PolicyBundle.load(export_policy(actor, Path(place) / "bundle", contract.interface).folder)
    clock = VirtualClock()
    transport = Loopback(robot, JointPlant(robot), clock)
    recorder = Recorder(Path(place) / "a.mcap", contract, robot)
    runner = Runner(bundle, contract, transport, clock, RunnerConfig(), InlineCaller(bundle, clock), (recorder,))
    runner.enable()
    runner.start()
    count = 2_000 if quick else 20_000

    def ticks() -> None:
        for k in range(count):
            runner.tick()
            runner.wait((k + 1) / hertz)

    seconds = timed(ticks)
    recorder.close()
    weights = 24 * 512 + 2 * 512 * 512 + 512 * 12
    return Facts("tick", count, seconds, 2.0 * weights, 0.0, 4.0 * weights, "the weights are read once each tick")


WORK: dict[str, Callable[[str, bool], Facts]] = {
    "demo": demo, "uni_o4": uni_o4, "moorl": moorl, "iql": iql, "vagram": vagram, "skill": skill, "tick": tick,
}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        facts = WORK[sys.argv[1]](place, "--quick" in sys.argv)
    rates = {"matrix_rate": matrix_rate(), "copy_rate": copy_rate(), "step_seconds": step_seconds()}
    print(json.dumps(asdict(facts) | rates), flush=True)


if __name__ == "__main__":
    main()
