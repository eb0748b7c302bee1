"""All tasks at once: what learning them together, with the whole budget, would have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.networks import StackedLinear
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, copied
from robot_cl.continual.method import Method, Setup, below, learner_values
from robot_cl.continual.stage_worlds import stage_world
from robot_cl.learners.base import Learner
from sim.spec import Channel, Interface


class MultiTask(Method):
    """One network told the task by a one-hot appended to its observation, in worlds of all tasks side by side.

    Begins at the base, with zero weights on the task's numbers; each stage's budget is spent on all tasks. Not a
    continual method: a bound on what could be had, were nothing to come later. Remembers the network.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.count = len(setup.stream.stages)
        self.actor = widened(setup.base, self.count)

    def begin(self, k: int) -> tuple[Learner | None, int]:
        values = self.values[-1] if self.values else wide_values(self.setup, self.count)
        return self.learner(k, self.actor, values), 0

    def world(self, k: int) -> Any:
        stages, each = self.setup.stream.stages, max(1, self.setup.num_worlds // self.count)
        rows = self.setup.seeds * each
        return JoinedWorlds([stage_world([stage] * rows, self.setup.threads) for stage in stages], self.setup.seeds)

    def current(self, k: int, learner: Learner | None) -> StackedGaussianActor:
        assert learner is not None
        return told(learner.actor, self.setup.base, k)

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        assert learner is not None
        self.actor = copied(learner.actor)
        self.values = [learner_values(learner)]

    def policy(self, j: int) -> StackedGaussianActor:
        return told(self.actor, self.setup.base, j)

    def kept(self) -> dict[str, Tensor]:
        return {f"actor.{n}": p for n, p in self.actor.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"actor.{n}": t for n, t in self.actor.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.actor.load_state_dict(below(tensors, "actor."))


class JoinedWorlds:
    """Worlds of several tasks as one, each observation with its task's one-hot appended.

    Part j holds `each` rows of every member; together member p owns rows p·n to (p+1)·n, its first `each` on task 0.
    """

    def __init__(self, parts: Sequence[Any], members: int):
        self.parts, self.members = list(parts), members
        self.each = parts[0].num_worlds // members
        self.num_worlds = sum(part.num_worlds for part in parts)
        face, count = parts[0].interface, len(parts)
        told_by = tuple(Channel(f"task.{j}", "1", 0.0, 1.0) for j in range(count))
        self.interface = Interface((*face.obs, *told_by), face.action, face.control_dt)
        self._marks = np.eye(count)

    def reset(self, seed: int) -> np.ndarray:
        return self._seen([part.reset(seed=seed + j * part.num_worlds) for j, part in enumerate(self.parts)])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        blocks = action.reshape(self.members, len(self.parts), self.each, -1)
        done = [part.step(blocks[:, j].reshape(-1, action.shape[1])) for j, part in enumerate(self.parts)]
        obs, reward, terminated, truncated, info = zip(*done, strict=True)
        facts = {"final_obs": self._seen([i["final_obs"] for i in info])}
        facts["episode_return"] = self._joined([i["episode_return"] for i in info])
        gained, fallen, timed_out = (self._joined(list(x)) for x in (reward, terminated, truncated))
        return self._seen(list(obs)), gained, fallen, timed_out, facts

    def get_state(self) -> dict[str, np.ndarray]:
        return {f"{j}.{n}": value for j, part in enumerate(self.parts) for n, value in part.get_state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for j, part in enumerate(self.parts):
            mine = f"{j}."
            part.restore({n.removeprefix(mine): value for n, value in state.items() if n.startswith(mine)})

    def _joined(self, columns: list[np.ndarray]) -> np.ndarray:
        """Part by part (members · each, ...) -> member by member (N, ...)."""
        parts = [x.reshape(self.members, self.each, *x.shape[1:]) for x in columns]
        return np.concatenate(parts, axis=1).reshape(self.num_worlds, *columns[0].shape[1:])

    def _seen(self, obs: list[np.ndarray]) -> np.ndarray:
        marked = [np.hstack([x, np.tile(self._marks[j], (len(x), 1))]) for j, x in enumerate(obs)]
        return self._joined(marked)


@torch.no_grad()
def widened(base: StackedGaussianActor, tasks: int) -> StackedGaussianActor:
    """The base reading `tasks` more numbers, which have no effect yet and are not normalised."""
    spec = base.spec()
    wide = StackedGaussianActor.from_spec(spec | {"obs_dim": base.obs_dim + tasks})
    for name, p in wide.named_parameters():
        theirs = dict(base.named_parameters())[name]
        p.zero_()
        p[tuple(slice(0, n) for n in theirs.shape)] = theirs
    for name, neutral in (("mean", 0.0), ("var", 1.0)):
        getattr(wide.normalizer, name).fill_(neutral)[..., : base.obs_dim] = getattr(base.normalizer, name)
    wide.normalizer.count.copy_(base.normalizer.count)
    wide.normalizer.freeze()
    return wide


def wide_values(setup: Setup, tasks: int) -> State:
    """The base's critics reading `tasks` more numbers without effect."""
    wide = {}
    for name, value in setup.values.items():
        first = name.endswith("layers.0.weight") and value.shape[-1] == setup.base.obs_dim
        wide[name] = torch.nn.functional.pad(value, (0, tasks)) if first else value
    return wide


@torch.no_grad()
def told(wide: StackedGaussianActor, base: StackedGaussianActor, task: int) -> StackedGaussianActor:
    """The network on one task as an actor of the base's shape: the task's weights become part of the first bias."""
    actor = copied(base)
    theirs = dict(wide.named_parameters())
    for name, p in actor.named_parameters():
        p.copy_(theirs[name][tuple(slice(0, n) for n in p.shape)])
    first = wide.net.layers[0]
    assert isinstance(first, StackedLinear)
    marks = torch.zeros(wide.obs_dim - base.obs_dim)
    marks[task] = 1.0
    mine = actor.net.layers[0]
    assert isinstance(mine, StackedLinear)
    mine.bias.add_((first.weight[..., base.obs_dim :] @ marks).unsqueeze(1))
    return actor
