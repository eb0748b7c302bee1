"""Few-shot training of many members at once: every draw of demonstrations and every number of them is one member.

Members learn side by side from their own pools of rows: stacked networks or stacked adapters on one frozen base.
Compositions of member p mix shared skills and the skill that p learned: the rows of all members go through one mixture
of shared and new skills, with coefficients that are zero for what is not theirs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from policies.adapter import Adapter
from policies.composed import LEVELS
from policies.composers.supported import reach_of, support
from policies.diffusion import Drawn, GenerativeActor, generative_from_spec
from policies.lora import base_layer, linear_layers
from policies.mixture import Mixture
from policies.networks import StackedMLP, generators
from robot_cl.learners.psec import average_rate


@dataclass(frozen=True)
class Pools:
    """obs (N, obs_dim), action (N, act_dim), and for each member the rows it may learn from."""

    obs: Tensor
    action: Tensor
    index: Tensor  # (M, L) row numbers, padded
    count: Tensor  # (M,) how many of them are valid

    @classmethod
    def of(cls, obs: Tensor, action: Tensor, rows: Sequence[Tensor]) -> Pools:
        index = nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(obs.device)
        return cls(obs, action, index, torch.tensor([len(r) for r in rows], device=obs.device))

    @property
    def members(self) -> int:
        return len(self.index)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """obs (M, batch, obs_dim), action (M, batch, act_dim), uniformly with replacement."""
        share = torch.rand(self.members, batch, device=self.obs.device)
        picked = self.index.gather(1, (share * self.count[:, None]).long())
        return self.obs[picked], self.action[picked]


@dataclass(frozen=True)
class Schedule:
    """steps of AdamW with a cosine from lr to zero, batches of `batch` rows per member."""

    steps: int
    lr: float
    batch: int = 256


Loss = Callable[[Tensor, Tensor], Tensor]  # obs (M, B, obs_dim), action (M, B, act_dim) -> (M,) or a scalar


def fit(
    loss: Loss, parameters: Sequence[nn.Parameter], pools: Pools, plan: Schedule, seed: int,
    average: Sequence[nn.Parameter] = (),
) -> float:  # fmt: skip
    """Train until the schedule ends -> mean loss of the last tenth. `average` follows as PSEC's does.

    Everything is drawn on the device from torch's own generator; on a GPU a step is captured once and replayed.
    """
    torch.manual_seed(seed)
    cuda = pools.obs.is_cuda
    rate = torch.tensor(plan.lr, device=pools.obs.device)
    optimiser = torch.optim.AdamW(parameters, lr=rate if cuda else plan.lr, fused=cuda, capturable=cuda)

    def step() -> Tensor:
        optimiser.zero_grad()
        value = loss(*pools.draw(plan.batch)).sum()
        value.backward()
        optimiser.step()
        return value.detach()

    run, last = Replayed(step) if cuda else step, list[Tensor]()
    for k in range(plan.steps):
        now = 0.5 * plan.lr * (1.0 + math.cos(math.pi * k / plan.steps))
        if cuda:
            rate.fill_(now)
        else:
            optimiser.param_groups[0]["lr"] = now
        value = run()
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(list(average), list(parameters), average_rate(k, 0.001))
        if k >= plan.steps - max(1, plan.steps // 10):
            last.append(value.clone())
    return float(torch.stack(last).mean()) / pools.members


class Replayed:
    """A step of training as a CUDA graph: three calls as they are, then captured, then replayed.

    Where it cannot be captured it says so and goes on as it is.
    """

    WARMUP = 3

    def __init__(self, step: Callable[[], Tensor]):
        self.step, self.calls, self.graph = step, 0, cast("torch.cuda.CUDAGraph | None", None)
        self.stream, self.value = torch.cuda.Stream(), torch.empty(0)

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.calls == self.WARMUP + 1:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
            return self.value
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            value = self.step()
        torch.cuda.current_stream().wait_stream(self.stream)
        return value

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.value = self.step()
            self.graph = graph
        except RuntimeError as problem:
            print(f"    not captured: {str(problem).splitlines()[0]}", flush=True)


def drawn(actor: GenerativeActor, members: int, rows: int) -> Drawn:
    """The random numbers of one loss, drawn on the device."""
    home = actor.noise.device
    seeds = torch.rand(members, actor.config.blocks, device=home) if actor.drops else None
    return Drawn(torch.rand(members, rows, 1, device=home),
                 torch.randn(members, rows, actor.act_dim, device=home), seeds)  # fmt: skip


def actor_loss(actor: GenerativeActor) -> Loss:
    """The actor's own imitation loss (M,)."""
    return lambda obs, action: actor.loss_at(obs, action, drawn(actor, *obs.shape[:2]))


@torch.no_grad()
def copies(actor: GenerativeActor, members: int) -> GenerativeActor:
    """`members` trainable copies of a lone actor, side by side."""
    many = generative_from_spec(actor.spec() | {"population": members})
    wanted = many.state_dict()
    many.load_state_dict({name: value.expand_as(wanted[name]) for name, value in actor.state_dict().items()})
    return many.to(actor.noise.device)


class MemberGate(nn.Module):
    """PSEC's composer for M members: z (M, B, obs_dim) -> α (M, B, K), starting at 1/K. `blind` sees zeros."""

    def __init__(self, obs_dim: int, skills: int, members: int, blind: bool = False, seed: int = 0):
        super().__init__()
        self.blind = blind
        self.net = StackedMLP(obs_dim, (256, 256), skills, generators(seed, members))
        with torch.no_grad():
            last = cast(Any, self.net.layers[-1])
            last.weight.zero_()
            last.bias.fill_(1.0 / skills)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(torch.zeros_like(z) if self.blind else z)


class MemberConstants(nn.Module):
    """One tuned number per member and skill, (M, 1, K), starting at 1/K."""

    def __init__(self, skills: int, members: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((members, 1, skills), 1.0 / skills))

    def forward(self, z: Tensor) -> Tensor:
        return self.weights.expand(-1, z.shape[1], -1)


class MemberSupport(nn.Module):
    """One coefficient per member: 1 where an observation is like the member's demonstrations, 0 far from them.

    shown: per member its normalised observations (N, obs_dim) and the episode (N,) of each.
    """

    def __init__(self, shown: Sequence[tuple[Tensor, Tensor]]):
        super().__init__()
        self.shown = [(z, reach_of(z.cpu(), episode.cpu()).to(z.device)) for z, episode in shown]

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([support(z[p], *own) for p, own in enumerate(self.shown)]).unsqueeze(-1)


class StackedComposition(nn.Module):
    """Member p mixes the shared skills and its own: obs (M, B, obs_dim) raw -> actions (M, B, act_dim).

    `new` has one adapter per member, or none at all. `level` as in policies.composed.ComposedActor, which a stack of
    one member equals. Only the composer trains. `order` permutes the skills that the coefficients meet.
    """

    def __init__(
        self,
        base: GenerativeActor,
        shared: Mapping[str, Adapter],
        new: Sequence[Adapter],
        composer: nn.Module,
        members: int,
        level: str = "parameter",
    ):
        super().__init__()
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is unknown; one of {', '.join(LEVELS)}")
        skills = dict(shared) | {f"new{p}": adapter for p, adapter in enumerate(new)}
        self.mixture, self.composer, self.level, self.members = Mixture(base, skills), composer, level, members
        own = [[*range(len(shared)), *([len(shared) + p] if new else [])] for p in range(members)]
        device = base.noise.device
        self.mixture.to(device)
        self.columns = torch.tensor(own, device=device)  # (M, K)
        self.to(device)

    @property
    def actor(self) -> Any:
        return self.mixture.actor

    def spread(self, own: Tensor) -> Tensor:
        """Coefficients (M, B, K) of each member's own skills -> (M · B, all skills)."""
        members, rows, _ = own.shape
        wide = own.new_zeros(members, rows, self.mixture.num_skills)
        return wide.scatter(2, self.columns[:, None].expand(-1, rows, -1), own).flatten(0, 1)

    def alone(self, k: int, rows: int) -> Tensor:
        """Coefficients (M · B, all skills) that choose each member's k-th skill."""
        hot = torch.zeros(self.members, rows, self.columns.shape[1], device=self.columns.device)
        hot[..., k] = 1.0
        return self.spread(hot)

    def loss(self, obs: Tensor, action: Tensor) -> Tensor:
        """(M,) the actor's imitation loss, or at level "action" the squared error of the composed action."""
        if self.level == "action":
            return (self.mode(obs) - action).square().sum(-1).mean(-1)
        flat = action.flatten(0, 1)
        whole = self._compose(obs, lambda rows: self.actor.loss_at(rows, flat, drawn(self.actor, 1, len(rows))))
        return whole.expand(len(obs))  # the rows' mean is the members' mean, and its sum the members' sum

    def member_losses(self, obs: Tensor, action: Tensor) -> Tensor:
        """(M,) each member's own loss at level "parameter", with the random numbers that a stacked actor draws."""
        random = drawn(self.actor, *obs.shape[:2])
        alpha = self.spread(self.composer(self.actor.normalizer(obs))).unflatten(0, obs.shape[:2])
        losses = []
        for p in range(len(obs)):
            with self.mixture.using(alpha[p]):
                one = Drawn(random.share[p : p + 1], random.noise[p : p + 1])
                losses.append(self.actor.loss_at(obs[p], action[p], one)[0])
        return torch.stack(losses)

    def mode(self, obs: Tensor) -> Tensor:
        return self._compose(obs, self.actor.mode)[0].unflatten(0, obs.shape[:2])

    def _compose(self, obs: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        alpha, flat = self.composer(self.actor.normalizer(obs)), obs.flatten(0, 1)
        if self.level == "parameter":
            with self.mixture.using(self.spread(alpha)):
                return call(flat)
        if self.level == "action":
            return self._mixed(call, (flat,), alpha).clamp(-1.0, 1.0)
        net = self.actor.net
        self.actor.net = Called(lambda *inputs: self._mixed(net, inputs, alpha))
        try:
            return call(flat)
        finally:
            self.actor.net = net

    def _mixed(self, call: Callable[..., Tensor], inputs: tuple[Tensor, ...], alpha: Tensor) -> Tensor:
        """y_0 + Σ_k α_k (y_k − y_0) of what `call` gives under the bare base and under each skill."""
        weights = alpha.flatten(0, 1)  # (M · B, K)
        with torch.no_grad():
            base = call(*inputs)
            change = []
            for k in range(weights.shape[1]):
                with self.mixture.using(self.alone(k, alpha.shape[1])):
                    change.append(call(*inputs) - base)
        return base + (torch.stack(change, -1) * weights.unsqueeze(-2)).sum(-1)


class Called(nn.Module):
    """A function in the place of a network."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class MemberSubspace(nn.Module):
    """One layer of θ = θ0 + P θ_d for M members: `theta` (M, d), P the same for all (see policies.intrinsic)."""

    def __init__(self, base: Any, theta: nn.Parameter, index: Tensor, sign: Tensor):
        super().__init__()
        self.base, self.theta = base, theta
        self.register_buffer("index", index)
        self.register_buffer("sign", sign)

    def forward(self, x: Tensor) -> Tensor:
        index, sign = cast(Tensor, self.index), cast(Tensor, self.sign)
        change = self.theta.index_select(1, index.flatten()).view(-1, *index.shape) * sign  # (M, d_out, d_in)
        y = self.base(x)
        x = x.expand(len(change), *x.shape[-2:])
        return torch.baddbmm(y.expand(len(change), *y.shape[-2:]), x, change.transpose(1, 2))


def attach_member_subspaces(actor: GenerativeActor, dimension: int, members: int, seed: int) -> nn.Parameter:
    """Freeze a copy's layers and return θ_d (members, dimension), zero at the start."""
    rng, found = torch.Generator().manual_seed(seed), list(linear_layers(actor))
    sizes = [cast(Tensor, base_layer(layer).weight).numel() for *_, layer in found]
    actor.requires_grad_(False)
    device = actor.noise.device
    theta = nn.Parameter(torch.zeros(members, dimension, device=device))
    index = torch.randperm(sum(sizes), generator=rng) % dimension
    scale = torch.bincount(index, minlength=dimension).float().rsqrt()
    sign = (torch.randint(0, 2, index.shape, generator=rng) * 2.0 - 1.0) * scale[index]
    for (_, parent, attribute, layer), i, s in zip(found, index.split(sizes), sign.split(sizes), strict=True):
        shape = cast(Tensor, base_layer(layer).weight).shape[-2:]
        setattr(parent, attribute, MemberSubspace(layer, theta, i.view(shape).to(device), s.view(shape).to(device)))
    return theta


def clone(actor: GenerativeActor) -> GenerativeActor:
    return copy.deepcopy(actor)
