"""Learners of the GPU benchmark on random data with HalfCheetah's widths, and how fast a piece of work is."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from offline_cells import SIZES, sized

from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners import config_class, learner_class
from robot_cl.learners.base import Learner
from robot_cl.learners.graph import Acting, Captured, Updates
from robot_cl.learners.moorl import Tasks
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.uni_o4 import UniO4

OBS, ACT, BATCH, SEEDS = 17, 6, 256, 3
Options = tuple[tuple[str, ...], dict[str, Any]]
WORK: dict[str, Options] = {  # learner -> its phases and options that differ from the defaults
    "bc": (("offline",), {}),
    "percent_bc": (("offline",), {}),
    "iql": (("offline", "online"), {}),
    "rebrac": (("offline",), {}),
    "lcb": (("offline",), {}),
    "sac": (("online",), {}),
    "rlpd": (("online",), {"critics": 5}),
    "moorl": (("online",), {"tasks": Tasks.both, "inner": 5, "meta": 0.5, "whole_batches": False}),
    "moorl joined": (("online",), {"tasks": Tasks.joined, "inner": 5, "meta": 0.5}),
    "cal_ql": (("offline", "online"), {}),
    "wsrl": (("offline", "online"), {}),
    "ppo": (("rollout",), {"minibatch": 128}),
    "uni_o4": (("offline", "improve", "rollout"), {"returns_steps": 100, "advantage_steps": 100}),
}
CHECKED = 25  # updates after which the captured learner is compared with the plain one
Row = dict[str, Any]


def random_data(rows: int, device: str) -> Transitions:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    over = torch.rand(rows, generator=rng)
    ends = (over < 0.001).float(), ((over > 0.001) & (over < 0.002)).float()
    fields = normal(rows, OBS), normal(rows, ACT).clamp(-1, 1), normal(rows), normal(rows, OBS)
    return Transitions(*fields, *ends).to(device)


def build(
    name: str, data: Transitions, captured: bool, device: str, seeds: int = SEEDS, **changes: Any
) -> tuple[Learner, Updates]:
    """A learner and its updates, from the dataset and from a full replay buffer; `changes` of its options."""
    cls, rows = name.split()[0], len(data)
    config = sized(replace(config_class(cls)(), **(WORK[name][1] | changes)), SIZES["full"])
    learner = learner_class(cls)(config, OBS, ACT, seeds, 0, device)
    learner.captured = Captured(learner, captured)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng, device)
    buffer = ReplayBuffer(rows, seeds, OBS, ACT, device)
    buffer.add_packed(sampler.rows.expand(seeds, -1, -1))
    reads_data = learner.plan().offline_share or "offline" in WORK[name][0]
    return learner, Updates(learner, sampler if reads_data else None, buffer, BATCH)


def step_of(phase: str, learner: Learner, updates: Updates, data: Transitions) -> Callable[[], Any]:
    """One update of a phase: for `rollout` one of PPO's on 8 worlds x 256 steps and seed."""
    if phase == "rollout":
        rows = data[: SEEDS * 2048]
        fresh = Transitions.unpack(rows.pack().view(SEEDS, 256, 8, -1), OBS, ACT)
        return lambda: learner.update_online(fresh, None)
    return updates.offline if phase in ("offline", "improve") else updates.online


def begin(phase: str, learner: Learner) -> None:
    """To where a phase begins: Uni-O4's improvement comes after its fits."""
    if phase == "improve" and isinstance(learner, UniO4):
        c = learner.config
        c.critic_steps = c.behaviour_steps = learner.step
        c.improve_steps, c.gate = 200, replace(c.gate, every=10_000)
        learner.gate.config = c.gate
        c.fit.max_steps = 60
        learner.gate.ends.fit = lambda *_: None  # type: ignore[method-assign]


def difference(one: Learner, other: Learner) -> float:
    """Largest difference of any parameter, over the largest parameter of its tensor."""
    theirs = dict(other.nets.named_parameters())
    pairs = [(p.detach().cpu(), theirs[name].detach().cpu()) for name, p in one.nets.named_parameters()]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)) for a, b in pairs)


def distance(one: Learner, other: Learner) -> float:
    """Norm of the difference of all parameters, over the norm of all parameters."""
    theirs = dict(other.nets.named_parameters())
    pairs = [
        (p.detach().cpu().double(), theirs[name].detach().cpu().double()) for name, p in one.nets.named_parameters()
    ]
    return math.sqrt(
        sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs)
    )


def speed(work: Callable[[], Any], seconds: float, device: str, blocks: int = 3) -> float:
    """Calls per second, the median of blocks of about `seconds`, from an idle device to an idle device."""

    def block(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return calls / (time.perf_counter() - began)

    block(3)
    calls = max(2, round(seconds * block(5)))
    return statistics.median(block(calls) for _ in range(blocks))


# -- parts ------------------------------------------------------------------------------------------------------------


def captured(name: str, rows: int, seconds: float, device: str) -> Iterator[Row]:
    """Of each phase: captured updates against plain ones in numbers and, where `seconds` are given, in speed."""
    data = random_data(rows, device)
    (plain, plain_updates), (fixed, fixed_updates) = (build(name, data, c, device) for c in (False, True))
    for phase in WORK[name][0]:
        begin(phase, plain), begin(phase, fixed)
        steps = [step_of(phase, *pair, data) for pair in ((plain, plain_updates), (fixed, fixed_updates))]
        for _ in range(2 if phase == "rollout" else CHECKED):
            for step in steps:
                step()
        row: Row = {"phase": phase, "difference": difference(plain, fixed)}
        if seconds:
            row |= dict(zip(("plain", "captured"), (speed(step, seconds, device) for step in steps), strict=True))
        yield row | {"refused": {str(key): why for key, why in fixed.captured.refused.items()}}
    if seconds:
        acts, obs = Acting(fixed), torch.randn(SEEDS, 1, OBS)
        noise = acts.noise(1, ACT)
        yield {"phase": "acting, on the host", "captured": speed(lambda: acts.explore(obs, noise), seconds, device)}


def devices(name: str, rows: int, device: str) -> Iterator[Row]:
    """One learner from the same start with the same draws, captured on the device and plain on the processor.

    Without the thousands of updates on returns that some begin with: after them rounding shows in the first digit on
    any machine, and they take a processor minutes. Without cloning and waiting either, so that all networks move.
    """
    config = config_class(name.split()[0])()
    changes = {option: 0 for option in ("returns_steps", "cloning", "critic_only") if hasattr(config, option)}
    both = [build(name, random_data(rows, where), where == device, where, **changes) for where in (device, "cpu")]
    phase, made = WORK[name][0][0], 0
    steps = [step_of(phase, *pair, random_data(rows, pair[0].device)) for pair in both]
    for updates in (1, 2) if phase == "rollout" else (1, CHECKED, 4 * CHECKED):
        for _ in range(updates - made):
            for step in steps:
                step()
        made = updates
        gaps = {"distance": distance(both[1][0], both[0][0]), "difference": difference(both[1][0], both[0][0])}
        yield {"phase": phase, "updates": updates} | gaps


def stacked(name: str, rows: int, seeds: tuple[int, ...], seconds: float, device: str) -> Iterator[Row]:
    """Plain updates of one seed, then captured ones of stacks: all in updates x seeds per second."""
    data, phase = random_data(rows, device), WORK[name][0][0]
    learner, updates = build(name, data, False, device, 1)
    eager = speed(step_of(phase, learner, updates, data), seconds, device, blocks=5)
    yield {"phase": phase, "seeds": 1, "how": "eager", "rate": eager}
    for count in seeds:
        learner, updates = build(name, data, True, device, count)
        rate = count * speed(step_of(phase, learner, updates, data), seconds, device)
        yield {"phase": phase, "seeds": count, "how": "captured stack", "rate": rate, "over_eager": rate / eager}
