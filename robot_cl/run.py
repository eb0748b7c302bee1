"""One training run in progress: what it holds, its two loops, and how it is put to disk and taken up again."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sim
from policies.actor import ActorPolicy, StackedGaussianActor
from robot_cl import seeding
from robot_cl.batch import Transitions
from robot_cl.checkpoint import load_resume, save_checkpoint
from robot_cl.data.atomic import claim
from robot_cl.data.sampler import Sampler
from robot_cl.data.store import StoredDataset, open_dataset
from robot_cl.learners import learner_class, name_of
from robot_cl.learners.base import LearnerConfig, Metrics, OnlinePlan
from robot_cl.learners.graph import Acting, Captured, Updates
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.rollout import Collector, Elsewhere, play
from robot_cl.metrics import MetricLog, MetricWriter
from robot_cl.replay_files import restore_replay, save_replay
from robot_cl.run_config import Engine, TrainConfig
from sim.spec import Interface

Progress = Callable[[str, int, int, dict[str, float]], None]
DIGEST_UPDATES = 50  # the first updates leave a hash of all weights, which `verify` compares
DIGESTS = "digests.txt"
TURN = 10  # offline updates at a time, where several runs take turns


class Run:
    """Remembers the learner, where its batches come from, the step reached and what was written about it.

    `step` counts updates in the offline part and environment steps per seed in the online part. Nothing is written
    before `open_folder`; without one the run leaves no trace.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: LearnerConfig,
        actor: StackedGaussianActor | None = None,
        progress: Progress | None = None,
        like: Run | None = None,
    ):
        """`config` is resolved (see train.resolve); `actor` is the policy to continue. The data, and the interface, are
        those of `like` where there is one."""
        self.name, self.progress = name_of(learner), progress
        opened = like.dataset if like else open_dataset(config.data) if config.data else None
        self.dataset: StoredDataset | None = opened
        self.interface: Interface = like.interface if like else agreed_interface(config.task, self.dataset)
        self.learner = learner_class(self.name)(
            learner, self.interface.obs_dim, self.interface.act_dim, config.seeds, config.seed, config.device, actor
        )
        self.learner.captured = Captured(self.learner, compiled=config.compile)
        self.plan: OnlinePlan = self.learner.plan()
        self.config = replace(config, num_worlds=config.num_worlds or self.plan.num_worlds)
        self.total = config.offline + config.online
        self.sampler: Sampler | None = None
        self.collector: Collector | Elsewhere | None = None
        self.buffer: ReplayBuffer | None = None
        if self.dataset is not None:
            self.sampler = self._sampler(like)
            self.learner.attach_data(self.data)
        if config.online:
            self._open_worlds()
        self.updates = Updates(self.learner, self.sampler, self.buffer, config.batch)
        self.acting = Acting(self.learner)
        self.step, self.digests, self.log = 0, list[str](), MetricLog(self.name)
        self.folder: Path | None = None
        self._writer: MetricWriter | None = None
        self._eval_world: Any = None
        self._stored, self._seconds, self._since = 0, 0.0, time.monotonic()

    @property
    def data(self) -> Transitions:
        """The dataset (N,) as it lies on the device."""
        assert self.sampler is not None
        return Transitions.unpack(self.sampler.rows, self.interface.obs_dim, self.interface.act_dim)

    # The two parts

    def go(self, updates: int | None = None) -> None:
        """Train to the end, or until at least `updates` updates were made."""
        for _ in self.turns(updates):
            pass

    def turns(self, updates: int | None = None) -> Iterator[None]:
        """`go` in turns of a few updates or a round of the worlds, so that several runs can take theirs in one loop."""
        enough = float("inf") if updates is None else updates
        try:
            if (self.config.processes or 1) > 1:
                yield from self._apart(updates)
            while self.step < self.config.offline and self.learner.step < enough:
                self._record(self.updates.offline())
                self._advance(1)
                if self.step % TURN == 0:
                    yield
            while self.step < self.total and self.learner.step < enough:
                self._advance(self._online_round())
                yield
        finally:
            if self._writer is not None:
                self._writer.close()

    def _apart(self, updates: int | None) -> Iterator[None]:
        """The same in processes that train some of the members each, and send what they came to."""
        from robot_cl.apart import Processes  # here, because its parts are runs

        with Processes(self, updates) as processes:
            while self.step < self.total and (updates is None or self.learner.step < updates):
                news, state = processes.news()
                if state:
                    self.learner.load_state_dict(state)
                    self.learner.actor.config = news.actor
                if isinstance(self.collector, Elsewhere):
                    self.collector.hear(news.returns, news.worlds)
                for update, metrics, digest in news.updates:
                    self.learner.step = update
                    self._note({name: torch.from_numpy(value) for name, value in metrics.items()}, digest)
                self._advance(news.step - self.step)
                yield

    def _online_round(self) -> int:
        """Collect, update, and say how many steps per seed that were."""
        assert isinstance(self.collector, Collector)
        self.learner.episodes_left = self.collector.episodes(self.total - self.step)
        fresh = self.collector.collect(self.acting, self.plan.horizon)
        taken = self.plan.horizon * self.collector.worlds
        if self.buffer is None:
            self._record(self.learner.update_online(fresh, None))
            return taken
        before = max(self.buffer.total, self.plan.warmup)
        self.buffer.add(fresh)
        # Whole updates due by now, so that any ratio of updates to steps comes out exactly.
        due = int(self.buffer.total * self.plan.updates) - int(before * self.plan.updates)
        for _ in range(due):
            self._record(self.updates.online())
        return taken

    def _record(self, metrics: Metrics) -> None:
        self._note(metrics, self._digest() if self.learner.step <= DIGEST_UPDATES else None)

    def _note(self, metrics: Metrics, digest: str | None) -> None:
        """The metrics of the newest update, and for the first ones a hash of all weights."""
        self.log.add(self.learner.step, metrics)
        if digest is not None:
            self.digests.append(f"{self.learner.step} {digest}")
            if self.folder is not None:
                with (self.folder / DIGESTS).open("a", encoding="utf-8") as file:
                    file.write(self.digests[-1] + "\n")

    def _advance(self, steps: int) -> None:
        """Count, and do what is due: metrics, evaluation, checkpoint."""
        before, self.step = self.step, self.step + steps
        c, due = self.config, partial(self._due, before)
        phase = "offline" if self.step <= c.offline else "online"
        if due(c.log_every, c.eval_every, c.checkpoint_every):
            values = self.log.flush()
            finished = self.collector.finished() if self.collector else None
            if finished is not None:
                values["return"] = finished.numpy()
            if due(c.eval_every) and c.task and self.folder:
                values["eval_return"] = self.evaluate()
            if self._writer is not None:
                self._writer.write(self.step, phase, self.seconds, values)
            self._tell(phase, {name: float(np.nanmean(value)) for name, value in values.items()})
        elif self.step % 100 < steps:
            self._tell(phase, {})
        if due(c.checkpoint_every):
            self.save()

    def _due(self, before: int, *intervals: int) -> bool:
        """Whether one of so many steps is over since `before`, or a part of the run."""
        part_over = any(before < end <= self.step for end in (self.config.offline, self.total))
        return any(every and (part_over or self.step // every > before // every) for every in intervals)

    def evaluate(self) -> np.ndarray:
        """Mean return (P,) of each member's deterministic policy, always on the same start states."""
        c = self.config
        if self._eval_world is None:
            self._eval_world = sim.make(str(c.task), num_worlds=c.eval_episodes, threads=c.threads, shift=c.shift)
        # A thousand small steps: on the host, where none of them has to be waited for.
        actor = copy.deepcopy(self.learner.policy()).cpu() if c.device != "cpu" else self.learner.policy()
        policies = (ActorPolicy(actor, p) for p in range(c.seeds))
        return np.array([play(policy, self._eval_world, seeding.EVALUATION_SEED).mean() for policy in policies])

    @property
    def seconds(self) -> float:
        """Wall time spent so far, that of earlier processes included."""
        return self._seconds + time.monotonic() - self._since

    # To disk and back

    def open_folder(self, folder: Path, rows: int = 0) -> None:
        """Write to this folder from now on, keeping the first `rows` rows of its metrics."""
        claim(folder)
        self.folder = folder
        self._writer = MetricWriter(folder, rows, self.config.tensorboard, self.config.wandb)
        (folder / DIGESTS).write_text("".join(line + "\n" for line in self.digests), encoding="utf-8")

    def begin(self, folder: Path) -> None:
        """A new folder: the untrained policy's score and checkpoint."""
        self.open_folder(folder)
        if self._writer is not None and self.config.eval_every and self.config.task:
            phase = "offline" if self.config.offline else "online"
            self._writer.write(0, phase, self.seconds, {"eval_return": self.evaluate()})
        self.save()

    def save(self) -> None:
        """A checkpoint of everything."""
        if self.folder is None or self._writer is None:
            return
        card = {
            "learner": self.name,
            "task": self.config.task,
            "shift": self.config.shift,
            "data": self.config.data,
            "interface": self.interface.to_dict(),
        }
        counters = {"step": self.step, "seconds": self.seconds, "rows": self._writer.rows, "digests": self.digests}
        if self.buffer is not None:
            self._stored = save_replay(self.folder, self.buffer, self._stored)
            counters["replay"] = self._stored
        arrays = self.collector.state() if self.collector and self.step >= self.config.offline else {}
        state = self.learner.state_dict()
        adapted = self.learner.adapted()
        save_checkpoint(self.folder, self.step, card, self.learner.policy(), state, arrays, counters, adapted)

    def restore(self, run: Path, checkpoint: Path) -> None:
        """Go on exactly where `checkpoint` of the folder `run` was written. Raises LookupError, ValueError."""
        state, arrays, counters = load_resume(checkpoint)
        try:
            self.learner.load_state_dict(state)
            if self.collector is not None and arrays:
                self.collector.restore(arrays)
            self.step, self._seconds = int(counters["step"]), float(counters["seconds"])
            self.digests, rows = list(counters["digests"]), int(counters["rows"])
            stored = int(counters["replay"]) if self.buffer is not None else 0
        except (KeyError, ValueError) as problem:
            said = f"there is no {problem}" if isinstance(problem, KeyError) else str(problem)
            raise ValueError(
                f"{run} was left by another version of robot-cl, or with other options: {said}; go on with the version "
                f"that its provenance.json names, or begin a new run with init_from={run}"
            ) from None
        if self.buffer is not None:
            restore_replay(run, self.buffer, stored)
            self._stored = self.buffer.total
        self.open_folder(run, rows)

    # Details

    def _sampler(self, like: Run | None) -> Sampler:
        rngs, c = self.learner.rng, self.config
        if like is not None and like.sampler is not None:
            return Sampler(like.sampler.rows, self.interface.obs_dim, self.interface.act_dim, rngs)
        assert self.dataset is not None
        return Sampler.over(self.dataset.transitions(), rngs, c.device)

    def _open_worlds(self) -> None:
        c, plan = self.config, self.plan
        rows, rounds = c.seeds * (c.num_worlds or 1), plan.horizon * (c.num_worlds or 1)
        if (c.processes or 1) > 1:
            self.collector = Elsewhere(c.seeds)
            return
        self.collector = Collector(open_world(c, rows), c.seeds, c.seed, self.learner.heard)
        if not plan.on_policy:
            widths = self.interface.obs_dim, self.interface.act_dim
            capacity = min(plan.capacity, -(-c.online // rounds) * rounds)  # a shorter run fills no more
            self.buffer = ReplayBuffer(capacity, c.seeds, *widths, c.device, whole=c.compile)
            self.learner.attach_replay(self.buffer)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in self.learner.nets.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _tell(self, phase: str, values: dict[str, float]) -> None:
        if self.progress is not None:
            self.progress(phase, self.step, self.total, values)


def open_world(config: TrainConfig, rows: int) -> Any:
    """The worlds to learn in. Raises ValueError, ImportError where engine=warp cannot step them."""
    if config.engine is Engine.mujoco:
        return sim.make(str(config.task), num_worlds=rows, threads=config.threads, shift=config.shift)
    from robot_cl.warp_worlds import WarpWorld

    if config.shift is not None:
        raise ValueError(f"engine=warp steps worlds as they are; leave out shift={config.shift}, or take engine=mujoco")
    return WarpWorld(str(config.task), rows, device=config.device)


def agreed_interface(task: str | None, dataset: StoredDataset | None) -> Interface:
    """The task's interface, which the dataset's must fit in width. Raises ValueError if neither is given."""
    if task is None:
        if dataset is None:
            raise ValueError("there is nothing to learn from; give data=NAME, task=NAME or both")
        return dataset.interface
    interface = sim.make(task, num_worlds=1, threads=1).interface
    if dataset is not None:
        theirs = dataset.interface
        if (theirs.obs_dim, theirs.act_dim) != (interface.obs_dim, interface.act_dim):
            raise ValueError(f"dataset {dataset.name} does not fit task {task}: {theirs.difference(interface)}")
    return interface
