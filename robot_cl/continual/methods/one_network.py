"""One network that goes from task to task, with or without an output layer of its own for each: several baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.actor import StackedGaussianActor
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, copied
from robot_cl.continual.method import Method, Setup, below, learner_values
from robot_cl.learners.base import Learner


class OneNetwork(Method):
    """Remembers the network, and with `heads` the output layer (and σ) it had at the end of each task.

    Continual World gives every regularised method a head per task; without one, the newest head plays every task.
    """

    heads: ClassVar[bool] = False

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.actor = copied(setup.base)
        self.head: list[State] = []

    def begin(self, k: int) -> tuple[Learner | None, int]:
        made = self.learner(k, self.actor, self.values[-1] if self.values else self.setup.values)
        if k and "actor" in made.opts:
            made.opts["actor"].before = lambda: self.guard(made)
        return made, 0

    def guard(self, learner: Learner) -> None:
        """Called before each step of the actor after the first task: may add to its gradients."""

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        assert learner is not None
        self.actor = copied(learner.policy())
        self.values = [learner_values(learner)]
        if self.heads:
            self.head.append({name: p.detach().clone() for name, p in head(self.actor).items()})

    def policy(self, j: int) -> StackedGaussianActor:
        if j >= len(self.head):
            return self.actor
        actor = copied(self.actor)
        with torch.no_grad():
            for name, p in head(actor).items():
                p.copy_(self.head[j][name])
        return actor

    def kept(self) -> dict[str, Tensor]:
        return {f"actor.{n}": p for n, p in self.actor.named_parameters()} | flat("head", self.head)

    def tensors(self) -> dict[str, Tensor]:
        whole = {f"actor.{n}": t for n, t in self.actor.state_dict().items()}
        return super().tensors() | whole | flat("head", self.head)

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self.actor.load_state_dict(below(tensors, "actor."))
        self.head = listed(tensors, "head")


def head(actor: StackedGaussianActor) -> dict[str, Tensor]:
    """The parameters of the output layer, and σ where it is a parameter."""
    last = f"net.layers.{len(actor.net.layers) - 1}."
    return {name: p for name, p in actor.named_parameters() if name.startswith((last, "log_std"))}


def body(actor: StackedGaussianActor) -> dict[str, Tensor]:
    """Every other parameter."""
    return {name: p for name, p in actor.named_parameters() if name not in head(actor)}


def flat(name: str, states: list[State]) -> dict[str, Tensor]:
    """A list of dicts of tensors as one dict: "name.k.key"."""
    return {f"{name}.{k}.{key}": value for k, state in enumerate(states) for key, value in state.items()}


def listed(tensors: Mapping[str, Tensor], name: str) -> list[State]:
    """Inverse of `flat`."""
    count = len({key.split(".")[1] for key in tensors if key.startswith(f"{name}.")})
    return [below(tensors, f"{name}.{k}.") for k in range(count)]
