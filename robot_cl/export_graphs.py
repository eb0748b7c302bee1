"""Policies as plain torch modules from observation to action, in the form that an exported graph needs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from policies.composed import ComposedActor
from policies.composers.composer import Composer, CompositionShape
from policies.composers.fixed import Fixed
from policies.networks import ACTIVATIONS
from policies.normalizer import Normalizer
from robot_cl.data.behaviours import SQUASHES, Behaviour
from robot_cl.deploy.contract import SkillEntry


def graph_of(policy: Any) -> tuple[nn.Module, tuple[SkillEntry, ...], str]:
    """The module obs (B, obs_dim) [, skills (K,)] -> action (B, act_dim) of a policy, its skill inputs, its kind.

    Raises ValueError for a policy that no graph can be made of.
    """
    if isinstance(policy, ComposedActor):
        kind = f"composed {type(policy.composer).__name__}"
        weights = constant_weights(policy)
        if weights is not None:
            return WeighedGraph(policy), skill_entries(policy, weights), kind
        return ModeGraph(policy), (), kind
    if isinstance(policy, Behaviour):
        return BehaviourGraph(policy), (), "behaviour"
    actor = getattr(policy, "actor", None)
    if isinstance(actor, nn.Module) and hasattr(actor, "mode"):
        return ModeGraph(actor), (), type(actor).__name__
    raise ValueError(
        f"a {type(policy).__name__} cannot be exported: expected a trained actor, a composition or a behaviour"
    )


class ModeGraph(nn.Module):
    """The deterministic action (B, act_dim) of an actor with a population axis of one."""

    def __init__(self, actor: nn.Module):
        super().__init__()
        self.actor = actor

    def forward(self, obs: Tensor) -> Tensor:
        return cast(Any, self.actor).mode(obs)[0]


class WeighedGraph(nn.Module):
    """A composition whose coefficients are an argument: obs (B, obs_dim), skills (K,) -> action (B, act_dim)."""

    def __init__(self, composed: ComposedActor):
        super().__init__()
        self.given = GivenWeights(composed.composer.shape)
        # Shares every weight with the original, which is left as it is.
        shared = {id(t): t for t in [*composed.parameters(), *composed.buffers()]}
        self.composed = copy.deepcopy(composed, shared)
        self.composed.composer = self.given

    def forward(self, obs: Tensor, skills: Tensor) -> Tensor:
        with self.given.set_to(skills):
            return self.composed.mode(obs)[0]


class GivenWeights(Composer):
    """Answers the weights of the call in progress."""

    def __init__(self, shape: CompositionShape):
        super().__init__(shape)
        self.holder: list[Tensor] = []

    @contextlib.contextmanager
    def set_to(self, weights: Tensor) -> Iterator[None]:
        self.holder.append(weights.unsqueeze(0))
        try:
            yield
        finally:
            self.holder.pop()

    def forward(self, obs: Tensor, task: Tensor | None = None) -> Tensor:
        return self.holder[-1]


def constant_weights(composed: ComposedActor) -> np.ndarray | None:
    """The coefficients (K,) of a composition that has one constant per skill, else None."""
    composer = composed.composer
    if isinstance(composer, Fixed) and composer.weights.dim() == 1:
        return composer.weights.detach().cpu().numpy()
    return None


class BehaviourGraph(nn.Module):
    """A behaviour policy's mean action; its statistics are in a normaliser, as everywhere else."""

    def __init__(self, behaviour: Behaviour):
        super().__init__()
        self.activation, self.squash = ACTIVATIONS[behaviour.card.activation], SQUASHES[behaviour.card.squash]
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w, _ in behaviour.layers)
        self.biases = nn.ParameterList(nn.Parameter(b, requires_grad=False) for _, b in behaviour.layers)
        self.normalizer: Normalizer | None = None
        if "obs_mean" in behaviour.arrays:
            clip = behaviour.card.obs_clip
            self.normalizer = Normalizer(behaviour.obs_dim, clip=float("inf") if clip is None else clip)
            self.normalizer.mean.copy_(torch.from_numpy(behaviour.arrays["obs_mean"]))
            self.normalizer.var.copy_(torch.from_numpy(behaviour.arrays["obs_var"]))

    def forward(self, obs: Tensor) -> Tensor:
        x = obs if self.normalizer is None else self.normalizer(obs)
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            x = self.activation(torch.addmm(bias, x, weight))
        return self.squash(torch.addmm(layers[-1][1], x, layers[-1][0]))


def skill_entries(composed: ComposedActor, weights: np.ndarray) -> tuple[SkillEntry, ...]:
    """What the contract says of each skill; its weight may later be set between 0 and 1 (and its start)."""
    entries = []
    for k, (name, rank) in enumerate(zip(composed.mixture.names, composed.mixture.ranks, strict=True)):
        digest = hashlib.sha256()
        for layer in composed.mixture.mixed:
            rows = layer.skill_of == k
            for factor in (layer.down, layer.up):
                digest.update(factor[rows].detach().cpu().contiguous().numpy().tobytes())
        weight = float(weights[k])
        entries.append(SkillEntry(name, rank, digest.hexdigest(), weight, min(0.0, weight), max(1.0, weight)))
    return tuple(entries)
