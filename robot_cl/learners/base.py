"""What all learners share: networks, optimisers, generators and a step count, and how these are saved."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from policies.actor import ActorConfig, StackedGaussianActor
from policies.lora import attach, layer_inputs, linear_layers, with_gain
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.learners.draws import Draws
from robot_cl.learners.graph import Captured
from robot_cl.learners.incumbent import Incumbent
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.replay import ReplayBuffer
from robot_cl.learners.stacks import merged, repeated
from robot_cl.learners.units import UNIT, in_one_unit

START = "start"  # of `nets`: the frozen actor whose weights train
SEEN, SEEN_ROWS = "seen", 512  # of `extra`: observations of late (SEEN_ROWS, obs_dim, P), at which biases are folded
Metrics = dict[str, Tensor]  # name -> (P,), one number per member
Module = TypeVar("Module", bound=nn.Module)


class Trainable(StrEnum):
    """`full`: everything in the actor; `adapter`: low-rank factors on a frozen actor; `weights`: its weight matrices
    (some learners: and its biases, see `folds_biases`), of whose change the best factors of that rank are published: as
    quick as all of it, and still a skill."""

    full = "full"
    adapter = "adapter"
    weights = "weights"


@dataclass
class LearnerConfig:
    """Options of every learner."""

    actor: ActorConfig = field(default_factory=ActorConfig)  # shape of the policy; ignored when one is loaded
    trainable: Trainable = Trainable.full  # full network, or (adapter, weights) a skill on the policy of init_from
    rank: int = 8  # of the skill
    adapt_sigma: bool = False  # while a skill is trained σ trains too, to explore by; the skill itself does not keep it

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; a skill needs at least 1")


@dataclass(frozen=True)
class OnlinePlan:
    """How the training loop feeds `update_online`.

    Each round collects `horizon` steps in every world. On-policy, these are `fresh` as (P, horizon, worlds). Else they
    go to a replay buffer, and once it holds `warmup` steps, `updates` updates per collected step follow, each with
    `batches` batches (P, batch) as one, of which the share `offline_share` comes from the dataset.
    """

    horizon: int = 1
    on_policy: bool = False
    num_worlds: int = 1
    updates: float = 1.0
    warmup: int = 0
    capacity: int = 1_000_000
    offline_share: float = 0.0
    batches: int = 1


class Learner:
    """Base of the learners; one level deep.

    Remembers `nets` (parameters, targets, statistics), `opts` (moments), `rng` (one generator per member, from which
    every draw of that member comes), `step` (updates made) and `extra` (running quantities). A subclass adds its
    networks and optimisers in `build` and defines the updates of its `phases`; each returns metrics (P,) per name.
    """

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    apart: ClassVar[tuple[str, ...]] = ("offline",)  # of these: the ones whose members may learn in several processes
    folds_biases: ClassVar[bool] = False  # trainable=weights: whether biases train too, what they gain becoming weights
    kinds: ClassVar[tuple[str, ...]] = ("gaussian",)  # of actors it can train

    def __init__(
        self,
        config: LearnerConfig,
        obs_dim: int,
        act_dim: int,
        seeds: int = 1,
        seed: int = 0,
        device: str = "cpu",
        actor: StackedGaussianActor | None = None,
    ):
        """`actor` continues a trained policy (of one member or of `seeds`), else one is drawn as `config.actor` says.

        Raises ValueError where they do not fit together.
        """
        self.config, self.seeds, self.device, self.step = config, seeds, device, 0
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.rng = generators(seed, seeds)
        self.draws, self.captured = Draws(self.rng, device), Captured(self)
        self.opts: dict[str, FlatAdam] = {}
        self.incumbent: Incumbent | None = None
        self.episodes_left = math.inf  # in each world until the run ends, if they last as long as they can
        self.extra: dict[str, Tensor] = {}
        self.nets = nn.ModuleDict()
        if config.trainable is not Trainable.full and actor is None:
            raise ValueError(f"trainable={config.trainable} needs a trained policy to adapt; give base=RUN")
        if actor is None:
            actor = self.new_actor()
        elif (actor.obs_dim, actor.act_dim) != (obs_dim, act_dim):
            raise ValueError(
                f"the policy reads {actor.obs_dim} observations and gives {actor.act_dim} actions, "
                f"the task has {obs_dim} and {act_dim}"
            )
        elif actor.kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} trains {' or '.join(self.kinds)} policies, not a {actor.kind} one")
        else:
            actor = repeated(actor, seeds)
        if config.trainable is not Trainable.full:
            actor.normalizer.freeze()  # part of the base, as its weights are: all skills share it
            if config.trainable is Trainable.weights:
                self.add(START, repeated(actor, seeds)).requires_grad_(False)
            self.restrict(actor, self.rng)
            if config.adapt_sigma and hasattr(actor, "log_std"):
                actor.log_std.requires_grad_(True)
        self.add("actor", actor)
        if config.trainable is Trainable.weights and self.folds_biases:
            self.extra[SEEN] = torch.zeros(SEEN_ROWS, obs_dim, seeds, device=device)
        self.build()

    def build(self) -> None:
        """Networks besides the actor (`add`), then optimisers (`optimiser`)."""
        raise NotImplementedError

    def new_actor(self) -> StackedGaussianActor:
        """An untrained policy as `config.actor` says, one member per seed."""
        return StackedGaussianActor(self.obs_dim, self.act_dim, self.rng, self.config.actor, self.new_normalizer())

    def restrict(self, actor: StackedGaussianActor, rngs: list[torch.Generator]) -> None:
        """Leave of an actor trainable what the options say; member p's adapter, if any, is drawn from rngs[p]."""
        if self.config.trainable is Trainable.adapter:
            attach(actor, self.config.rank, rngs, self.adapter_scale)
        elif self.config.trainable is Trainable.weights:
            actor.requires_grad_(False)
            for _, _, _, layer in linear_layers(actor):
                assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
                layer.weight.requires_grad_(True)
                layer.bias.requires_grad_(self.folds_biases)

    @property
    def adapter_scale(self) -> float:
        """What multiplies an adapter's change while it trains; it is stored with the scale inside."""
        return 1.0

    def add(self, name: str, module: Module) -> Module:
        """Register a network under a name and move it to the device. Returns it."""
        self.nets[name] = module.to(self.device)
        return module

    def new_normalizer(self) -> Normalizer:
        """Statistics of the training data, the same for all members."""
        return Normalizer(self.obs_dim)

    @property
    def actor(self) -> StackedGaussianActor:
        actor = self.nets["actor"]
        assert isinstance(actor, StackedGaussianActor)
        return actor

    @property
    def published(self) -> StackedGaussianActor:
        """What is evaluated and saved: the first candidate, or online an incumbent that one has yet to beat."""
        return self.candidates[0] if self.incumbent is None or not self.incumbent.begun else self.incumbent.published

    @property
    def candidates(self) -> tuple[StackedGaussianActor, ...]:
        """What learning has come to, the first to be published: the actor, or an average of those that it was first."""
        return (self.actor,)

    def policy(self) -> StackedGaussianActor:
        """The actor to publish: itself, or a copy with its adapters added to the weights."""
        return merged(self.adapted() or self.published)

    def adapted(self) -> StackedGaussianActor | None:
        """The frozen base with the adapters to publish, None where the whole network trains."""
        return self._adapted(self.published)

    def _adapted(self, trained: Any) -> Any:
        if self.config.trainable is Trainable.weights:
            start: Any = self.nets[START]
            seen = self.extra.get(SEEN)
            inputs = None if seen is None else layer_inputs(trained, seen.permute(2, 0, 1))
            return with_gain(repeated(start, self.seeds), trained, self.config.rank, inputs)
        return trained if self.config.trainable is Trainable.adapter else None

    def see(self, obs: Tensor) -> None:
        """Remember some of the latest observations (P, N, obs_dim), where biases that train will be folded."""
        if SEEN in self.extra:
            rows = torch.linspace(0, obs.shape[1] - 1, SEEN_ROWS, device=obs.device).long()
            self.extra[SEEN].copy_(obs[:, rows].permute(1, 2, 0))

    def optimiser(self, modules: Iterable[nn.Module], lr: float, clip: float | None = None) -> FlatAdam:
        """Adam over the trainable parameters of `modules`: of an actor with adapters, only theirs."""
        return FlatAdam((p for module in modules for p in module.parameters()), self.seeds, lr, clip)

    def plan(self) -> OnlinePlan:
        """How the online part is fed."""
        return OnlinePlan()

    def prepare(self, data: Transitions) -> None:
        """Before the first update: statistics of the training data (N,), then frozen. A loaded policy keeps its own."""
        if not self.actor.normalizer.frozen:
            self.actor.normalizer.fit(data.obs)

    def attach_data(self, data: Transitions) -> None:
        """The whole training data (N,), before `prepare` and again when a run is resumed; nothing is drawn here."""

    def attach_replay(self, buffer: ReplayBuffer) -> None:
        """Where fresh experience is kept, before the first online update and again when a run is resumed."""

    def update_offline(self, batch: Transitions) -> Metrics:
        """One update on a batch (P, B) of the dataset."""
        raise NotImplementedError(f"{type(self).__name__} does not learn offline")

    def graph_key(self, online: bool = False) -> Hashable | None:
        """The next update's: updates with equal keys run the same kernels, so that one capture serves all of them.

        Such updates read and write in place, draw by `draws` and set learning rates in `schedule`. None: not to be
        captured.
        """
        return None

    def schedule(self, online: bool = False) -> None:
        """Learning rates of the next update, where they change; every update begins with it."""

    def update_online(self, fresh: Transitions, offline: Transitions | None) -> Metrics:
        """One update on fresh experience (see `OnlinePlan`) and, where asked for, a batch (P, B) of the dataset."""
        raise NotImplementedError(f"{type(self).__name__} does not learn online")

    def noise(self, *shape: int) -> Tensor:
        """Standard normal (P, *shape), member p's from rng[p]."""
        return self.draws.normal(*shape)

    @torch.inference_mode()
    def explore(self, obs: Tensor, noise: Tensor, actor: StackedGaussianActor | None = None) -> Tensor:
        """obs (P, W, obs_dim) -> action (P, W, act_dim) to try, drawn from the policy with standard normal noise.

        `actor` is a copy of it elsewhere, None: the learner's own.
        """
        actor = actor or self.actor
        mean, log_std = actor(obs)
        return self.tried(obs, actor.sample(mean, log_std, noise)[0].clamp(-1.0, 1.0))

    def tried(self, obs: Tensor, action: Tensor) -> Tensor:
        """`action`, but where an incumbent or a challenger plays instead, without noise."""
        return action if self.incumbent is None else self.incumbent.act(obs, action)

    def heard(self, ended: np.ndarray, returns: np.ndarray) -> None:
        """Episodes of the worlds learned in that are over (P, W) bool, and their returns."""
        if self.incumbent is not None:
            self.incumbent.heard(ended, returns)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is remembered, as one flat dict of tensors."""
        state = {f"nets.{name}": value for name, value in self.nets.state_dict().items()}
        for opt, adam in self.opts.items():
            state |= {f"opts.{opt}.{name}": value for name, value in adam.state_dict().items()}
        state |= {f"rng.{p}": rng.get_state() for p, rng in enumerate(self.rng)}
        state |= {f"extra.{name}": value for name, value in self.extra.items()}
        return state | {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same configuration. Raises ValueError naming the first difference."""
        parts: dict[str, dict[str, Tensor]] = {"nets": {}, "opts": {}, "rng": {}, "extra": {}}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if name:
                parts.get(kind, {})[name] = value
        check_shapes("network", parts["nets"], self.nets.state_dict())
        if "step" not in state or len(parts["rng"]) != self.seeds:
            raise ValueError(f"the saved state has {len(parts['rng'])} members, this learner {self.seeds}")
        lost = [name for name in self.extra if name not in parts["extra"]]
        if lost:
            raise ValueError(f"running quantity {lost[0]!r} is missing")
        self.nets.load_state_dict(parts["nets"])
        for opt, adam in self.opts.items():
            prefix = f"{opt}."
            adam.load_state_dict({k.removeprefix(prefix): v for k, v in parts["opts"].items() if k.startswith(prefix)})
        for p, rng in enumerate(self.rng):
            rng.set_state(parts["rng"][str(p)].cpu().clone())  # torch crashes on a view of a larger buffer
        self.extra = {name: value.to(self._home(name)).clone() for name, value in parts["extra"].items()}
        self.step = int(state["step"])

    def _home(self, name: str) -> torch.device | str:
        """Where a running quantity lives: counts that Python looks at stay on the host."""
        return self.extra[name].device if name in self.extra else self.device

    @torch.no_grad()
    def adopt(self, state: dict[str, Tensor]) -> None:
        """Take over from another learner's `state_dict` the networks (not the actors) and running quantities that fit.

        A network fits if it has the same name and shapes; those of fewer members are repeated for all. Values of scaled
        rewards are none of rewards as they are.
        """
        state = in_one_unit(state, UNIT in {f"extra.{name}" for name in self.extra})
        times = self.seeds // (sum(name.startswith("rng.") for name in state) or self.seeds)
        for name, net in self.nets.items():
            if name in ("actor", START) or isinstance(net, StackedGaussianActor):
                continue  # averages, anchors and targets begin at the actor that was loaded
            mine = net.state_dict()
            theirs = {key: state.get(f"nets.{name}.{key}") for key in mine}
            fitted = {key: _repeat(value, mine[key], times) for key, value in theirs.items() if value is not None}
            if len(fitted) == len(mine) and all(v is not None for v in fitted.values()):
                net.load_state_dict(fitted)
        for name, value in self.extra.items():
            saved = state.get(f"extra.{name}")
            if saved is not None and saved.shape == value.shape:
                value.copy_(saved)
        if self.incumbent is not None:
            self.incumbent.begin_anew()


def _repeat(value: Tensor, like: Tensor, times: int) -> Tensor | None:
    """`value` so many times along the population axis, or None where that has not the shape of `like`: more critics of
    one seed are no critics of more seeds."""
    if value.shape == like.shape:
        return value
    repeated = value.repeat(times, *[1] * (value.dim() - 1)) if value.dim() and times > 1 else value
    return repeated if repeated.shape == like.shape else None


def check_shapes(what: str, given: dict[str, Tensor], expected: dict[str, Any]) -> None:
    """Raises ValueError naming the first tensor that is missing, unknown or of another shape."""
    for name in [*expected, *given]:
        has = tuple(given[name].shape) if name in given else "missing"
        wants = tuple(expected[name].shape) if name in expected else "unknown"
        if has != wants:
            raise ValueError(f"{what} tensor {name!r} is {has}, expected {wants}; it was made with other options")
